"""The test support's own packet handling, on random packets cut at random places."""

from collections import Counter
import random

import pytest

from .front_policy import PacketFilter
from .packets import (
    Connack,
    Connect,
    MalformedError,
    PacketType,
    Properties,
    Property,
    Publish,
    Splitter,
    Subscription,
    Will,
    decode_ack,
    decode_disconnect,
    decode_suback,
    decode_subscribe,
    encode_ack,
    encode_disconnect,
    encode_suback,
    encode_subscribe,
    packet,
)

PROPERTIES: Properties = {
    Property.MESSAGE_EXPIRY: 70000,
    Property.CORRELATION_DATA: b"\x00\xff",
    Property.USER_PROPERTY: [("a", "1"), ("a", "2")],
    Property.SUBSCRIPTION_IDENTIFIER: [3, 300000],
}


def random_stream(source: random.Random) -> list[bytes]:
    """Packets of all types and of sizes around those where the length field grows."""
    sizes = (0, 1, 2, 126, 127, 128, 129, 16383, 16384, 40000)
    return [
        packet(source.randrange(1, 16) << 4 | source.randrange(16), source.randbytes(source.choice(sizes)))
        for _ in range(source.randrange(1, 30))
    ]


def pieces(source: random.Random, data: bytes) -> list[bytes]:
    """Cut bytes at random places, often right behind each other."""
    found = []
    while data:
        size = source.choice((1, 1, 2, 3, 100, 1200, 16384, 70000))
        found.append(data[:size])
        data = data[size:]
    return found


@pytest.mark.parametrize("seed", range(40))
def test_streams_are_cut_into_packets_and_pass_unchanged(seed: int) -> None:
    source = random.Random(seed)
    packets = random_stream(source)
    splitter = Splitter()
    passed, shown, counts = bytearray(), list[bytes](), Counter[PacketType]()

    def handle(kind: PacketType, data: bytes) -> bytes:
        assert kind == data[0] >> 4
        shown.append(data)
        return data

    packet_filter = PacketFilter(passed.extend, handle, [counts])
    packet_filter.interest = source.choice((0, 0xFFFF, source.randrange(0x10000)))
    split = []
    for piece in pieces(source, b"".join(packets)):
        split += splitter.feed(piece)
        packet_filter.feed(piece)
    assert split == packets
    assert passed == b"".join(packets)
    assert shown == [data for data in packets if packet_filter.interest >> (data[0] >> 4) & 1]
    assert counts == Counter(data[0] >> 4 for data in packets)


@pytest.mark.parametrize("seed", range(20))
def test_what_waits_for_a_whole_packet_comes_between_two(seed: int) -> None:
    source = random.Random(seed)
    packets = random_stream(source)
    passed = bytearray()
    packet_filter = PacketFilter(passed.extend, lambda _, data: data, [])
    injected = list[bytes]()
    for piece in pieces(source, b"".join(packets)):
        packet_filter.feed(piece)
        if source.random() < 0.2:
            injected.append(packet(0xD0, b"injected %d" % len(injected)))
            packet_filter.when_whole(lambda data=injected[-1]: passed.extend(data))  # type: ignore[misc]
    found = Splitter().feed(bytes(passed))
    assert [data for data in found if data not in injected] == packets
    assert [data for data in found if data in injected] == injected


def test_bytes_that_are_no_mqtt_pass() -> None:
    passed = bytearray()
    packet_filter = PacketFilter(passed.extend, lambda _, data: data, [])
    packet_filter.interest = 0xFFFF
    data = b"\xc0\x00\x30\xff\xff\xff\xff\x01garbage"
    for start in range(len(data)):
        packet_filter.feed(data[start : start + 1])
    assert passed == data
    with pytest.raises(MalformedError):
        Splitter().feed(data)


@pytest.mark.parametrize("level", [4, 5])
def test_packets_come_back_as_they_were(level: int) -> None:
    v5 = level == 5
    will = Will(topic="w", payload=b"bye", qos=2, retain=True, properties={Property.WILL_DELAY: 5} if v5 else {})
    connect = Connect(
        client_id="me",
        level=level,
        clean=False,
        keepalive=30,
        username="u",
        password=b"p",
        will=will,
        properties={Property.SESSION_EXPIRY: 60} if v5 else {},
    )
    assert Connect.decode(connect.encode()) == connect
    connack = Connack(session_present=True, code=0, properties={Property.RECEIVE_MAXIMUM: 20} if v5 else None)
    assert Connack.decode(connack.encode()) == connack
    message = Publish(topic="ä/b", payload=b"x" * 300, qos=2, retain=True, dup=True, packet_id=513)
    message.properties = PROPERTIES if v5 else None
    assert Publish.decode(message.encode(), v5=v5) == message
    number = 300 if v5 else None
    subscriptions = [
        Subscription("a/#", 1, identifier=number),
        Subscription("b", 2, v5, v5, 2 if v5 else 0, identifier=number),
    ]
    assert decode_subscribe(encode_subscribe(7, subscriptions, v5=v5), v5=v5) == (7, subscriptions)
    assert decode_suback(encode_suback(7, [0, 1, 0x80], v5=v5), v5=v5) == (7, [0, 1, 0x80])
    assert decode_ack(encode_ack(PacketType.PUBREL, 9)) == (9, 0)
    assert decode_ack(encode_ack(PacketType.PUBREC, 9, 0x97)) == (9, 0x97)
    assert decode_disconnect(encode_disconnect()) == 0
    assert decode_disconnect(encode_disconnect(0x8E, {Property.REASON_STRING: "why"})) == 0x8E
    with pytest.raises(MalformedError):
        Publish.decode(packet(0x32, b"\x00\x05ab"), v5=v5)
