"""TcpTransport and TLS: certificates of both sides, every refusal by its cause, no byte lost around them."""

import asyncio
from dataclasses import replace
from pathlib import Path
import random
import socket
import ssl

import pytest
import pytest_socket

from custom_components.quic_bridge.bridge.config import TlsConfig
from custom_components.quic_bridge.bridge.errors import ErrorCode
from custom_components.quic_bridge.bridge.transport import TcpTransport

from ..support.certs import Certificates
from ..support.mosquitto import Mosquitto, MosquittoOptions
from ..support.processes import AT_ONCE, wait_until
from .tcp_transport_support import Pair, connect, server_context
from .transport_support import MAX_READ, Peer, Receiver, refusal, tcp_config

pytestmark = pytest.mark.usefixtures("socket_enabled")


async def held_back(peer: Peer, certs: Certificates) -> Pair:
    """Let one read bring more than one piece, and the session pause after the first: 16 KiB of 32,000 bytes."""
    pair = await connect(peer, TlsConfig(ca=certs.ca_pem))
    pair.receiver.pause_after = MAX_READ
    # The first record needs a little more than one read, so that the second read brings it and all the others.
    pair.far.send(bytes(MAX_READ))
    for _ in range(15):
        pair.far.send(bytes(1000))
    await wait_until(lambda: pair.receiver.data)
    await asyncio.sleep(0.05)
    assert pair.receiver.sizes == [MAX_READ]
    assert len(pair.transport._held) == 15_000
    return pair


async def test_decrypted_bytes_wait_for_the_session(tls_peer: Peer, certs: Certificates) -> None:
    pair = await held_back(tls_peer, certs)
    pair.transport.resume_reading()
    pair.transport.pause_reading()
    await asyncio.sleep(0.05)
    assert pair.receiver.sizes == [MAX_READ]
    pair.transport.resume_reading()
    await pair.receiver.wait_data(MAX_READ + 15_000)
    pair.far.send(b"more")
    await pair.receiver.wait_data(MAX_READ + 15_004)
    pair.transport.abort()


async def test_decrypted_bytes_that_wait_are_delivered_before_the_end(tls_peer: Peer, certs: Certificates) -> None:
    pair = await held_back(tls_peer, certs)
    assert pair.far.transport is not None
    pair.far.transport.abort()
    while not pair.receiver.lost:  # only writing shows it
        pair.transport.write(b"x")
        await asyncio.sleep(0.01)
    assert pair.receiver.sizes == [MAX_READ, 15_000]


