"""The target's side of a direction: what is under way to it, what waits for it, and what it answers.

`_flying` has the messages for which the target has something to say, `_backlog` those that it has yet to be sent, in
order. A message that lost its source session stays in one of them until it is delivered, an orphan.
"""

from collections.abc import Callable, Collection, Sequence
import logging
from typing import Final, Protocol, override

from . import codec
from .backlog import Backlog
from .data_streams import DataStream, DataStreams, StreamOwner
from .errors import BridgeError
from .guard import LoopError, LoopGuard, PathMarker
from .in_flight import InFlight
from .message import Message, Stage, encode, next_number
from .overdue import GIVEN_UP, OverdueWatch
from .poison import Suspicion, vain_releases
from .quota import Quota
from .reasons import reason_text
from .routes import Direction, Qos0Policy, Route, Router
from .session import AckReceiver, MqttSession
from .status import DirectionStatus, DropReason, OutboxStatus

_LOGGER = logging.getLogger(__name__)

_MAX_QUEUED_BYTES: Final = 64 * 1024 * 1024
_MAX_QUEUED_QOS_0: Final = 1000
_PACKET_IDENTIFIER_IN_USE: Final = 0x91


class SenderOwner(Protocol):
    """The source's side."""

    paused: bool
    """Whether the source has to wait: nothing is read from it."""

    @property
    def window(self) -> int | None:
        """QoS 1 and 2 messages that the source may have under way to us; None while it is away."""

    def pause(self, wanted: bool) -> None:
        """Let the source wait, or read on."""

    def target_attached(self) -> None:
        """Hear that the target is back: what the source could not send for want of acknowledgements may come now."""

    def finish(self, message: Message) -> None:
        """Settle with the source what the target has no more part in."""

    def acknowledge(self, message: Message) -> None:
        """Write PUBACK or PUBREC."""

    def receipt_removed(self, mid: int) -> None:
        """Write PUBCOMP: the Outbox has forgotten the source's identifier."""


