"""Faults of the handshake, of the whole front and of the network under it do what they say."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
import socket

from aioquic.quic import events
import pytest

from . import quic_front as quic_front_module
from .certs import Certificates
from .faults import swallow
from .front_policy import Direction
from .front_process import FrontProcess
from .mosquitto import Mosquitto
from .packets import Connect, PacketType, Publish
from .processes import wait_until
from .quic_front import Front
from .quic_probe import QuicProbe
from .udp import Address, Impairment, Shaper, UdpEndpoint
from .udp_relay import UdpRelay

pytestmark = pytest.mark.usefixtures("socket_enabled")


@pytest.fixture
async def probe(quic_front: Front, certs: Certificates) -> AsyncIterator[QuicProbe]:
    async with QuicProbe(quic_front.address, certs.ca_pem) as probe:
        yield probe


# Handshake


async def test_wrong_alpn(quic_front: Front, probe: QuicProbe) -> None:
    quic_front.policy.alpn = ("h3",)
    await probe.handshake()
    assert probe.terminated is not None
    assert (probe.terminated.error_code, probe.terminated.frame_type) == (0x178, 6)
    assert not probe.handshaked


async def test_overload(quic_front: Front, probe: QuicProbe) -> None:
    quic_front.policy.refuse_handshake = 0x15A
    await probe.handshake()
    assert probe.terminated is not None
    assert (probe.terminated.error_code, probe.terminated.frame_type) == (0x15A, 6)
    assert not probe.handshaked


@pytest.mark.parametrize(("which", "code"), [("client", None), ("none", 0x174), ("untrusted", 0x130)])
async def test_client_certificate(quic_front: Front, certs: Certificates, which: str, code: int | None) -> None:
    quic_front.policy.client_ca_pem = certs.ca_pem
    client = {"client": certs.client, "none": None, "untrusted": certs.untrusted_client}[which]
    async with QuicProbe(quic_front.address, certs.ca_pem, client=client) as probe:
        await probe.handshake()
        assert probe.handshaked
        if code is None:
            probe.send(Connect(client_id="probe").encode())
            await probe.wait_packet(PacketType.CONNACK)
        else:
            await probe.wait_until(lambda: probe.terminated)
            assert probe.terminated is not None
            assert (probe.terminated.error_code, probe.terminated.frame_type) == (code, 6)


@pytest.mark.parametrize(("name", "code"), [("expired", 0x12D), ("other_name", 0x12A), ("untrusted_server", 0x12A)])
async def test_server_certificates_that_a_client_refuses(
    remote_broker: Mosquitto, certs: Certificates, name: str, code: int
) -> None:
    certificate = getattr(certs, name)
    async with (
        Front(remote_broker.address, certificate.cert_file, certificate.key_file) as front,
        QuicProbe(front.address, certs.ca_pem) as probe,
    ):
        await probe.handshake()
        assert probe.terminated is not None
        assert probe.terminated.error_code == code
        await front.wait_until(lambda: front.stats.closes)
        assert front.stats.closes[0].error_code == code


async def test_emqx_transport_parameters(quic_front: Front, probe: QuicProbe) -> None:
    await probe.mqtt()
    quic = probe.quic
    assert quic._remote_max_idle_timeout is None
    assert (quic._remote_max_streams_bidi, quic._remote_max_streams_uni) == (10, 1)


async def test_stream_opened_by_the_server(quic_front: Front, probe: QuicProbe) -> None:
    quic_front.policy.server_stream = b"hello"
    await probe.mqtt()
    await probe.wait_until(lambda: any(item.stream_id == 1 for item in probe.seen(events.StreamDataReceived)))
    assert [item.data for item in probe.seen(events.StreamDataReceived) if item.stream_id == 1] == [b"hello"]


async def test_tickets_resumption_early_data_and_refusal(quic_front: Front, certs: Certificates) -> None:
    quic_front.policy.tickets = True

    async def connect(ticket_of: QuicProbe | None) -> tuple[QuicProbe, bool, bool]:
        ticket = ticket_of.tickets[0] if ticket_of is not None else None
        async with QuicProbe(quic_front.address, certs.ca_pem, ticket=ticket) as probe:
            probe.start()
            if ticket is not None:
                probe.send(Connect(client_id="probe").encode())
            await probe.wait_until(lambda: probe.handshaked)
            if ticket is None:
                probe.send(Connect(client_id="probe").encode())
            await probe.wait_packet(PacketType.CONNACK)
            await probe.wait_until(lambda: probe.tickets)
            done = probe.seen(events.HandshakeCompleted)[0]
            return probe, done.session_resumed, done.early_data_accepted

    first, *seen = await connect(None)
    assert seen == [False, False]
    second, *seen = await connect(first)
    assert seen == [True, True]
    assert quic_front.connection.early_data
    quic_front.die()
    await quic_front.start()
    _, *seen = await connect(second)
    assert seen == [False, False]


# The whole front


async def test_death_without_a_word_and_return(quic_front: Front, certs: Certificates, probe: QuicProbe) -> None:
    await probe.mqtt()
    before = len(probe.datagrams)
    quic_front.die()
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.connect(quic_front.address)
        sock.setblocking(False)
        sock.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            sock.send(b"x")
    quic_front.answer_unknown = True
    await quic_front.start()
    for _ in range(3):
        probe.quic.send_ping(1)
        probe.transmit()
    await probe.wait_until(lambda: len(probe.datagrams) >= before + 3)
    answers = probe.datagrams[before:]
    assert {len(answer) for answer in answers} == {34}
    assert len({answer[-16:] for answer in answers}) == 1
    assert len({answer[:18] for answer in answers}) == len(answers)
    assert probe.terminated is None
    assert quic_front.unknown_packets >= 3
    async with QuicProbe(quic_front.address, certs.ca_pem) as second:
        await second.mqtt(Connect(client_id="second"))


async def test_process_killed_and_answering_unknown_packets(
    remote_broker: Mosquitto, certs: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("front")
    async with (
        FrontProcess(folder, remote_broker.address, certs.server, arguments=("--answer-unknown",)) as front,
        QuicProbe(front.address, certs.ca_pem) as probe,
    ):
        await probe.mqtt()
        before = len(probe.datagrams)
        await front.kill()
        await front.start()
        probe.send(b"\xc0\x00")
        await probe.wait_until(lambda: len(probe.datagrams) > before)
        assert len(probe.datagrams[-1]) == 34


@pytest.mark.parametrize("way", ["both", "incoming", "outgoing"])
async def test_black_hole(quic_front: Front, probe: QuicProbe, way: str) -> None:
    await probe.mqtt()
    quic_front.freeze(way)  # type: ignore[arg-type]
    probe.send(b"\xc0\x00")
    if way == "outgoing":
        await quic_front.wait_until(lambda: quic_front.stats.pingreqs)
    with pytest.raises(TimeoutError):
        await probe.wait_until(lambda: probe.of_type(PacketType.PINGRESP), 0.2)
    assert quic_front.stats.pingreqs == (1 if way == "outgoing" else 0)
    quic_front.thaw()
    await probe.wait_packet(PacketType.PINGRESP)


async def test_stop_says_connection_close_0_and_leaves_nothing(remote_broker: Mosquitto, certs: Certificates) -> None:
    front = Front(remote_broker.address, certs.server.cert_file, certs.server.key_file)
    await front.start()
    async with QuicProbe(front.address, certs.ca_pem) as probe:
        await probe.mqtt()
        await front.stop()
        await probe.wait_until(lambda: probe.terminated)
        assert probe.terminated == events.ConnectionTerminated(0, None, "")
    assert not front.broker_sides
    assert not front.live
    port = front.port
    await front.start()
    assert front.port == port
    await front.stop()


# The network


async def messages_through(front: Front, certs: Certificates, number: int = 50) -> QuicProbe:
    """Have messages acknowledged over the network as it is."""
    async with QuicProbe(front.address, certs.ca_pem) as probe:
        await probe.mqtt()
        for packet_id in range(1, number + 1):
            probe.send(Publish(topic="t", payload=bytes(500), qos=1, packet_id=packet_id, properties={}).encode())
        await probe.wait_until(lambda: len(probe.of_type(PacketType.PUBACK)) == number, 20)
        return probe


@pytest.mark.parametrize(
    "bad",
    [
        Impairment(loss=0.1),
        Impairment(duplicate=0.5),
        Impairment(jitter=0.005),
        Impairment(reorder=0.3, reorder_by=0.005),
        Impairment(delay=0.02),
        Impairment(rate=200_000),
    ],
    ids=lambda item: next(name for name, value in vars(item).items() if value),
)
async def test_front_works_over_a_bad_network(quic_front: Front, certs: Certificates, bad: Impairment) -> None:
    for name, value in vars(bad).items():
        setattr(quic_front.incoming, name, value)
        setattr(quic_front.outgoing, name, value)
    assert quic_front.incoming.active
    await messages_through(quic_front, certs)
    quic_front.incoming.clear()
    assert not quic_front.incoming.active


async def test_small_mtu_lets_no_handshake_through(quic_front: Front, probe: QuicProbe) -> None:
    quic_front.incoming.mtu = 1199
    probe.start()
    with pytest.raises(TimeoutError):
        await probe.wait_until(lambda: probe.datagrams, 0.4)
    assert quic_front.stats.connections == 0
    quic_front.incoming.mtu = None
    await probe.wait_until(lambda: probe.handshaked)


async def shaped(impairment: Callable[[Impairment], None], number: int = 400, seed: int = 5) -> list[tuple[int, float]]:
    """Which of so many datagrams of 1000 bytes arrive, and how many seconds after they were sent."""
    loop = asyncio.get_running_loop()
    arrived: list[tuple[int, float]] = []
    start = loop.time()
    shaper = Shaper(lambda data, _: arrived.append((int.from_bytes(data[:4]), loop.time() - start)), seed=seed)
    impairment(shaper.impairment)
    for item in range(number):
        shaper.push(item.to_bytes(4) + bytes(996), ("127.0.0.1", 1))
    await wait_until(lambda: not shaper._queue)
    assert shaper.passed == len(arrived)
    shaper.close()
    return arrived


async def test_impairments_of_datagrams() -> None:
    lost = await shaped(lambda it: setattr(it, "loss", 0.25))
    assert 250 < len(lost) < 350
    assert [number for number, _ in lost] == [
        number for number, _ in await shaped(lambda it: setattr(it, "loss", 0.25))
    ]
    assert [number for number, _ in lost] == sorted({number for number, _ in lost})

    twice = Counter(number for number, _ in await shaped(lambda it: setattr(it, "duplicate", 0.5)))
    assert len(twice) == 400
    assert 150 < sum(count == 2 for count in twice.values()) < 250

    late = await shaped(lambda it: setattr(it, "delay", 0.05))
    assert [number for number, _ in late] == list(range(400))
    assert min(after for _, after in late) >= 0.049

    mixed = [number for number, _ in await shaped(lambda it: setattr(it, "jitter", 0.05))]
    assert mixed != sorted(mixed) == list(range(400))

    overtaken = [number for number, _ in await shaped(lambda it: setattr(it, "reorder", 0.1))]
    assert overtaken != sorted(overtaken) == list(range(400))

    def slow(it: Impairment) -> None:
        it.rate, it.rate_queue = 1_000_000, 0.1

    limited = await shaped(slow)
    assert 95 <= len(limited) <= 110
    assert limited[-1][1] >= 0.09

    assert await shaped(lambda it: setattr(it, "mtu", 999), 5) == []
    assert len(await shaped(lambda it: setattr(it, "mtu", 1000), 5)) == 5
    odd = await shaped(lambda it: setattr(it, "drop", lambda data: data[3] % 2 == 0), 10)
    assert [number for number, _ in odd] == [1, 3, 5, 7, 9]


async def test_relay_carries_and_rebinds(quic_front: Front, certs: Certificates) -> None:
    async with UdpRelay(quic_front.address) as relay, QuicProbe(relay.address, certs.ca_pem) as probe:
        await probe.mqtt()
        (before,) = relay.outer_ports
        assert quic_front.connection.peer_address == ("127.0.0.1", before)
        relay.rebind()
        (after,) = relay.outer_ports
        assert after != before
        probe.send(b"\xc0\x00")
        await probe.wait_packet(PacketType.PINGRESP)
        assert quic_front.connection.peer_address == ("127.0.0.1", after)
        assert quic_front.stats.connections == 1


async def test_relay_impairs_each_direction() -> None:
    got: list[bytes] = []

    def echo(data: bytes, address: Address) -> None:
        server.send(data, address)

    server = UdpEndpoint(echo)
    client = UdpEndpoint(lambda data, _: got.append(data))
    server.open()
    client.open()
    async with UdpRelay(server.address, seed=3) as relay:
        target: Address = relay.address
        relay.to_server.loss = 0.5
        for number in range(100):
            client.send(bytes((number,)), target)
        await wait_until(lambda: sum(relay.dropped) + len(got) == 100)
        assert 30 < relay.dropped[0] < 70
        assert relay.dropped[1] == 0
        relay.to_server.clear()
        relay.to_client.blackhole = True
        client.send(b"x", target)
        await wait_until(lambda: relay.dropped[1] == 1)
    client.close()
    server.close()


def open_files() -> int:
    """How many file descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_front_keeps_nothing_of_connections_that_ended(
    quic_front: Front, certs: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quic_front_module, "_REMEMBERED", 10)
    quic_front.policy.close_delay = 0.01

    async def session(way: int) -> None:
        async with QuicProbe(quic_front.address, certs.ca_pem) as probe:
            await probe.mqtt(Connect(client_id=f"probe{way}"))
            connection = quic_front.connection
            if way == 0:
                connection.end_stream(disconnect=0x8B)
            elif way == 1:
                connection.kick()
            elif way == 2:
                connection.close(0)
            elif way == 3:
                probe.quic.reset_stream(0, 1)
                probe.transmit()
            elif way == 4:
                quic_front.add_rule(swallow(Direction.TO_BROKER, PacketType.PUBLISH))
                probe.send(b"\x30")
                probe.close()
            else:
                probe.send(b"", fin=True)
            await quic_front.wait_until(lambda: connection.closed)

    await session(0)
    before = open_files()
    for number in range(30):
        await session(number % 6)
    await quic_front.wait_until(lambda: not quic_front.broker_sides)
    assert open_files() == before
    assert not quic_front._routes
    assert not quic_front._tasks
    assert not quic_front.live
    assert len(quic_front.connections) == 10
    assert quic_front.stats.connections == 31