@pytest.mark.parametrize("fault", ["certificate", "hang up"])
async def test_an_address_that_fails_late_does_not_disturb_the_next(
    certs: Certificates, tls_peer: Peer, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """At the first address the TLS handshake fails: that connection dies while we dial the second."""
    pytest_socket.socket_allow_hosts(["127.0.0.1", "127.0.0.2"], allow_unix_socket=True)
    port = tls_peer.address[1]
    context = server_context(certs.expired) if fault == "certificate" else None
    other = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.2", port, ssl=context)

    async def resolve(*_: object, **__: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    tls = TlsConfig(ca=certs.ca_pem, server_name="localhost")
    transport = TcpTransport(tcp_config(("broker.invalid", port), tls=tls))
    receiver = Receiver()
    await transport.connect(receiver)
    assert transport.status.address == f"127.0.0.1:{port}"
    data = random.randbytes(10_000_000)
    transport.write(data)
    await transport.close()
    assert await tls_peer.connections[0].wait_data(len(data)) == data
    assert not receiver.lost
    other.close()
    await other.wait_closed()


@pytest.mark.parametrize(
    ("server", "code"),
    [
        ("expired", ErrorCode.CERTIFICATE_EXPIRED),
        ("other_name", ErrorCode.CERTIFICATE_NAME),
        ("untrusted_server", ErrorCode.CERTIFICATE_UNTRUSTED),
    ],
)
async def test_a_bad_certificate_is_refused_by_its_cause(certs: Certificates, server: str, code: ErrorCode) -> None:
    peer = Peer()
    await peer.start(server_context(getattr(certs, server)))
    error = await refusal(TcpTransport(tcp_config(peer.address, tls=TlsConfig(ca=certs.ca_pem))))
    assert error.code is code
    await peer.stop()


async def test_the_usual_authorities_are_the_default(tls_peer: Peer) -> None:
    error = await refusal(TcpTransport(tcp_config(tls_peer.address, tls=TlsConfig())))
    assert error.code is ErrorCode.CERTIFICATE_UNTRUSTED
    assert "usual authorities" in error.text


async def test_another_server_name_or_no_check_at_all(certs: Certificates) -> None:
    peer = Peer()
    await peer.start(server_context(certs.other_name))
    for tls in (
        TlsConfig(ca=certs.ca_pem, server_name="broker.example.org"),
        TlsConfig(ca=certs.ca_pem, check_name=False),
        TlsConfig(verify=False),
    ):
        transport = TcpTransport(tcp_config(peer.address, tls=tls))
        await transport.connect(Receiver())
        await transport.close()
    await peer.stop()


async def test_tls_towards_a_plain_port(certs: Certificates, peer: Peer) -> None:
    peer.echo = True
    tls = TlsConfig(ca=certs.ca_pem)
    error = await refusal(TcpTransport(tcp_config(peer.address, tls=tls)))
    assert error.code is ErrorCode.TLS_FAILED
    peer.echo = False
    peer.greeting = b"220 I am something else entirely\r\n"
    error = await refusal(TcpTransport(tcp_config(peer.address, tls=tls)))
    assert error.code is ErrorCode.TLS_FAILED
    assert "plain MQTT port" in error.text


async def test_tls_towards_a_port_that_hangs_up(certs: Certificates) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    error = await refusal(TcpTransport(tcp_config(address, tls=TlsConfig(ca=certs.ca_pem))))
    assert error.code is ErrorCode.TLS_FAILED
    assert "plain MQTT port" in error.text
    server.close()
    await server.wait_closed()


async def test_tls_towards_a_port_that_says_nothing(certs: Certificates, peer: Peer) -> None:
    started = asyncio.get_running_loop().time()
    error = await refusal(TcpTransport(tcp_config(peer.address, tls=TlsConfig(ca=certs.ca_pem), connect_timeout=0.4)))
    assert error.code is ErrorCode.NO_ANSWER
    assert "TLS" in error.text
    assert asyncio.get_running_loop().time() - started < AT_ONCE


def serve_one(listener: socket.socket, context: ssl.SSLContext) -> bytes:
    """Serve one connection, blocking: unlike asyncio's, this server sends its alerts. Return what it got."""
    sock, _ = listener.accept()
    sock.settimeout(5)
    with context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False) as session:
        got = b""
        try:
            session.do_handshake()
            got = session.recv(100)
        except ssl.SSLError:
            session.shutdown(socket.SHUT_WR)
            while session.recv(65536):
                pass
        return got


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_client_certificates(certs: Certificates, version: ssl.TLSVersion) -> None:
    context = server_context(certs.server, certs.ca_file)
    context.maximum_version = version
    good, bad = certs.client, certs.untrusted_client
    ours = TlsConfig(ca=certs.ca_pem, certificate=good.pem, private_key=good.key_pem)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()

        async def attempt(tls: TlsConfig) -> ErrorCode:
            serving = asyncio.get_running_loop().run_in_executor(None, serve_one, listener, context)
            code = (await refusal(TcpTransport(tcp_config(address, tls=tls)))).code
            assert await serving == b""
            return code

        # Before TLS 1.3 there is no alert for "none", and OpenSSL uses "handshake failure".
        assert await attempt(TlsConfig(ca=certs.ca_pem)) is (
            ErrorCode.CLIENT_CERTIFICATE_REQUIRED if version is ssl.TLSVersion.TLSv1_3 else ErrorCode.TLS_FAILED
        )
        theirs = replace(ours, certificate=bad.pem, private_key=bad.key_pem)
        assert await attempt(theirs) is ErrorCode.CLIENT_CERTIFICATE_REFUSED
        error = await refusal(TcpTransport(tcp_config(address, tls=replace(ours, private_key=bad.key_pem))))
        assert error.code is ErrorCode.CLIENT_CERTIFICATE_INVALID

        serving = asyncio.get_running_loop().run_in_executor(None, serve_one, listener, context)
        transport = TcpTransport(tcp_config(address, tls=ours))
        await transport.connect(Receiver())
        assert transport.status.version == ("TLSv1.3" if version is ssl.TLSVersion.TLSv1_3 else "TLSv1.2")
        transport.write(b"in")
        assert await serving == b"in"
        await transport.close()


async def test_the_server_hears_why_its_certificate_is_refused(certs: Certificates) -> None:
    context = server_context(certs.server)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        heard: list[str] = []

        def serve() -> None:
            sock, _ = listener.accept()
            sock.settimeout(5)
            with sock, pytest.raises(ssl.SSLError) as error:
                context.wrap_socket(sock, server_side=True)
            heard.append(error.value.reason)

        serving = asyncio.get_running_loop().run_in_executor(None, serve)
        config = tcp_config(listener.getsockname(), tls=TlsConfig(ca=certs.other_authority.pem))
        assert (await refusal(TcpTransport(config))).code is ErrorCode.CERTIFICATE_UNTRUSTED
        await serving
    assert heard == ["TLSV1_ALERT_UNKNOWN_CA"]


async def test_client_certificates_of_mosquitto(certs: Certificates, tmp_path: Path) -> None:
    options = MosquittoOptions(tls=certs.server, client_ca_file=certs.ca_file)
    async with Mosquitto(tmp_path, options) as broker:
        address = (broker.host, broker.tls_port)
        error = await refusal(TcpTransport(tcp_config(address, tls=TlsConfig(ca=certs.ca_pem))))
        assert error.code is ErrorCode.CLIENT_CERTIFICATE_REQUIRED
        bad = certs.untrusted_client
        tls = TlsConfig(ca=certs.ca_pem, certificate=bad.pem, private_key=bad.key_pem)
        error = await refusal(TcpTransport(tcp_config(address, tls=tls)))
        assert error.code is ErrorCode.CLIENT_CERTIFICATE_REFUSED


async def test_plain_towards_a_tls_port(tls_peer: Peer) -> None:
    transport = TcpTransport(tcp_config(tls_peer.address))
    receiver = Receiver()
    await transport.connect(receiver)
    transport.write(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x1e\x00\x00")
    error = await receiver.wait_lost()
    assert error.code is ErrorCode.CLOSED_BY_BROKER


async def test_close_says_goodbye_in_tls(certs: Certificates) -> None:
    """Without close_notify the broker could not tell our end from a cut-off."""

    def serve() -> bytes:
        sock, _ = listener.accept()
        sock.settimeout(5)
        context = server_context(certs.server)
        with context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as session:
            return session.recv(100) + session.recv(100)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.get_running_loop().run_in_executor(None, serve)
        transport = TcpTransport(tcp_config(listener.getsockname(), tls=TlsConfig(ca=certs.ca_pem)))
        await transport.connect(Receiver())
        transport.write(b"bye")
        await transport.close()
        assert await serving == b"bye"
