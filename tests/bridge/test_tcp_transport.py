"""TcpTransport against real TCP and TLS servers: connecting, data, back-pressure, every way to end."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
import random
import socket
import ssl

import pytest
import pytest_socket

from custom_components.quic_bridge.bridge.config import TlsConfig, TransportKind
from custom_components.quic_bridge.bridge.errors import BridgeError, ErrorCode
from custom_components.quic_bridge.bridge.transport import TcpTransport, addresses, make_transport
from custom_components.quic_bridge.bridge.transport.base import HIGH_WATER, LOW_WATER

from ..support.certs import Certificate, Certificates
from ..support.mosquitto import Mosquitto, MosquittoOptions
from ..support.processes import free_port, wait_until
from .transport_support import MAX_READ, Peer, PeerConnection, Receiver, open_files, tcp_config

pytestmark = pytest.mark.usefixtures("socket_enabled")


def server_context(certificate: Certificate, client_ca: Path | None = None) -> ssl.SSLContext:
    """Make the server's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.cert_file, certificate.key_file)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context


class Pair:
    """A connected transport and the peer's end of it."""

    def __init__(self, transport: TcpTransport, receiver: Receiver, far: PeerConnection) -> None:
        """See `connect`."""
        self.transport = transport
        self.receiver = receiver
        self.far = far


async def connect(peer: Peer, tls: TlsConfig | None = None) -> Pair:
    """Connect a transport to the peer."""
    transport = TcpTransport(tcp_config(peer.address, tls=tls))
    receiver = Receiver()
    receiver.transport = transport
    number = len(peer.connections) + 1
    await transport.connect(receiver)
    return Pair(transport, receiver, await peer.connection(number))


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    """A server on plain TCP."""
    peer = Peer()
    await peer.start()
    yield peer
    await peer.stop()


@pytest.fixture
async def tls_peer(certs: Certificates) -> AsyncIterator[Peer]:
    """A server on TLS."""
    peer = Peer()
    await peer.start(server_context(certs.server))
    yield peer
    await peer.stop()


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


async def refusal(transport: TcpTransport) -> BridgeError:
    """Connect, and return why that is impossible: told by `connect` or, late, by `connection_lost`."""
    receiver = Receiver()
    try:
        await transport.connect(receiver)
    except BridgeError as error:
        assert not receiver.lost
        return error
    try:
        return await receiver.wait_lost()
    finally:
        transport.abort()


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
    assert 0.35 < loop.time() - started < 1.0


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
    monkeypatch.setattr(addresses, "ADDRESS_TIMEOUT", 0.3)
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


async def test_an_address_that_fails_late_does_not_disturb_the_next(
    certs: Certificates, tls_peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first address has a broker with a bad certificate: its connection dies while we dial the second."""
    pytest_socket.socket_allow_hosts(["127.0.0.1", "127.0.0.2"], allow_unix_socket=True)
    port = tls_peer.address[1]
    other = await asyncio.start_server(lambda *_: None, "127.0.0.2", port, ssl=server_context(certs.expired))

    async def resolve(*_: object, **__: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    tls = TlsConfig(ca=certs.ca_pem, server_name="localhost")
    transport = TcpTransport(tcp_config(("broker.invalid", port), tls=tls))
    receiver = Receiver()
    await transport.connect(receiver)
    assert transport.status.address == f"127.0.0.1:{port}"
    transport.write(b"well")
    await (await tls_peer.connection()).wait_data(4)
    assert not receiver.lost
    data = random.randbytes(100_000)
    transport.write(data)
    await transport.close()
    assert (await tls_peer.connections[0].wait_data(100_004))[4:] == data
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
    assert asyncio.get_running_loop().time() - started < 1.0


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


async def test_the_end_does_not_wait_for_what_the_broker_will_not_read(peer: Peer) -> None:
    pair = await connect(peer)
    pair.far.pause()
    pair.transport.write(bytes(20_000_000))
    await asyncio.sleep(0.05)
    assert pair.transport.backlog > HIGH_WATER
    assert pair.far.transport is not None
    pair.far.transport.write_eof()
    error = await pair.receiver.wait_lost(1.0)
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
    assert 0.9 < asyncio.get_running_loop().time() - started < 1.6
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


async def test_close_while_reading_is_paused(pair: Pair) -> None:
    pair.transport.pause_reading()
    started = asyncio.get_running_loop().time()
    await pair.transport.close()
    assert asyncio.get_running_loop().time() - started < 0.5
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
