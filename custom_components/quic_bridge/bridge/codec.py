"""The PUBLISH family of MQTT 3.1.1 and 5 on bytes: the hot path of the bridge.

Everything else (CONNECT, SUBSCRIBE, properties by name) is left to paho-mqtt, see `session.py`. Cost decides
here: paho takes 20 to 45 us to receive and send on one QoS 1 message, this takes about 2 us.
"""

from collections.abc import Callable
from typing import Final

CONNACK: Final = 0x20
PUBLISH: Final = 0x30
PUBACK: Final = 0x40
PUBREC: Final = 0x50
PUBREL: Final = 0x60
PUBCOMP: Final = 0x70
SUBACK: Final = 0x90
UNSUBACK: Final = 0xB0
PINGRESP: Final = 0xD0
DISCONNECT: Final = 0xE0

PINGREQ_PACKET: Final = b"\xc0\x00"
DISCONNECT_PACKET: Final = b"\xe0\x00"
"""Normal disconnection: the same two bytes in 3.1.1 and 5."""

DUP: Final = 0x08
RETAIN: Final = 0x01

MAX_REMAINING_LENGTH: Final = 268_435_455
_LONGEST_PUBLISH_HEAD: Final = 5 + 2 + 65_535 + 2

_MESSAGE_EXPIRY: Final = 0x02
_RESPONSE_TOPIC: Final = 0x08
_TOPIC_ALIAS: Final = 0x23
_SUBSCRIPTION_IDENTIFIER: Final = 0x0B
_USER_PROPERTY: Final = 0x26
_CONTENT_TYPE: Final = 0x03
_TEXTS: Final = frozenset({_CONTENT_TYPE, _RESPONSE_TOPIC, _USER_PROPERTY})
_REPEATABLE: Final = frozenset({_SUBSCRIPTION_IDENTIFIER, _USER_PROPERTY})
# Length of the value of each property that a PUBLISH may carry; None: length-prefixed, see _skip_property.
_PUBLISH_PROPERTY_SIZES: Final[dict[int, int | None]] = {
    0x01: 1,  # Payload Format Indicator
    _MESSAGE_EXPIRY: 4,
    _CONTENT_TYPE: None,
    _RESPONSE_TOPIC: None,
    0x09: None,  # Correlation Data
    _SUBSCRIPTION_IDENTIFIER: None,
    _TOPIC_ALIAS: 2,
    _USER_PROPERTY: None,
}


class MalformedPacketError(Exception):
    """The bytes are not MQTT; the connection that brought them cannot be trusted to be in step any more."""


