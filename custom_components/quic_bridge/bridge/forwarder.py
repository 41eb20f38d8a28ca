"""One direction of the bridge: every message of the source goes to the target, acknowledged end to end.

A QoS 1 or 2 PUBLISH keeps its packet identifier, and the source hears PUBACK, PUBREC and PUBCOMP only when the
target has said them. The persistent sessions of the two brokers are the durable queue; what is in memory here is
what is under way. So a bridge that dies at any instant loses nothing: the source sends again what was not
acknowledged, and the target recognises the identifiers of QoS 2.

Two tables tell where a message stands. `_owed` has those for which the source waits for us, `_flying` those for
which the target has something to say, `_queue` (in order) those that the target has yet to be sent. A message that
lost its source session stays in `_flying` or `_queue` until it is delivered, an orphan.
"""

from collections import deque
from collections.abc import Callable, Collection
from enum import IntEnum, auto
import logging
from typing import Final, override

from . import codec
from .reasons import reason_text
from .routes import Route, Router
from .session import AckReceiver, MqttSession, PublishReceiver
from .status import DirectionStatus, DropReason

_LOGGER = logging.getLogger(__name__)

_MAX_QUEUED_BYTES: Final = 64 * 1024 * 1024
_PACKET_IDENTIFIER_IN_USE: Final = 0x91


class _Stage(IntEnum):
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
    """The target is through with it (or it was dropped); only the source has something to say or hear yet."""


class _Message:
    """One QoS 1 or 2 message under way."""

    __slots__ = (
        "again",
        "expected",
        "first",
        "header",
        "mid",
        "owed",
        "packet",
        "qos",
        "released",
        "route",
        "stage",
        "v5",
    )

    def __init__(self, mid: int, first: int, header: int, packet: bytes, route: Route | None, *, v5: bool) -> None:
        self.mid = mid
        self.first = first
        self.header = header
        self.packet = packet
        """As it came from the source; empty when only its PUBREL is known (the bridge was restarted)."""
        self.route = route
        self.v5 = v5
        self.qos = 0
        """QoS towards the target, once sent."""
        self.stage = _Stage.QUEUED
        self.again = False
        """It was written to the target before, in the target's present session."""
        self.expected = bool(first & codec.DUP)
        """The target may know it from before a restart of ours."""
        self.owed = True
        """The source waits for our acknowledgement; False: an orphan."""
        self.released = False
        """The source has sent PUBREL (QoS 2)."""


