"""QuicTransport against a real QUIC server: connecting, data, back-pressure, every way to end."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
import logging
from pathlib import Path
import random
import socket
from typing import TYPE_CHECKING

from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from cryptography.hazmat.primitives.asymmetric import ec
import pytest
import pytest_socket

from custom_components.quic_bridge.bridge.config import QuicConfig, TlsConfig, TransportKind
from custom_components.quic_bridge.bridge.errors import BridgeError, ErrorCode
from custom_components.quic_bridge.bridge.transport import QuicTransport, addresses, make_transport, quic_driver
from custom_components.quic_bridge.bridge.transport.aioquic_internals import ACK_DELAY, ClientConnection
from custom_components.quic_bridge.bridge.transport.base import HIGH_WATER, LOW_WATER

from ..support.certs import Certificates
from ..support.processes import free_port, wait_until
from ..support.quic_front import Front
from ..support.udp import UdpEndpoint
from ..support.udp_relay import UdpRelay
from .test_tls import key_pem, self_signed
from .transport_helpers import MAX_READ, QUICK, Peer, PeerConnection, Receiver, open_files, payload, quic_config

if TYPE_CHECKING:
    from ..support.front_connection import FrontConnection

pytestmark = pytest.mark.usefixtures("socket_enabled")

WINDOW = 256 * 1024


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    """What lies behind the front."""
    peer = Peer()
    await peer.start()
    yield peer
    await peer.stop()


@pytest.fixture
async def front(peer: Peer, certs: Certificates) -> AsyncIterator[Front]:
    """QUIC in front of the peer."""
    async with Front(peer.address, certs.server.cert_file, certs.server.key_file) as front:
        yield front


class Pair:
    """A connected transport, and the peer's end of it."""

    def __init__(self, transport: QuicTransport, receiver: Receiver, front: Front, peer: Peer) -> None:
        """See `connect`."""
        self.transport = transport
        self.receiver = receiver
        self.front = front
        self.peer = peer

    @property
    def quic(self) -> FrontConnection:
        """The front's end of the QUIC connection."""
        return self.front.connection

    async def peer_connection(self) -> PeerConnection:
        """Return the far end of the stream; it exists only once we have written something."""
        self.transport.write(b"\0")
        return await self.peer.connection()

    async def sent(self, stream_id: int, size: int) -> None:
        """Wait until the front has sent so much of a stream."""
        sender = self.quic.quic._streams[stream_id].sender
        await wait_until(lambda: sender.highest_offset >= size, 5.0, "bytes of the front on their way")

    async def settled(self) -> None:
        """Wait until the broker has acknowledged everything."""
        await wait_until(lambda: not self.transport.backlog, 5.0, "acknowledgement of everything")


async def connect(front: Front, certs: Certificates, peer: Peer, quic: QuicConfig | None = None) -> Pair:
    """Connect a transport to the front."""
    transport = QuicTransport(quic_config(front.address, certs.ca_pem, quic=quic))
    receiver = Receiver()
    receiver.transport = transport
    await transport.connect(receiver)
    return Pair(transport, receiver, front, peer)


@pytest.fixture
async def pair(front: Front, certs: Certificates, peer: Peer) -> AsyncIterator[Pair]:
    """A connection with default settings."""
    pair = await connect(front, certs, peer)
    yield pair
    pair.transport.abort()


@pytest.fixture
async def quick(front: Front, certs: Certificates, peer: Peer) -> AsyncIterator[Pair]:
    """A connection that asks for signs of life every 0.3 s."""
    pair = await connect(front, certs, peer, QUICK)
    yield pair
    pair.transport.abort()


