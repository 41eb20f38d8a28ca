"""Each fault of the QUIC front does on the wire what it says, seen by a plain aioquic client."""

import asyncio
from collections.abc import AsyncIterator

from aioquic.quic import events
import pytest

from .certs import Certificates
from .client import Client
from .faults import (
    ACKNOWLEDGEMENTS,
    delay_connack,
    enforce_packet_size,
    enforce_receive_maximum,
    inject,
    on_packet,
    refuse_connect,
    refuse_filters,
    refuse_publish,
    replace_reason,
    rewrite_connack,
    swallow,
)
from .front_policy import Direction
from .mosquitto import Mosquitto
from .packets import (
    Connack,
    Connect,
    PacketType,
    Property,
    Publish,
    Subscription,
    decode_ack,
    decode_disconnect,
    decode_suback,
    encode_subscribe,
)
from .quic_front import Front
from .quic_probe import QuicProbe


@pytest.fixture
async def probe(quic_front: Front, certs: Certificates) -> AsyncIterator[QuicProbe]:
    quic_front.policy.close_delay = None
    async with QuicProbe(quic_front.address, certs.ca_pem) as probe:
        yield probe


def publish(packet_id: int, qos: int = 1, topic: str = "t", payload: bytes = b"x") -> bytes:
    return Publish(topic=topic, payload=payload, qos=qos, packet_id=packet_id, properties={}).encode()


def stream_ends(probe: QuicProbe) -> tuple[list[int], bool, list[int], list[int]]:
    """What ended the stream: DISCONNECT reasons, FIN, STOP_SENDING codes, RESET codes."""
    return (
        [decode_disconnect(packet) for packet in probe.of_type(PacketType.DISCONNECT)],
        probe.fin,
        [event.error_code for event in probe.seen(events.StopSendingReceived)],
        [event.error_code for event in probe.seen(events.StreamReset)],
    )


# Endings


async def test_fin_only_and_never_closed(quic_front: Front, probe: QuicProbe) -> None:
    await probe.mqtt()
    quic_front.connection.end_stream()
    await probe.wait_until(lambda: probe.fin)
    assert stream_ends(probe) == ([], True, [], [])
    # The connection goes on: a PING is answered.
    probe.quic.send_ping(1)
    probe.transmit()
    await probe.wait_until(lambda: probe.seen(events.PingAcknowledged))
    assert probe.terminated is None


@pytest.mark.parametrize(("code", "level"), [(0x8E, 5), (0x98, 5), (0x98, 4)])
async def test_kick(quic_front: Front, probe: QuicProbe, code: int, level: int) -> None:
    await probe.mqtt(Connect(client_id="probe", level=level))
    quic_front.connection.kick(code)
    await probe.wait_until(lambda: probe.seen(events.StopSendingReceived) or probe.fin)
    assert stream_ends(probe) == (([code], False, [code], []) if level == 5 else ([], True, [], []))


async def test_take_over_by_another_client(quic_front: Front, probe: QuicProbe, certs: Certificates) -> None:
    await probe.mqtt()
    async with QuicProbe(quic_front.address, certs.ca_pem) as second:
        await second.mqtt()
        await probe.wait_until(lambda: probe.seen(events.StopSendingReceived))
        assert stream_ends(probe) == ([0x8E], False, [0x8E], [])
        second.send(b"\xc0\x00")
        await second.wait_packet(PacketType.PINGRESP)


async def test_reset(quic_front: Front, probe: QuicProbe) -> None:
    await probe.mqtt()
    quic_front.connection.end_stream(reset=7)
    await probe.wait_until(lambda: probe.seen(events.StreamReset))
    assert stream_ends(probe) == ([], False, [], [7])


async def test_connection_close_without_a_packet(quic_front: Front, probe: QuicProbe) -> None:
    await probe.mqtt()
    quic_front.connection.close(0)
    await probe.wait_until(lambda: probe.terminated)
    assert probe.terminated == events.ConnectionTerminated(0, None, "")
    assert stream_ends(probe) == ([], False, [], [])


