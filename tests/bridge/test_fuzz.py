"""Whatever a broker sends: no exception, no buffer without a bound, the right reason, and the bridge comes back."""

from collections.abc import Sequence

from hypothesis import given, settings, strategies as st
import pytest

from custom_components.quic_bridge.bridge.codec import MAX_REMAINING_LENGTH
from custom_components.quic_bridge.bridge.errors import ErrorCode

from ..support.packets import (
    Connack,
    PacketType,
    Properties,
    Property,
    Publish,
    encode_ack,
    encode_disconnect,
    encode_suback,
    packet,
    varint,
)
from .memory_peers import MAX_PACKET, MAX_PAYLOAD, Peer, Table

_LONGEST_HEAD = 5 + 2 + 65_535 + 2
_ANSWERS = (PacketType.PUBACK, PacketType.PUBREC, PacketType.PUBREL, PacketType.PUBCOMP)
_OUR_FAULT = {ErrorCode.INTERNAL, ErrorCode.CONFIGURATION}

# --- streams ----------------------------------------------------------------------------------------------------------

mids = st.one_of(st.integers(1, 6), st.integers(65_530, 65_535), st.integers(0, 65_535))
codes = st.one_of(st.sampled_from((0, 0x10, 0x80, 0x87, 0x91, 0x92, 0x93, 0x97, 0x99)), st.integers(0, 255))
topics = st.sampled_from(("t/a", "t/a", "t/b", "t/b", "t/\u00e9", "other", "t/+", "t/#", "t/\0", "$SYS/x", ""))
property_sets: st.SearchStrategy[Properties] = st.fixed_dictionaries(
    {},
    optional={
        Property.PAYLOAD_FORMAT: st.integers(0, 255),
        Property.MESSAGE_EXPIRY: st.sampled_from((0, 1, 60, 0xFFFFFFFF)),
        Property.CONTENT_TYPE: st.text(max_size=5),
        Property.RESPONSE_TOPIC: topics,
        Property.CORRELATION_DATA: st.binary(max_size=5),
        Property.SUBSCRIPTION_IDENTIFIER: st.lists(st.integers(0, MAX_REMAINING_LENGTH), max_size=2),
        Property.TOPIC_ALIAS: st.integers(0, 3),
        Property.USER_PROPERTY: st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), max_size=2),
        Property.REASON_STRING: st.text(max_size=5),
    },
)
connack_properties: st.SearchStrategy[Properties] = st.fixed_dictionaries(
    {},
    optional={
        Property.RECEIVE_MAXIMUM: st.integers(0, 3),
        Property.MAXIMUM_PACKET_SIZE: st.sampled_from((0, 5, 40, 0xFFFFFFFF)),
        Property.MAXIMUM_QOS: st.integers(0, 2),
        Property.RETAIN_AVAILABLE: st.integers(0, 2),
        Property.SERVER_KEEP_ALIVE: st.just(0),
        Property.ASSIGNED_CLIENT_IDENTIFIER: st.text(max_size=3),
        Property.REASON_STRING: st.text(max_size=5),
        Property.WILDCARD_AVAILABLE: st.integers(0, 2),
    },
)


def encode_all(v5: bool, packets: Sequence[object]) -> bytes:
    """Encode a stream of drawn packets."""
    out = b""
    for item in packets:
        match item:
            case Publish() | Connack():
                item.properties = item.properties if v5 else None
                out += item.encode()
            case (PacketType() as kind, int() as mid, int() as code):
                out += encode_ack(kind, mid, code if v5 else 0)
            case ("properties", int() as first, int() as mid, list() as pieces):
                block = b"".join(pieces)
                out += packet(first, b"\0\3t/a", mid.to_bytes(2), varint(len(block)) + block if v5 else b"", b"payload")
            case ("suback", int() as mid, list() as reasons):
                out += encode_suback(mid, reasons, v5=v5)
            case bytes():
                out += item
            case _:
                raise TypeError(item)
    return out


