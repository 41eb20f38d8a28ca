"""Addresses of a broker: in which order, and raced."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
import socket
from typing import override

import pytest
import pytest_socket

from benchmarks.line import Namespace, why_not
from custom_components.quic_bridge.bridge.config import BrokerConfig, QuicConfig, TlsConfig
from custom_components.quic_bridge.bridge.errors import BridgeError, ErrorCode
from custom_components.quic_bridge.bridge.transport import QuicTransport, TcpTransport, addresses
from custom_components.quic_bridge.bridge.transport.addresses import MAX_ADDRESSES, Address, race, resolve
from custom_components.quic_bridge.bridge.transport.base import Transport

from ..support.certs import Certificates
from ..support.processes import AT_ONCE, PATIENCE, wait_until
from ..support.quic_front import Front
from .transport_support import Peer, PeerConnection, Receiver, open_files, quic_config, tcp_config

pytestmark = pytest.mark.usefixtures("socket_enabled")

BROKER, SILENT, DEAF = "127.0.0.1", "127.0.0.2", "127.0.0.3"


def name_leads_to(monkeypatch: pytest.MonkeyPatch, *hosts: str, port: int = 1) -> None:
    """Let every name have these addresses."""

    async def getaddrinfo(*_: object, **__: object) -> list[object]:
        return [
            (socket.AF_INET6, 0, 0, "", (host, port, 0, 0)) if ":" in host else (socket.AF_INET, 0, 0, "", (host, port))
            for host in hosts
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


async def test_the_families_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    name_leads_to(monkeypatch, "2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1", "192.0.2.2", "192.0.2.1")
    deadline = asyncio.get_running_loop().time() + 1
    found = await resolve("broker.example", 1, socket.SOCK_DGRAM, deadline)
    assert [address.sockaddr[0] for address in found] == [
        "2001:db8::1",
        "192.0.2.1",
        "2001:db8::2",
        "192.0.2.2",
        "2001:db8::3",
    ]
    name_leads_to(monkeypatch, *(f"192.0.2.{number}" for number in range(1, 100)))
    found = await resolve("broker.example", 1, socket.SOCK_DGRAM, deadline)
    assert [str(address) for address in found] == [f"192.0.2.{number}:1" for number in range(1, MAX_ADDRESSES + 1)]


def some(*hosts: str) -> list[Address]:
    """Make addresses."""
    return [Address(socket.AF_INET, (host, 1)) for host in hosts]


async def test_of_two_that_succeed_at_once_one_is_released() -> None:
    """Both handshakes end in the same turn of the loop: the second is too late to be cancelled."""
    both = asyncio.Event()
    started: list[Address] = []
    released: list[str] = []

    async def dial(address: Address) -> str:
        started.append(address)
        if len(started) == 2:
            both.set()
        await both.wait()
        return str(address)

    places = some("192.0.2.1", "192.0.2.2")
    address, result = await race(places, [], dial, released.append)
    assert [result, *released] in (["192.0.2.1:1", "192.0.2.2:1"], ["192.0.2.2:1", "192.0.2.1:1"])
    assert str(address) == result
    assert len(places) == 2


async def test_an_error_of_ours_ends_the_race_and_leaves_nothing() -> None:
    cancelled: list[Address] = []

    async def dial(address: Address) -> None:
        if address.sockaddr[0] == "192.0.2.2":
            raise RuntimeError("a fault of ours")
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(address)

    places = some("192.0.2.1", "192.0.2.2")
    with pytest.raises(RuntimeError):
        await race(places, [], dial, lambda _: None)
    assert cancelled == places[:1]


async def test_failures_are_told_by_the_one_that_says_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "ATTEMPT_DELAY", AT_ONCE)
    errors = {
        "192.0.2.1": BridgeError(ErrorCode.NO_ANSWER, "silence"),
        "192.0.2.2": BridgeError(ErrorCode.CERTIFICATE_NAME, "another name", reason_code=298),
        "192.0.2.3": BridgeError(ErrorCode.REFUSED, "refused"),
    }

    async def dial(address: Address) -> None:
        raise errors[str(address.sockaddr[0])]

    places, failures = some(*errors), list[BridgeError]()
    started = asyncio.get_running_loop().time()
    with pytest.raises(BridgeError) as error:
        await race(places, failures, dial, lambda _: None)
    assert error.value.code is ErrorCode.CERTIFICATE_NAME
    assert error.value.text == "another name (tried 3 addresses)"
    assert error.value.reason_code == 298
    assert places == []
    assert failures == list(errors.values())
    assert asyncio.get_running_loop().time() - started < AT_ONCE, "an address that fails does not keep the next waiting"


# Real sockets


@asynccontextmanager
async def silence(kind: socket.SocketKind, port: int) -> AsyncIterator[None]:
    """Occupy a port on which nobody answers: UDP that is not read, TCP whose queue of connections is full."""
    pytest_socket.socket_allow_hosts([BROKER, SILENT, DEAF], allow_unix_socket=True)
    with socket.socket(socket.AF_INET, kind) as deaf, socket.socket(socket.AF_INET, kind) as filler:
        deaf.bind((SILENT, port))
        if kind is socket.SOCK_STREAM:
            deaf.listen(0)
            filler.connect((SILENT, port))
        yield


async def connect(transport: Transport) -> float:
    """Connect, and return how many seconds that took."""
    started = asyncio.get_running_loop().time()
    await transport.connect(Receiver())
    return asyncio.get_running_loop().time() - started


def broker(config: BrokerConfig, certs: Certificates) -> BrokerConfig:
    """Call the broker by a name."""
    return replace(
        config,
        host="broker.example",
        tls=config.tls and TlsConfig(ca=certs.ca_pem, server_name="localhost"),
        quic=QuicConfig(handshake_timeout=20.0),
        connect_timeout=20.0,
    )


async def test_quic_does_not_wait_for_an_address_that_is_silent(
    certs: Certificates, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with silence(socket.SOCK_DGRAM, front.port):
        name_leads_to(monkeypatch, SILENT, BROKER, port=front.port)
        transport = QuicTransport(broker(quic_config(front.address, None), certs))
        before = open_files()
        assert addresses.ATTEMPT_DELAY <= await connect(transport) < AT_ONCE
        assert transport.status.address == f"{BROKER}:{front.port}"
        assert len(open_files() - before) == 1, "the socket of the address that lost"
        await transport.close()


async def test_tcp_does_not_wait_for_an_address_that_is_silent(
    certs: Certificates, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = peer.address[1]
    async with silence(socket.SOCK_STREAM, port):
        name_leads_to(monkeypatch, SILENT, BROKER, port=port)
        transport = TcpTransport(broker(tcp_config(peer.address), certs))
        before = open_files()
        assert addresses.ATTEMPT_DELAY <= await connect(transport) < AT_ONCE
        assert transport.status.address == f"{BROKER}:{port}"
        far = await peer.connection()
        assert far.transport is not None
        ours = {
            name
            for name in open_files() - before
            if name.split("=")[0] != str(far.transport.get_extra_info("socket").fileno())
        }
        assert len(ours) == 1
        await transport.close()


async def test_the_preferred_address_wins_if_it_answers_in_time(
    certs: Certificates, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "ATTEMPT_DELAY", PATIENCE)
    name_leads_to(monkeypatch, BROKER, DEAF, port=front.port)
    transport = QuicTransport(broker(quic_config(front.address, None), certs))
    await connect(transport)
    assert front.stats.connections == 1
    await transport.close()


async def test_a_slow_address_that_loses_is_told(
    certs: Certificates, front: Front, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was in the middle of its handshake; the broker is not left with half a connection."""
    pytest_socket.socket_allow_hosts([BROKER, SILENT], allow_unix_socket=True)
    slow = Front(peer.address, certs.server.cert_file, certs.server.key_file, port=front.port)
    slow.host = SILENT
    async with slow:
        slow.outgoing.delay = PATIENCE
        name_leads_to(monkeypatch, SILENT, BROKER, port=front.port)
        transport = QuicTransport(broker(quic_config(front.address, None), certs))
        await connect(transport)
        assert transport.status.address == f"{BROKER}:{front.port}"
        await wait_until(lambda: slow.connections and not slow.live, what="the end of the attempt that lost")
        await transport.close()


