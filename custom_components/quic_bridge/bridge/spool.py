"""Between the forwarder and the Outbox: messages are taken over while the target is away, and fed back in order.

One task does all the work on the file, in batches. The forwarder's part is three rules:

- while `active`, every new message goes to `take` instead of the target;
- while `holding`, messages that are not rows wait: the rows before them are not all through yet;
- a row's PUBREL and a receipt's PUBCOMP wait until the file knows.

So at any instant the file has all that was acknowledged to the source and not yet by the target, and a packet
identifier means one message only, whenever the process dies.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import islice
import logging
from typing import Final, Protocol

from .config import OutboxConfig
from .message import Message, Stage
from .outbox import Outbox, OutboxDrop, OutboxError, OutboxFault, OutboxMessage, OutboxPriority, OutboxRescue, OutboxRow
from .routes import NO_PRIORITIES, Priority, Qos0Policy
from .status import DropReason, OutboxStatus

_LOGGER = logging.getLogger(__name__)

_BATCH: Final = 500
_FEED_MESSAGES: Final = 1000
_FEED_BYTES: Final = 4 * 1024 * 1024
_RETRY: Final = 5.0
_TIDY: Final = 600.0
"""Seconds between two looks for messages that became too old while nothing else happened."""

_MIXED: Final = 0
"""In place of an order of routes: the file has messages of several."""
_PRIORITIES: Final = {
    Priority.HIGH: OutboxPriority.HIGH,
    Priority.NORMAL: OutboxPriority.NORMAL,
    Priority.LOW: OutboxPriority.LOW,
}
_REASONS: Final = {
    OutboxDrop.FULL_MESSAGES: DropReason.OUTBOX_FULL,
    OutboxDrop.FULL_BYTES: DropReason.OUTBOX_FULL,
    OutboxDrop.EXPIRED: DropReason.EXPIRED,
    OutboxDrop.AGE: DropReason.TOO_OLD,
    OutboxDrop.REPLACED: DropReason.REPLACED,
}


class SpoolOwner(Protocol):
    """The forwarder's side."""

    def spooled(self, message: Message) -> None:
        """Settle with the source: the message is on disk."""

    def feed(self, rows: Sequence[OutboxRow]) -> None:
        """Send rows, in order."""

    def row_received(self, message: Message) -> None:
        """Send the row's PUBREL: the file knows that PUBREC has come."""

    def receipt_removed(self, mid: int) -> None:
        """Send PUBCOMP to the source: the file knows that PUBREL has come."""

    def give_back(self, messages: Sequence[Message]) -> None:
        """Send these yourself: the file cannot take them, and the target is there."""

    def direct(self) -> None:
        """Send what was held: nothing is left in the file."""


