"""QuicTransport dialling: every refusal by its cause, and every address."""

import asyncio
from dataclasses import replace
from pathlib import Path
import socket
import threading

from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from cryptography.hazmat.primitives.asymmetric import ec
import pytest
import pytest_socket

from custom_components.quic_bridge.bridge.config import QuicConfig, TlsConfig
from custom_components.quic_bridge.bridge.errors import BridgeError, ErrorCode
from custom_components.quic_bridge.bridge.transport import QuicTransport, addresses

from ..support.certs import Certificates
from ..support.processes import AT_ONCE, free_port, wait_until
from ..support.quic_front import Front
from ..support.udp import UdpEndpoint
from .quic_transport_support import connect
from .test_tls import key_pem, self_signed
from .transport_support import MAX_READ, Peer, Receiver, open_files, payload, quic_config, refusal

pytestmark = pytest.mark.usefixtures("socket_enabled")


# Refusals


@pytest.mark.parametrize(
    ("server", "code", "text"),
    [
        ("expired", ErrorCode.CERTIFICATE_EXPIRED, "out of date"),
        ("other_name", ErrorCode.CERTIFICATE_NAME, "broker.example.org"),
        ("untrusted_server", ErrorCode.CERTIFICATE_UNTRUSTED, "configured CA certificate"),
    ],
)
async def test_a_bad_certificate_is_refused_by_its_cause(
    certs: Certificates, peer: Peer, server: str, code: ErrorCode, text: str
) -> None:
    certificate = getattr(certs, server)
    async with Front(peer.address, certificate.cert_file, certificate.key_file) as front:
        error = await refusal(QuicTransport(quic_config(front.address, certs.ca_pem)))
        assert error.code is code
        assert text in error.text
        # The server hears of it in TLS's own words, and sees no completed handshake.
        await wait_until(lambda: front.stats.closes)
        assert 0x100 < front.stats.closes[0].error_code < 0x200
        assert not front.stats.handshakes


async def test_the_usual_authorities_are_the_default(front: Front) -> None:
    error = await refusal(QuicTransport(quic_config(front.address, None)))
    assert error.code is ErrorCode.CERTIFICATE_UNTRUSTED
    assert "usual authorities" in error.text


async def test_another_server_name_or_no_check_at_all(certs: Certificates, peer: Peer) -> None:
    other = certs.other_name
    async with Front(peer.address, other.cert_file, other.key_file) as front:
        for tls in (
            TlsConfig(ca=certs.ca_pem, server_name="broker.example.org"),
            TlsConfig(ca=certs.ca_pem, check_name=False),
            TlsConfig(verify=False),
        ):
            transport = QuicTransport(quic_config(front.address, None, tls=tls))
            await transport.connect(Receiver())
            await transport.close()


async def test_not_mqtt(certs: Certificates, front: Front) -> None:
    front.policy.alpn = ("h3",)
    error = await refusal(QuicTransport(quic_config(front.address, certs.ca_pem)))
    assert (error.code, error.reason_code) == (ErrorCode.NOT_MQTT_QUIC, 0x178)
    assert "0x178" in error.text


@pytest.mark.parametrize("code", [0x15A, QuicErrorCode.CONNECTION_REFUSED])
async def test_an_overloaded_broker(certs: Certificates, front: Front, code: int) -> None:
    front.policy.refuse_handshake = code
    error = await refusal(QuicTransport(quic_config(front.address, certs.ca_pem)))
    assert (error.code, error.reason_code) == (ErrorCode.OVERLOADED, code)


async def test_another_tls_alert(certs: Certificates, front: Front) -> None:
    front.policy.refuse_handshake = 0x100 + 112
    error = await refusal(QuicTransport(quic_config(front.address, certs.ca_pem)))
    assert (error.code, error.reason_code) == (ErrorCode.TLS_FAILED, 0x170)
    assert "unrecognized_name" in error.text


async def test_client_certificates(certs: Certificates, front: Front) -> None:
    front.policy.client_ca_pem = certs.ca_pem
    good, bad = certs.client, certs.untrusted_client

    async def attempt(tls: TlsConfig) -> BridgeError:
        return await refusal(QuicTransport(quic_config(front.address, None, tls=tls)))

    error = await attempt(TlsConfig(ca=certs.ca_pem))
    assert (error.code, error.reason_code) == (ErrorCode.CLIENT_CERTIFICATE_REQUIRED, 0x174)
    error = await attempt(TlsConfig(ca=certs.ca_pem, certificate=bad.pem, private_key=bad.key_pem))
    assert (error.code, error.reason_code) == (ErrorCode.CLIENT_CERTIFICATE_REFUSED, 0x130)
    error = await attempt(TlsConfig(ca=certs.ca_pem, certificate=good.pem, private_key=bad.key_pem))
    assert error.code is ErrorCode.CLIENT_CERTIFICATE_INVALID

    transport = QuicTransport(
        quic_config(front.address, None, tls=TlsConfig(ca=certs.ca_pem, certificate=good.pem, private_key=good.key_pem))
    )
    await transport.connect(Receiver())
    transport.write(b"\0")
    await wait_until(lambda: not transport.backlog)
    await transport.close()


