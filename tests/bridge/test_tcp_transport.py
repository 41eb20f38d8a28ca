"""TcpTransport against real TCP and TLS servers: connecting, data, back-pressure, every way to end."""

import asyncio
from collections.abc import AsyncIterator
import random
import socket

import pytest
import pytest_socket

from custom_components.quic_bridge.bridge.config import TlsConfig, TransportKind
from custom_components.quic_bridge.bridge.errors import BridgeError, ErrorCode
from custom_components.quic_bridge.bridge.transport import TcpTransport, addresses, make_transport, tcp
from custom_components.quic_bridge.bridge.transport.base import HIGH_WATER, LOW_WATER
from custom_components.quic_bridge.bridge.transport.tcp import UNSENT

from ..support.certs import Certificates
from ..support.processes import AT_ONCE, free_port, wait_until
from ..support.slow_relay import SlowRelay
from .tcp_transport_support import Pair, connect, server_context
from .transport_support import MAX_READ, Peer, Receiver, open_files, refusal, tcp_config

pytestmark = pytest.mark.usefixtures("socket_enabled")


@pytest.fixture(params=["tcp", "tls"])
async def pair(request: pytest.FixtureRequest, certs: Certificates) -> AsyncIterator[Pair]:
    """A connection, once plain and once with TLS."""
    tls = request.param == "tls"
    peer = Peer()
    await peer.start(server_context(certs.server) if tls else None)
    pair = await connect(peer, TlsConfig(ca=certs.ca_pem) if tls else None)
    yield pair
    pair.transport.abort()
    await peer.stop()


# Data


async def test_bytes_cross_both_ways_and_the_status_tells_of_it(pair: Pair) -> None:
    sent, answer = random.randbytes(1_000_000), random.randbytes(900_000)
    pair.transport.write(sent)
    pair.far.send(answer)
    assert await pair.receiver.wait_data(len(answer)) == answer
    assert await pair.far.wait_data(len(sent)) == sent
    assert max(pair.receiver.sizes) == MAX_READ
    status = pair.transport.status
    assert status.address is not None
    assert status.address.startswith("127.0.0.1:")
    assert status.version in {None, "TLSv1.3"}
    assert (status.cipher is None) == (status.version is None)
    assert status.handshake_ms is not None
    assert 0 < status.handshake_ms < 5000
    assert (status.bytes_sent, status.bytes_received) == (len(sent), len(answer))
    await pair.transport.close()
    assert pair.transport.status == status
    assert pair.transport.kind is TransportKind.TCP


async def test_make_transport(peer: Peer) -> None:
    transport = make_transport(tcp_config(peer.address))
    assert isinstance(transport, TcpTransport)
    transport.write(b"too early")
    transport.pause_reading()
    transport.resume_reading()
    assert transport.backlog == 0
    await transport.close()


async def test_writes_of_one_turn_leave_together(pair: Pair) -> None:
    for number in range(100):
        pair.transport.write(b"%05d" % number)
    assert pair.transport.backlog == 500
    await pair.far.wait_data(500)
    assert pair.far.reads == 1
    transport = pair.transport._transport
    assert transport is not None
    assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_peer_that_speaks_first_is_heard(certs: Certificates) -> None:
    peer = Peer(greeting=b"hello")
    await peer.start()
    pair = await connect(peer)
    assert await pair.receiver.wait_data(5) == b"hello"
    pair.transport.abort()
    await peer.stop()


# Back-pressure


async def test_a_session_that_pauses_stops_the_peer(pair: Pair) -> None:
    data = random.randbytes(12_000_000)
    pair.receiver.pause_after = 1
    pair.far.send(data)
    await wait_until(lambda: pair.receiver.data)
    await asyncio.sleep(0.2)
    assert len(pair.receiver.data) <= MAX_READ
    # asyncio's TLS does not count what waits in the transport below it.
    tls = getattr(pair.far.transport, "_ssl_protocol", None)
    below: asyncio.Transport | None = pair.far.transport if tls is None else tls._transport
    assert below is not None
    assert below.get_write_buffer_size() > 1_000_000
    pair.transport.pause_reading()
    pair.transport.resume_reading()
    pair.transport.resume_reading()
    assert len(pair.receiver.data) <= MAX_READ, "delivered in a later turn"
    assert await pair.receiver.wait_data(len(data)) == data


async def test_a_peer_that_stops_pauses_the_session(pair: Pair) -> None:
    pair.far.pause()
    written = 0
    while pair.receiver.writable and written < 50_000_000:
        pair.transport.write(bytes(20_000))
        written += 20_000
        await asyncio.sleep(0)
    assert not pair.receiver.writable
    assert HIGH_WATER < pair.transport.backlog <= HIGH_WATER + 40_000
    pair.transport.write(b"late")  # kept all the same
    pair.far.resume()
    await wait_until(lambda: pair.receiver.writable)
    assert pair.transport.backlog <= LOW_WATER
    await pair.far.wait_data(written + 4)
    assert pair.receiver.pauses == 1