async def refusal(transport: QuicTransport) -> BridgeError:
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
    sent, answer = payload(100_000), payload(70_000, seed=5)
    pair.transport.write(sent)
    far = await pair.peer.connection()
    await wait_until(lambda: len(far.data) == len(sent))
    far.send(answer)
    assert await pair.receiver.wait_data(len(answer)) == answer
    assert bytes(far.data) == sent
    status = pair.transport.status
    assert status.address == f"127.0.0.1:{pair.front.port}"
    assert (status.version, status.cipher) == ("QUIC v1", "AES_256_GCM_SHA384")
    assert status.handshake_ms is not None
    assert 0 < status.handshake_ms < 5000
    assert status.rtt_ms is not None
    assert 0 < status.rtt_ms < 5000
    assert status.packets_sent is not None
    assert status.packets_sent > len(sent) // 1200
    assert (status.bytes_sent, status.bytes_received) == (len(sent), len(answer))
    await pair.transport.close()
    assert pair.transport.status.bytes_sent == len(sent)
    assert pair.transport.kind is TransportKind.QUIC


async def test_default_settings_make_a_quic_transport(certs: Certificates, front: Front) -> None:
    transport = make_transport(quic_config(front.address, certs.ca_pem))
    assert isinstance(transport, QuicTransport)
    assert transport.backlog == 0
    assert transport.status.address is None
    transport.abort()


async def test_writes_of_one_turn_leave_together(pair: Pair) -> None:
    await pair.peer_connection()
    await pair.settled()
    before = pair.transport.status.packets_sent or 0
    for number in range(100):
        pair.transport.write(b"%010d" % number)
    assert pair.transport.backlog == 1000
    await pair.settled()
    assert (pair.transport.status.packets_sent or 0) - before <= 3


async def test_an_exchange_costs_one_packet(pair: Pair) -> None:
    """Acknowledgements travel with the next data, instead of in packets of their own."""
    pair.peer.echo = True
    await pair.peer_connection()
    await pair.receiver.wait_data(1)
    before = pair.transport.status.packets_sent or 0
    loop = asyncio.get_running_loop()
    answered = loop.create_future()
    pair.receiver.on_data = lambda: answered.set_result(None)
    for _ in range(50):
        pair.transport.write(b"x" * 100)
        await answered
        answered = loop.create_future()
    pair.receiver.on_data = None
    assert (pair.transport.status.packets_sent or 0) - before < 60


async def test_a_stream_of_packets_is_acknowledged_often(pair: Pair) -> None:
    """... so that the broker, which sends as fast as it is acknowledged, is not slowed down."""
    far = await pair.peer_connection()
    await pair.settled()
    loop = asyncio.get_running_loop()
    before, started = pair.transport.status.packets_sent or 0, loop.time()
    far.send(payload(1_000_000))
    await pair.receiver.wait_data(1_000_000, 10)
    sent = (pair.transport.status.packets_sent or 0) - before
    assert sent / (loop.time() - started) > 2 / ACK_DELAY


async def test_a_peer_that_speaks_first_is_heard(certs: Certificates, front: Front, peer: Peer) -> None:
    front.policy.on_handshake = lambda connection: connection.quic.send_ping(7)
    peer.greeting = b"\0hello"
    pair = await connect(front, certs, peer)
    await pair.peer_connection()
    assert await pair.receiver.wait_data(6) == b"\0hello"
    pair.transport.abort()


async def test_pieces_are_small_and_a_wake_takes_few_datagrams(pair: Pair) -> None:
    far = await pair.peer_connection()
    data = payload(2_000_000)
    far.send(data)
    assert await pair.receiver.wait_data(len(data), 20) == data
    assert max(pair.receiver.sizes) <= quic_driver.RECEIVE_BUDGET * 1200 < MAX_READ


async def test_a_bad_line_changes_no_byte(pair: Pair) -> None:
    far = await pair.peer_connection()
    await pair.settled()
    for way in (pair.front.incoming, pair.front.outgoing):
        way.loss, way.duplicate, way.reorder, way.delay = 0.03, 0.03, 0.05, 0.002
    up, down = payload(150_000), payload(150_000, seed=99)
    pair.transport.write(up)
    far.send(down)
    assert await pair.receiver.wait_data(len(down), 20) == down
    await wait_until(lambda: len(far.data) == len(up) + 1, 20)
    assert bytes(far.data[1:]) == up
    assert max(pair.receiver.sizes) <= MAX_READ
    status = pair.transport.status
    assert status.packets_lost
    assert status.packets_sent is not None
    assert status.packets_lost < status.packets_sent / 3


