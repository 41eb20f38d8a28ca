"""What the QUIC front does with connections and packets: settings, packet rules, and what it saw."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from .packets import Connect, PacketType

if TYPE_CHECKING:
    from .front_connection import FrontConnection

type Apply = Callable[[FrontConnection, bytes], bytes]
"""Gets a whole packet, returns the bytes to forward in its place (none: swallowed)."""


class Direction(Enum):
    """Where a packet is going."""

    TO_BROKER = "to broker"
    TO_CLIENT = "to client"


@dataclass(kw_only=True, eq=False)
class Rule:
    """Something that is done to packets of some types in one direction."""

    direction: Direction
    types: Collection[PacketType]
    apply: Apply
    when: Callable[[bytes], bool] | None = None
    """Only packets for which this is true."""
    skip: int = 0
    """Leave so many of them alone first."""
    times: int | None = None
    """Do it only so often; None: always."""
    used: int = 0

    def run(self, connection: FrontConnection, packet: bytes) -> bytes:
        """Apply it to a packet of one of its types, if it is the packet's turn."""
        if (self.when is not None and not self.when(packet)) or (self.times is not None and self.used >= self.times):
            return packet
        if self.skip:
            self.skip -= 1
            return packet
        self.used += 1
        return self.apply(connection, packet)


@dataclass(kw_only=True)
class Policy:
    """How the front treats connections that come; may be changed at any time, and counts for the next one."""

    alpn: Sequence[str] = ("mqtt",)
    """With another protocol a client that wants `mqtt` sees CRYPTO_ERROR 0x178."""
    refuse_handshake: int | None = None
    """Close with this code on the first packet: 0x15A is what an overloaded EMQX does."""
    client_ca_pem: str | None = None
    """Want client certificates of this authority. As with EMQX the client's handshake completes first; then it is
    closed with 0x174 (no certificate) or 0x130 (another authority)."""
    tickets: bool = False
    """Give session tickets and take them back, with early data; those of before a `die` or `stop` are refused."""
    migration: bool = True
    """Let clients change their address (False: disable_active_migration)."""
    server_stream: bytes | None = None
    """Open a bidirectional stream of our own when the handshake is done, with these bytes on it."""
    serve_data_streams: bool = True
    """Serve the client's further bidirectional streams as EMQX does; else what comes there is left lying."""
    bidirectional_streams: int = 10
    """How many the client may have open; as EMQX."""
    stream_window: int = 256 * 1024
    """Bytes the client may send ahead of what the broker has taken."""
    close_delay: float | None = 3.0
    """Seconds between our FIN and CONNECTION_CLOSE (application, 1); None: never, as EMQX with persistent sessions."""
    on_handshake: Callable[[FrontConnection], None] | None = None
    """Called when a handshake is complete."""
    on_data_stream: Callable[[FrontConnection], None] | None = None
    """Called when the client first writes to a stream beside the MQTT stream."""
    on_connect: Callable[[FrontConnection], None] | None = None
    """Called with each MQTT CONNECT, before it goes to the broker."""


@dataclass(frozen=True, slots=True)
class CloseSeen:
    """A CONNECTION_CLOSE that a client sent."""

    error_code: int
    frame_type: int | None
    """None: by the application; else the transport's."""
    reason: str


@dataclass(kw_only=True)
class Stats:
    """What was seen, by the front in all or by one connection."""

    connections: int = 0
    """QUIC connections begun."""
    handshakes: int = 0
    """... and completed."""
    connects: list[Connect] = field(default_factory=list)
    """MQTT CONNECT packets."""
    disconnects: list[int] = field(default_factory=list)
    """Reason codes of the clients' DISCONNECT packets."""
    closes: list[CloseSeen] = field(default_factory=list)
    """CONNECTION_CLOSE frames of clients."""
    stream_fins: int = 0
    """FINs of clients on the MQTT stream."""
    stream_resets: list[int] = field(default_factory=list)
    """Codes of the clients' RESET_STREAM."""
    stop_sendings: list[int] = field(default_factory=list)
    """Codes of the clients' STOP_SENDING."""
    from_client: Counter[PacketType] = field(default_factory=Counter)
    """MQTT packets by type that clients sent."""
    from_broker: Counter[PacketType] = field(default_factory=Counter)
    """MQTT packets by type that the broker sent (whether forwarded or not)."""

    @property
    def pingreqs(self) -> int:
        """PINGREQ packets of clients."""
        return self.from_client[PacketType.PINGREQ]


class PacketFilter:
    """Follow the packets of a byte stream; show those of chosen types, whole, to a handler that may change them.

    All other bytes go through as they come, counted by packet type. Bytes that are no MQTT go through unseen.
    """

    def __init__(
        self,
        forward: Callable[[bytes], None],
        handle: Callable[[PacketType, bytes], bytes],
        counts: Sequence[Counter[PacketType]],
    ) -> None:
        self.interest = 0
        """Bit n is set: the handler wants packets of type n."""
        self._forward = forward
        self._handle = handle
        self._counts = counts
        self._held = bytearray()
        self._needed = 0
        self._skip = 0
        self._lost = False
        self._waiting: list[Callable[[], None]] = []

    def when_whole(self, action: Callable[[], None]) -> None:
        """Do something now, or when the packet of which a part went through already is complete."""
        if self._skip:
            self._waiting.append(action)
        else:
            action()

    def cut(self) -> None:
        """The stream ended, if need be in the middle of a packet."""
        self._skip = 0
        self._whole()

    def _whole(self) -> None:
        waiting, self._waiting = self._waiting, []
        for action in waiting:
            action()

    def _count(self, found: list[int]) -> None:
        for kind in set(found):
            number = found.count(kind)
            for counter in self._counts:
                counter[PacketType(kind)] += number

    def feed(self, data: bytes) -> None:
        """Take bytes, forward those whose time has come."""
        if self._lost:
            self._forward(data)
            return
        if self._held:
            self._held += data
            if len(self._held) < self._needed:
                return
            data = bytes(self._held)
            self._held.clear()
        size, position, start = len(data), self._skip, 0
        if self._waiting and position <= size:
            self._forward(data[:position])
            start, self._skip = position, 0
            self._whole()
        found: list[int] = []
        while position < size:
            kind = data[position] >> 4
            length, shift, at, complete = 0, 0, position + 1, False
            while at < size and shift <= 21:
                byte = data[at]
                at += 1
                length |= (byte & 0x7F) << shift
                if byte < 0x80:
                    complete = True
                    break
                shift += 7
            if not kind or (not complete and shift > 21):
                self._lost = True
                position = size
                break
            end = at + length
            if not complete or (end > size and self.interest >> kind & 1):
                # The header decides only when it is complete, a packet of interest is shown only whole.
                self._needed = end - position if complete else 0
                self._held += data[position:]
                size = position
                break
            found.append(kind)
            if self.interest >> kind & 1:
                if start < position:
                    self._forward(data[start:position])
                self._count(found)
                found.clear()
                if answer := self._handle(PacketType(kind), data[position:end]):
                    self._forward(answer)
                start = end
            position = end
        self._skip = max(0, position - size)
        self._count(found)
        if start < size:
            self._forward(data[start:size] if start or size < len(data) else data)