async def test_connection_close_some_time_after_the_fin(quic_front: Front, probe: QuicProbe) -> None:
    quic_front.policy.close_delay = 0.3
    await probe.mqtt()
    start = asyncio.get_running_loop().time()
    quic_front.connection.end_stream(disconnect=0x8D)
    await probe.wait_until(lambda: probe.terminated)
    assert isinstance(probe.events[-1], events.ConnectionTerminated)
    assert any(isinstance(event, events.StreamDataReceived) and event.end_stream for event in probe.events)
    assert probe.terminated == events.ConnectionTerminated(1, None, "")
    assert asyncio.get_running_loop().time() - start >= 0.3


async def test_data_together_with_the_fin(quic_front: Front, probe: QuicProbe) -> None:
    await probe.mqtt()
    quic_front.connection.end_stream(data=publish(1), disconnect=0x8B)
    await probe.wait_until(lambda: probe.fin)
    last = probe.seen(events.StreamDataReceived)[-1]
    assert (last.data, last.end_stream) == (publish(1) + b"\xe0\x01\x8b", True)


async def test_client_ends_the_stream(quic_front: Front, remote_broker: Mosquitto, probe: QuicProbe) -> None:
    """FIN is answered by FIN and CONNECTION_CLOSE 0, RESET by RESET, STOP_SENDING by RESET and STOP_SENDING."""
    quic_front.policy.close_delay = 3.0
    await probe.mqtt()
    probe.send(b"", fin=True)
    await probe.wait_until(lambda: probe.terminated)
    assert stream_ends(probe) == ([], True, [], [])
    assert probe.terminated == events.ConnectionTerminated(0, None, "")
    assert quic_front.stats.stream_fins == 1


@pytest.mark.parametrize("stop", [False, True])
async def test_client_aborts_the_stream(quic_front: Front, probe: QuicProbe, stop: bool) -> None:
    quic_front.policy.close_delay = 3.0
    await probe.mqtt()
    if stop:
        probe.quic.stop_stream(0, 9)
    else:
        probe.quic.reset_stream(0, 9)
    probe.transmit()
    await probe.wait_until(lambda: probe.terminated)
    assert probe.terminated == events.ConnectionTerminated(0, None, "")
    seen = quic_front.stats
    # In the first case aioquic resets its own side when it gets the front's STOP_SENDING.
    assert (seen.stop_sendings, seen.stream_resets[:1]) == (([9], seen.stream_resets[:1]) if stop else ([], [9]))
    assert [event.error_code for event in probe.seen(events.StreamReset)] == [9]
    assert [event.error_code for event in probe.seen(events.StopSendingReceived)] == ([9] if stop else [])


# CONNACK


@pytest.mark.parametrize(
    ("level", "v3_code", "expected"),
    [(5, False, b"\x20\x03\x00\x84\x00"), (5, True, b"\x20\x02\x00\x01"), (4, False, None)],
)
async def test_protocol_version_refused(
    quic_front: Front, probe: QuicProbe, level: int, v3_code: bool, expected: bytes | None
) -> None:
    quic_front.add_rule(refuse_connect(0x84, version=5, v3_code=v3_code))
    await probe.mqtt(Connect(client_id="probe", level=level))
    if expected is None:
        assert probe.packets == [b"\x20\x02\x00\x00"]
    else:
        await probe.wait_until(lambda: probe.fin)
        assert probe.packets == [expected]


async def test_connack_refused_once(
    quic_front: Front, remote_broker: Mosquitto, probe: QuicProbe, certs: Certificates
) -> None:
    quic_front.policy.close_delay = 0.05
    quic_front.add_rule(refuse_connect(0x86, times=1))
    await probe.mqtt()
    assert Connack.decode(probe.packets[0]).code == 0x86
    await probe.wait_until(lambda: probe.terminated)
    assert probe.terminated == events.ConnectionTerminated(1, None, "")
    assert "probe" not in remote_broker.log
    async with QuicProbe(quic_front.address, certs.ca_pem) as second:
        await second.mqtt(Connect(client_id="probe", level=4))
        assert second.packets == [b"\x20\x02\x00\x00"]


