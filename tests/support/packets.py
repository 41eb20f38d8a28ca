"""MQTT 3.1.1 and 5 packets on bytes, written apart from the bridge's own codec so that one can check the other."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

type PropertyValue = int | str | bytes | list[tuple[str, str]] | list[int]
type Properties = dict[Property, PropertyValue]


class PacketType(IntEnum):
    """The high four bits of a packet's first byte."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15


class Property(IntEnum):
    """MQTT 5 property identifiers (section 2.2.2.2)."""

    PAYLOAD_FORMAT = 0x01
    MESSAGE_EXPIRY = 0x02
    CONTENT_TYPE = 0x03
    RESPONSE_TOPIC = 0x08
    CORRELATION_DATA = 0x09
    SUBSCRIPTION_IDENTIFIER = 0x0B
    SESSION_EXPIRY = 0x11
    ASSIGNED_CLIENT_IDENTIFIER = 0x12
    SERVER_KEEP_ALIVE = 0x13
    AUTHENTICATION_METHOD = 0x15
    AUTHENTICATION_DATA = 0x16
    REQUEST_PROBLEM_INFORMATION = 0x17
    WILL_DELAY = 0x18
    REQUEST_RESPONSE_INFORMATION = 0x19
    RESPONSE_INFORMATION = 0x1A
    SERVER_REFERENCE = 0x1C
    REASON_STRING = 0x1F
    RECEIVE_MAXIMUM = 0x21
    TOPIC_ALIAS_MAXIMUM = 0x22
    TOPIC_ALIAS = 0x23
    MAXIMUM_QOS = 0x24
    RETAIN_AVAILABLE = 0x25
    USER_PROPERTY = 0x26
    MAXIMUM_PACKET_SIZE = 0x27
    WILDCARD_AVAILABLE = 0x28
    SUBSCRIPTION_IDENTIFIER_AVAILABLE = 0x29
    SHARED_AVAILABLE = 0x2A


_ONE_BYTE = frozenset({0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2A})
_TWO_BYTES = frozenset({0x13, 0x21, 0x22, 0x23})
_FOUR_BYTES = frozenset({0x02, 0x11, 0x18, 0x27})
_BINARY = frozenset({0x09, 0x16})


class MalformedError(ValueError):
    """Bytes that are not MQTT."""


def varint(number: int) -> bytes:
    """Encode a variable byte integer."""
    out = bytearray()
    while True:
        number, low = divmod(number, 128)
        out.append(low | (0x80 if number else 0))
        if not number:
            return bytes(out)


def binary(data: bytes | str) -> bytes:
    """Encode a string or binary data with its two-byte length."""
    if isinstance(data, str):
        data = data.encode()
    return len(data).to_bytes(2) + data


def packet(first: int, *parts: bytes) -> bytes:
    """Frame a packet: first byte, remaining length, parts."""
    body = b"".join(parts)
    return bytes((first,)) + varint(len(body)) + body