async def test_a_burst_in_one_turn_pauses_the_session_too(pair: Pair) -> None:
    for _ in range(30):
        pair.transport.write(bytes(10_000))
    assert not pair.receiver.writable
    await wait_until(lambda: pair.receiver.writable)
    await pair.far.wait_data(300_000)


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="the system has no such bound")
async def test_what_a_slow_line_has_not_taken_is_seen(peer: Peer) -> None:
    """It does not vanish in the kernel, which would take megabytes of it."""
    async with SlowRelay(peer.address) as relay:
        relay.flowing.clear()
        transport, receiver = TcpTransport(tcp_config(relay.address)), Receiver()
        await transport.connect(receiver)
        written = 0
        while receiver.writable and written < 10_000_000:
            transport.write(bytes(10_000))
            written += 10_000
            await asyncio.sleep(0)
        assert written < HIGH_WATER + 3 * UNSENT
        relay.flowing.set()
        await (await peer.connection()).wait_data(written)
        await transport.close()


# Refusals


async def test_a_closed_port() -> None:
    error = await refusal(TcpTransport(tcp_config(("127.0.0.1", free_port()))))
    assert error.code is ErrorCode.REFUSED


async def test_silence_ends_with_the_deadline() -> None:
    """A full accept queue: the kernel drops our SYN."""
    loop = asyncio.get_running_loop()
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for other in (first, second):
            other.setblocking(False)
            other.connect_ex(listener.getsockname())
        started = loop.time()
        error = await refusal(TcpTransport(tcp_config(listener.getsockname(), connect_timeout=0.4)))
    assert error.code is ErrorCode.NO_ANSWER
    assert 0.35 < loop.time() - started < AT_ONCE


async def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = await refusal(TcpTransport(tcp_config(("broker.invalid", 1))))
    assert error.code is ErrorCode.NAME_NOT_FOUND
    assert "broker.invalid" in error.text

    def nothing(*_: object, **__: object) -> list[object]:
        return []

    monkeypatch.setattr(socket, "getaddrinfo", nothing)
    assert (await refusal(TcpTransport(tcp_config(("broker.invalid", 1))))).code is ErrorCode.NAME_NOT_FOUND


async def test_all_addresses_are_tried(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest_socket.socket_allow_hosts(["127.0.0.1", "127.0.0.2", "255.255.255.255"], allow_unix_socket=True)
    monkeypatch.setattr(addresses, "ATTEMPT_DELAY", 0.05)
    hosts = ["255.255.255.255", "127.0.0.2", "127.0.0.1", "127.0.0.1"]

    async def resolve(*_: object, **__: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, peer.address[1])) for host in hosts]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    config = tcp_config(("broker.invalid", peer.address[1]))
    before = open_files()
    transport = TcpTransport(config)
    await transport.connect(Receiver())
    assert transport.status.address == f"127.0.0.1:{peer.address[1]}"
    await transport.close()
    del hosts[2:]
    error = await refusal(TcpTransport(config))
    assert error.code is ErrorCode.REFUSED
    assert "2 addresses" in error.text
    del hosts[1:]
    assert (await refusal(TcpTransport(config))).code is ErrorCode.UNREACHABLE
    await wait_until(lambda: open_files() == before)


# The broker ends it


async def test_last_data_is_delivered_before_the_end(pair: Pair) -> None:
    data = random.randbytes(200_000)
    pair.far.send(data)
    assert pair.far.transport is not None
    pair.far.transport.close()
    error = await pair.receiver.wait_lost()
    assert error.code is ErrorCode.CLOSED_BY_BROKER
    assert bytes(pair.receiver.data) == data
    pair.transport.write(b"into the void")
    assert pair.transport.backlog == 0


async def test_a_reset_of_the_connection(pair: Pair) -> None:
    assert pair.far.transport is not None
    sock = pair.far.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    pair.far.transport.abort()
    error = await pair.receiver.wait_lost()
    assert error.code is ErrorCode.CLOSED_BY_BROKER


async def test_a_network_that_gives_up(pair: Pair) -> None:
    """What the kernel reports when nothing was acknowledged for many minutes."""
    pair.transport.connection_lost(TimeoutError("Connection timed out"))
    assert [error.code for error in pair.receiver.lost] == [ErrorCode.PING_TIMEOUT]


