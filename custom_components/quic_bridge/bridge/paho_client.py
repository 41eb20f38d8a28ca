"""paho-mqtt as a maker and reader of packets: behind its public face, without a socket, thread or timer."""

from collections.abc import Callable
import struct
from typing import TYPE_CHECKING, Final, override

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import MQTTException, Properties

from . import codec
from .config import BrokerConfig

if TYPE_CHECKING:
    from paho.mqtt.client import SocketLike

MQTT_5: Final = 5
MQTT_3_1_1: Final = 4

PAHO_ERRORS: Final = (MQTTException, ValueError, IndexError, KeyError, TypeError, struct.error)
"""What paho raises on malformed packets and unusable values."""

_MAXIMUM_PACKET_SIZE: Final = 0x27
_USER_PROPERTY: Final = 0x26
# Length of the properties of fixed size in a CONNACK; all others are length-prefixed.
_CONNACK_PROPERTY_SIZES: Final = {
    0x11: 4,
    0x13: 2,
    0x21: 2,
    0x22: 2,
    0x24: 1,
    0x25: 1,
    _MAXIMUM_PACKET_SIZE: 4,
    0x28: 1,
    0x29: 1,
    0x2A: 1,
}


class ByteSocket:
    """The little of a socket that paho uses, in memory."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self.write = write
        """Takes what paho sends."""
        self._incoming = bytearray()

    def feed(self, packet: bytes) -> None:
        """Put in what paho shall read next."""
        self._incoming += packet

    def recv(self, size: int) -> bytes:
        """Return what was fed. Raises BlockingIOError when there is nothing, as a socket would."""
        if not self._incoming:
            raise BlockingIOError
        data = bytes(self._incoming[:size])
        del self._incoming[:size]
        return data

    def send(self, data: bytes) -> int:
        """Hand bytes to the transport, all of them."""
        self.write(bytes(data))
        return len(data)

    def setblocking(self, _flag: bool) -> None:
        """Do nothing: it never blocks."""

    def fileno(self) -> int:
        """Tell that there is no file behind it."""
        return -1

    def close(self) -> None:
        """Do nothing: the transport belongs to the session."""


class PahoClient(paho.Client):
    """paho's client on a byte socket, with packet identifiers that the session chooses."""

    def __init__(
        self,
        config: BrokerConfig,
        protocol: int,
        socket: ByteSocket,
        free_mid: Callable[[], int],
        *,
        clean: bool,
        bridge_bit: bool,
    ) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=config.client_id,
            clean_session=clean if protocol != MQTT_5 else None,
            protocol=MQTTProtocolVersion(protocol),
            reconnect_on_failure=False,
        )
        self._byte_socket = socket
        self._free_mid = free_mid
        if bridge_bit:
            self.enable_bridge_mode()
        if config.username is not None:
            self.username_pw_set(config.username, config.password)

    @override
    def _create_socket(self) -> SocketLike:
        return self._byte_socket

    @override
    def _mid_generate(self) -> int:
        return self._free_mid()


def make_properties(packet_type: int) -> Properties:
    """Empty properties for a packet of that type."""
    return Properties(packet_type)  # type: ignore[no-untyped-call]


def number(properties: Properties | None, name: str, default: int) -> int:
    """Value of an integer property; paho keeps those that are present as attributes."""
    value = getattr(properties, name, default)
    return value if isinstance(value, int) else default


def reason_string(packet_type: int, block: bytes) -> str:
    """Reason String of an MQTT 5 packet that ends a connection. It is a courtesy: a broken one is just left out."""
    properties = make_properties(packet_type)
    try:
        properties.unpack(block or b"\0")  # type: ignore[no-untyped-call]
    except PAHO_ERRORS:
        return ""
    text = getattr(properties, "ReasonString", "")
    return text[:200] if isinstance(text, str) else ""


def readable_connack(header: int, packet: bytes) -> bytes:
    """Lower a Maximum Packet Size that paho takes for an error, as it is larger than any packet can be.

    Four bytes may say up to 4 GiB (MQTT 5, 3.2.2.3.6), and brokers do (nanomq#2010). What is malformed stays so.
    Raises MalformedPacketError.
    """
    length, position = codec.decode_length(packet, header + 2)
    end = min(position + length, len(packet))
    while position < end:
        identifier = packet[position]
        value = position + 1
        size = _CONNACK_PROPERTY_SIZES.get(identifier)
        if identifier == _MAXIMUM_PACKET_SIZE:
            limit = min(int.from_bytes(packet[value : value + 4]), codec.MAX_REMAINING_LENGTH)
            return packet[:value] + limit.to_bytes(4) + packet[value + 4 :]
        position = value
        if size is not None:
            position += size
        else:
            for _ in range(2 if identifier == _USER_PROPERTY else 1):
                position += 2 + int.from_bytes(packet[position : position + 2])
    return packet