class Spool:
    """Owns the Outbox while the bridge runs."""

    def __init__(self, config: OutboxConfig, owner: SpoolOwner, changed: Callable[[], None]) -> None:
        """Prepare; `changed` hears when the Outbox breaks or mends."""
        self._owner = owner
        self._changed = changed
        self._outbox = Outbox(config.path, config.limits, on_rescue=self._rescued)
        self.active = False
        self.holding = False
        self._open = False
        self._seen = False
        self._were_under_way = False
        """The source's messages were sent to the target without a stay here, when the process before this one ended.
        What it repeats of them, the target may know."""
        self._target = False
        self._pending: deque[Message] = deque()
        self._rows = 0
        self._order = NO_PRIORITIES
        self._mixed = False
        """Messages wait that got their priorities by another order of routes: until they are gone, all new ones come
        behind, or those of one topic might pass each other."""
        self._exhausted = False
        self._done: list[int] = []
        self._received: list[Message] = []
        self._receipts: list[int] = []
        self._sessions_to_forget = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._error: OutboxError | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the file and begin; with a file that cannot be opened the bridge runs without, and tries on."""
        await self._try_open()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="quic_bridge outbox")

    async def stop(self) -> None:
        """Finish what is under way and close the file."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
        await self._outbox.close()
        self._open = False

    @property
    def status(self) -> OutboxStatus:
        """Figures as of now."""
        oldest = self._outbox.oldest
        return OutboxStatus(
            messages=self._outbox.messages if self._seen else None,
            bytes=self._outbox.bytes if self._seen else None,
            oldest=datetime.fromtimestamp(oldest, UTC) if oldest is not None else None,
            error=self._error.text if self._error else None,
            fault=self._error.fault if self._error else None,
        )

    @property
    def dropped(self) -> dict[DropReason, int]:
        """Messages that fell over a bound of the Outbox."""
        counts: dict[DropReason, int] = {}
        for drop, number in self._outbox.dropped.items():
            counts[_REASONS[drop]] = counts.get(_REASONS[drop], 0) + number
        return counts

    @property
    def waiting(self) -> int:
        """Messages in memory that are on their way to the file."""
        return len(self._pending)

    # --- the forwarder's calls ----------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether messages can be taken over at all."""
        return self._open

    def begin(self, messages: Sequence[Message], *, mixed: bool) -> None:
        """Take over: `messages` are under way or waiting, in order; all later ones must come through `take`.

        `mixed`: some have their priorities by an earlier order of routes.
        """
        self.active = True
        self._mixed = self._mixed or mixed
        self.holding = False
        for message in messages:
            self.take(message)

    def take(self, message: Message) -> None:
        """Take a new message."""
        message.spooling = True
        self._pending.append(message)
        self._wake.set()

    def target_attached(self) -> None:
        """Feed rows from now on."""
        self._target = True
        self._wake.set()

    def target_lost(self) -> None:
        """Stop feeding. What was fed stays with the forwarder and is sent when the target is back."""
        self._target = False

    def has_receipt(self, mid: int) -> bool:
        """Whether a QoS 2 message of the source is ours under this identifier, and its PUBREL has not come."""
        return not self._sessions_to_forget and mid in self._outbox.receipts

    def set_order(self, order: int) -> None:
        """Note by which order of routes messages have their priorities from now on (see `order_of_priorities`)."""
        if order != self._order:
            self._order = order
            self._mixed = self._mixed or bool(self._pending) or not self._outbox.is_empty

    def has_row(self, mid: int) -> bool:
        """Whether a message in the file goes by this identifier at the remote."""
        return mid in self._outbox.given

    def remove_receipt(self, mid: int) -> None:
        """Note the source's PUBREL; `receipt_removed` follows."""
        self._receipts.append(mid)
        self._wake.set()

    def source_session_lost(self) -> None:
        """Forget the source's packet identifiers."""
        self._receipts.clear()
        self._sessions_to_forget += 1
        self._wake.set()

    def row_received(self, message: Message) -> None:
        """Note the target's PUBREC; `row_received` of the owner follows."""
        self._received.append(message)
        self._wake.set()

    def row_done(self, row: int) -> None:
        """Forget a row that the target has or that was dropped."""
        self._rows -= 1
        self._done.append(row)
        self._wake.set()

    # --- the work -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            quiet = False
            try:
                async with asyncio.timeout(_RETRY if self._error is not None else _TIDY):
                    await self._wake.wait()
            except TimeoutError:
                quiet = True
            self._wake.clear()
            try:
                await self._work()
                if quiet:
                    await self._outbox.expire()
            except OutboxError as error:
                self._fault(error)
            except Exception as error:  # without this task messages would wait for ever
                _LOGGER.exception("Unexpected error in the Outbox")
                self._fault(OutboxError(OutboxFault.IO_ERROR, f"internal error: {error!r}"))

    async def _try_open(self) -> None:
        try:
            opened = await self._outbox.open()
        except OutboxError as error:
            self._fault(error)
            return
        if not self._seen:
            self._were_under_way = self._outbox.has_only_sent
        self._open = self._seen = True
        self._mended()
        if opened.rescue is not None:
            self._rescued(opened.rescue)
        if not self._outbox.is_empty:
            _LOGGER.info("The Outbox holds %d messages from before", opened.messages)
            self.active = True
            self._mixed = self._mixed or self._noted_order != self._order

    @property
    def _noted_order(self) -> int:
        """By which order of routes the rows of the file have their priorities."""
        noted = self._outbox.order
        return NO_PRIORITIES if noted is None else noted

    async def _work(self) -> None:
        """Do all there is to do, oldest obligation first. Raises OutboxError; what was not done stays to be done."""
        if not self._open:
            await self._try_open()
            if not self._open:
                return
        while sessions := self._sessions_to_forget:
            await self._outbox.forget_local_session()
            self._sessions_to_forget -= sessions
        await self._write_back()
        failed = await self._append()
        await self._feed()
        if failed is not None:
            if self._target and not self._rows and self._outbox.is_empty:
                back = list(self._pending)
                self._pending.clear()
                for message in back:
                    message.spooling = False
                self.active = self.holding = self._mixed = False
                self._owner.give_back(back)
            raise failed
        self._mended()
        self._settle()

    async def _write_back(self) -> None:
        """Make the file know what the brokers have said."""
        if self._received:
            batch = self._received[:]
            await self._outbox.mark_received([message.row for message in batch if message.row is not None])
            del self._received[: len(batch)]
            for message in batch:
                self._owner.row_received(message)
        if self._receipts:
            mids = self._receipts[:]
            await self._outbox.remove_receipts(mids)
            del self._receipts[: len(mids)]
            for mid in mids:
                self._owner.receipt_removed(mid)
        if self._done:
            rows = self._done[:]
            await self._outbox.delete(rows)
            del self._done[: len(rows)]

    async def _append(self) -> OutboxError | None:
        """Put what is pending on disk, a batch at a time; returns the error that stopped it."""
        order = _MIXED if self._mixed else self._order
        if self._pending and self.active and order != self._noted_order:
            try:
                await self._outbox.note_order(order)
            except OutboxError as error:
                return error
        while self._pending and self.active:
            batch = list(islice(self._pending, _BATCH))
            try:
                known = {id(message) for message in batch if await self._is_here(message)}
                result = await self._outbox.append(
                    self._outbox_messages(message for message in batch if id(message) not in known)
                )
            except OutboxError as error:
                return error
            self._exhausted = False
            taken = len(result.seqs)
            for message in batch:
                if id(message) not in known:
                    if not taken:
                        break
                    taken -= 1
                self._owner.spooled(self._pending.popleft())
            if result.refused:
                return OutboxError(OutboxFault.FULL, "the Outbox is full; the local broker's queue holds the rest")
            await self._feed()
        return None

    async def _is_here(self, message: Message) -> bool:
        """Whether the source repeats a message after a restart of ours that is in the file already."""
        return (
            message.expected
            and message.owed
            and message.source_qos == 1
            and await self._outbox.find(message.mid, message.stored())
        )

    def _outbox_messages(self, messages: Iterable[Message]) -> list[OutboxMessage]:
        """Make what the file takes. What the remote may know keeps its identifier there.

        That comes before all that it cannot know, or nearly so: mosquitto sends a new message among those that it
        repeats (2.0.11), and QoS 0 that is published meanwhile.
        """
        made: list[OutboxMessage] = []
        first = self._outbox.has_only_sent
        given = set[int]()
        for message in messages:
            qos, route = message.source_qos, message.plan.route
            sent = message.stage in {Stage.SENT, Stage.RECEIVED, Stage.RELEASED} or (
                (first or (qos == 2 and self._were_under_way))
                and message.expected
                and message.mid not in given
                and self._outbox.may_have_been_sent(message.mid)
            )
            first = first and sent
            if sent and qos:
                given.add(message.mid)
            made.append(
                OutboxMessage(
                    packet=message.stored() if message.packet else b"",
                    topic=message.topic,
                    qos=qos,
                    source_mid=message.mid if message.owed else 0,
                    sent_mid=message.mid if sent and qos else None,
                    expires_at=message.expires_at,
                    priority=self._priority(message),
                    replaces_topic=qos == 0 and route is not None and route.qos_0 is Qos0Policy.LATEST,
                    needs_receipt=qos == 2 and message.owed and not message.released,
                    released=qos == 2 and (message.stage is Stage.RELEASED or not message.packet),
                )
            )
        return made

    def _priority(self, message: Message) -> OutboxPriority:
        if self._mixed:
            return OutboxPriority.LOW
        route = message.plan.route
        return _PRIORITIES[route.priority] if route is not None else OutboxPriority.NORMAL

    async def _feed(self) -> None:
        """Give the forwarder more rows when it is running out of them."""
        if not self._target or self._exhausted or self._rows > _FEED_MESSAGES // 2:
            return
        rows = await self._outbox.peek(_FEED_MESSAGES, _FEED_BYTES)
        self._exhausted = not rows and not self._outbox.blocked
        if rows:
            self._rows += len(rows)
            self._owner.feed(rows)
            self._wake.set()

    def _settle(self) -> None:
        """Hand over to direct forwarding: first hold new messages until the last rows are through, then let go."""
        if self.active and self._target and self._exhausted and not self._pending:
            self.holding = True
            self.active = False
        if self.holding and not self._rows and not self._done and not self._received and self._outbox.is_empty:
            self.holding = self._mixed = False
            self._owner.direct()

    # --- faults -------------------------------------------------------------------------------------------------------

    def _fault(self, error: OutboxError) -> None:
        known = self._error is not None and self._error.fault is error.fault
        self._error = error
        if not known:
            _LOGGER.warning("The Outbox does not work: %s. The local broker's queue stands in", error.text)
            self._changed()

    def _mended(self) -> None:
        if self._error is not None:
            self._error = None
            _LOGGER.info("The Outbox works again")
            self._changed()

    def _rescued(self, rescue: OutboxRescue) -> None:
        _LOGGER.error(
            "The Outbox file was damaged (%s); %d messages were rescued, %d were not; the damaged file is kept as %s",
            rescue.text,
            rescue.rows,
            rescue.damaged,
            rescue.moved_to.name,
        )
