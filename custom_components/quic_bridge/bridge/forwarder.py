"""One direction of the bridge: every message of the source goes to the target, acknowledged end to end.

A QoS 1 or 2 PUBLISH keeps its packet identifier, and the source hears PUBACK, PUBREC and PUBCOMP only when the
target has said them. The persistent sessions of the two brokers are the durable queue; what is in memory here is
what is under way. So a bridge that dies at any instant loses nothing: the source sends again what was not
acknowledged, and the target recognises the identifiers of QoS 2.

Two tables tell where a message stands. `_owed` has those for which the source waits for us, `_flying` those for
which the target has something to say, `_queue` (in order) those that the target has yet to be sent. A message that
lost its source session stays in `_flying` or `_queue` until it is delivered, an orphan.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence
import logging
from typing import Final, override

from . import codec
from .data_streams import DataStream, DataStreams, StreamOwner
from .errors import BridgeError, ErrorCode
from .guard import LoopError, LoopGuard, PathMarker
from .message import InFlight, Message, Stage, encode
from .reasons import reason_text
from .routes import Direction, Plan, Qos0Policy, Router
from .session import AckReceiver, MqttSession, PublishReceiver
from .status import DirectionStatus, DropReason

_LOGGER = logging.getLogger(__name__)

_MAX_QUEUED_BYTES: Final = 64 * 1024 * 1024
_MAX_QUEUED_QOS_0: Final = 1000
_OVER_QUOTA: Final = (0x93, 0x97)
"""Receive Maximum exceeded, quota exceeded: that passes."""
_QUOTA_PAUSE: Final = 1.0
_QUOTA_TRIES: Final = 60
_NO_PLAN: Final = Plan(None)
_MAX_COMPLETED: Final = 1000
_STRIKES: Final = 3
_STRIKES_ALONE: Final = 5
_THROWN_OUT: Final = frozenset(
    {ErrorCode.CLOSED_BY_BROKER, ErrorCode.BROKER_DISCONNECT, ErrorCode.PROTOCOL_ERROR, ErrorCode.NOT_AUTHORIZED}
)
"""How a session ends when the broker does not like a message."""
_PACKET_IDENTIFIER_IN_USE: Final = 0x91


class Forwarder(PublishReceiver, AckReceiver, StreamOwner):
    """Carries messages from one broker (the source) to the other (the target)."""

    def __init__(
        self, direction: Direction, router: Router, on_drop: Callable[[DropReason, str], None], guard: LoopGuard
    ) -> None:
        """Begin with neither broker attached. `on_drop` hears of each drop: reason and detail, never a payload."""
        self._name = direction
        self._router = router
        self._marker = PathMarker(guard, direction)
        self._on_drop = on_drop
        self._source: MqttSession | None = None
        self._target: MqttSession | None = None
        self._owed: dict[int, Message] = {}
        self._flying = InFlight()
        self._over_quota = False
        self._strikes = 0
        self._completed: dict[int, int] = {}
        self._queue: deque[Message] = deque()
        self._queued_bytes = 0
        self._data_streams = DataStreams(self)
        self._source_paused = False
        self._forwarded = 0
        self._bytes = 0
        self._dropped: dict[DropReason, int] = {}
        self._pause: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Cancel what is scheduled."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def reroute(self, router: Router) -> None:
        """Follow other routes from the next message on; what is under way keeps those it came with."""
        self._router = router

    @property
    def status(self) -> DirectionStatus:
        """Counters since the start."""
        return DirectionStatus(
            forwarded=self._forwarded,
            bytes=self._bytes,
            waiting=len(self._flying) + len(self._queue) + self._data_streams.waiting,
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
            self._completed.clear()
        self._throttle()

    @override
    def source_lost(self) -> None:
        self._source = None
        for message in self._owed.values():
            message.heard = False

    @override
    def source_publish(self, first: int, header: int, packet: bytes) -> None:
        topic = codec.publish_topic(header, packet)
        plan = self._router.find(topic)
        qos = first >> 1 & 3
        if qos == 0:
            if not self._is_echo(first, header, packet):
                self._forward_qos_0(first, header, packet, plan)
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
        message = Message(mid, first, header, packet, plan, v5=source.v5)
        self._owed[mid] = message
        if self._completed.pop(mid, None) == hash(packet[1:]) and first & codec.DUP:
            # mosquitto forgets our PUBREC when it could not write its PUBREL (database.c), and begins again.
            message.stage = Stage.DONE
            self._acknowledge(message)
            return
        if self._is_echo(first, header, packet):
            self._finish(message)
        elif plan.route is None:
            self._drop_unrouted(message)
        else:
            self._forward(message)

    def _is_echo(self, first: int, header: int, packet: bytes) -> bool:
        """Whether it is what the other direction has sent to the source, which sends it back."""
        echoes = self._source.echoes if self._source is not None else None
        # A retained message is not the one just published, but the topic's last, sent for a subscription.
        if echoes is None or first & codec.RETAIN:
            return False
        topic, _, _, payload = codec.split_publish(first, header, packet, v5=False)
        return echoes.take(topic, payload)

    def _forward(self, message: Message) -> None:
        """Send a new message, or let it wait for its turn."""
        if self._queue or not self._send(message):
            self._enqueue(message)
        elif self._data_streams.waiting:
            self._data_streams.pump()

    def _enqueue(self, message: Message) -> None:
        """Let a message wait for the target."""
        try:
            message.wait()
        except codec.MalformedPacketError as error:
            self._drop(message, DropReason.REJECTED, str(error))
            return
        self._queue.append(message)
        self._queued_bytes += len(message.packet)
        if self._queued_bytes > _MAX_QUEUED_BYTES:
            self._throttle()

    def _disown(self, message: Message) -> None:
        """Owe the source nothing for a message any more; the target gets it all the same."""
        del self._owed[message.mid]
        message.owed = False
        if message.stage is Stage.RECEIVED and not message.spooling:
            self._release(message)

    def _repeated(self, message: Message) -> None:
        """Answer a PUBLISH that we have already, after the source came back."""
        message.heard = True
        if message.stage is Stage.DONE or (message.stage >= Stage.RECEIVED and message.first & 0x04):
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
        message = self._owed[mid] = Message(mid, first, header, b"", _NO_PLAN, v5=False)
        self._drop(message, DropReason.TOO_LARGE, detail)

    @override
    def source_release(self, mid: int) -> None:
        message = self._owed.get(mid)
        if message is None:
            # From before a restart of ours: the target knows more than we do.
            message = Message(mid, codec.PUBLISH | 0x04, 0, b"", _NO_PLAN, v5=False)
            message.qos = 2
            message.stage = Stage.RECEIVED
            self._owed[mid] = message
            if mid in self._flying or self._is_ours(mid) or self._is_row(mid):
                # An orphan has the identifier, or we took the message over. Released now, it would be delivered before
                # its row is sent, and then once more: the target would not know the identifier any longer.
                message.stage = Stage.DONE
            elif self._target is not None and mid in self._target.reserved:
                message.stage = Stage.QUEUED
                self._enqueue(message)  # until the message of our own that has the identifier is through
            else:
                self._flying.add(message)
        message.released = True
        if message.stage is Stage.DONE:
            self._complete(message)
        elif message.stage is Stage.RECEIVED and not message.spooling:
            self._release(message)

    # --- to the target ------------------------------------------------------------------------------------------------

    def _forward_qos_0(self, first: int, header: int, packet: bytes, plan: Plan) -> None:
        target, source, route = self._target, self._source, plan.route
        message = Message(0, first, header, packet, plan, v5=source is not None and source.v5)
        message.owed = False
        if route is None:
            self._drop_unrouted(message)
            return
        if route.qos_0 is not Qos0Policy.DROP and (target is None or self._has_backlog):
            self._keep_qos_0(message, route.qos_0)
        elif target is None:
            self._count_drop(DropReason.DISCONNECTED, "QoS 0")
        elif (stream := self._own_stream(message)) is not None:
            stream.take(message)
            stream.pump()
        else:
            self._write(target, message, 0)

    def _keep_qos_0(self, message: Message, policy: Qos0Policy) -> None:
        """Let a QoS 0 message wait for the target, as its route wants."""
        waiting = [item for item in self._queue if not item.mid]
        if policy is Qos0Policy.LATEST:
            for item in waiting:
                if item.topic == message.topic:
                    self._queued_bytes += len(message.packet) - len(item.packet)
                    item.first, item.header, item.packet = message.first, message.header, message.packet
                    self._count_drop(DropReason.REPLACED, "QoS 0")
                    return
        if len(waiting) >= _MAX_QUEUED_QOS_0:
            self._count_drop(DropReason.CONGESTED, "QoS 0")
        else:
            self._enqueue(message)

    def _send(self, message: Message) -> bool:
        """Write a message to the target, or leave it to its route's own stream; False: not now."""
        target = self._target
        if target is None or self._pause is not None or self._must_wait(message):
            return False
        if (stream := self._own_stream(message)) is not None:
            stream.take(message)
            return True
        if target.congested or not self._has_place(target, message):
            return False
        route = message.plan.route
        if not message.packet:
            self._flying.add(message)
            self._release(message)
        elif route is None:
            self._drop_unrouted(message)
        elif message.expired:
            self._drop(message, DropReason.EXPIRED, message.topic)
        else:
            self._write(target, message, message.qos_at(target, route))
        return True

    def _has_place(self, target: MqttSession, message: Message) -> bool:
        """Whether the target's window has a place for a message, and its packet identifier is free there."""
        window = target.window if self._strikes < _STRIKES else 1
        mid = message.mid
        return (
            self._flying.has_room(window, message.source_qos) and mid not in self._flying and mid not in target.reserved
        )

    def _own_stream(self, message: Message) -> DataStream | None:
        """Return the stream of the message's route, if it has one that can carry it."""
        return self._data_streams.find(message) if self._strikes < _STRIKES else None

    @override
    def send_on(self, stream: DataStream, message: Message) -> bool:
        target, route = self._target, message.plan.route
        if target is None or route is None or self._pause is not None or not stream.writable:
            return False
        # Half of the window stays free for all the others.
        if message.mid and (stream.flying >= max(1, target.window // 2) or not self._has_place(target, message)):
            return False
        if message.expired:
            self._drop(message, DropReason.EXPIRED, message.topic)
            return True
        if not stream.open():
            return False
        self._write(target, message, message.qos_at(target, route), stream)
        return True

    @override
    def take_back(self, under_way: Sequence[Message], waiting: Sequence[Message]) -> None:
        for message in under_way:
            self._flying.remove(message.mid)
            message.again = True
            message.stage = Stage.QUEUED
        self._put_in_front(under_way, waiting)
        self._pump()

    def _put_in_front(self, sent: Sequence[Message], waiting: Sequence[Message]) -> None:
        """Let messages wait before all others; before these, by their order, what was sent before and comes again."""
        first = list(sent)
        while self._queue and self._queue[0].tries:
            first.append(self._queue.popleft())
        first.sort(key=lambda message: message.number)
        self._queue.extendleft(reversed((*first, *waiting)))
        self._queued_bytes += sum(len(message.packet) for message in (*sent, *waiting))

    @override
    def queued(self, size: int) -> None:
        self._queued_bytes += size
        if self._queued_bytes > _MAX_QUEUED_BYTES:
            self._throttle()

    def _write(self, target: MqttSession, message: Message, qos: int, stream: DataStream | None = None) -> None:
        # QoS 1 sent again in the same session says so (MQTT-3.3.1-1). QoS 2 does not: EMQX 6.2 and later drop a
        # PUBLISH with DUP whose identifier they do not know, and every receiver knows a QoS 2 repeat by its identifier.
        first = message.first & ~codec.DUP | (codec.DUP if message.again and qos == 1 else 0)
        try:
            out = encode(target, message, self._router, self._marker, first, qos)
        except codec.MalformedPacketError as error:
            self._drop(message, DropReason.REJECTED, str(error))
            return
        except LoopError as error:
            self._drop(message, DropReason.LOOP, f"{message.topic}: {error}")
            return
        if len(out) > target.limits.max_packet:
            self._drop(message, DropReason.TOO_LARGE, f"{len(out)} bytes, the broker takes {target.limits.max_packet}")
            return
        if target.echoes is not None and message.plan.comes_back and not message.again:
            # Not for a message that is sent again, as the broker may take it for the same: a copy rather than a loss.
            topic, _, _, payload = codec.split_publish(out[0], codec.header_length(out), out, v5=False)
            target.echoes.expect(topic, payload)
        (target if stream is None else stream).write(out)
        message.qos = qos
        if qos:
            message.stage = Stage.SENT
            self._flying.add(message)
            if stream is not None:
                stream.sent(message)
            else:
                self._data_streams.repeated(message)
        else:
            self._delivered(message)

    def _pump(self) -> None:
        """Send what waits, in order, as far as the target lets us."""
        queue = self._queue
        while queue and self._send(queue[0]):
            self._queued_bytes -= len(queue.popleft().packet)
        self._data_streams.pump()
        if self._source_paused:
            self._throttle()

    def _release(self, message: Message) -> None:
        """Write PUBREL, or leave it to the target's return."""
        message.stage = Stage.RECEIVED
        if self._target is not None:
            self._target.write(codec.encode_ack(codec.PUBREL, message.mid))
            message.stage = Stage.RELEASED

    # --- what the target says -----------------------------------------------------------------------------------------

    @override
    def target_attached(self, session: MqttSession) -> None:
        self._target = session
        self._data_streams.attached(session)
        self._resume(session, list(self._flying))
        if self._over_quota:
            # The target's places may all be held by QoS 2 messages from before a restart of ours, which wait here
            # behind older ones that it has no place for. Order is per topic and QoS (MQTT 5, 4.6).
            self._over_quota = False
            self._queue = deque(sorted(self._queue, key=lambda item: not (item.expected and item.source_qos == 2)))
        self._pump()
        self._throttle()

    def _resume(self, session: MqttSession, messages: Sequence[Message]) -> None:
        """Go on with messages that were under way when the target was lost, in their order, before all others."""
        again: list[Message] = []
        for message in messages:
            if message.stage >= Stage.RECEIVED and session.session_present:
                self._flying.add(message)
                if message.released or not (message.owed or message.row is not None):
                    self._release(message)
                continue
            self._flying.remove(message.mid)
            if message.packet:
                message.again = session.session_present and message.stage is Stage.SENT
                message.stage = Stage.QUEUED
                again.append(message)
            else:
                self._delivered(message)  # only its PUBREL was left, and the target has forgotten it
        self._put_in_front(again, ())

    @override
    def target_lost(self, error: BridgeError | None) -> None:
        self._target = None
        waiting: list[Message] = []
        for message in self._data_streams.lost():
            route = message.plan.route
            if not message.mid and route is not None and route.qos_0 is Qos0Policy.DROP:
                self._count_drop(DropReason.DISCONNECTED, "QoS 0")
            else:
                waiting.append(message)
        self._put_in_front((), waiting)
        if error is not None and error.code in _THROWN_OUT:
            self._suspect(error)
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._throttle()

    def _suspect(self, error: BridgeError) -> None:
        """Find a message for which the target ends the connection each time, so that it does not stop all others.

        A broker that restarts looks the same, so it takes several times in a row without any acknowledgement until
        messages are sent one by one, and several more for the one that is alone then.
        """
        sent = [message for message in self._flying if message.stage is Stage.SENT]
        if not sent:
            return
        self._strikes += 1
        if self._strikes > _STRIKES and len(sent) == 1:
            sent[0].strikes += 1
            if sent[0].strikes >= _STRIKES_ALONE:
                self._flying.remove(sent[0].mid)
                detail = f"the broker ended the connection {_STRIKES_ALONE} times when it was sent"
                self._drop(sent[0], DropReason.REJECTED, f"{sent[0].topic}: {detail}: {error.text}")

    @override
    def target_writable(self) -> None:
        self._pump()
        self._throttle()

    @override
    def target_congested(self) -> None:
        self._throttle()

    @override
    def target_mids(self) -> Collection[int]:
        return self._flying.mids

    @override
    def target_ack(self, packet_type: int, mid: int, reason: int) -> None:
        message = self._flying.get(mid)
        self._strikes = 0
        if message is None:
            if packet_type == codec.PUBREC and self._target is not None:
                # Nobody waits for it any more; PUBREL lets the target close its books.
                self._target.write(codec.encode_ack(codec.PUBREL, mid))
            _LOGGER.debug("%s: acknowledgement of unknown packet identifier %d", self._name, mid)
        elif packet_type == codec.PUBACK:
            if message.qos == 1 and message.stage is Stage.SENT:
                self._landed(message, reason)
        elif packet_type == codec.PUBREC:
            self._received(message, reason)
        elif message.stage is Stage.RELEASED:
            self._landed(message, 0)  # also "packet identifier not found": it has been released before
        elif message.stage is Stage.STALE:
            self._flying.remove(mid)
            message.stage = Stage.QUEUED
            self._requeue(message)

    def _received(self, message: Message, reason: int) -> None:
        """Take a PUBREC."""
        if message.qos != 2:
            return
        if message.stage is Stage.RELEASED:
            self._release(message)  # sent again by the target, which has not seen our PUBREL
        elif message.stage is not Stage.SENT:
            return
        elif reason == _PACKET_IDENTIFIER_IN_USE and not message.again and not message.expected:
            # It cannot be this message, which is new: the identifier was left over when the source lost its session.
            message.stage = Stage.STALE
            message.expected = True
            if self._target is not None:
                self._target.write(codec.encode_ack(codec.PUBREL, message.mid))
        elif reason >= 0x80 and reason != _PACKET_IDENTIFIER_IN_USE:
            self._landed(message, reason)
        elif message.released or not (message.owed or message.row is not None):
            self._release(message)
        else:
            message.stage = Stage.RECEIVED
            self._acknowledge(message)

    def _landed(self, message: Message, reason: int) -> None:
        """Finish with the target: PUBACK, PUBCOMP, or a PUBREC that refuses."""
        self._flying.remove(message.mid)
        if reason < 0x80:
            self._delivered(message)
        elif reason in _OVER_QUOTA and message.tries < _QUOTA_TRIES:
            self._over_quota = True
            self._try_later(message)
        else:
            self._drop(message, DropReason.REJECTED, f"the broker said {reason_text(reason)}")
        if self._queue or self._data_streams.waiting:
            self._pump()

    def _requeue(self, message: Message) -> None:
        self._queue.appendleft(message)
        self._queued_bytes += len(message.packet)
        self._pump()

    def _try_later(self, message: Message) -> None:
        """Give a target that is over its quota time: that passes, so the message is not dropped."""
        message.tries += 1
        message.stage = Stage.QUEUED
        if self._pause is None:
            self._pause = asyncio.get_running_loop().call_later(_QUOTA_PAUSE, self._pause_over)
        self._requeue(message)

    def _pause_over(self) -> None:
        self._pause = None
        self._pump()

    # --- back to the source -------------------------------------------------------------------------------------------

    def _delivered(self, message: Message) -> None:
        if message.packet:
            self._forwarded += 1
            self._bytes += len(message.packet)
        self._finish(message)

    def _drop(self, message: Message, reason: DropReason, detail: str) -> None:
        self._count_drop(reason, detail)
        self._finish(message)

    def _drop_unrouted(self, message: Message) -> None:
        if message.plan.excluded:
            self._finish(message)  # as its route wants: no loss to tell of
        else:
            self._drop(message, DropReason.NO_ROUTE, message.topic)

    def _count_drop(self, reason: DropReason, detail: str) -> None:
        self._dropped[reason] = self._dropped.get(reason, 0) + 1
        self._on_drop(reason, detail)

    def _finish(self, message: Message) -> None:
        """Settle with the source what the target has no more part in."""
        message.stage = Stage.DONE
        if not message.owed:
            return
        if message.first & 0x04 and message.released:
            self._complete(message)
        else:
            self._acknowledge(message)

    def _acknowledge(self, message: Message) -> None:
        """Write PUBACK or PUBREC.

        A message from an earlier connection of the source is answered when the source has repeated it, as it must
        (MQTT-4.4.0-1): sooner, a later message could be answered before it, and brokers that deliver QoS 2 on PUBREL
        would deliver them in that order.
        """
        source = self._source
        if source is None or not message.heard:
            return
        if message.first & 0x04:
            source.write(codec.encode_ack(codec.PUBREC, message.mid))
        else:
            source.write(codec.encode_ack(codec.PUBACK, message.mid))
            del self._owed[message.mid]

    def _complete(self, message: Message) -> None:
        """Write PUBCOMP."""
        if self._source is not None:
            self._source.write(codec.encode_ack(codec.PUBCOMP, message.mid))
            del self._owed[message.mid]
            if message.packet:
                self._completed[message.mid] = hash(message.packet[1:])
                if len(self._completed) > _MAX_COMPLETED:
                    del self._completed[next(iter(self._completed))]

    # --- what the outbound direction adds -----------------------------------------------------------------------------

    @property
    def _has_backlog(self) -> bool:
        """Whether earlier messages wait that a new one must not pass."""
        return False

    def _must_wait(self, _message: Message) -> bool:
        """Whether a message must not be sent although the target would take it."""
        return False

    def _is_ours(self, _mid: int) -> bool:
        """Whether we took over the source's QoS 2 message of that identifier before a restart."""
        return False

    def _is_row(self, _mid: int) -> bool:
        """Whether a message in the Outbox has that identifier at the target."""
        return False

    # --- back-pressure ------------------------------------------------------------------------------------------------

    def _throttle(self) -> None:
        """Read the source only as fast as the target takes it.

        Not while a QoS 2 message waits for the source's PUBREL, which would never be read.
        """
        congested = self._target is not None and self._target.congested
        full = self._queued_bytes > (_MAX_QUEUED_BYTES // 2 if self._source_paused else _MAX_QUEUED_BYTES)
        if full and not congested:
            full = not any(message.stage is Stage.RECEIVED for message in self._flying)
        pause = congested or full
        if self._source is not None and pause != self._source_paused:
            self._source_paused = pause
            if pause:
                self._source.pause_reading()
            else:
                self._source.resume_reading()