async def test_the_end_does_not_wait_for_what_the_broker_will_not_read(peer: Peer) -> None:
    pair = await connect(peer)
    pair.far.pause()
    pair.transport.write(bytes(20_000_000))
    await asyncio.sleep(0.05)
    assert pair.transport.backlog > HIGH_WATER
    assert pair.far.transport is not None
    pair.far.transport.write_eof()
    error = await pair.receiver.wait_lost()
    assert error.code is ErrorCode.CLOSED_BY_BROKER
    assert pair.transport.backlog == 0


# We end it


async def test_close_delivers_the_last_bytes(pair: Pair) -> None:
    data = random.randbytes(180_000)
    pair.transport.write(data)
    await pair.transport.close()
    assert await pair.far.wait_data(len(data)) == data
    await wait_until(lambda: pair.far.closed or pair.far.eof)
    assert not pair.receiver.lost
    await pair.transport.close()
    pair.transport.abort()


async def test_close_delivers_the_last_bytes_to_a_broker_that_is_still_sending(pair: Pair) -> None:
    """Were our socket closed with unread bytes in it, the kernel would reset the connection, and ours were lost."""
    pair.transport.pause_reading()
    pair.far.pause()
    pair.far.send(bytes(4_000_000))
    await asyncio.sleep(0.05)
    pair.transport.write(b"bye")
    await pair.transport.close()
    pair.far.resume()
    assert await pair.far.wait_data(3) == b"bye"


async def test_close_does_not_wait_for_ever(pair: Pair) -> None:
    pair.far.pause()
    pair.transport.write(bytes(20_000_000))
    started = asyncio.get_running_loop().time()
    await asyncio.gather(pair.transport.close(), pair.transport.close())
    assert 0.9 < asyncio.get_running_loop().time() - started < AT_ONCE
    assert not pair.receiver.lost


async def test_nothing_is_delivered_while_closing(pair: Pair) -> None:
    pair.far.pause()
    pair.transport.write(bytes(20_000_000))
    closing = asyncio.ensure_future(pair.transport.close())
    await asyncio.sleep(0)
    pair.far.send(b"too late")
    await asyncio.sleep(0.1)
    assert not pair.receiver.data
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert pair.transport._transport is None


async def test_close_while_reading_is_paused(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "CLOSE_TIMEOUT", 2 * AT_ONCE)
    pair.transport.pause_reading()
    started = asyncio.get_running_loop().time()
    await pair.transport.close()
    assert asyncio.get_running_loop().time() - started < AT_ONCE
    await wait_until(lambda: pair.far.closed or pair.far.eof)


async def test_abort_is_immediate(pair: Pair) -> None:
    before = open_files()
    pair.transport.write(bytes(20_000_000))
    pair.transport.abort()
    pair.transport.abort()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(open_files()) <= len(before) - 1
    await wait_until(lambda: pair.far.closed or pair.far.eof)
    assert not pair.receiver.lost


async def test_a_transport_connects_once(pair: Pair) -> None:
    with pytest.raises(RuntimeError):
        await pair.transport.connect(Receiver())


@pytest.mark.parametrize("how", ["abort", "close"])
async def test_ending_in_the_middle_of_connect(certs: Certificates, peer: Peer, how: str) -> None:
    """The peer never answers our TLS."""
    transport = TcpTransport(tcp_config(peer.address, tls=TlsConfig(ca=certs.ca_pem)))
    connecting = asyncio.ensure_future(transport.connect(Receiver()))
    far = await peer.connection()
    await far.wait_data(100)
    if how == "abort":
        transport.abort()
    else:
        await transport.close()
    with pytest.raises(BridgeError, match="closed on our side"):
        await connecting
    await wait_until(lambda: far.closed or far.eof)


async def test_cancel_at_any_instant_leaves_nothing(certs: Certificates, tls_peer: Peer) -> None:
    """100 connections given up at random moments: name, TCP, TLS, just connected."""
    random.seed(7)
    tls = TlsConfig(ca=certs.ca_pem)
    before = open_files()
    outcomes = set()
    for number in range(100):
        transport = TcpTransport(tcp_config(tls_peer.address, tls=tls))
        receiver = Receiver()
        connecting = asyncio.ensure_future(transport.connect(receiver))
        await asyncio.sleep(random.choice((0, 0, 0.001, 0.003, 0.006, 0.012)) * random.random())
        if number % 3:
            connecting.cancel()
        else:
            transport.abort()
        outcomes.add(type((await asyncio.gather(connecting, return_exceptions=True))[0]))
        transport.abort()
        assert not receiver.lost
    assert {asyncio.CancelledError, BridgeError} <= outcomes
    await wait_until(lambda: open_files() == before)


async def test_a_hundred_connections_leave_nothing(certs: Certificates, tls_peer: Peer) -> None:
    tls = TlsConfig(ca=certs.ca_pem)
    before = open_files()
    for _ in range(100):
        pair = await connect(tls_peer, tls)
        await pair.transport.close()
    await wait_until(lambda: open_files() == before)
