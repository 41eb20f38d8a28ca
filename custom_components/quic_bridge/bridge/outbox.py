"""The durable queue for outbound messages while the remote broker is away.

The local broker holds what we do not acknowledge, but only so much of it (mosquitto: 1000 messages, then it drops
silently). So during an outage messages come here: committed to a SQLite file, then acknowledged. When the remote is
back they go out in order and are deleted once it has acknowledged them.

What makes it exact with QoS 2:
- Towards the remote, a row keeps its packet identifier however often it is sent, so the remote's session recognises it.
  On the remote's PUBREC the row is reduced to its release (`mark_received`) before PUBREL is sent: after a crash PUBREL
  is sent again, never PUBLISH under an identifier that the remote has already let go.
- Towards the local broker, `receipts` are the identifiers of messages taken over whose PUBREL is still to come.
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence, Set as AbstractSet
from pathlib import Path
import time
from typing import Final

from .outbox_model import (
    AppendResult,
    OutboxDrop,
    OutboxError,
    OutboxFault,
    OutboxLimits,
    OutboxMessage,
    OutboxOpened,
    OutboxPolicy,
    OutboxPriority,
    OutboxRescue,
    OutboxRow,
)
from .outbox_store import OutboxStore

__all__ = [
    "AppendResult",
    "Outbox",
    "OutboxDrop",
    "OutboxError",
    "OutboxFault",
    "OutboxLimits",
    "OutboxMessage",
    "OutboxOpened",
    "OutboxPolicy",
    "OutboxPriority",
    "OutboxRescue",
    "OutboxRow",
]

type _Packet = bytes
"""Where the class has a property of the name `bytes`."""

_DEFAULT_LIMITS: Final = OutboxLimits()


class Outbox:
    """One bridge's queue in one file.

    The file is read and written in the loop's default executor, one operation at a time, in the order of the calls. An
    operation that has begun is finished even if its caller is cancelled. Every method raises OutboxError where it says
    so, and then has changed nothing. The properties are exact as of the last operation and cost nothing.

    A file that turns out to be damaged is replaced on the way, with all rows that can be read, and the operation then
    carries on: `on_rescue` is called on the loop; for damage found by `open` it is in what that returns.
    """

    def __init__(
        self,
        path: Path,
        limits: OutboxLimits = _DEFAULT_LIMITS,
        *,
        clock: Callable[[], float] = time.time,
        on_rescue: Callable[[OutboxRescue], None] | None = None,
    ) -> None:
        """Make the Outbox of the file `path`; `clock` gives unix time and is called in the executor, too."""
        self._store = OutboxStore(path, limits, clock)
        self._on_rescue = on_rescue
        self._lock = asyncio.Lock()
        self._is_open = False
        self._rewind = False

    @property
    def messages(self) -> int:
        """Messages waiting."""
        return self._store.figures.messages

    @property
    def bytes(self) -> int:
        """Sum of their packets."""
        return self._store.figures.bytes

    @property
    def oldest(self) -> float | None:
        """When the first of them came in (unix time)."""
        return self._store.figures.oldest

    @property
    def is_empty(self) -> bool:
        """Nothing is left to be sent, neither a message nor a PUBREL."""
        return not self._store.figures.rows

    @property
    def receipts(self) -> AbstractSet[int]:
        """The local broker's identifiers of QoS 2 messages that were taken over and whose PUBREL has not come.

        Such a PUBLISH is answered with PUBREC and not appended again. PUBREL: `remove_receipts`, then PUBCOMP.
        """
        return self._store.figures.receipts

    @property
    def given(self) -> AbstractSet[int]:
        """The identifiers under which messages here, or their releases, were or will be sent to the remote."""
        return self._store.figures.given

    @property
    def dropped(self) -> Mapping[OutboxDrop, int]:
        """Messages dropped since this object was made, by whatever method found them."""
        return self._store.figures.dropped

    @property
    def order(self) -> int | None:
        """What was noted with `note_order`; None: nothing."""
        return self._store.figures.order

    @property
    def blocked(self) -> bool:
        """Rows are left that `peek` gives only when some that are out have been deleted: they share an identifier."""
        return self._store.figures.blocked

    def may_have_been_sent(self, mid: int) -> bool:
        """Tell whether a message that the local broker sends again may be known to the remote under its own `mid`.

        So it may if this process ended with messages under way, and was not yet to take them over, or had not finished;
        then it is appended with `sent_mid=mid`.
        """
        return mid not in self._store.figures.given

    @property
    def has_only_sent(self) -> bool:
        """Whether no message is here without `sent_mid`."""
        return self._store.figures.rows == len(self._store.figures.given)

    async def open(self) -> OutboxOpened:
        """Open the file or make it, and its folder.

        Raises OutboxError: `disk_full`, `not_writable`, `io_error`, `in_use`, `too_new`. May be called again then.
        """
        rescue = await self._run(self._open)
        figures = self._store.figures
        return OutboxOpened(
            messages=figures.messages, bytes=figures.bytes, receipts=len(figures.receipts), rescue=rescue
        )

    async def append(self, messages: Sequence[OutboxMessage]) -> AppendResult:
        """Put messages at the end; they are on disk when this returns.

        Messages with `sent_mid` should come first: in the first batches after the remote went away, before any without.
        Later it is looked for in the whole file, and one whose identifier another message has got here gets another.
        Raises OutboxError, and nothing of the batch is kept; ValueError for messages with `sent_mid` that share an
        identifier, or are more than 30,000.
        """
        return await self._run(lambda: self._checked().append(messages))

    async def peek(self, limit_messages: int, limit_bytes: int) -> list[OutboxRow]:
        """Return the next rows, at least one if there is one: first what may have been sent before, then by priority.

        They count as out for sending until they are deleted or `rewind` is called: bounds leave them alone. What has
        expired is dropped and not returned. Works on a full disk, too. Raises OutboxError.
        """
        return await self._run(lambda: self._checked().peek(limit_messages, limit_bytes))

    async def note_order(self, order: int) -> None:
        """Remember by which order of routes messages have their priorities, until another is noted.

        Raises OutboxError.
        """
        await self._run(lambda: self._checked().note_order(order))

    async def mark_received(self, seqs: Collection[int]) -> None:
        """Note that PUBREC has come for QoS 2 rows. When this returns, and not before, PUBREL may be sent.

        Of each row the release stays, and `peek` gives it again after a reconnect, until it is deleted on PUBCOMP.
        Raises OutboxError.
        """
        await self._run(lambda: self._checked().mark_received(seqs))

    async def delete(self, seqs: Collection[int]) -> None:
        """Forget rows: QoS 0 sent, PUBACK or PUBCOMP come, or refused by the remote. Unknown rows are ignored.

        On a full disk they count as gone at once and leave the file with the next operation that can write; after a
        crash before that they are sent again (QoS 1: a duplicate; QoS 2: only PUBREL). Raises OutboxError if the file
        cannot even be read.
        """
        await self._run(lambda: self._checked().delete(seqs))

    def rewind(self) -> None:
        """The connection to the remote is lost: what was handed out will be peeked again, and bounds apply to it again.

        Of a QoS 2 message that then falls over a bound, the release stays: the remote may know its identifier.
        """
        if self._lock.locked():
            self._rewind = True
        else:
            self._store.rewind()

    async def expire(self) -> Mapping[OutboxDrop, int]:
        """Drop what is older than the limit or its own expiry; return how many, by reason. Raises OutboxError.

        `append` and `peek` do this too; it is for the quiet times in between.
        """
        return await self._run(lambda: self._checked().expire())

    async def find(self, source_mid: int, packet: _Packet) -> bool:
        """Tell whether the QoS 1 message that the local broker sends again (DUP) is still here.

        It compares the newest row of that identifier with `packet` byte by byte, but for the DUP flag: so `packet`
        must be made as it was for `append`. Raises OutboxError.
        """
        return await self._run(lambda: self._checked().find(source_mid, packet))

    async def remove_receipts(self, mids: Collection[int]) -> None:
        """Forget receipts: PUBREL has come. When this returns, and not before, PUBCOMP may be sent.

        Raises OutboxError.
        """
        await self._run(lambda: self._checked().remove_receipts(mids))

    async def forget_local_session(self) -> None:
        """Forget all receipts and `source_mid`s: the local broker lost its session and numbers afresh.

        Raises OutboxError.
        """
        await self._run(lambda: self._checked().forget_local_session())

    async def close(self) -> None:
        """Wait for what is under way and close the file. May be called again; never raises."""
        await self._run(self._close)

    async def remove(self) -> None:
        """Close, and delete the file with all that belongs to it, damaged ones too. Raises OutboxError."""
        await self._run(self._remove)

    async def set_aside(self) -> Path:
        """Close, and keep the file under another name, which is returned. Raises OutboxError."""
        return await self._run(self._set_aside)

    def _checked(self) -> OutboxStore:
        if not self._is_open:
            raise OutboxError(OutboxFault.CLOSED, "the Outbox is not open")
        return self._store

    def _open(self) -> OutboxRescue | None:
        self._store.open()
        self._is_open = True
        return self._store.take_rescue()

    def _close(self) -> None:
        self._is_open = False
        self._store.close()

    def _remove(self) -> None:
        self._is_open = False
        self._store.remove()

    def _set_aside(self) -> Path:
        self._is_open = False
        return self._store.set_aside()

    async def _run[T](self, operation: Callable[[], T]) -> T:
        await self._lock.acquire()
        try:
            future = asyncio.get_running_loop().run_in_executor(None, operation)
        except BaseException:
            self._lock.release()
            raise
        # The lock is let go when the operation ends, not when its caller does: a cancelled caller leaves a thread that
        # still uses the connection.
        future.add_done_callback(self._finished)
        await asyncio.wait((future,))
        return future.result()

    def _finished[T](self, future: asyncio.Future[T]) -> None:
        if self._rewind:
            self._rewind = False
            self._store.rewind()
        rescue = self._store.take_rescue()
        self._lock.release()
        if not future.cancelled():
            future.exception()  # seen: nobody may be waiting for it any more
        if rescue is not None and self._on_rescue is not None:
            self._on_rescue(rescue)