@pytest.mark.parametrize(("code", "v3_code"), [(0x86, 4), (0x87, 5), (0x85, 2), (0x8A, 5)])
async def test_connack_refused_in_3_1_1(quic_front: Front, probe: QuicProbe, code: int, v3_code: int) -> None:
    quic_front.add_rule(refuse_connect(code))
    await probe.mqtt(Connect(client_id="probe", level=4))
    assert probe.packets == [bytes((0x20, 2, 0, v3_code))]


async def test_connack_delayed(quic_front: Front, probe: QuicProbe) -> None:
    quic_front.add_rule(delay_connack(0.3))
    start = asyncio.get_running_loop().time()
    await probe.mqtt()
    assert asyncio.get_running_loop().time() - start >= 0.3


async def test_connack_never(quic_front: Front, probe: QuicProbe) -> None:
    quic_front.add_rule(delay_connack(None))
    await probe.handshake()
    probe.send(Connect(client_id="probe").encode())
    connection = await quic_front.wait_session()
    await quic_front.wait_until(lambda: quic_front.stats.from_broker[PacketType.CONNACK])
    connection.send(b"\xd0\x00")
    await probe.wait_until(lambda: probe.packets)
    assert probe.packets == [b"\xd0\x00"]
    connection.resume_writing()
    await probe.wait_packet(PacketType.CONNACK)


async def test_connack_properties_rewritten(quic_front: Front, probe: QuicProbe) -> None:
    said: dict[Property, int | str] = {
        Property.RECEIVE_MAXIMUM: 2,
        Property.MAXIMUM_PACKET_SIZE: 1000,
        Property.MAXIMUM_QOS: 1,
        Property.SERVER_KEEP_ALIVE: 7,
        Property.ASSIGNED_CLIENT_IDENTIFIER: "given",
        Property.RETAIN_AVAILABLE: 0,
        Property.WILDCARD_AVAILABLE: 0,
    }
    quic_front.add_rule(rewrite_connack({**said}, remove=[Property.TOPIC_ALIAS_MAXIMUM], session_present=True))
    await probe.mqtt()
    connack = Connack.decode(probe.packets[0])
    assert connack.session_present
    assert connack.properties == said


# Packets


async def test_queued_publish_before_suback(quic_front: Front, probe: QuicProbe) -> None:
    quic_front.add_rule(inject(PacketType.SUBACK, publish(77, topic="queued")))
    await probe.mqtt()
    probe.send(encode_subscribe(1, [Subscription("a", 1)], v5=True))
    await probe.wait_packet(PacketType.SUBACK)
    assert [packet[0] >> 4 for packet in probe.packets[1:]] == [PacketType.PUBLISH, PacketType.SUBACK]


async def test_any_bytes_go_between_two_packets_of_the_broker(
    quic_front: Front, remote_broker: Mosquitto, probe: QuicProbe
) -> None:
    """Injected while a packet of a megabyte is half way, a PINGRESP comes behind it."""
    await probe.mqtt()
    probe.send(encode_subscribe(1, [Subscription("big")], v5=True))
    await probe.wait_packet(PacketType.SUBACK)
    async with Client(remote_broker.host, remote_broker.port) as client:
        await client.publish("big", bytes(1024 * 1024), 1)
        await probe.wait_until(lambda: len(probe.data) > 10000)
        assert not probe.of_type(PacketType.PUBLISH)
        quic_front.connection.send(b"\xd0\x00")
        quic_front.connection.end_stream(disconnect=0x8B)
    await probe.wait_until(lambda: probe.fin)
    assert [packet[0] >> 4 for packet in probe.packets[2:]] == [
        PacketType.PUBLISH,
        PacketType.PINGRESP,
        PacketType.DISCONNECT,
    ]


