"""The PUBLISH family on bytes, against paho's own encoder and against itself."""

from hypothesis import given, strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
import pytest

from custom_components.quic_bridge.bridge import codec

topics = st.binary(min_size=1, max_size=300)
mids = st.integers(1, 65_535)


def frame(*chunks: bytes, max_packet: int = 1 << 20) -> list[codec.Packet]:
    framer = codec.Framer(max_packet)
    return [packet for chunk in chunks for packet in framer.feed(chunk)]


@given(st.integers(0, codec.MAX_REMAINING_LENGTH))
def test_length_round_trip(value: int) -> None:
    encoded = codec.encode_length(value)
    assert codec.decode_length(b"x" + encoded, 1) == (value, 1 + len(encoded))


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(0, "00"), (127, "7f"), (128, "8001"), (16_383, "ff7f"), (16_384, "808001"), (268_435_455, "ffffff7f")],
)
def test_length_examples_of_the_specification(value: int, encoded: str) -> None:
    assert codec.encode_length(value).hex() == encoded


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\x80\x80\x80\x01"])
def test_length_cut_short_or_too_long(data: bytes) -> None:
    with pytest.raises(codec.MalformedPacketError):
        codec.decode_length(data, 0)


@given(
    topics,
    mids,
    st.sampled_from([0, 1, 2]),
    st.booleans(),
    st.one_of(st.none(), st.just(b""), st.just(b"\x01\x01"), st.just(b"\x26\x00\x01a\x00\x01b")),
    st.binary(max_size=400),
)
def test_publish_round_trip(
    topic: bytes, mid: int, qos: int, retain: bool, properties: bytes | None, payload: bytes
) -> None:
    first = codec.PUBLISH | qos << 1 | retain
    packet = codec.encode_publish(first, topic, mid, properties, payload)
    [(seen, header, whole, size)] = frame(packet)
    assert seen == first
    assert (whole, size) == (packet, len(packet))
    assert codec.publish_topic(header, packet) == topic
    split = codec.split_publish(first, header, packet, v5=properties is not None)
    assert split == (topic, mid if qos else 0, properties or b"", payload)


@given(
    st.lists(st.tuples(topics, mids, st.binary(max_size=300)), min_size=1, max_size=8),
    st.lists(st.integers(1, 50), min_size=1, max_size=40),
)
def test_framing_does_not_depend_on_how_the_bytes_arrive(
    messages: list[tuple[bytes, int, bytes]], cuts: list[int]
) -> None:
    packets = [codec.encode_publish(0x32, topic, mid, None, payload) for topic, mid, payload in messages]
    packets.insert(1, b"\xd0\x00")
    stream = b"".join(packets)
    chunks, position, index = [], 0, 0
    while position < len(stream):
        chunks.append(stream[position : position + cuts[index % len(cuts)]])
        position += len(chunks[-1])
        index += 1
    assert [packet for _, _, packet, _ in frame(*chunks)] == packets


@given(st.integers(1, 400), st.integers(0, 3))
def test_an_oversized_publish_is_reported_and_skipped(chunk: int, topic_length: int) -> None:
    topic = b"t" * (topic_length + 1)
    big = codec.encode_publish(0x32, topic, 77, None, b"x" * 500)
    small = codec.encode_publish(0x32, b"s", 78, None, b"y")
    stream = small + big + small
    chunks = [stream[i : i + chunk] for i in range(0, len(stream), chunk)]
    before, (first, header, head, size), after = frame(*chunks, max_packet=100)
    assert before[2] == after[2] == small
    assert (first, size) == (0x32, len(big))
    assert len(head) < size
    assert codec.publish_topic(header, head) == topic
    assert codec.publish_mid(header, len(topic), head) == 77


@pytest.mark.parametrize("stream", [b"\x90\xff\xff\xff\x7f", b"\x30\xff\xff\xff\xff\x01", b"\x90\xc8\x01" + b"x" * 200])
def test_framing_refuses_what_it_cannot_hold(stream: bytes) -> None:
    with pytest.raises(codec.MalformedPacketError):
        frame(stream, max_packet=100)


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_framing_holds_no_more_than_it_may(chunks: list[bytes]) -> None:
    framer = codec.Framer(100)
    for chunk in chunks:
        try:
            framer.feed(chunk)
        except codec.MalformedPacketError:
            return
        assert len(framer._buffer) <= 5 + 2 + 65_535 + 2


