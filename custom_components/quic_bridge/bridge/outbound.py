"""Messages to the remote: as the Sender, and an Outbox that takes over while the remote is away."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, override

from . import codec
from .config import OutboxConfig
from .errors import BridgeError
from .guard import LoopGuard
from .message import Message, Stage, next_number
from .outbox import OutboxRow
from .routes import Direction, Plan, Qos0Policy, Router
from .sender import Sender, SenderOwner
from .session import MqttSession
from .spool import Spool, SpoolOwner
from .status import DirectionStatus, DropReason, OutboxStatus

_MAX_PENDING_QOS_0: Final = 10_000
_MANY: Final = 250
"""Messages that wait, at which the Outbox takes over without delay: FlashMQ keeps 512 for us, then drops."""


class OutboundSender(Sender, SpoolOwner):
    """Sends to the remote, over the Outbox when the remote stays away for longer than `delay` seconds."""

    def __init__(
        self,
        owner: SenderOwner,
        direction: Direction,
        router: Router,
        on_drop: Callable[[DropReason, str], None],
        guard: LoopGuard,
        config: OutboxConfig,
        changed: Callable[[], None],
    ) -> None:
        """As the Sender; `changed` hears when the Outbox breaks or mends."""
        super().__init__(owner, direction, router, on_drop, guard)
        self._delay = config.delay
        self._spool = Spool(config, self, changed)
        self._spool.set_order(router.order)
        self._takeover: asyncio.TimerHandle | None = None
        self._ordered_from = 0
        """Messages from this number on have their priorities by the present order of routes."""

    @override
    def reroute(self, router: Router) -> None:
        if router.order != self._router.order:
            self._ordered_from = next_number()
        super().reroute(router)
        self._spool.set_order(router.order)

    @override
    async def start(self) -> None:
        await self._spool.start()

    @override
    async def stop(self) -> None:
        await super().stop()
        self._cancel_takeover()
        await self._spool.stop()

    @property
    @override
    def status(self) -> DirectionStatus:
        status = super().status
        dropped = Counter(status.dropped) + Counter(self._spool.dropped)
        return replace(status, waiting=status.waiting + self._spool.waiting, dropped=dict(dropped))

    @property
    @override
    def outbox_status(self) -> OutboxStatus:
        return self._spool.status

    # --- when to take over --------------------------------------------------------------------------------------------

    @override
    def target_attached(self, session: MqttSession) -> None:
        self._cancel_takeover()
        self._spool.target_attached()
        super().target_attached(session)

    @override
    def target_lost(self, error: BridgeError | None) -> None:
        super().target_lost(error)
        self._spool.target_lost()
        if self._flying or self._backlog.messages:
            self._plan_takeover()

    @override
    def _enqueue(self, message: Message) -> None:
        super()._enqueue(message)
        if self._target is None:
            self._plan_takeover()

    def _plan_takeover(self) -> None:
        """Take over from the source's queue when the target stays away, or sooner when that might overflow."""
        if not self._spool.usable or self._spool.active:
            return
        window = self._owner.window
        if window is not None and len(self._backlog) > min(_MANY, window // 2):
            self._take_over()
        elif self._takeover is None:
            self._takeover = asyncio.get_running_loop().call_later(self._delay, self._take_over)

    def _cancel_takeover(self) -> None:
        if self._takeover is not None:
            self._takeover.cancel()
            self._takeover = None

    def _take_over(self) -> None:
        self._cancel_takeover()
        if self._target is not None:
            return
        moved = [message for message in self._flying if message.row is None]
        for message in moved:
            self._flying.remove(message.mid)
        moved += self._backlog.take_out(lambda message: message.row is None)
        self._spool.begin(moved, mixed=any(message.number < self._ordered_from for message in moved))
        self.throttle()

    # --- new messages -------------------------------------------------------------------------------------------------

    @override
    def source_session_lost(self) -> None:
        self._spool.source_session_lost()

    @override
    def _forward(self, message: Message) -> None:
        if self._spool.has_receipt(message.mid):
            self._owner.finish(message)  # taken over before a restart of ours, and the source did not hear
        elif self._spool.active:
            self._store(message)
        else:
            super()._forward(message)

    def _store(self, message: Message) -> None:
        try:
            message.wait()
            message.stored()
        except codec.MalformedPacketError as error:
            self.drop(message, DropReason.REJECTED, str(error))
            return
        self._spool.take(message)

    @override
    def _keep_qos_0(self, message: Message, policy: Qos0Policy) -> None:
        if not self._spool.usable:
            super()._keep_qos_0(message, policy)
        elif len(self._backlog) + self._spool.waiting >= _MAX_PENDING_QOS_0:
            self.drop(message, DropReason.CONGESTED, "QoS 0")
        elif self._spool.active:
            self._store(message)
        else:
            self._enqueue(message)

    @property
    @override
    def _has_backlog(self) -> bool:
        return self._spool.active or self._spool.holding

    @override
    def _must_wait(self, message: Message) -> bool:
        return self._spool.holding and message.row is None

    # --- what the brokers say -----------------------------------------------------------------------------------------

    @override
    def _is_taken(self, message: Message) -> bool:
        # A message that we took over has its row. Released before that is sent, it would be delivered, and then once
        # more: the target would not know the identifier any longer.
        mid = message.mid
        return super()._is_taken(message) or (
            message.row is None and (self._spool.has_receipt(mid) or self._spool.has_row(mid))
        )

    @override
    def remove_receipt(self, mid: int) -> bool:
        if not self._spool.has_receipt(mid):
            return False
        self._spool.remove_receipt(mid)  # PUBCOMP follows when the file knows
        return True

    @override
    def _pass_on_received(self, message: Message) -> None:
        if message.row is None:
            super()._pass_on_received(message)
        else:
            self._spool.row_received(message)  # PUBREL follows when the file knows

    @override
    def _finish(self, message: Message) -> None:
        if message.row is not None:
            self._spool.row_done(message.row)
        super()._finish(message)

    # --- what the Outbox says -----------------------------------------------------------------------------------------

    @override
    def spooled(self, message: Message) -> None:
        message.spooling = False
        known = message.stage >= Stage.RECEIVED and not message.released
        if known:
            message.stage = Stage.DONE  # the source has its PUBREC already
        else:
            self._finish(message)

    @override
    def feed(self, rows: Sequence[OutboxRow]) -> None:
        for row in rows:
            packet = row.packet
            header = codec.header_length(packet) if packet else 0
            first = packet[0] if packet else codec.PUBLISH | 0x04
            plan = self._router.find(codec.publish_topic(header, packet)) if packet else Plan(None)
            message = Message(row.mid, first, header, packet, plan, v5=True)
            message.owed = False
            message.row = row.seq
            message.expected = True
            message.again = row.sent
            message.released = row.released
            message.expires_at = row.expires_at
            if row.released:
                message.qos = 2
                message.stage = Stage.RECEIVED
            self._backlog.append(message)
        self._pump()

    @override
    def row_received(self, message: Message) -> None:
        message.released = True
        if self._flying.messages.get(message.mid) is message and message.stage is Stage.RECEIVED:
            self._release(message)

    @override
    def receipt_removed(self, mid: int) -> None:
        self._owner.receipt_removed(mid)

    @override
    def give_back(self, messages: Sequence[Message]) -> None:
        target = self._target
        started = [message for message in messages if message.stage is not Stage.QUEUED]
        waiting = [message for message in messages if message.stage is Stage.QUEUED]
        if target is not None:
            self._resume(target, started)
        else:
            for message in started:
                self._flying.add(message)
        for message in waiting:
            self._backlog.append(message)
        self._pump()

    @override
    def direct(self) -> None:
        self._pump()