def encode_length(value: int) -> bytes:
    """Encode a Variable Byte Integer (MQTT 5, 1.5.5)."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value:
        byte = value & 0x7F
        value >>= 7
        out.append(byte | 0x80 if value else byte)
    return bytes(out)


def decode_length(data: bytes, position: int) -> tuple[int, int]:
    """Decode a Variable Byte Integer; returns it and the position behind it.

    Raises MalformedPacketError when it is cut short or longer than four bytes.
    """
    value = shift = 0
    while shift <= 21:
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise MalformedPacketError("variable byte integer is cut short or too long")


type Packet = tuple[int, int, bytes, int]
"""First byte, length of the fixed header, the packet, its size (larger than what is there: an oversized PUBLISH)."""


class Framer:
    """Cuts the byte stream of one connection into MQTT packets.

    A PUBLISH larger than `max_packet` bytes is not stored: its head is returned as soon as the packet identifier
    can be read, the rest is skipped, so that one such message cannot wedge the bridge. Any other packet of that
    size is malformed. No more than `max_packet` bytes (or one PUBLISH head) are ever held.
    """

    def __init__(self, max_packet: int) -> None:
        """Begin at the start of a stream."""
        self._max_packet = max_packet
        self._buffer = bytearray()
        self._needed = 0
        self._skip = 0

    def feed(self, data: bytes) -> list[Packet]:
        """Take bytes; return the packets that they complete. Raises MalformedPacketError."""
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        buffer = self._buffer
        if buffer:
            buffer += data
            if len(buffer) < self._needed:
                return []
            data = bytes(buffer)
            buffer.clear()
        self._needed = 0
        packets: list[Packet] = []
        position, end = 0, len(data)
        while end - position >= 2:
            length = data[position + 1]
            body = position + 2
            if length >= 0x80:
                length &= 0x7F
                shift = 7
                while True:
                    if body >= end:
                        body = 0
                        break
                    byte = data[body]
                    body += 1
                    length |= (byte & 0x7F) << shift
                    if byte < 0x80:
                        break
                    shift += 7
                    if shift > 21:
                        raise MalformedPacketError("remaining length is longer than four bytes")
                if not body:
                    break
            stop = body + length
            if stop - position > self._max_packet:
                head = self._oversized(data, position, body, stop)
                if not head:
                    break
                packets.append((data[position], body - position, head, stop - position))
                self._skip = max(0, stop - end)
                position = min(stop, end)
                continue
            if stop > end:
                self._needed = stop - position
                break
            packets.append((data[position], body - position, data[position:stop], stop - position))
            position = stop
        if position < end:
            buffer += data[position:] if position else data
        return packets

    @staticmethod
    def _oversized(data: bytes, position: int, body: int, stop: int) -> bytes:
        """Head of a PUBLISH that is too large, up to its packet identifier at least; empty: more bytes are needed."""
        if data[position] & 0xF0 != PUBLISH:
            raise MalformedPacketError(f"packet of type {data[position] >> 4} with {stop - position} bytes")
        head = data[position : min(position + _LONGEST_PUBLISH_HEAD, stop - 1)]
        header = body - position
        if len(head) < header + 2 or len(head) < header + 4 + int.from_bytes(head[header : header + 2]):
            if position + len(head) == stop - 1 or len(head) == _LONGEST_PUBLISH_HEAD:
                raise MalformedPacketError("PUBLISH without a whole topic")
            return b""
        return head


def header_length(packet: bytes) -> int:
    """Length of the fixed header of a whole packet. Raises MalformedPacketError."""
    return decode_length(packet, 1)[1]


def publish_topic(header: int, packet: bytes) -> bytes:
    """Topic of a PUBLISH, undecoded. Raises MalformedPacketError when it is cut short."""
    start = header + 2
    end = start + (packet[header] << 8 | packet[header + 1]) if len(packet) >= start else 0
    if not start < end <= len(packet):
        raise MalformedPacketError("PUBLISH without a whole topic")
    return packet[start:end]


def publish_mid(header: int, topic_length: int, packet: bytes) -> int:
    """Packet identifier of a PUBLISH with QoS 1 or 2. Raises MalformedPacketError when absent or 0."""
    position = header + 2 + topic_length
    mid = int.from_bytes(packet[position : position + 2]) if len(packet) >= position + 2 else 0
    if not mid:
        raise MalformedPacketError("PUBLISH with QoS 1 or 2 without a packet identifier")
    return mid


def payload_size(first: int, header: int, packet: bytes, *, v5: bool) -> int:
    """Return the size in bytes of a PUBLISH's payload; 0 or less for properties that cannot be read."""
    position = header + 2 + int.from_bytes(packet[header : header + 2]) + (2 if first & 0x06 else 0)
    if v5:
        try:
            length, position = decode_length(packet, position)
        except MalformedPacketError:
            return 0
        position += length
    return len(packet) - position


def encode_publish(first: int, topic: bytes, mid: int, properties: bytes | None, payload: bytes) -> bytes:
    """Build a PUBLISH. `properties` is the block without its length, None for MQTT 3.1.1; `mid` counts if QoS > 0."""
    parts = [len(topic).to_bytes(2), topic]
    if first & 0x06:
        parts.append(mid.to_bytes(2))
    if properties is not None:
        parts += (encode_length(len(properties)), properties)
    parts.append(payload)
    return b"".join((bytes((first,)), encode_length(sum(map(len, parts))), *parts))