async def test_client_stops_a_packet_half_way(quic_front: Front, remote_broker: Mosquitto, probe: QuicProbe) -> None:
    await probe.mqtt()
    probe.send(encode_subscribe(1, [Subscription("big")], v5=True))
    await probe.wait_packet(PacketType.SUBACK)
    async with Client(remote_broker.host, remote_broker.port) as client:
        await client.publish("big", bytes(1024 * 1024), 1)
        await probe.wait_until(lambda: len(probe.data) > 10000)
        probe.quic.stop_stream(0, 3)
        probe.transmit()
        await probe.wait_until(lambda: probe.seen(events.StopSendingReceived))
    await quic_front.wait_until(lambda: not quic_front.broker_sides)
    assert [event.error_code for event in probe.seen(events.StreamReset)] == [3]


async def test_broker_dies_in_the_middle_of_a_packet(
    quic_front: Front, remote_broker: Mosquitto, probe: QuicProbe
) -> None:
    await probe.mqtt()
    probe.send(encode_subscribe(1, [Subscription("big")], v5=True))
    await probe.wait_packet(PacketType.SUBACK)
    connection = quic_front.connection
    connection.stop_writing()
    async with Client(remote_broker.host, remote_broker.port) as client:
        await client.publish("big", bytes(16 * 1024 * 1024), 1)
        await quic_front.wait_until(lambda: quic_front.stats.from_broker[PacketType.PUBLISH])
    await remote_broker.kill()
    connection.resume_writing()
    await probe.wait_until(lambda: probe.fin)
    assert not probe.of_type(PacketType.PUBLISH)


async def test_garbage_goes_through(quic_front: Front, probe: QuicProbe) -> None:
    await probe.mqtt()
    size = len(probe.data)
    garbage = b"\x00\xff\xff\xff\xff\xff" + bytes(100)
    quic_front.connection.send(garbage)
    await probe.wait_until(lambda: len(probe.data) > size)
    assert probe.data[size:] == garbage


async def test_filters_refused(quic_front: Front, remote_broker: Mosquitto, probe: QuicProbe) -> None:
    quic_front.add_rule(*refuse_filters({"secret/#": 0x87, "$share/g/x": 0x9E}))
    await probe.mqtt()
    wanted = [Subscription(item, 1) for item in ("a", "secret/#", "b", "$share/g/x")]
    probe.send(encode_subscribe(5, wanted, v5=True) + encode_subscribe(6, wanted[1:2], v5=True))
    await probe.wait_packet(PacketType.SUBACK, 2)
    answers = dict(decode_suback(packet, v5=True) for packet in probe.of_type(PacketType.SUBACK))
    assert answers == {5: [1, 0x87, 1, 0x9E], 6: [0x87]}
    assert "secret" not in remote_broker.log


async def test_publish_refused(quic_front: Front, remote_broker: Mosquitto, probe: QuicProbe) -> None:
    quic_front.add_rule(refuse_publish(0x97, topic="poor"))
    await probe.mqtt()
    async with Client(remote_broker.host, remote_broker.port) as client:
        await client.subscribe("#")
        probe.send(publish(1, 1, "poor") + publish(2, 2, "poor") + publish(3, 1, "rich"))
        await probe.wait_packet(PacketType.PUBACK, 2)
        await client.wait_for(1)
        await client.ping()
        assert [message.topic for message in client.messages] == ["rich"]
    acks = [(packet[0] >> 4, *decode_ack(packet)) for packet in probe.packets[1:]]
    assert sorted(acks) == [(PacketType.PUBACK, 1, 0x97), (PacketType.PUBACK, 3, 0), (PacketType.PUBREC, 2, 0x97)]