class Forwarder(PublishReceiver, AckReceiver):
    """Carries messages from one broker (the source) to the other (the target)."""

    def __init__(self, name: str, router: Router, on_drop: Callable[[DropReason, str], None]) -> None:
        """Begin with neither broker attached. `on_drop` hears of each drop: reason and detail, never a payload."""
        self._name = name
        self._router = router
        self._on_drop = on_drop
        self._source: MqttSession | None = None
        self._target: MqttSession | None = None
        self._owed: dict[int, _Message] = {}
        self._flying: dict[int, _Message] = {}
        self._queue: deque[_Message] = deque()
        self._queued_bytes = 0
        self._source_paused = False
        self._forwarded = 0
        self._bytes = 0
        self._dropped: dict[DropReason, int] = {}

    @property
    def status(self) -> DirectionStatus:
        """Counters since the start."""
        return DirectionStatus(
            forwarded=self._forwarded,
            bytes=self._bytes,
            waiting=len(self._flying) + len(self._queue),
            dropped=dict(self._dropped),
        )

    # --- the source ---------------------------------------------------------------------------------------------------

    @override
    def source_attached(self, session: MqttSession) -> None:
        self._source = session
        self._source_paused = False
        if not session.session_present:
            # The source has forgotten what we owe it. What it gave us is delivered all the same.
            for message in list(self._owed.values()):
                self._disown(message)
        self._throttle()

    @override
    def source_lost(self) -> None:
        self._source = None

    @override
    def source_publish(self, first: int, header: int, packet: bytes) -> None:
        topic = codec.publish_topic(header, packet)
        route = self._router.find(topic)
        qos = first >> 1 & 3
        if qos == 0:
            self._forward_qos_0(first, header, packet, route)
            return
        if qos == 3:
            raise codec.MalformedPacketError("PUBLISH with QoS 3")
        source = self._source
        assert source is not None  # noqa: S101 - the session calls only while attached
        mid = codec.publish_mid(header, len(topic), packet)
        known = self._owed.get(mid)
        if known is not None:
            if first & codec.DUP or packet[1:] == known.packet[1:]:
                self._repeated(known)
                return
            self._disown(known)  # the source gave up that message (it expired) and uses its identifier anew
        message = _Message(mid, first, header, packet, route, v5=source.v5)
        self._owed[mid] = message
        if route is None:
            self._drop(message, DropReason.NO_ROUTE, topic.decode(errors="replace"))
            return
        if self._queue or not self._send(message):
            self._queue.append(message)
            self._queued_bytes += len(packet)
            if self._queued_bytes > _MAX_QUEUED_BYTES:
                self._throttle()

    def _disown(self, message: _Message) -> None:
        """Owe the source nothing for a message any more; the target gets it all the same."""
        del self._owed[message.mid]
        message.owed = False
        if message.stage is _Stage.RECEIVED:
            self._release(message)

    def _repeated(self, message: _Message) -> None:
        """Answer a PUBLISH that we have already, after the source came back."""
        if message.stage is _Stage.DONE or (message.stage >= _Stage.RECEIVED and message.first & 0x04):
            self._acknowledge(message)

    @override
    def source_oversized(self, first: int, header: int, head: bytes, size: int) -> None:
        topic = codec.publish_topic(header, head)
        detail = f"{topic.decode(errors='replace')}: {size} bytes"
        if not first & 0x06:
            self._count_drop(DropReason.TOO_LARGE, detail)
            return
        mid = codec.publish_mid(header, len(topic), head)
        if mid in self._owed:
            self._disown(self._owed[mid])
        message = self._owed[mid] = _Message(mid, first, header, b"", None, v5=False)
        self._drop(message, DropReason.TOO_LARGE, detail)

    @override
    def source_release(self, mid: int) -> None:
        message = self._owed.get(mid)
        if message is None:
            # From before a restart of ours: the target knows more than we do.
            message = _Message(mid, codec.PUBLISH | 0x04, 0, b"", None, v5=False)
            message.qos = 2
            message.stage = _Stage.RECEIVED
            self._owed[mid] = message
            if mid in self._flying:
                message.stage = _Stage.DONE  # an orphan has the identifier: it is not ours to touch
            else:
                self._flying[mid] = message
        message.released = True
        if message.stage is _Stage.DONE:
            self._complete(message)
        elif message.stage is _Stage.RECEIVED:
            self._release(message)

    # --- to the target ------------------------------------------------------------------------------------------------

    def _forward_qos_0(self, first: int, header: int, packet: bytes, route: Route | None) -> None:
        target = self._target
        if route is None:
            self._count_drop(DropReason.NO_ROUTE, "QoS 0")
        elif target is None:
            self._count_drop(DropReason.DISCONNECTED, "QoS 0")
        else:
            source = self._source
            out = self._encode(target, first, header, packet, 0, 0, v5=source is not None and source.v5)
            if len(out) > target.limits.max_packet:
                self._count_drop(DropReason.TOO_LARGE, f"QoS 0, {len(out)} bytes")
                return
            target.write(out)
            self._forwarded += 1
            self._bytes += len(out)

    def _send(self, message: _Message) -> bool:
        """Write a message to the target; False: not now."""
        target = self._target
        mid = message.mid
        if (
            target is None
            or target.congested
            or len(self._flying) >= target.limits.window
            or mid in self._flying
            or mid in target.reserved
        ):
            return False
        route = message.route
        assert route is not None  # noqa: S101 - messages without a route are dropped before
        qos = min(message.first >> 1 & 3, route.max_qos, target.limits.max_qos)
        # QoS 1 sent again in the same session says so (MQTT-3.3.1-1). QoS 2 does not: EMQX 6.2 and later drop a
        # PUBLISH with DUP whose identifier they do not know, and every receiver knows a QoS 2 repeat by its identifier.
        first = message.first & ~codec.DUP | (codec.DUP if message.again and qos == 1 else 0)
        try:
            out = self._encode(target, first, message.header, message.packet, qos, mid, v5=message.v5)
        except codec.MalformedPacketError as error:
            self._drop(message, DropReason.REJECTED, str(error))
            return True
        if len(out) > target.limits.max_packet:
            self._drop(message, DropReason.TOO_LARGE, f"{len(out)} bytes, the broker takes {target.limits.max_packet}")
            return True
        target.write(out)
        message.qos = qos
        if qos:
            message.stage = _Stage.SENT
            self._flying[mid] = message
        else:
            self._delivered(message)
        return True

    @staticmethod
    def _encode(target: MqttSession, first: int, header: int, packet: bytes, qos: int, mid: int, *, v5: bool) -> bytes:
        """PUBLISH as the target takes it; nearly always the very bytes that came."""
        wanted = first & ~0x06 | qos << 1
        if not target.limits.retain:
            wanted &= ~codec.RETAIN
        if v5 == target.v5 and (wanted ^ first) & 0x06 == 0:
            plain = True
            if v5:
                position = header + 2 + (packet[header] << 8 | packet[header + 1]) + (2 if qos else 0)
                plain = packet[position : position + 1] == b"\0"
            if plain:
                return packet if packet[0] == wanted else bytes((wanted,)) + packet[1:]
        topic, _, properties, payload = codec.split_publish(first, header, packet, v5=v5)
        forwarded = codec.forwardable_properties(properties) if target.v5 else None
        return codec.encode_publish(wanted, topic, mid, forwarded, payload)

    def _pump(self) -> None:
        """Send what waits, in order, as far as the target lets us."""
        queue = self._queue
        while queue and self._send(queue[0]):
            self._queued_bytes -= len(queue.popleft().packet)
        if self._source_paused:
            self._throttle()

    def _release(self, message: _Message) -> None:
        """Write PUBREL, or leave it to the target's return."""
        message.stage = _Stage.RECEIVED
        if self._target is not None:
            self._target.write(codec.encode_ack(codec.PUBREL, message.mid))
            message.stage = _Stage.RELEASED

    # --- what the target says -----------------------------------------------------------------------------------------

    @override
    def target_attached(self, session: MqttSession) -> None:
        self._target = session
        again: list[_Message] = []
        for mid, message in list(self._flying.items()):
            if message.stage >= _Stage.RECEIVED and session.session_present:
                if message.released or not message.owed:
                    self._release(message)
                continue
            del self._flying[mid]
            if message.packet:
                message.again = session.session_present and message.stage is _Stage.SENT
                message.stage = _Stage.QUEUED
                again.append(message)
            else:
                self._delivered(message)  # only its PUBREL was left, and the target has forgotten it
        self._queue.extendleft(reversed(again))
        self._queued_bytes += sum(len(message.packet) for message in again)
        self._pump()
        self._throttle()

    @override
    def target_lost(self) -> None:
        self._target = None
        self._throttle()

    @override
    def target_writable(self) -> None:
        self._pump()
        self._throttle()

    @override
    def target_congested(self) -> None:
        self._throttle()

    @override
    def target_mids(self) -> Collection[int]:
        return self._flying.keys()

    @override
    def target_ack(self, packet_type: int, mid: int, reason: int) -> None:
        message = self._flying.get(mid)
        if message is None:
            if packet_type == codec.PUBREC and self._target is not None:
                # Nobody waits for it any more; PUBREL lets the target close its books.
                self._target.write(codec.encode_ack(codec.PUBREL, mid))
            _LOGGER.debug("%s: acknowledgement of unknown packet identifier %d", self._name, mid)
        elif packet_type == codec.PUBACK:
            if message.qos == 1 and message.stage is _Stage.SENT:
                self._landed(message, reason)
        elif packet_type == codec.PUBREC:
            self._received(message, reason)
        elif message.stage is _Stage.RELEASED:
            self._landed(message, 0)  # also "packet identifier not found": it has been released before
        elif message.stage is _Stage.STALE:
            del self._flying[mid]
            message.stage = _Stage.QUEUED
            self._requeue(message)

    def _received(self, message: _Message, reason: int) -> None:
        """Take a PUBREC."""
        if message.qos != 2:
            return
        if message.stage is _Stage.RELEASED:
            self._release(message)  # sent again by the target, which has not seen our PUBREL
        elif message.stage is not _Stage.SENT:
            return
        elif reason == _PACKET_IDENTIFIER_IN_USE and not message.again and not message.expected:
            # It cannot be this message, which is new: the identifier was left over when the source lost its session.
            message.stage = _Stage.STALE
            message.expected = True
            if self._target is not None:
                self._target.write(codec.encode_ack(codec.PUBREL, message.mid))
        elif reason >= 0x80 and reason != _PACKET_IDENTIFIER_IN_USE:
            self._landed(message, reason)
        elif message.released or not message.owed:
            self._release(message)
        else:
            message.stage = _Stage.RECEIVED
            self._acknowledge(message)

    def _landed(self, message: _Message, reason: int) -> None:
        """Finish with the target: PUBACK, PUBCOMP, or a PUBREC that refuses."""
        del self._flying[message.mid]
        if reason < 0x80:
            self._delivered(message)
        else:
            self._drop(message, DropReason.REJECTED, f"the broker said {reason_text(reason)}")
        if self._queue:
            self._pump()

    def _requeue(self, message: _Message) -> None:
        self._queue.appendleft(message)
        self._queued_bytes += len(message.packet)
        self._pump()

    # --- back to the source -------------------------------------------------------------------------------------------

    def _delivered(self, message: _Message) -> None:
        if message.packet:
            self._forwarded += 1
            self._bytes += len(message.packet)
        self._finish(message)

    def _drop(self, message: _Message, reason: DropReason, detail: str) -> None:
        self._count_drop(reason, detail)
        self._finish(message)

    def _count_drop(self, reason: DropReason, detail: str) -> None:
        self._dropped[reason] = self._dropped.get(reason, 0) + 1
        self._on_drop(reason, detail)

    def _finish(self, message: _Message) -> None:
        """Settle with the source what the target has no more part in."""
        message.stage = _Stage.DONE
        if not message.owed:
            return
        if message.first & 0x04 and message.released:
            self._complete(message)
        else:
            self._acknowledge(message)

    def _acknowledge(self, message: _Message) -> None:
        """Write PUBACK or PUBREC. With the source away it stays owed, and is answered when the source repeats it."""
        source = self._source
        if source is None:
            return
        if message.first & 0x04:
            source.write(codec.encode_ack(codec.PUBREC, message.mid))
        else:
            source.write(codec.encode_ack(codec.PUBACK, message.mid))
            del self._owed[message.mid]

    def _complete(self, message: _Message) -> None:
        """Write PUBCOMP."""
        if self._source is not None:
            self._source.write(codec.encode_ack(codec.PUBCOMP, message.mid))
            del self._owed[message.mid]

    # --- back-pressure ------------------------------------------------------------------------------------------------

    def _throttle(self) -> None:
        """Read the source only as fast as the target takes it.

        Not while a QoS 2 message waits for the source's PUBREL, which would never be read.
        """
        congested = self._target is not None and self._target.congested
        full = self._queued_bytes > (_MAX_QUEUED_BYTES // 2 if self._source_paused else _MAX_QUEUED_BYTES)
        if full and not congested:
            full = not any(message.stage is _Stage.RECEIVED for message in self._flying.values())
        pause = congested or full
        if self._source is not None and pause != self._source_paused:
            self._source_paused = pause
            if pause:
                self._source.pause_reading()
            else:
                self._source.resume_reading()