def properties_position(first: int, header: int, packet: bytes) -> int:
    """Return where the property length of an MQTT 5 PUBLISH is, if the packet is so long."""
    return header + 2 + (packet[header] << 8 | packet[header + 1]) + (2 if first & 0x06 else 0)


def split_publish(first: int, header: int, packet: bytes, *, v5: bool) -> tuple[bytes, int, bytes, bytes]:
    """Take a PUBLISH apart: topic, packet identifier (0 for QoS 0), property block, payload.

    Raises MalformedPacketError.
    """
    topic = publish_topic(header, packet)
    position = header + 2 + len(topic)
    mid = 0
    if first & 0x06:
        mid = publish_mid(header, len(topic), packet)
        position += 2
    properties = b""
    if v5:
        length, start = decode_length(packet, position)
        position = start + length
        if position > len(packet):
            raise MalformedPacketError("PUBLISH properties are longer than the packet")
        properties = packet[start:position]
    return topic, mid, properties, packet[position:]


def forwardable_properties(block: bytes, response_topic: Callable[[bytes], bytes] | None = None) -> bytes:
    """Drop what belongs to one connection only: Topic Alias and Subscription Identifier (MQTT 5, 3.3.2.3).

    `response_topic` gives the Response Topic its name on the other side.
    Raises MalformedPacketError for properties that a PUBLISH cannot carry: a broker that is less strict than the next
    one would have us thrown out for them.
    """
    kept: list[bytes] = []
    position = 0
    seen = 0
    while position < len(block):
        identifier = block[position]
        end = _skip_property(identifier, block, position + 1)
        if identifier in _TEXTS:
            _check_texts(block[position + 1 : end])
        if identifier not in _REPEATABLE:
            if seen >> identifier & 1:
                raise MalformedPacketError(f"PUBLISH with property 0x{identifier:02X} twice")
            seen |= 1 << identifier
        if identifier == _RESPONSE_TOPIC and response_topic is not None:
            topic = response_topic(block[position + 3 : end])
            kept += (block[position : position + 1], len(topic).to_bytes(2), topic)
        elif identifier not in {_TOPIC_ALIAS, _SUBSCRIPTION_IDENTIFIER}:
            kept.append(block[position:end])
        position = end
    return b"".join(kept)


def _check_texts(value: bytes) -> None:
    """Check length-prefixed strings (MQTT 5, 1.5.4). Raises MalformedPacketError."""
    position = 0
    while position < len(value):
        start = position + 2
        position = start + int.from_bytes(value[position:start])
        try:
            text = value[start:position].decode()
        except UnicodeDecodeError:
            raise MalformedPacketError("PUBLISH property is not UTF-8") from None
        if "\0" in text:
            raise MalformedPacketError("PUBLISH property with a null character")


def user_property(name: str, value: bytes) -> bytes:
    """Build a User Property (MQTT 5, 3.3.2.3.7)."""
    text = name.encode()
    return b"".join((bytes((_USER_PROPERTY,)), len(text).to_bytes(2), text, len(value).to_bytes(2), value))


def take_user_property(block: bytes, name: str) -> tuple[bytes, bytes]:
    """Split a property block into all but the User Properties `name`, in their order, and the values of those, joined.

    Raises MalformedPacketError.
    """
    text = name.encode()
    head = bytes((_USER_PROPERTY,)) + len(text).to_bytes(2) + text
    if head not in block:
        return block, b""
    kept: list[bytes] = []
    values: list[bytes] = []
    position = 0
    while position < len(block):
        end = _skip_property(block[position], block, position + 1)
        if block.startswith(head, position):
            values.append(block[position + len(head) + 2 : end])
        else:
            kept.append(block[position:end])
        position = end
    return b"".join(kept), b"".join(values)