async def test_a_client_key_that_quic_cannot_use(certs: Certificates, front: Front) -> None:
    key = ec.generate_private_key(ec.SECP521R1())
    tls = TlsConfig(ca=certs.ca_pem, certificate=self_signed(key), private_key=key_pem(key))
    error = await refusal(QuicTransport(quic_config(front.address, None, tls=tls)))
    assert error.code is ErrorCode.CLIENT_CERTIFICATE_INVALID


async def test_a_client_certificate_refused_after_the_handshake_is_told_to_the_session(
    certs: Certificates, peer: Peer
) -> None:
    """As EMQX does it: our handshake completes, the session is under way, then comes the alert."""
    async with Front(peer.address, certs.server.cert_file, certs.server.key_file) as front:
        pair = await connect(front, certs, peer)
        pair.quic.close(0x174, frame_type=QuicFrameType.CRYPTO)
        error = await pair.receiver.wait_lost()
        assert (error.code, error.reason_code) == (ErrorCode.CLIENT_CERTIFICATE_REQUIRED, 0x174)


async def test_a_closed_port_is_known_at_once(certs: Certificates) -> None:
    started = asyncio.get_running_loop().time()
    error = await refusal(QuicTransport(quic_config(("127.0.0.1", free_port()), certs.ca_pem)))
    assert error.code is ErrorCode.REFUSED
    assert asyncio.get_running_loop().time() - started < AT_ONCE


async def test_silence_ends_with_the_deadline(certs: Certificates, front: Front) -> None:
    front.freeze()
    started = asyncio.get_running_loop().time()
    quic = QuicConfig(handshake_timeout=0.4)
    error = await refusal(QuicTransport(quic_config(front.address, certs.ca_pem, quic=quic)))
    assert error.code is ErrorCode.NO_ANSWER
    assert 0.35 < asyncio.get_running_loop().time() - started < AT_ONCE


async def test_silence_in_the_middle_of_the_handshake(certs: Certificates, peer: Peer, tmp_path: Path) -> None:
    chain = tmp_path / "chain.pem"
    chain.write_text(certs.server.pem + certs.ca_pem * 3)
    passed: list[int] = []

    def all_but_the_first(datagram: bytes) -> bool:
        passed.append(len(datagram))
        return len(passed) > 1

    async with Front(peer.address, chain, certs.server.key_file) as front:
        front.outgoing.drop = all_but_the_first
        error = await refusal(
            QuicTransport(quic_config(front.address, certs.ca_pem, quic=QuicConfig(handshake_timeout=2.0)))
        )
    assert error.code is ErrorCode.NO_ANSWER
    assert "begun the handshake" in error.text


async def test_an_idle_timeout_below_the_deadline_is_no_answer_too(certs: Certificates, front: Front) -> None:
    front.freeze()
    quic = QuicConfig(handshake_timeout=5.0, idle_timeout=0.3, initial_rtt=0.02)
    error = await refusal(QuicTransport(quic_config(front.address, certs.ca_pem, quic=quic)))
    assert error.code is ErrorCode.NO_ANSWER


async def test_a_server_without_version_1(certs: Certificates) -> None:
    port = free_port()

    def answer(datagram: bytes, address: tuple[str, int]) -> None:
        theirs, ours = datagram[6 : 6 + datagram[5]], datagram[7 + datagram[5] :][: datagram[6 + datagram[5]]]
        endpoint.send(
            bytes([0x80, 0, 0, 0, 0, len(ours)]) + ours + bytes([len(theirs)]) + theirs + b"\xff\0\0\x1d", address
        )

    endpoint = UdpEndpoint(answer)
    endpoint.open(port=port)
    error = await refusal(QuicTransport(quic_config(("127.0.0.1", port), certs.ca_pem)))
    endpoint.close()
    assert error.code is ErrorCode.NOT_MQTT_QUIC
    assert "version" in error.text


async def test_ipv6(certs: Certificates) -> None:
    pytest_socket.socket_allow_hosts(["::1"], allow_unix_socket=True)
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["mqtt"])
    configuration.load_cert_chain(certs.server.cert_file, certs.server.key_file)
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as free:
            free.bind(("::1", 0))
            port = free.getsockname()[1]
    except OSError:
        pytest.skip("no IPv6 on this machine")
    server = await serve("::1", port, configuration=configuration)
    transport = QuicTransport(quic_config(("[::1]", port), certs.ca_pem))
    await transport.connect(Receiver())
    assert transport.status.address == f"[::1]:{port}"
    transport.write(b"hello")
    await transport.close()
    await wait_until(lambda: not server._protocols)
    server.close()