class Reader:
    """Take fields off the front of a packet's body."""

    __slots__ = ("data", "position")

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data = data
        self.position = position

    def take(self, count: int) -> bytes:
        """Take bytes; raises MalformedError when there are not so many."""
        end = self.position + count
        if end > len(self.data):
            raise MalformedError("packet ends too early")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def number(self, size: int) -> int:
        """Take a big-endian integer of `size` bytes."""
        return int.from_bytes(self.take(size))

    def varint(self) -> int:
        """Take a variable byte integer."""
        value = 0
        for shift in (0, 7, 14, 21):
            byte = self.number(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise MalformedError("variable byte integer of more than four bytes")

    def binary(self) -> bytes:
        """Take binary data with a two-byte length."""
        return self.take(self.number(2))

    def text(self) -> str:
        """Take a UTF-8 string."""
        return self.binary().decode()

    def rest(self) -> bytes:
        """Take all that is left."""
        return self.take(len(self.data) - self.position)

    @property
    def at_end(self) -> bool:
        """Whether everything was taken."""
        return self.position >= len(self.data)

    def properties(self) -> Properties:
        """Take a property block with its length."""
        block = Reader(self.take(self.varint()))
        found: Properties = {}
        while not block.at_end:
            name = Property(block.varint())
            if name is Property.USER_PROPERTY:
                pairs = found.setdefault(name, [])
                pairs.append((block.text(), block.text()))  # type: ignore[union-attr,arg-type]
            elif name is Property.SUBSCRIPTION_IDENTIFIER:
                identifiers = found.setdefault(name, [])
                identifiers.append(block.varint())  # type: ignore[union-attr,arg-type]
            elif name in _ONE_BYTE:
                found[name] = block.number(1)
            elif name in _TWO_BYTES:
                found[name] = block.number(2)
            elif name in _FOUR_BYTES:
                found[name] = block.number(4)
            elif name in _BINARY:
                found[name] = block.binary()
            else:
                found[name] = block.text()
        return found


def _encode_property(name: Property, value: PropertyValue) -> Iterator[bytes]:
    prefix = bytes((name,))
    if isinstance(value, list):
        for item in value:
            yield prefix
            if isinstance(item, int):
                yield varint(item)
            else:
                yield binary(item[0]) + binary(item[1])
    elif isinstance(value, int):
        yield prefix
        if name is Property.SUBSCRIPTION_IDENTIFIER:
            yield varint(value)
        else:
            yield value.to_bytes(1 if name in _ONE_BYTE else 2 if name in _TWO_BYTES else 4)
    else:
        yield prefix + binary(value)


def encode_properties(properties: Properties | None) -> bytes:
    """Encode a property block with its length."""
    block = b"".join(piece for name, value in (properties or {}).items() for piece in _encode_property(name, value))
    return varint(len(block)) + block


def body_of(data: bytes) -> Reader:
    """Read a whole packet behind its fixed header."""
    reader = Reader(data, 1)
    reader.varint()
    return reader


@dataclass(slots=True, kw_only=True)
class Will:
    """The message a broker publishes when the client goes without a DISCONNECT."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Properties = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Connect:
    """A CONNECT packet."""

    client_id: str = ""
    level: int = 5
    """4 for 3.1.1, 5 for 5; bit 0x80 is mosquitto's mark of a bridge."""
    clean: bool = True
    keepalive: int = 0
    username: str | None = None
    password: bytes | None = None
    will: Will | None = None
    properties: Properties = field(default_factory=dict)

    def encode(self) -> bytes:
        """Make the packet."""
        flags = 0x02 if self.clean else 0
        payload = binary(self.client_id)
        v5 = self.level & 0x7F == 5
        if self.will is not None:
            flags |= 0x04 | self.will.qos << 3 | self.will.retain << 5
            if v5:
                payload += encode_properties(self.will.properties)
            payload += binary(self.will.topic) + binary(self.will.payload)
        if self.username is not None:
            flags |= 0x80
            payload += binary(self.username)
        if self.password is not None:
            flags |= 0x40
            payload += binary(self.password)
        header = binary("MQTT") + bytes((self.level, flags)) + self.keepalive.to_bytes(2)
        return packet(0x10, header, encode_properties(self.properties) if v5 else b"", payload)

    @classmethod
    def decode(cls, data: bytes) -> Connect:
        """Read the packet; raises MalformedError."""
        reader = body_of(data)
        if reader.text() not in {"MQTT", "MQIsdp"}:
            raise MalformedError("protocol name")
        level, flags, keepalive = reader.number(1), reader.number(1), reader.number(2)
        v5 = level & 0x7F == 5
        properties = reader.properties() if v5 else {}
        client_id = reader.text()
        will = None
        if flags & 0x04:
            will_properties = reader.properties() if v5 else {}
            will = Will(
                topic=reader.text(),
                payload=reader.binary(),
                qos=flags >> 3 & 3,
                retain=bool(flags & 0x20),
                properties=will_properties,
            )
        return cls(
            client_id=client_id,
            level=level,
            clean=bool(flags & 0x02),
            keepalive=keepalive,
            username=reader.text() if flags & 0x80 else None,
            password=reader.binary() if flags & 0x40 else None,
            will=will,
            properties=properties,
        )


@dataclass(slots=True, kw_only=True)
class Connack:
    """A CONNACK packet; `properties` is None in 3.1.1."""

    session_present: bool = False
    code: int = 0
    properties: Properties | None = None

    def encode(self) -> bytes:
        """Make the packet."""
        tail = b"" if self.properties is None else encode_properties(self.properties)
        return packet(0x20, bytes((self.session_present, self.code)), tail)

    @classmethod
    def decode(cls, data: bytes) -> Connack:
        """Read the packet; raises MalformedError."""
        reader = body_of(data)
        flags, code = reader.number(1), reader.number(1)
        return cls(
            session_present=bool(flags & 1), code=code, properties=None if reader.at_end else reader.properties()
        )


@dataclass(slots=True, kw_only=True)
class Publish:
    """A PUBLISH packet; `properties` is None in 3.1.1."""

    topic: str
    payload: bytes = b""
    qos: int = 0
    retain: bool = False
    dup: bool = False
    packet_id: int = 0
    properties: Properties | None = None

    def encode(self) -> bytes:
        """Make the packet."""
        return packet(
            0x30 | self.dup << 3 | self.qos << 1 | self.retain,
            binary(self.topic),
            self.packet_id.to_bytes(2) if self.qos else b"",
            b"" if self.properties is None else encode_properties(self.properties),
            self.payload,
        )

    @classmethod
    def decode(cls, data: bytes, *, v5: bool) -> Publish:
        """Read the packet; raises MalformedError."""
        reader = body_of(data)
        first = data[0]
        qos = first >> 1 & 3
        return cls(
            topic=reader.text(),
            qos=qos,
            retain=bool(first & 1),
            dup=bool(first & 8),
            packet_id=reader.number(2) if qos else 0,
            properties=reader.properties() if v5 else None,
            payload=reader.rest(),
        )


@dataclass(slots=True, frozen=True)
class Subscription:
    """One filter of a SUBSCRIBE; the options after `qos` need MQTT 5."""

    topic_filter: str
    qos: int = 0
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: int = 0
    identifier: int | None = None
    """Subscription Identifier; a SUBSCRIBE has one for all its filters."""

    @property
    def options(self) -> int:
        """The options byte."""
        return self.qos | self.no_local << 2 | self.retain_as_published << 3 | self.retain_handling << 4


def encode_subscribe(
    packet_id: int, subscriptions: list[Subscription], *, v5: bool, properties: Properties | None = None
) -> bytes:
    """Make a SUBSCRIBE."""
    identifier = subscriptions[0].identifier if subscriptions else None
    if identifier is not None:
        properties = (properties or {}) | {Property.SUBSCRIPTION_IDENTIFIER: identifier}
    return packet(
        0x82,
        packet_id.to_bytes(2),
        encode_properties(properties) if v5 else b"",
        *(binary(item.topic_filter) + bytes((item.options,)) for item in subscriptions),
    )


def decode_subscribe(data: bytes, *, v5: bool) -> tuple[int, list[Subscription]]:
    """Read a SUBSCRIBE: packet identifier and subscriptions."""
    reader = body_of(data)
    packet_id = reader.number(2)
    numbers = reader.properties().get(Property.SUBSCRIPTION_IDENTIFIER) if v5 else None
    number = numbers[0] if isinstance(numbers, list) else None
    assert number is None or isinstance(number, int)
    found = []
    while not reader.at_end:
        name, options = reader.text(), reader.number(1)
        found.append(Subscription(name, options & 3, bool(options & 4), bool(options & 8), options >> 4 & 3, number))
    return packet_id, found


def encode_unsubscribe(packet_id: int, topic_filters: list[str], *, v5: bool) -> bytes:
    """Make an UNSUBSCRIBE."""
    return packet(0xA2, packet_id.to_bytes(2), b"\0" if v5 else b"", *(binary(item) for item in topic_filters))


def decode_suback(data: bytes, *, v5: bool) -> tuple[int, list[int]]:
    """Read a SUBACK or UNSUBACK: packet identifier and codes."""
    reader = body_of(data)
    packet_id = reader.number(2)
    if v5:
        reader.properties()
    return packet_id, list(reader.rest())


def encode_suback(packet_id: int, codes: list[int], *, v5: bool) -> bytes:
    """Make a SUBACK."""
    return packet(0x90, packet_id.to_bytes(2), b"\0" if v5 else b"", bytes(codes))


def encode_ack(kind: PacketType, packet_id: int, code: int = 0) -> bytes:
    """Make a PUBACK, PUBREC, PUBREL or PUBCOMP; a code other than 0 needs MQTT 5."""
    first = kind << 4 | (2 if kind is PacketType.PUBREL else 0)
    return packet(first, packet_id.to_bytes(2), bytes((code,)) if code else b"")


def decode_ack(data: bytes) -> tuple[int, int]:
    """Read a PUBACK, PUBREC, PUBREL or PUBCOMP: packet identifier and reason code."""
    reader = body_of(data)
    return reader.number(2), 0 if reader.at_end else reader.number(1)


def encode_disconnect(code: int | None = None, properties: Properties | None = None) -> bytes:
    """Make a DISCONNECT; without a code that of 3.1.1 (which means normal disconnection in 5)."""
    if code is None:
        return b"\xe0\x00"
    return packet(0xE0, bytes((code,)), encode_properties(properties) if properties else b"")


def decode_disconnect(data: bytes) -> int:
    """Read the reason code of a DISCONNECT; 0 when there is none."""
    reader = body_of(data)
    return 0 if reader.at_end else reader.number(1)


class Splitter:
    """Cut a stream of bytes into whole packets; holds back what is not complete."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the packets that are now complete, each with its fixed header; raises MalformedError."""
        if self._rest:
            data = self._rest + data
        found = []
        start, size = 0, len(data)
        while size - start >= 2:
            length, shift, at = data[start + 1], 7, start + 2
            if length >= 0x80:
                length &= 0x7F
                while True:
                    if at >= size:
                        at = 0
                        break
                    byte = data[at]
                    at += 1
                    length |= (byte & 0x7F) << shift
                    shift += 7
                    if byte < 0x80:
                        break
                    if shift > 21:
                        raise MalformedError("remaining length")
                if not at:
                    break
            end = at + length
            if end > size:
                break
            found.append(data[start:end])
            start = end
        self._rest = data[start:]
        return found