class Sender(AckReceiver, StreamOwner):
    """Is the sender (MQTT 5, 4.3) of a direction's messages to the target."""

    def __init__(
        self,
        owner: SenderOwner,
        direction: Direction,
        router: Router,
        on_drop: Callable[[DropReason, str], None],
        guard: LoopGuard,
    ) -> None:
        """Begin without a target. `on_drop` hears of each drop: reason and detail, never a payload."""
        self._owner = owner
        self._name = direction
        self._router = router
        self._marker = PathMarker(guard, direction)
        self._on_drop = on_drop
        self._target: MqttSession | None = None
        self._flying = InFlight()
        self._backlog = Backlog()
        self._data_streams = DataStreams(self)
        self._held_from: int | None = None
        """Messages from this number on wait until all before them are through: routes got other streams."""
        self._ahead: list[Message] = []
        """QoS 2 messages whose PUBREC has come before that of an earlier one."""
        self._overdue = OverdueWatch()
        self._quota = Quota(self._pump)
        self._suspicion = Suspicion()
        self._forwarded = 0
        self._bytes = 0
        self._dropped: dict[DropReason, int] = {}

    async def start(self) -> None:
        """Get ready for the first message."""

    async def stop(self) -> None:
        """Cancel what is scheduled; for when both sessions are over."""
        self._quota.cancel()

    def reroute(self, router: Router) -> None:
        """Follow other routes from the next message on."""
        if router.streams != self._router.streams:
            self._held_from = next_number()
        self._router = router

    @property
    def status(self) -> DirectionStatus:
        """Counters since the start."""
        return DirectionStatus(
            forwarded=self._forwarded,
            bytes=self._bytes,
            waiting=len(self._flying) + len(self._backlog) + self._data_streams.waiting,
            dropped=dict(self._dropped),
        )

    @property
    def outbox_status(self) -> OutboxStatus | None:
        """Figures of the Outbox; None: there is none."""
        return None

    # --- what the Receiver says ---------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Send a new message, or let it wait for its turn, or drop it, as its route wants."""
        route = message.plan.route
        if route is None:
            self._drop_unrouted(message)
        elif message.mid:
            self._forward(message)
        else:
            self._forward_qos_0(message, route)

    def take_release(self, message: Message) -> None:
        """Take a QoS 2 message of which only the source's PUBREL is known, as we were restarted since its PUBLISH."""
        if self._is_taken(message):
            message.stage = Stage.DONE  # the other one is released in its time
        elif self._target is not None and message.mid in self._target.reserved:
            message.stage = Stage.QUEUED
            self._enqueue(message)  # until the message of our own that has the identifier is through
        else:
            self._flying.add(message)

    def release(self, message: Message) -> None:
        """Go on with a QoS 2 message that the source has released, or forgotten, if the target waits for that."""
        if message.stage is Stage.RECEIVED and not message.spooling:
            self._release(message)

    def leave_out(self, message: Message) -> None:
        """Settle a message that is not to cross.

        The target may have it all the same, from before a restart of ours (QoS 2): then it is released there, or it
        would keep a place, and its packet identifier stand for the next message that has it.
        """
        may_be_there = message.source_qos == 2 and (message.again or message.expected)
        reserved = self._target is not None and message.mid in self._target.reserved  # its PUBREL releases either
        if not may_be_there or reserved or self._is_taken(message):
            self._finish(message)
            return
        message.packet = b""
        message.qos = 2
        self._flying.add(message)
        self._go_on(message)

    def drop(self, message: Message, reason: DropReason, detail: str) -> None:
        """Give a message up, and count it."""
        self._count_drop(reason, detail)
        self._finish(message)

    def _count_drop(self, reason: DropReason, detail: str) -> None:
        self._dropped[reason] = self._dropped.get(reason, 0) + 1
        self._on_drop(reason, detail)

    def source_session_lost(self) -> None:
        """Hear that the source has forgotten its packet identifiers."""

    def remove_receipt(self, _mid: int) -> bool:
        """Forget the source's QoS 2 message of an identifier; True: there is one, and `receipt_removed` follows."""
        return False

    def throttle(self) -> None:
        """Have the source read only as fast as the target takes it.

        Not while a QoS 2 message waits for the source's PUBREL, which would never be read.
        """
        congested = self._target is not None and self._target.congested
        full = self._backlog.bytes > (_MAX_QUEUED_BYTES // 2 if self._owner.paused else _MAX_QUEUED_BYTES)
        if full and not congested:
            full = not any(message.stage is Stage.RECEIVED for message in self._flying)
        self._owner.pause(congested or full)

    # --- to the target ------------------------------------------------------------------------------------------------

    def _forward(self, message: Message) -> None:
        """Send a new message, or let it wait for its turn."""
        if self._backlog.messages or not self._try_to_send(message):
            self._enqueue(message)
        elif self._data_streams.in_use:
            self._data_streams.pump()

    def _enqueue(self, message: Message) -> None:
        """Let a message wait for the target."""
        if self._may_wait(message):
            self._backlog.append(message)
            if self._backlog.bytes > _MAX_QUEUED_BYTES:
                self.throttle()

    def _may_wait(self, message: Message) -> bool:
        """Note when a message will expire that has to wait; False: it is malformed, and was dropped."""
        try:
            message.wait()
        except codec.MalformedPacketError as error:
            self.drop(message, DropReason.REJECTED, str(error))
            return False
        return True

    def _forward_qos_0(self, message: Message, route: Route) -> None:
        target = self._target
        away = target is None or self._has_backlog
        if (away and route.qos_0 is not Qos0Policy.DROP) or (self._backlog.qos_0 and self._has_earlier_qos_0(message)):
            self._keep_qos_0(message, route.qos_0)
        elif target is None:
            self.drop(message, DropReason.DISCONNECTED, "QoS 0")
        elif route.own_stream and (stream := self._own_stream(message, route)) is not None:
            stream.take(message)
            stream.pump()
        else:
            self._write(target, message, route)

    def _has_earlier_qos_0(self, message: Message) -> bool:
        """Whether a QoS 0 message of its topic waits that it must not pass, although the target is back."""
        return self._backlog.newest(message.topic_name) is not None

    def _keep_qos_0(self, message: Message, policy: Qos0Policy) -> None:
        """Let a QoS 0 message wait for the target, as its route wants."""
        older = self._backlog.newest(message.topic_name) if policy is Qos0Policy.LATEST else None
        if older is not None:
            self._replace(older, message)
        elif self._backlog.qos_0 >= _MAX_QUEUED_QOS_0:
            self.drop(message, DropReason.CONGESTED, "QoS 0")
        else:
            self._enqueue(message)

    def _replace(self, older: Message, newer: Message) -> None:
        """Let a QoS 0 message wait in the place of an earlier one of its topic, for as long as it may itself."""
        if self._may_wait(newer):
            self._backlog.replace(older, newer)
            self.drop(older, DropReason.REPLACED, "QoS 0")

    def _try_to_send(self, message: Message) -> bool:
        """Write a message to the target, or leave it to its route's own stream; False: not now."""
        target = self._target
        if target is None or self._quota.pausing or self._must_wait(message):
            return False
        if self._held_from is not None and message.number >= self._held_from and self._is_held(self._held_from):
            return False
        route = message.plan.route
        if route is not None and route.own_stream and (stream := self._own_stream(message, route)) is not None:
            stream.take(message)
            return True
        if target.congested or not self._has_place(target, message):
            return False
        if not message.packet:
            self._flying.add(message)
            self._release(message)
        elif route is None:
            self._drop_unrouted(message)
        elif message.expires_at is not None and message.expired:
            self.drop(message, DropReason.EXPIRED, message.topic)
        else:
            self._write(target, message, route)
        return True

    def _is_held(self, number: int) -> bool:
        """Whether messages before a number are under way on other streams than those that their topics go over now.

        QoS 2 never is: it has but one.
        """
        if self._data_streams.waiting or any(item.qos == 1 and item.number < number for item in self._flying):
            return True
        self._held_from = None
        return False

    def _has_place(self, target: MqttSession, message: Message) -> bool:
        return self._flying.has_place(target, message, 1 if self._suspicion.alone else target.window)

    def _own_stream(self, message: Message, route: Route) -> DataStream | None:
        """Return the stream of the message's route, if it has one that can carry it."""
        return None if self._suspicion.alone else self._data_streams.find(message, route)

    @override
    def send_on(self, stream: DataStream, message: Message) -> bool:
        target, route = self._target, message.plan.route
        if target is None or route is None or self._quota.pausing or not stream.writable:
            return False
        if not stream.may_follow(message):
            return False
        # Half of the window stays free for all the others.
        if message.mid and (stream.flying >= max(1, target.window // 2) or not self._has_place(target, message)):
            return False
        if message.expired:
            self.drop(message, DropReason.EXPIRED, message.topic)
            return True
        if not stream.open():
            return False
        self._write(target, message, route, stream)
        return True

    @override
    def take_back(self, under_way: Sequence[Message], waiting: Sequence[Message]) -> None:
        for message in under_way:
            self._flying.remove(message.mid)
            message.again = True
            message.stage = Stage.QUEUED
        self._backlog.put_in_front(under_way, waiting)
        self._pump()

    @override
    def queued(self, size: int) -> None:
        self._backlog.bytes += size
        if self._backlog.bytes > _MAX_QUEUED_BYTES:
            self.throttle()

    def _write(self, target: MqttSession, message: Message, route: Route, stream: DataStream | None = None) -> None:
        qos = message.qos_at(target, route) if message.mid else 0
        # QoS 1 sent again in the same session says so (MQTT-3.3.1-1). QoS 2 does not: EMQX 6.2 and later drop a
        # PUBLISH with DUP whose identifier they do not know, and every receiver knows a QoS 2 repeat by its identifier.
        first = message.first & ~codec.DUP | (codec.DUP if message.again and qos == 1 else 0)
        try:
            out = encode(target, message, self._router, self._marker, first, qos)
        except codec.MalformedPacketError as error:
            self.drop(message, DropReason.REJECTED, str(error))
            return
        except LoopError as error:
            self.drop(message, DropReason.LOOP, f"{message.topic}: {error}")
            return
        if len(out) > target.limits.max_packet:
            self.drop(message, DropReason.TOO_LARGE, f"{len(out)} bytes, the broker takes {target.limits.max_packet}")
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
        if stream is None and route.own_stream:
            self._data_streams.went_elsewhere(message, route)
        if not qos:
            self._delivered(message)

    def _pump(self) -> None:
        """Send what waits, in order, as far as the target lets us."""
        backlog = self._backlog
        if self._held_from is not None:
            self._data_streams.pump()  # for which others may wait
        while backlog.messages:
            size = len(backlog.messages[0].packet)
            if not self._try_to_send(backlog.messages[0]):
                break
            backlog.popleft(size)
        if self._data_streams.in_use:
            self._data_streams.pump()
        if self._owner.paused:
            self.throttle()

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
        self._owner.target_attached()
        self._data_streams.attached(session)
        self._resume(session, list(self._flying))
        if self._quota.exceeded:
            # The target's places may all be held by QoS 2 messages from before a restart of ours, which wait here
            # behind older ones that it has no place for. Order is per topic and QoS (MQTT 5, 4.6).
            self._quota.exceeded = False
            self._backlog.put_first(lambda message: message.expected and message.source_qos == 2)
        self._pump()
        self.throttle()

    def _resume(self, session: MqttSession, messages: Sequence[Message]) -> None:
        """Go on with messages that were under way when the target was lost, in their order, before all others."""
        again: list[Message] = []
        for message in messages:
            if message.stage >= Stage.RECEIVED and session.session_present:
                self._flying.add(message)
                if message.may_be_released:
                    self._release(message)
                continue
            self._flying.remove(message.mid)
            if message.packet:
                message.again = session.session_present and message.stage is Stage.SENT
                message.stage = Stage.QUEUED
                again.append(message)
            else:
                self._delivered(message)  # only its PUBREL was left, and the target has forgotten it
        self._backlog.put_in_front(again, ())

    @override
    def target_lost(self, error: BridgeError | None) -> None:
        if self._target is not None and error is not None:
            for message in vain_releases(self._flying, self._target, error):
                self._flying.remove(message.mid)
                self._delivered(message)
        self._target = None
        waiting: list[Message] = []
        for message in self._data_streams.lost():
            route = message.plan.route
            if not message.mid and route is not None and route.qos_0 is Qos0Policy.DROP:
                self.drop(message, DropReason.DISCONNECTED, "QoS 0")
            else:
                waiting.append(message)
        self._backlog.put_in_front((), waiting)
        if error is not None:
            self._suspect(error)
        self._quota.cancel()
        self._ahead.clear()
        self.throttle()

    def _suspect(self, error: BridgeError) -> None:
        """Give up the message for which the target ends the connection each time, if there is one."""
        poison = self._suspicion.lost(error, self._flying)
        if poison is not None:
            self._flying.remove(poison.mid)
            detail = f"the broker ended the connection {poison.strikes} times when it was sent"
            self.drop(poison, DropReason.REJECTED, f"{poison.topic}: {detail}: {error.text}")

    @override
    def target_writable(self) -> None:
        self._pump()
        self.throttle()

    @override
    def target_congested(self) -> None:
        self.throttle()

    @override
    def target_mids(self) -> Collection[int]:
        return self._flying.messages.keys()

    @override
    def target_overdue(self, now: float) -> bool:
        if self._target is None:
            return False
        oldest = next(
            (
                item
                for item in self._flying
                # Streams of routes have a watch of their own.
                if item.stage is not Stage.RECEIVED and item.stream is None and item.strikes < GIVEN_UP
            ),
            None,
        )
        if oldest is None or not self._overdue.look(self._target, oldest, now):
            return False
        if oldest.strikes >= GIVEN_UP and oldest.stage is Stage.SENT:
            self._flying.remove(oldest.mid)
            self.drop(oldest, DropReason.REJECTED, f"{oldest.topic}: not acknowledged in {GIVEN_UP} connections")
            self._pump()
            return False
        return True

    @override
    def target_ack(self, packet_type: int, mid: int, reason: int) -> None:
        message = self._flying.messages.get(mid)
        if self._suspicion.strikes:
            self._suspicion.clear()
        if message is None:
            if packet_type == codec.PUBREC and self._target is not None:
                # Nobody waits for it any more; PUBREL lets the target close its books.
                self._target.write(codec.encode_ack(codec.PUBREL, mid))
            _LOGGER.debug("%s: acknowledgement of unknown packet identifier %d", self._name, mid)
        elif packet_type == codec.PUBACK:
            # Also of QoS 2: RabbitMQ with MQTT 3.1.1 takes that as QoS 1, and nothing more would come.
            if message.stage is Stage.SENT:
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
        elif message.again and self._is_ahead(message):
            self._ahead.append(message)
        else:
            self._go_on(message)
            if self._ahead:
                self._take_those_ahead()

    def _go_on(self, message: Message) -> None:
        """Release a QoS 2 message that the target has, or let the source know first."""
        if message.may_be_released:
            self._release(message)
        else:
            message.stage = Stage.RECEIVED
            self._pass_on_received(message)

    def _is_ahead(self, message: Message) -> bool:
        """Whether an earlier QoS 2 message has no PUBREC yet.

        Answers come in order (MQTT 5, 4.6), but after a reconnect mosquitto says PUBREC again of what it holds, and it
        may hold a later message and have refused an earlier one. In the order of PUBRELs they would be delivered.
        """
        for item in self._flying:
            if item is message:
                return False
            if item.qos == 2 and item.stage is Stage.SENT:
                return True
        return False

    def _take_those_ahead(self) -> None:
        ahead, self._ahead = self._ahead, []
        for message in ahead:
            if self._flying.messages.get(message.mid) is message:
                self._received(message, 0)

    def _landed(self, message: Message, reason: int) -> None:
        """Finish with the target: PUBACK, PUBCOMP, or a PUBREC that refuses."""
        self._flying.remove(message.mid)
        if reason < 0x80:
            self._delivered(message)
        elif self._quota.passes(message, reason):
            message.stage = Stage.QUEUED
            self._requeue(message)
        else:
            self.drop(message, DropReason.REJECTED, f"the broker said {reason_text(reason)}")
        if self._ahead:
            self._take_those_ahead()
        if self._backlog.messages or self._data_streams.in_use:
            self._pump()

    def _requeue(self, message: Message) -> None:
        self._backlog.put_back(message)
        self._pump()

    # --- back to the source -------------------------------------------------------------------------------------------

    def _pass_on_received(self, message: Message) -> None:
        """Pass on the target's PUBREC."""
        self._owner.acknowledge(message)

    def _delivered(self, message: Message) -> None:
        if message.packet:
            self._forwarded += 1
            self._bytes += len(message.packet)
        self._finish(message)

    def _drop_unrouted(self, message: Message) -> None:
        """Settle a message whose route is gone, or wants it left out."""
        if not message.plan.excluded:  # else as its route wants: no loss to tell of
            self._count_drop(DropReason.NO_ROUTE, message.topic)
        self.leave_out(message)

    def _finish(self, message: Message) -> None:
        """Have done with a message that was delivered or dropped."""
        self._owner.finish(message)

    # --- what the Outbox adds -----------------------------------------------------------------------------------------

    @property
    def _has_backlog(self) -> bool:
        """Whether earlier messages wait that a new one must not pass."""
        return False

    def _must_wait(self, _message: Message) -> bool:
        """Whether a message must not be sent although the target would take it."""
        return False

    def _is_taken(self, message: Message) -> bool:
        """Whether another message has its packet identifier at the target, or it is known there already."""
        return message.mid in self._flying.messages