async def test_large_datagrams_are_delivered_in_small_pieces(front: Front, certs: Certificates, peer: Peer) -> None:
    front._configuration.max_datagram_size = 8192
    pair = await connect(front, certs, peer)
    far = await pair.peer_connection()
    data = payload(1_000_000)
    far.send(data)
    assert await pair.receiver.wait_data(len(data)) == data
    assert max(pair.receiver.sizes) == MAX_READ
    pair.transport.abort()


@pytest.mark.parametrize("quic", [QuicConfig(max_datagram_size=1100), QuicConfig(congestion_control="bbr")])
async def test_settings_that_cannot_be(certs: Certificates, quic: QuicConfig) -> None:
    error = await refusal(QuicTransport(quic_config(("127.0.0.1", 1), certs.ca_pem, quic=quic)))
    assert error.code is ErrorCode.CONFIGURATION


async def test_names(certs: Certificates, front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    config = quic_config(("localhost", front.port), certs.ca_pem)
    pytest_socket.socket_allow_hosts(["127.0.0.1", "::1"], allow_unix_socket=True)
    # On a machine with IPv6 `localhost` is ::1 first, where nothing listens.
    transport = QuicTransport(config)
    await transport.connect(Receiver())
    assert transport.status.address == f"127.0.0.1:{front.port}"
    await transport.close()

    def unknown(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = await refusal(QuicTransport(replace(config, host="broker.invalid")))
    assert error.code is ErrorCode.NAME_NOT_FOUND
    assert "broker.invalid" in error.text
    error = await refusal(QuicTransport(replace(config, host="a" * 70 + ".example")))
    assert error.code is ErrorCode.NAME_NOT_FOUND


async def test_a_name_server_that_does_not_answer(
    certs: Certificates, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()

    async def silent(*_: object, **__: object) -> list[object]:
        await asyncio.sleep(60)
        return []

    monkeypatch.setattr(loop, "getaddrinfo", silent)
    quic = QuicConfig(handshake_timeout=0.2)
    error = await refusal(QuicTransport(quic_config(("broker.invalid", 1), certs.ca_pem, quic=quic)))
    assert error.code is ErrorCode.NAME_NOT_FOUND
    assert "name server" in error.text


async def test_an_executor_that_is_busy(certs: Certificates) -> None:
    free = threading.Event()
    loop = asyncio.get_running_loop()
    busy = [loop.run_in_executor(None, free.wait, 5.0) for _ in range(100)]
    quic = QuicConfig(handshake_timeout=0.2)
    error = await refusal(QuicTransport(quic_config(("127.0.0.1", 1), certs.ca_pem, quic=quic)))
    free.set()
    await asyncio.gather(*busy)
    assert error.code is ErrorCode.INTERNAL
    assert "busy" in error.text


async def test_all_addresses_are_tried(certs: Certificates, front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first refuses, the second swallows everything, the third is the broker."""
    pytest_socket.socket_allow_hosts(["127.0.0.1", "127.0.0.2", "127.0.0.3"], allow_unix_socket=True)
    monkeypatch.setattr(addresses, "ATTEMPT_DELAY", 0.05)
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    silent.bind(("127.0.0.2", front.port))
    hosts = ["127.0.0.3", "127.0.0.2", "127.0.0.1"]

    async def resolve(*_: object, **__: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (host, front.port)) for host in hosts]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    config = quic_config(
        ("broker.invalid", front.port),
        None,
        tls=TlsConfig(ca=certs.ca_pem, server_name="localhost"),
    )
    transport = QuicTransport(config)
    await transport.connect(Receiver())
    assert transport.status.address == f"127.0.0.1:{front.port}"
    await transport.close()

    # What says most is reported: a refused certificate before a refused port before silence.
    config = replace(config, quic=QuicConfig(handshake_timeout=2.5))
    hosts.reverse()
    error = await refusal(QuicTransport(replace(config, tls=TlsConfig())))
    assert error.code is ErrorCode.CERTIFICATE_UNTRUSTED
    assert "3 addresses" in error.text
    hosts.remove("127.0.0.1")
    assert (await refusal(QuicTransport(config))).code is ErrorCode.REFUSED
    silent.close()


async def test_an_address_the_system_refuses(certs: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest_socket.socket_allow_hosts(["255.255.255.255"], allow_unix_socket=True)

    async def resolve(*_: object, **__: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("255.255.255.255", 1))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    before = open_files()
    error = await refusal(QuicTransport(quic_config(("broker.invalid", 1), certs.ca_pem)))
    assert error.code is ErrorCode.UNREACHABLE
    assert open_files() == before