async def test_cancelling_a_race_releases_everything(
    certs: Certificates, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with silence(socket.SOCK_DGRAM, front.port):
        front.freeze()
        name_leads_to(monkeypatch, SILENT, BROKER, port=front.port)
        transport = QuicTransport(broker(quic_config(front.address, None), certs))
        before = open_files()
        connecting = asyncio.ensure_future(transport.connect(Receiver()))
        await wait_until(lambda: len(transport._dialler._attempts) == 2, what="both attempts")
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        assert open_files() == before


# Link-local addresses


@pytest.mark.parametrize("quic", [True, False])
async def test_link_local_address_without_its_interface(
    certs: Certificates, monkeypatch: pytest.MonkeyPatch, quic: bool
) -> None:
    """As a name server may have it."""
    pytest_socket.socket_allow_hosts(["fe80::1"])
    name_leads_to(monkeypatch, "fe80::1")
    config = broker(quic_config(("", 1), None) if quic else tcp_config(("", 1)), certs)
    with pytest.raises(BridgeError, match="needs the network interface behind it, as in fe80::1%eth0") as error:
        await connect(QuicTransport(config) if quic else TcpTransport(config))
    assert error.value.code is ErrorCode.UNREACHABLE


class Way(asyncio.DatagramProtocol):
    """One half of a relay for a single client."""

    def __init__(self) -> None:
        self.other: asyncio.DatagramTransport | None = None
        self.client: tuple[str, int] | None = None

    @override
    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.client = addr
        assert self.other is not None
        far = self.other.get_protocol()
        assert isinstance(far, Way)
        self.other.sendto(data, far.client)


@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
async def test_link_local_addresses(certs: Certificates, front: Front, peer: Peer) -> None:
    """In a network of our own, with loopback as a link on which the broker is fe80::1."""
    pytest_socket.socket_allow_hosts([BROKER, "fe80::1"])
    loop = asyncio.get_running_loop()
    outer, far = await loop.create_datagram_endpoint(Way, remote_addr=front.address)
    link = Namespace()
    try:
        async with link.entered():
            for command in ("link set lo up", "-6 address add fe80::1/64 dev lo nodad"):
                process = await asyncio.create_subprocess_exec("ip", *command.split())
                assert await process.wait() == 0
            inner, near = await loop.create_datagram_endpoint(Way, local_addr=("fe80::1%lo", 0))
            far.other, near.other = inner, outer
            server = await loop.create_server(lambda: PeerConnection(peer), "fe80::1%lo", 0)
            ports = inner.get_extra_info("sockname")[1], server.sockets[0].getsockname()[1]
            quic = replace(broker(quic_config(front.address, None), certs), host="fe80::1%lo", port=ports[0])
            transports: list[Transport] = [QuicTransport(quic), TcpTransport(tcp_config(("fe80::1%lo", ports[1])))]
            for transport, port in zip(transports, ports, strict=True):
                await connect(transport)
                assert transport.status.address == f"[fe80::1%lo]:{port}"
                await transport.close()
            inner.close()
            server.close()
            await server.wait_closed()
    finally:
        outer.close()
        link.close()