async def test_streams_of_the_server_are_ignored_with_one_warning(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    far = await pair.peer_connection()
    first = pair.quic.open_stream(payload(400_000))
    pair.quic.open_stream(b"more")
    await wait_until(lambda: "ignored" in caplog.text)
    # Far more than a window, which the other streams' bytes must not have used up.
    data = payload(600_000)
    far.send(data)
    assert await pair.receiver.wait_data(len(data), 10) == data
    warnings = [
        record for record in caplog.records if record.levelno == logging.WARNING and "ignored" in record.message
    ]
    assert len(warnings) == 1
    await wait_until(
        lambda: pair.quic.quic._streams.get(first) is None or pair.quic.quic._streams[first].sender.is_finished
    )
    assert not pair.receiver.lost


async def test_streams_that_do_not_stop_do_not_use_up_the_connection(pair: Pair) -> None:
    far = await pair.peer_connection()
    await pair.settled()
    for _ in range(3):
        stream_id = pair.quic.open_stream(payload(200_000))
        stream = pair.quic.quic._streams[stream_id]
        stream.sender.reset = lambda error_code: None  # type: ignore[method-assign]
        await pair.sent(stream_id, 200_000)
    data = payload(300_000)
    far.send(data)
    assert await pair.receiver.wait_data(len(data)) == data


async def test_keys_are_updated(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = pair.transport._driver
    assert driver is not None
    far = await pair.peer_connection()
    await pair.settled()
    monkeypatch.setattr(quic_driver, "KEY_UPDATE_PACKETS", 30)
    driver._next_key_update = 0
    phases = set()
    for number in range(1, 9):
        data = payload(20_000, seed=number)
        pair.transport.write(data)
        await far.wait_data(20_000 * number + 1)
        phases.add(pair.quic.quic._cryptos[next(reversed(pair.quic.quic._cryptos))].recv.key_phase)
        phases.add(driver.connection.key_phase)
    assert phases == {0, 1}
    far.send(b"\0fine")
    assert await pair.receiver.wait_data(5) == b"\0fine"


# Back-pressure


async def test_a_session_that_pauses_stops_the_peer(pair: Pair) -> None:
    far = await pair.peer_connection()
    pair.receiver.pause_after = 1
    data = payload(3_000_000)
    far.send(data)
    await wait_until(lambda: pair.receiver.data)
    got = len(pair.receiver.data)
    # The front's end knows what it could send: a window beyond what was taken, and not a byte more.
    stream = pair.quic.quic._streams[0]
    await wait_until(lambda: stream.sender.highest_offset >= WINDOW)
    pair.transport.pause_reading()
    await asyncio.sleep(0.3)
    assert len(pair.receiver.data) == got
    assert stream.sender.highest_offset <= WINDOW + got
    pair.transport.resume_reading()
    pair.transport.resume_reading()
    assert len(pair.receiver.data) == got, "delivered in a later turn"
    assert await pair.receiver.wait_data(len(data), 20) == data
    assert max(pair.receiver.sizes) <= MAX_READ


async def test_a_peer_that_stops_pauses_the_session(pair: Pair) -> None:
    await pair.peer_connection()
    await pair.settled()
    pair.quic.stop_reading()
    written, backlog = 1, -1
    while pair.receiver.writable or backlog != pair.transport.backlog:
        backlog = pair.transport.backlog
        while pair.receiver.writable:
            pair.transport.write(payload(10_000))
            written += 10_000
        await asyncio.sleep(0.1)
    assert LOW_WATER < backlog <= HIGH_WATER + 10_000
    pair.transport.write(b"late")  # kept all the same
    written += 4
    pair.quic.resume_reading()
    await wait_until(lambda: pair.receiver.writable)
    far = await pair.peer.connection()
    await far.wait_data(written)
    await pair.settled()
    assert pair.receiver.pauses == len(pair.receiver.resumed_at)
    assert max(pair.receiver.resumed_at) < LOW_WATER


async def test_a_burst_in_one_turn_pauses_the_session(pair: Pair) -> None:
    for number in range(30):
        assert pair.receiver.writable == (number * 10_000 <= HIGH_WATER)
        pair.transport.write(payload(10_000))
    await wait_until(lambda: pair.receiver.writable)
    await (await pair.peer.connection()).wait_data(300_000)


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
    assert asyncio.get_running_loop().time() - started < 1.5


async def test_silence_ends_with_the_deadline(certs: Certificates, front: Front) -> None:
    front.freeze()
    started = asyncio.get_running_loop().time()
    quic = QuicConfig(handshake_timeout=0.4)
    error = await refusal(QuicTransport(quic_config(front.address, certs.ca_pem, quic=quic)))
    assert error.code is ErrorCode.NO_ANSWER
    assert 0.35 < asyncio.get_running_loop().time() - started < 1.0


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
            QuicTransport(quic_config(front.address, certs.ca_pem, quic=QuicConfig(handshake_timeout=0.5)))
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
    assert await pair.receiver.wait_data(len(data), 10) == data
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


async def test_all_addresses_are_tried(certs: Certificates, front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first refuses, the second swallows everything, the third is the broker."""
    pytest_socket.socket_allow_hosts(["127.0.0.1", "127.0.0.2", "127.0.0.3"], allow_unix_socket=True)
    monkeypatch.setattr(addresses, "ADDRESS_TIMEOUT", 0.5)
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
        quic=QuicConfig(handshake_timeout=2.0),
    )
    transport = QuicTransport(config)
    await transport.connect(Receiver())
    assert transport.status.address == f"127.0.0.1:{front.port}"
    await transport.close()

    # What says most is reported: a refused certificate before a refused port before silence.
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


# The broker ends it


async def test_data_that_comes_with_a_fin_is_delivered_first(pair: Pair) -> None:
    await pair.peer_connection()
    await pair.settled()
    started = asyncio.get_running_loop().time()
    pair.quic.end_stream(data=b"\xe0\x02\x8b\0")
    error = await pair.receiver.wait_lost()
    assert asyncio.get_running_loop().time() - started < 0.2
    assert bytes(pair.receiver.data) == b"\xe0\x02\x8b\0"
    assert error.code is ErrorCode.CLOSED_BY_BROKER
    assert "FIN" in error.text
    # We close the connection ourselves, since EMQX may never do it.
    await pair.front.wait_until(lambda: pair.front.stats.closes)
    assert (pair.front.stats.closes[0].error_code, pair.front.stats.closes[0].frame_type) == (0, None)
    pair.transport.write(b"into the void")
    assert pair.transport.backlog == 0


async def test_reset_and_stop_sending_end_it(front: Front, certs: Certificates, peer: Peer) -> None:
    for name, arguments in (("RESET_STREAM", {"reset": 5}), ("STOP_SENDING", {"stop_sending": 0x98, "fin": False})):
        pair = await connect(front, certs, peer)
        pair.transport.write(b"\0")
        await pair.settled()
        pair.quic.end_stream(**arguments)  # type: ignore[arg-type]
        error = await pair.receiver.wait_lost()
        assert error.code is ErrorCode.CLOSED_BY_BROKER
        assert name in error.text
        assert error.reason_code == arguments.get("reset", 0x98)


@pytest.mark.parametrize(
    ("code", "frame_type", "expected", "text"),
    [
        (0, None, ErrorCode.CLOSED_BY_BROKER, "code 0 (no error), it said: 'bye'"),
        (1, None, ErrorCode.CLOSED_BY_BROKER, "control stream down"),
        (2, None, ErrorCode.CLOSED_BY_BROKER, "overloaded"),
        (0x77, None, ErrorCode.CLOSED_BY_BROKER, "code 119"),
        (QuicErrorCode.INTERNAL_ERROR, 0, ErrorCode.CLOSED_BY_BROKER, "INTERNAL_ERROR, 0x1"),
        (QuicErrorCode.PROTOCOL_VIOLATION, 8, ErrorCode.PROTOCOL_ERROR, "PROTOCOL_VIOLATION, 0xa"),
        (0x7777, 8, ErrorCode.PROTOCOL_ERROR, "error 0x7777"),
    ],
)
async def test_connection_close_of_the_broker(
    pair: Pair, code: int, frame_type: int | None, expected: ErrorCode, text: str
) -> None:
    started = asyncio.get_running_loop().time()
    pair.quic.close(code, "bye", frame_type=frame_type)
    error = await pair.receiver.wait_lost()
    assert asyncio.get_running_loop().time() - started < 0.1, "seen only after draining"
    assert (error.code, error.reason_code) == (expected, code)
    assert text in error.text


async def test_a_close_between_handshake_and_connect_is_not_lost(certs: Certificates, front: Front) -> None:
    front.policy.on_handshake = lambda connection: connection.close(0)
    error = await refusal(QuicTransport(quic_config(front.address, certs.ca_pem)))
    assert error.code is ErrorCode.CLOSED_BY_BROKER


async def test_a_close_in_the_same_burst_as_the_handshake_is_not_lost(
    certs: Certificates, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[tuple[bytes, tuple[str, int]]] = []
    send = front._endpoint.send
    monkeypatch.setattr(front._endpoint, "send", lambda data, address: held.append((data, address)))
    transport = QuicTransport(quic_config(front.address, certs.ca_pem))
    receiver = Receiver()
    connecting = asyncio.ensure_future(transport.connect(receiver))
    await wait_until(lambda: held)
    front.connection.close(0)
    for data, address in held:
        send(data, address)
    with pytest.raises(BridgeError) as error:
        await connecting
    assert error.value.code is ErrorCode.CLOSED_BY_BROKER
    assert not receiver.lost


async def test_what_waited_while_paused_is_delivered_before_the_end(pair: Pair) -> None:
    far = await pair.peer_connection()
    pair.receiver.pause_after = 1
    data = payload(100_000)
    far.send(data)
    await wait_until(lambda: pair.quic.quic.unacknowledged == 0 and pair.receiver.data)
    pair.quic.end_stream(data=b"last")
    error = await pair.receiver.wait_lost()
    assert bytes(pair.receiver.data) == data + b"last"
    assert error.code is ErrorCode.CLOSED_BY_BROKER
    assert max(pair.receiver.sizes) <= MAX_READ


async def test_abort_while_the_rest_is_being_delivered(pair: Pair) -> None:
    far = await pair.peer_connection()
    pair.receiver.pause_after = 1
    far.send(payload(100_000))
    await wait_until(lambda: pair.quic.quic.unacknowledged == 0 and pair.receiver.data)
    got = len(pair.receiver.data)
    pair.receiver.on_data = pair.transport.abort
    pair.quic.close(0)
    await wait_until(lambda: len(pair.receiver.data) > got)
    await asyncio.sleep(0.05)
    assert len(pair.receiver.data) == got + MAX_READ
    assert not pair.receiver.lost


async def test_a_broken_packet_of_the_broker_ends_it(pair: Pair) -> None:
    await pair.peer_connection()
    await pair.settled()
    # Its stream grows beyond what it was allowed.
    pair.quic.quic._streams[0].max_stream_data_remote = 1 << 40
    pair.quic.quic._remote_max_data = 1 << 40
    pair.receiver.pause_after = 1
    (await pair.peer.connection()).send(payload(600_000))
    error = await pair.receiver.wait_lost()
    assert (error.code, error.reason_code) == (ErrorCode.PROTOCOL_ERROR, QuicErrorCode.FLOW_CONTROL_ERROR)
    await pair.front.wait_until(lambda: pair.front.stats.closes)
    assert pair.front.stats.closes[0].error_code == QuicErrorCode.FLOW_CONTROL_ERROR


# Silence


async def test_pings_keep_a_quiet_connection(front: Front, certs: Certificates, peer: Peer) -> None:
    quic = replace(QUICK, idle_timeout=0.6, ping_interval=10.0)
    pair = await connect(front, certs, peer, quic)
    await asyncio.sleep(1.5)
    assert not pair.receiver.lost
    await pair.transport.close()


async def test_a_black_hole_is_noticed_by_the_ping(quick: Pair) -> None:
    await quick.peer_connection()
    await quick.settled()
    quick.front.freeze()
    started = asyncio.get_running_loop().time()
    error = await quick.receiver.wait_lost()
    assert error.code is ErrorCode.PING_TIMEOUT
    assert 0.25 < asyncio.get_running_loop().time() - started < 1.2


async def test_our_own_packets_are_no_sign_of_life(quick: Pair) -> None:
    await quick.peer_connection()
    quick.front.freeze("outgoing")
    for _ in range(40):
        quick.transport.write(b"x")
        await asyncio.sleep(0.03)
    assert (await quick.receiver.wait_lost(0.1)).code is ErrorCode.PING_TIMEOUT


async def test_a_long_ping_deadline_leaves_it_to_the_idle_timeout(
    front: Front, certs: Certificates, peer: Peer
) -> None:
    pair = await connect(front, certs, peer, replace(QUICK, idle_timeout=0.5, ping_timeout=30.0))
    front.freeze()
    error = await pair.receiver.wait_lost()
    assert error.code is ErrorCode.IDLE_TIMEOUT


async def test_a_dead_process_is_noticed_at_the_first_write(pair: Pair) -> None:
    await pair.peer_connection()
    await pair.settled()
    pair.front.die()
    started = asyncio.get_running_loop().time()
    pair.transport.write(b"anyone?")
    error = await pair.receiver.wait_lost()
    assert error.code is ErrorCode.REFUSED
    assert 0.2 <= asyncio.get_running_loop().time() - started < 1.5


async def test_a_dead_process_is_noticed_at_the_next_ping(quick: Pair) -> None:
    quick.front.die()
    started = asyncio.get_running_loop().time()
    assert (await quick.receiver.wait_lost()).code in {ErrorCode.REFUSED, ErrorCode.PING_TIMEOUT}
    assert asyncio.get_running_loop().time() - started < 1.5


async def test_a_few_icmp_errors_do_not_kill(
    front: Front, certs: Certificates, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way there is gone for a moment: datagrams are refused, then it is back, under another outer port."""
    async with UdpRelay(front.address) as relay:
        transport = QuicTransport(quic_config(relay.address, certs.ca_pem))
        receiver = Receiver()
        await transport.connect(receiver)
        transport.write(b"\0")
        await wait_until(lambda: not transport.backlog)
        port = relay.address[1]
        driver = transport._driver
        assert driver is not None
        errors: list[OSError] = []
        judge = driver._network_error

        def note(error: OSError) -> bool:
            errors.append(error)
            return judge(error)

        monkeypatch.setattr(driver, "_network_error", note)
        for _ in range(3):
            errors.clear()
            relay.stop()
            transport.write(b"one")
            await wait_until(lambda: errors)
            relay.start(port)
            await wait_until(lambda: not transport.backlog)
            await asyncio.sleep(0.15)
        assert not receiver.lost
        far = await peer.connection()
        far.send(b"\0two")
        assert await receiver.wait_data(4) == b"\0two"
        await transport.close()


async def test_a_changed_outer_port_is_survived(front: Front, certs: Certificates, peer: Peer) -> None:
    async with UdpRelay(front.address) as relay:
        transport = QuicTransport(quic_config(relay.address, certs.ca_pem))
        receiver = Receiver()
        await transport.connect(receiver)
        transport.write(b"\0")
        far = await peer.connection()
        for number in range(5):
            relay.rebind()
            transport.write(b"%d" % number)
            await far.wait_data(number + 2)
            far.send(b"\0" if number == 0 else b"%d" % number)
            await receiver.wait_data(number + 1)
        await transport.close()


async def test_a_restarted_process_with_unknown_resets(pair: Pair) -> None:
    """Seen with EMQX after kill -9: each packet is answered by a reset whose token nobody ever told us."""
    await pair.peer_connection()
    await pair.settled()
    pair.front.die()
    pair.front.answer_unknown = True
    await pair.front.restart()
    started = asyncio.get_running_loop().time()
    pair.transport.write(b"anyone?")
    error = await pair.receiver.wait_lost()
    assert error.code is ErrorCode.PING_TIMEOUT
    assert "resets of another run" in error.text
    assert asyncio.get_running_loop().time() - started < 3


async def test_forged_resets_do_not_kill(quick: Pair) -> None:
    await quick.peer_connection()
    await quick.settled()
    address = quick.quic.peer_address
    assert address is not None
    forged = b"\x41" + bytes(17) + b"sixteen of them!"
    before = quick.transport.status.packets_sent or 0
    for _ in range(20):
        quick.front._endpoint.send(forged, address)
        quick.front._endpoint.send(b"\x41", address)
        quick.front._endpoint.send(b"\xc1" + bytes(40), address)
        await asyncio.sleep(0.05)
    assert not quick.receiver.lost
    assert (quick.transport.status.packets_sent or 0) - before < 20, "one PING for three of them, at most"
    quick.front.freeze("both")
    for _ in range(20):
        # ... and are no sign of life either.
        quick.front._endpoint._send(forged, address)
        await asyncio.sleep(0.05)
    assert (await quick.receiver.wait_lost(0.5)).code is ErrorCode.PING_TIMEOUT


async def test_a_stateless_reset_ends_it_at_once(pair: Pair) -> None:
    await pair.peer_connection()
    await pair.settled()
    address = pair.quic.peer_address
    assert address is not None
    token = pair.quic.quic._host_cids[0].stateless_reset_token
    pair.front._endpoint.send(b"\x41" + random.randbytes(20) + token, address)
    error = await pair.receiver.wait_lost(0.5)
    assert error.code is ErrorCode.CLOSED_BY_BROKER
    assert "stateless reset" in error.text


# We end it


async def test_close_delivers_the_last_bytes(pair: Pair) -> None:
    data = payload(180_000)
    pair.transport.write(data)
    started = asyncio.get_running_loop().time()
    await pair.transport.close()
    assert asyncio.get_running_loop().time() - started < 0.8
    far = await pair.peer.connection()
    await wait_until(lambda: len(far.data) == len(data) and pair.front.stats.closes)
    assert [(close.error_code, close.frame_type) for close in pair.front.stats.closes] == [(0, None)]
    assert not pair.receiver.lost
    await pair.transport.close()
    pair.transport.abort()


async def test_close_does_not_wait_for_ever(pair: Pair) -> None:
    await pair.peer_connection()
    pair.quic.stop_reading()
    pair.transport.write(payload(600_000))
    started = asyncio.get_running_loop().time()
    await asyncio.gather(pair.transport.close(), pair.transport.close())
    assert 0.9 < asyncio.get_running_loop().time() - started < 1.4
    await pair.front.wait_until(lambda: pair.front.stats.closes)
    assert not pair.receiver.lost


async def test_close_ends_early_when_the_broker_goes(pair: Pair) -> None:
    await pair.peer_connection()
    pair.quic.stop_reading()
    pair.transport.write(payload(600_000))
    asyncio.get_running_loop().call_later(0.1, pair.quic.close)
    started = asyncio.get_running_loop().time()
    await pair.transport.close()
    assert asyncio.get_running_loop().time() - started < 0.5
    assert not pair.receiver.lost


async def test_nothing_is_delivered_while_closing(pair: Pair) -> None:
    far = await pair.peer_connection()
    await pair.settled()
    pair.quic.stop_reading()
    pair.transport.write(payload(600_000))
    closing = asyncio.ensure_future(pair.transport.close())
    await asyncio.sleep(0)
    far.send(payload(50_000))
    sender = pair.quic.quic._streams[0].sender
    await wait_until(lambda: sender.highest_offset == 50_000 and pair.quic.quic.unacknowledged == 0)
    assert not pair.receiver.data
    pair.quic.resume_reading()
    await closing


async def test_cancelled_close_releases_all_the_same(pair: Pair) -> None:
    await pair.peer_connection()
    pair.quic.stop_reading()
    pair.transport.write(payload(600_000))
    closing = asyncio.ensure_future(pair.transport.close())
    await asyncio.sleep(0.05)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert pair.transport._driver is None
    await pair.front.wait_until(lambda: pair.front.stats.closes)


async def test_abort_is_immediate_and_told(pair: Pair) -> None:
    await pair.peer_connection()
    before = open_files()
    pair.transport.abort()
    assert len(open_files()) == len(before) - 1
    pair.transport.abort()
    pair.transport.write(b"x")
    pair.transport.pause_reading()
    pair.transport.resume_reading()
    await pair.front.wait_until(lambda: pair.front.stats.closes)
    assert pair.front.stats.closes[0].error_code == 0
    assert not pair.receiver.lost


async def test_a_transport_connects_once(pair: Pair) -> None:
    with pytest.raises(RuntimeError):
        await pair.transport.connect(Receiver())
    assert not pair.receiver.lost


@pytest.mark.parametrize("how", ["abort", "close"])
async def test_ending_in_the_middle_of_connect(certs: Certificates, front: Front, how: str) -> None:
    front.freeze()
    transport = QuicTransport(quic_config(front.address, certs.ca_pem))
    connecting = asyncio.ensure_future(transport.connect(Receiver()))
    await wait_until(lambda: transport._driver is not None)
    if how == "abort":
        transport.abort()
    else:
        await transport.close()
    with pytest.raises(BridgeError, match="closed on our side"):
        await connecting


async def test_cancel_at_any_instant_leaves_nothing(certs: Certificates, front: Front) -> None:
    """100 connections given up at random moments: name, handshake, just connected."""
    random.seed(7)
    await refusal(QuicTransport(quic_config(("127.0.0.1", free_port()), certs.ca_pem)))  # executor threads are up
    before = open_files()
    outcomes = set()
    for number in range(100):
        transport = QuicTransport(quic_config(front.address, certs.ca_pem))
        receiver = Receiver()
        connecting = asyncio.ensure_future(transport.connect(receiver))
        await asyncio.sleep(random.choice((0, 0, 0.001, 0.003, 0.006, 0.012)) * random.random())
        if number % 3:
            connecting.cancel()
        else:
            transport.abort()
        outcome = (await asyncio.gather(connecting, return_exceptions=True))[0]
        outcomes.add(type(outcome))
        transport.abort()
        assert transport._driver is None
        assert not receiver.lost
    assert asyncio.CancelledError in outcomes
    assert BridgeError in outcomes
    assert open_files() == before


async def test_a_hundred_connections_leave_nothing(certs: Certificates, front: Front, peer: Peer) -> None:
    pair = await connect(front, certs, peer)
    await pair.transport.close()
    await front.wait_until(lambda: not front.live)
    before = open_files()
    for _ in range(100):
        pair = await connect(front, certs, peer)
        await pair.transport.close()
    await front.wait_until(lambda: not front.live)
    assert open_files() == before


# Defects


@pytest.mark.parametrize("where", ["receive_datagram", "datagrams_to_send", "handle_timer", "next_event"])
async def test_a_defect_in_aioquic_leaves_no_zombie(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    await pair.peer_connection()
    await pair.settled()
    before = open_files()

    def defect(*_: object, **__: object) -> None:
        raise AssertionError("no such packet")

    monkeypatch.setattr(ClientConnection, where, defect)
    (await pair.peer.connection()).send(b"\0")
    if where == "handle_timer":
        pair.front.freeze()
    pair.transport.write(b"\0")
    error = await pair.receiver.wait_lost()
    assert error.code is ErrorCode.INTERNAL
    assert "no such packet" in error.text
    assert "Traceback" in caplog.text
    assert len(open_files()) == len(before) - 1
    monkeypatch.undo()


async def test_a_defect_while_aborting_releases_all_the_same(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def defect(*_: object, **__: object) -> None:
        raise AssertionError("no such packet")

    before = open_files()
    monkeypatch.setattr(ClientConnection, "datagrams_to_send", defect)
    pair.transport.abort()
    assert len(open_files()) == len(before) - 1
    assert not pair.receiver.lost
    assert "Traceback" in caplog.text
    monkeypatch.undo()


async def test_a_certificate_that_was_not_checked_does_not_count(
    certs: Certificates, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should a later aioquic not call our check, nobody is trusted."""
    monkeypatch.delattr(ClientConnection, "_initialize")
    error = await refusal(QuicTransport(quic_config(front.address, certs.ca_pem)))
    assert error.code is ErrorCode.TLS_FAILED
    assert not front.stats.handshakes