async def test_reason_replaced_and_acknowledgements_swallowed(quic_front: Front, probe: QuicProbe) -> None:
    quic_front.add_rule(replace_reason(PacketType.PUBACK, 0x10, times=1, skip=1))
    await probe.mqtt()
    probe.send(publish(1) + publish(2) + publish(3))
    await probe.wait_packet(PacketType.PUBACK, 3)
    assert [decode_ack(packet) for packet in probe.of_type(PacketType.PUBACK)] == [(1, 0x10), (2, 0x10), (3, 0x10)]
    rule = swallow(Direction.TO_CLIENT, *ACKNOWLEDGEMENTS)
    quic_front.add_rule(rule)
    probe.send(publish(4) + publish(5, 2) + b"\xc0\x00")
    await probe.wait_packet(PacketType.PINGRESP)
    assert len(probe.of_type(PacketType.PUBACK)) == 3
    assert not probe.of_type(PacketType.PUBREC)
    assert rule.used == 2
    quic_front.remove_rule(rule)
    probe.send(publish(6))
    await probe.wait_packet(PacketType.PUBACK, 4)


async def test_packets_of_the_client_swallowed(quic_front: Front, remote_broker: Mosquitto, probe: QuicProbe) -> None:
    await probe.mqtt()
    quic_front.connection.add_rule(swallow(Direction.TO_BROKER, PacketType.PINGREQ, times=1))
    probe.send(b"\xc0\x00\xc0\x00")
    await probe.wait_packet(PacketType.PINGRESP)
    await quic_front.wait_until(lambda: quic_front.stats.from_broker[PacketType.PINGRESP] == 1)
    assert quic_front.stats.pingreqs == 2


async def test_limits_enforced(quic_front: Front, probe: QuicProbe, certs: Certificates) -> None:
    quic_front.add_rule(*enforce_receive_maximum(3), swallow(Direction.TO_CLIENT, *ACKNOWLEDGEMENTS))
    quic_front.add_rule(enforce_packet_size(1000))
    await probe.mqtt()
    probe.send(b"".join(publish(number) for number in range(1, 5)))
    await probe.wait_until(lambda: probe.fin)
    assert stream_ends(probe) == ([0x93], True, [], [])
    async with QuicProbe(quic_front.address, certs.ca_pem) as second:
        await second.mqtt()
        second.send(publish(1, payload=bytes(1000)))
        await second.wait_until(lambda: second.fin)
        assert stream_ends(second) == ([0x95], True, [], [])


async def test_action_at_a_packet(quic_front: Front, probe: QuicProbe) -> None:
    quic_front.add_rule(
        on_packet(Direction.TO_BROKER, PacketType.PUBLISH, lambda it: it.kick(0x8E), forward=False, skip=2)
    )
    await probe.mqtt()
    probe.send(publish(1) + publish(2) + publish(3) + publish(4))
    await probe.wait_until(lambda: probe.seen(events.StopSendingReceived))
    assert stream_ends(probe) == ([0x8E], False, [0x8E], [])


async def test_front_stops_reading(quic_front: Front, probe: QuicProbe) -> None:
    quic_front.policy.stream_window = 20000
    await probe.mqtt()
    connection = quic_front.connection
    connection.stop_reading()
    taken = connection.quic.consumed
    probe.send(b"".join(publish(number, payload=bytes(1000)) for number in range(1, 101)) + b"\xc0\x00")
    with pytest.raises(TimeoutError):
        await probe.wait_until(lambda: probe.of_type(PacketType.PUBACK), 0.3)
    assert connection.quic.consumed == taken
    blocked = probe.quic._streams[0]
    assert blocked.sender.highest_offset == blocked.max_stream_data_remote < 40000
    connection.resume_reading()
    await probe.wait_packet(PacketType.PINGRESP)
    assert len(probe.of_type(PacketType.PUBACK)) == 100


async def test_front_stops_writing(quic_front: Front, probe: QuicProbe) -> None:
    await probe.mqtt()
    quic_front.connection.stop_writing()
    probe.send(b"\xc0\x00")
    await quic_front.wait_until(lambda: quic_front.stats.from_broker[PacketType.PINGRESP])
    assert not probe.of_type(PacketType.PINGRESP)
    quic_front.connection.resume_writing()
    await probe.wait_packet(PacketType.PINGRESP)