def take_identifiers(block: bytes) -> tuple[frozenset[int], bytes]:
    """Split a property block into the Subscription Identifiers and what copies for several subscriptions share.

    That is all but the Message Expiry Interval, from which the broker takes the time that each copy waited (MQTT 5,
    3.3.2.3.3). Raises MalformedPacketError.
    """
    found = set[int]()
    common: list[bytes] = []
    position = 0
    while position < len(block):
        identifier = block[position]
        end = _skip_property(identifier, block, position + 1)
        if identifier == _SUBSCRIPTION_IDENTIFIER:
            found.add(decode_length(block, position + 1)[0])
        elif identifier != _MESSAGE_EXPIRY:
            common.append(block[position:end])
        position = end
    return frozenset(found), b"".join(common)


def with_properties(first: int, header: int, position: int, packet: bytes, block: bytes) -> bytes:
    """Give a PUBLISH whose property length, at `position`, is 0 the properties of `block`, and another first byte.

    `block` comes with its length, in one byte. On the hot path: this form takes half the time of the obvious ones.
    """
    length = len(packet) - header + len(block) - 1
    if length < 0x80:
        head = bytes((first, length))
    elif length < 0x4000:
        head = bytes((first, length & 0x7F | 0x80, length >> 7))
    else:
        head = bytes((first,)) + encode_length(length)
    return head + packet[header:position] + block + packet[position + 1 :]


def expiry_offset(block: bytes) -> int | None:
    """Where the four bytes of the Message Expiry Interval stand in a property block; None: it has none.

    Raises MalformedPacketError.
    """
    position = 0
    while position < len(block):
        identifier = block[position]
        if identifier == _MESSAGE_EXPIRY:
            _skip_property(identifier, block, position + 1)
            return position + 1
        position = _skip_property(identifier, block, position + 1)
    return None


def _skip_property(identifier: int, block: bytes, position: int) -> int:
    """Position behind the value of a property."""
    if identifier not in _PUBLISH_PROPERTY_SIZES:
        raise MalformedPacketError(f"PUBLISH with property 0x{identifier:02X}")
    size = _PUBLISH_PROPERTY_SIZES[identifier]
    if size is not None:
        position += size
    elif identifier == _SUBSCRIPTION_IDENTIFIER:
        _, position = decode_length(block, position)
    else:
        for _ in range(2 if identifier == _USER_PROPERTY else 1):
            position += 2 + int.from_bytes(block[position : position + 2])
    if position > len(block):
        raise MalformedPacketError("PUBLISH property is cut short")
    return position


def encode_ack(packet_type: int, mid: int, reason: int = 0) -> bytes:
    """Build PUBACK, PUBREC, PUBREL or PUBCOMP. A `reason` other than 0 is for MQTT 5 only."""
    first = PUBREL | 0x02 if packet_type == PUBREL else packet_type
    if reason:
        return bytes((first, 3, mid >> 8, mid & 0xFF, reason))
    return bytes((first, 2, mid >> 8, mid & 0xFF))


def decode_ack(header: int, packet: bytes) -> tuple[int, int]:
    """Packet identifier and reason code (0 where there is none). Raises MalformedPacketError."""
    mid = packet[header] << 8 | packet[header + 1] if len(packet) >= header + 2 else 0
    if not mid:
        raise MalformedPacketError("acknowledgement without a packet identifier")
    return mid, packet[header + 2] if len(packet) > header + 2 else 0


def decode_suback(header: int, packet: bytes, *, v5: bool) -> tuple[int, list[int]]:
    """Packet identifier and reason codes of a SUBACK or UNSUBACK. Raises MalformedPacketError."""
    start = header + 2
    if len(packet) < start:
        raise MalformedPacketError("SUBACK without a packet identifier")
    if v5:
        length, start = decode_length(packet, start)
        start += length
        if start > len(packet):
            raise MalformedPacketError("SUBACK properties are longer than the packet")
    return packet[header] << 8 | packet[header + 1], list(packet[start:])