publishes = st.builds(
    Publish,
    topic=topics,
    payload=st.one_of(
        st.binary(max_size=20), st.sampled_from((MAX_PAYLOAD, MAX_PAYLOAD + 1, MAX_PACKET + 1)).map(lambda n: b"x" * n)
    ),
    qos=st.sampled_from((0, 1, 1, 2, 2, 3)),
    retain=st.booleans(),
    dup=st.booleans(),
    packet_id=mids,
    properties=property_sets,
)
pieces_of_properties = st.sampled_from(
    (
        b"\x01\x01",
        b"\x01\x07",
        b"\x02\0\0\0\x05",
        b"\x03\0\x01a",
        b"\x03\0\x01\xff",
        b"\x08\0\x03t/b",
        b"\x08\0\x01\0",
        b"\x09\0\x01\xff",
        b"\x0b\x05",
        b"\x0b\xff\xff\xff\xff\x01",
        b"\x11\0\0\0\x01",
        b"\x23\0\x01",
        b"\x26\0\x01a\0\x01b",
        b"\x26\0\x01a\0\x01\xc3",
        b"\x26\0\x05a",
    )
)
packets = st.one_of(
    publishes,
    publishes,
    st.tuples(
        st.just("properties"), st.sampled_from((0x32, 0x34, 0x3A)), mids, st.lists(pieces_of_properties, max_size=3)
    ),
    st.tuples(st.sampled_from(_ANSWERS), mids, codes),
    st.tuples(st.sampled_from(_ANSWERS), mids, codes),
    st.tuples(st.just("suback"), mids, st.lists(codes, max_size=3)),
    st.builds(
        Connack, session_present=st.booleans(), code=st.sampled_from((0, 0, 0x87)), properties=connack_properties
    ),
    st.sampled_from((b"\xd0\x00", encode_disconnect(0x8B), encode_disconnect(), b"\xf0\x00", b"\xb0\x02\xff\xfd")),
)
mutations = st.lists(
    st.tuples(st.sampled_from(("set", "insert", "delete", "cut", "repeat")), st.integers(0, 400), st.integers(0, 255)),
    max_size=3,
)


def mutate(data: bytes, changes: Sequence[tuple[str, int, int]]) -> bytes:
    """Damage a stream."""
    for kind, position, value in changes:
        place = position % (len(data) + 1)
        match kind:
            case "set":
                data = data[:place] + bytes((value,)) + data[place + 1 :]
            case "insert":
                data = data[:place] + bytes((value,)) + data[place:]
            case "delete":
                data = data[:place] + data[place + 1 + value % 8 :]
            case "cut":
                data = data[:place]
            case _:
                data = data[:place] + data[max(0, place - value) :]
    return data


# --- what must hold ---------------------------------------------------------------------------------------------------


