"""A message under way, and its bytes as the target takes them."""

from enum import IntEnum, auto
import itertools
import math
import time
from typing import TYPE_CHECKING, Final

from . import codec
from .guard import PathMarker
from .routes import Plan, RetainMode, Route, Router
from .session import MqttSession

if TYPE_CHECKING:
    from .data_streams import DataStream

_QOS_BITS: Final = 0x06
_NUMBERS: Final = itertools.count()


def next_number() -> int:
    """Return a number above those of all messages so far."""
    return next(_NUMBERS)


class Stage(IntEnum):
    """Where a message stands with the target."""

    QUEUED = auto()
    SENT = auto()
    """PUBLISH written; PUBACK or PUBREC to come."""
    STALE = auto()
    """The target held an old message under this identifier; PUBREL written to clear it, then PUBLISH again."""
    RECEIVED = auto()
    """PUBREC has come; PUBREL not written yet."""
    RELEASED = auto()
    """PUBREL written; PUBCOMP to come."""
    DONE = auto()
    """The target is through with it (or it was dropped, or taken over by the Outbox); only the source is left."""


class Message:
    """One message under way."""

    __slots__ = (
        "again",
        "expected",
        "expires_at",
        "first",
        "header",
        "heard",
        "mid",
        "number",
        "owed",
        "packet",
        "plan",
        "qos",
        "released",
        "row",
        "source_qos",
        "spooling",
        "stage",
        "stream",
        "strikes",
        "tries",
        "v5",
    )

    def __init__(self, mid: int, first: int, header: int, packet: bytes, plan: Plan, *, v5: bool) -> None:
        """Take a PUBLISH as it came from the source."""
        self.number = next(_NUMBERS)
        """Rises with each message: their order."""
        self.mid = mid
        """Packet identifier, at both brokers; 0 for QoS 0."""
        self.first = first
        self.header = header
        self.packet = packet
        """As it came from the source; empty when only its PUBREL is known (the bridge was restarted)."""
        self.plan = plan
        self.v5 = v5
        self.source_qos = first >> 1 & 3
        """QoS with which the source sent it."""
        self.qos = 0
        """QoS towards the target, once sent."""
        self.stage = Stage.QUEUED
        self.again = False
        """It was written to the target before, in the target's present session."""
        self.expected = bool(first & codec.DUP)
        """The target may know it from before a restart of ours."""
        self.owed = bool(mid)
        """The source waits for our acknowledgement; False: QoS 0, an orphan, or a row of the Outbox."""
        self.heard = True
        """The source has sent it in its present connection."""
        self.released = False
        """The source has sent PUBREL (QoS 2); for a row: the file knows that PUBREC has come."""
        self.row: int | None = None
        """Its place in the Outbox, for a message that comes from there."""
        self.spooling = False
        """It is on its way into the Outbox, which will see to the target."""
        self.expires_at: float | None = None
        """Unix time at which its Message Expiry Interval ends; known for messages that had to wait."""
        self.strikes = 0
        """How often a connection was ended for this one: by the target, or by us when its word was overdue."""
        self.tries = 0
        """How often the target said that it has no room for it."""
        self.stream: DataStream | None = None
        """The stream of its route, while it is under way on that stream, or to be waited for there."""

    @property
    def may_be_released(self) -> bool:
        """Whether nobody has to be waited for before PUBREL (QoS 2): the source has sent its own, or is out of it."""
        return self.released or not (self.owed or self.row is not None)

    def qos_at(self, target: MqttSession, route: Route) -> int:
        """QoS with which it goes to the target: no higher than the route and the target want."""
        return min(self.source_qos, route.max_qos, target.limits.max_qos)

    @property
    def topic_name(self) -> bytes:
        """The topic as the source has it; there must be a packet."""
        return codec.publish_topic(self.header, self.packet)

    @property
    def topic(self) -> str:
        """The topic, for people."""
        return self.topic_name.decode(errors="replace") if self.packet else ""

    def wait(self) -> None:
        """Note when it will expire, as it cannot be sent at once. Raises MalformedPacketError."""
        if self.plan.route is not None and self.plan.route.max_age is not None:
            self.expires_at = time.time() + self.plan.route.max_age
        if not self.v5:
            return
        position = codec.properties_position(self.first, self.header, self.packet)
        if self.packet[position : position + 1] == b"\0":
            return  # nearly always: no properties
        _, _, properties, _ = codec.split_publish(self.first, self.header, self.packet, v5=True)
        offset = codec.expiry_offset(properties)
        if offset is not None:
            interval = int.from_bytes(properties[offset : offset + 4])
            self.expires_at = min(self.expires_at or math.inf, time.time() + interval)

    @property
    def expired(self) -> bool:
        """Whether it has waited for too long to be sent.

        Never for a QoS 2 message that the target may have: it would keep one of the target's places for ever, and with
        all of these held, brokers end each connection.
        """
        if self.expires_at is None or self.expires_at > time.time():
            return False
        return self.source_qos != 2 or not (self.again or (self.expected and self.row is None))

    @property
    def from_before(self) -> bool:
        """Whether it is a QoS 2 message of the Outbox of which the target may have the PUBLISH already."""
        return self.row is not None and self.again and self.source_qos == 2 and bool(self.packet)

    def stored(self) -> bytes:
        """Encode the packet for the Outbox: MQTT 5 whatever the source speaks, and without DUP.

        Raises MalformedPacketError.
        """
        first = self.first & ~codec.DUP
        if self.v5:
            return self.packet if first == self.packet[0] else bytes((first,)) + self.packet[1:]
        topic, mid, _, payload = codec.split_publish(self.first, self.header, self.packet, v5=False)
        return codec.encode_publish(first, topic, mid, b"", payload)