@given(st.binary(max_size=200), st.booleans(), st.integers(0, 2), st.booleans())
def test_payload_size(payload: bytes, v5: bool, qos: int, with_properties: bool) -> None:
    properties = (properties_of_every_kind() if with_properties else b"") if v5 else None
    packet = codec.encode_publish(codec.PUBLISH | qos << 1, b"a/b", 7, properties, payload)
    assert codec.payload_size(packet[0], codec.header_length(packet), packet, v5=v5) == len(payload)


def test_payload_size_of_what_cannot_be_read() -> None:
    assert codec.payload_size(0x30, 2, b"\x30\x08\0\1a\xff\xff\xff\xff\xff", v5=True) == 0


def properties_of_every_kind() -> bytes:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.PayloadFormatIndicator = 1
    properties.MessageExpiryInterval = 60
    properties.ContentType = "text/plain"
    properties.ResponseTopic = "reply/to"
    properties.CorrelationData = b"\x00\x01"
    properties.UserProperty = [("a", "b"), ("a", "c")]
    block: bytes = properties.pack()  # type: ignore[no-untyped-call]
    assert codec.decode_length(block, 0) == (len(block) - 1, 1)
    return block[1:]


def test_forwardable_properties_keeps_what_belongs_to_the_message() -> None:
    block = properties_of_every_kind()
    assert codec.forwardable_properties(block) == block
    alias, identifier = b"\x23\x00\x05", b"\x0b\xff\x01"
    assert codec.forwardable_properties(alias + block + identifier) == block


@pytest.mark.parametrize(
    "block",
    [
        b"\x11\x00\x00\x00\x00",
        b"\x02\x00",
        b"\x03\x00\x05ab",
        b"\x26\x00\x01a",
        b"\x0b\x80",
        b"\x01\x01\x01\x01",
        b"\x03\x00\x01a\x03\x00\x01a",
        b"\x03\x00\x02\xff\xfe",
        b"\x08\x00\x01\x00",
        b"\x26\x00\x01a\x00\x01\xff",
        b"\x26\x00\x01\xff\x00\x01a",
    ],
)
def test_forwardable_properties_refuses_what_no_publish_carries(block: bytes) -> None:
    with pytest.raises(codec.MalformedPacketError):
        codec.forwardable_properties(block)


@pytest.mark.parametrize(
    ("first", "packet"),
    [(0x30, b"\x30\x01\x00"), (0x30, b"\x30\x04\x00\x05ab"), (0x30, b"\x30\x02\x00\x00"), (0x32, b"\x32\x03\x00\x01a")],
)
def test_publish_cut_short(first: int, packet: bytes) -> None:
    with pytest.raises(codec.MalformedPacketError):
        codec.split_publish(first, 2, packet, v5=False)


def test_publish_with_identifier_0_or_properties_beyond_the_end() -> None:
    with pytest.raises(codec.MalformedPacketError):
        codec.split_publish(0x32, 2, codec.encode_publish(0x32, b"a", 0, None, b""), v5=False)
    with pytest.raises(codec.MalformedPacketError):
        codec.split_publish(0x30, 2, b"\x30\x04\x00\x01a\x05", v5=True)


@pytest.mark.parametrize(
    ("packet_type", "first"),
    [(codec.PUBACK, 0x40), (codec.PUBREC, 0x50), (codec.PUBREL, 0x62), (codec.PUBCOMP, 0x70)],
)
def test_acknowledgements(packet_type: int, first: int) -> None:
    for reason in (0, 0x87):
        packet = codec.encode_ack(packet_type, 0x1234, reason)
        assert packet[0] == first
        assert codec.decode_ack(2, packet) == (0x1234, reason)
    for cut_or_zero in (b"\x40\x01\x00", b"\x50\x02\x00\x00"):
        with pytest.raises(codec.MalformedPacketError):
            codec.decode_ack(2, cut_or_zero)