async def survives(table: Table, peer: Peer, data: bytes, pieces: int, *, present: bool) -> None:
    """Send bytes to the bridge in pieces, and check all that must hold then and afterwards."""
    connections = peer.connections
    size = max(1, len(data) // pieces + 1)
    for start in range(0, len(data), size):
        peer.send(data[start : start + size])
        session = peer.session
        if session is not None:
            assert len(session._framer._buffer) <= max(MAX_PACKET, _LONGEST_HEAD)
    if peer.session is None:
        await table.until(lambda: peer.connections > connections, "reconnect")
        error = table.status_of(peer).error
        # Without one: the bytes said that the broker speaks another version of MQTT, which is tried at once.
        assert error is None or error.code not in _OUR_FAULT, error
    await table.heal(session_present=present)
    assert table.errors.texts == []
    assert table.local.wrong == []
    assert table.remote.wrong == []


async def begin(table: Table, peer: Peer, phase: str) -> None:
    """Bring the bridge to where the bytes shall meet it."""
    other = table.remote if peer is table.local else table.local
    if phase == "connecting":
        peer.answering = False
        await table.until(lambda: peer.session is not None and peer.session.asked, "CONNECT")
    elif phase == "subscribing":
        peer.answering = False
        await table.until(lambda: peer.session is not None and peer.session.asked, "CONNECT")
        peer.send(Connack(properties={} if peer.v5 else None).encode())
    else:
        await table.running()
    if phase == "busy":
        # Messages under way, both ways and in every stage, for the acknowledgements to meet.
        peer.settling = other.settling = False
        for mid in range(1, 5):
            for side in (peer, other):
                side.send(
                    Publish(
                        topic="t/a",
                        payload=b"%d" % mid,
                        qos=1 + mid % 2,
                        packet_id=mid,
                        properties={} if side.v5 else None,
                    ).encode()
                )
        other.send(encode_ack(PacketType.PUBREC, 1))


PHASES = ("connecting", "subscribing", "running", "busy")
QUICK = settings(max_examples=350)


@pytest.mark.parametrize("phase", PHASES)
@QUICK
@given(
    stream=st.lists(packets, min_size=1, max_size=5),
    changes=mutations,
    pieces=st.sampled_from((1, 2, 7, 50)),
    remote=st.booleans(),
    v5=st.booleans(),
    present=st.booleans(),
)
async def test_damaged_streams(
    phase: str,
    stream: list[object],
    changes: list[tuple[str, int, int]],
    pieces: int,
    remote: bool,
    v5: bool,
    present: bool,
) -> None:
    async with Table(local_v5=remote or v5, remote_v5=not remote or v5) as table:
        peer = table.remote if remote else table.local
        await begin(table, peer, phase)
        await survives(table, peer, mutate(encode_all(v5, stream), changes), pieces, present=present)


@pytest.mark.parametrize("phase", PHASES)
@QUICK
@given(
    noise=st.binary(min_size=1, max_size=200),
    pieces=st.sampled_from((1, 3, 200)),
    remote=st.booleans(),
    present=st.booleans(),
)
async def test_noise(phase: str, noise: bytes, pieces: int, remote: bool, present: bool) -> None:
    async with Table() as table:
        peer = table.remote if remote else table.local
        await begin(table, peer, phase)
        await survives(table, peer, noise, pieces, present=present)


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x00\x00", "type 0"),
        (b"\x10\x00", "type 1"),
        (b"\xc0\x00", "type 12"),
        (b"\xf0\x00", "type 15"),
        (Connack(properties={}).encode(), "second or short CONNACK"),
        (b"\x30\xff\xff\xff\xff\x01", "longer than four bytes"),
        (b"\x30\x02\x00\x05", "without a whole topic"),
        (b"\x30\x02\x00\x00", "without a whole topic"),
        (Publish(topic="t/a", qos=3, packet_id=1, properties={}).encode(), "QoS 3"),
        (Publish(topic="t/a", qos=1, packet_id=0, properties={}).encode(), "without a packet identifier"),
        (Publish(topic="t/a", qos=2, packet_id=0, properties={}).encode(), "without a packet identifier"),
        (encode_ack(PacketType.PUBACK, 0), "without a packet identifier"),
        (b"\x62\x01\x00", "without a packet identifier"),
        (b"\x90\x01\x00", "SUBACK without a packet identifier"),
        (b"\x90" + varint(MAX_PACKET + 1), "bytes"),
    ],
)
async def test_reasons(data: bytes, says: str, remote: bool) -> None:
    async with Table() as table:
        peer = table.remote if remote else table.local
        await table.running()
        before = peer.connections
        peer.send(data)
        assert peer.session is None
        await table.until(lambda: peer.connections > before, "reconnect")
        error = table.status_of(peer).error
        assert error is not None
        assert error.code is ErrorCode.MALFORMED_PACKET
        assert says in error.text
        await table.heal(session_present=True)
        assert table.errors.texts == table.local.wrong == table.remote.wrong == []


@pytest.mark.parametrize("kind", [0x30, 0x32, 0x90])
async def test_endless_packets_fill_no_buffer(kind: int) -> None:
    async with Table() as table:
        await table.running()
        peer = table.local
        head = bytes((kind,)) + varint(MAX_REMAINING_LENGTH) + b"\x00\x03t/a" + b"\x00\x07"
        peer.send(head)
        for _ in range(20):
            peer.send(b"x" * 100_000)
            if peer.session is not None:
                assert len(peer.session._framer._buffer) <= _LONGEST_HEAD
        await table.heal(session_present=False)
        assert table.errors.texts == table.remote.wrong == []