def encode(target: MqttSession, message: Message, router: Router, marker: PathMarker, first: int, qos: int) -> bytes:
    """PUBLISH as the target takes it; nearly always the very bytes that came, and the path.

    `first` is the first byte with the wanted DUP. Raises MalformedPacketError and LoopError.
    """
    packet, header, v5, plan = message.packet, message.header, message.v5, message.plan
    wanted = first & ~_QOS_BITS | qos << 1
    if plan.route is not None and plan.route.retain is not RetainMode.AS_PUBLISHED:
        wanted = wanted & ~codec.RETAIN | (plan.route.retain is RetainMode.ALWAYS)
    if not target.limits.retain:
        wanted &= ~codec.RETAIN
    if plan.topic is None and v5 == target.v5 and (wanted ^ first) & _QOS_BITS == 0:
        if not v5:
            return packet if packet[0] == wanted else bytes((wanted,)) + packet[1:]
        position = codec.properties_position(first, header, packet)
        # A row of the Outbox may have another packet identifier than its packet.
        if packet[position : position + 1] == b"\0" and message.row is None:
            return codec.with_properties(wanted, header, position, packet, marker.first_block)
    topic, _, properties, payload = codec.split_publish(message.first, header, packet, v5=v5)
    forwarded, path = codec.forwardable_properties(properties, router.response_topic), b""
    if forwarded:
        forwarded, path = marker.take_out(forwarded)
    mark = marker.extended(path)
    if not target.v5:
        return codec.encode_publish(wanted, plan.topic or topic, message.mid, None, payload)
    if message.expires_at is not None:
        # The time it waited here is taken off (MQTT 5, 3.3.2.3.3).
        offset = codec.expiry_offset(forwarded)
        if offset is not None:
            interval = int.from_bytes(forwarded[offset : offset + 4])
            # `expires_at` may be the end of the route's patience, which says nothing of how long the message lives.
            patience = plan.route.max_age if plan.route is not None else None
            came_at = message.expires_at - min(interval, patience if patience is not None else math.inf)
            rest = min(interval, max(1, math.ceil(came_at + interval - time.time())))
            forwarded = forwarded[:offset] + rest.to_bytes(4) + forwarded[offset + 4 :]
    return codec.encode_publish(wanted, plan.topic or topic, message.mid, forwarded + mark, payload)
