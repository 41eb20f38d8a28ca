"""What the Outbox does with its file: the queue's rules. Everything here blocks, one thing at a time."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
import logging
from pathlib import Path
import sqlite3
from typing import Final

from .outbox_file import COLUMNS, LANES, Row, lane_of, sealed, verify
from .outbox_ledger import SOURCE_REACH, Entry, Ledger, release_row
from .outbox_model import (
    MAX_MID,
    AppendResult,
    OutboxDrop,
    OutboxError,
    OutboxFault,
    OutboxLimits,
    OutboxMessage,
    OutboxPolicy,
    OutboxPriority,
    OutboxRescue,
    OutboxRow,
)

_LOGGER = logging.getLogger(__name__)

_WRITE_FAULTS: Final = {OutboxFault.DISK_FULL, OutboxFault.IO_ERROR, OutboxFault.NOT_WRITABLE}
_MAX_GIVEN: Final = 30_000
"""Most messages with an identifier of their own: it leaves the counter a cycle of more than 30,000."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the Outbox holds after an operation. Replaced as a whole, so that another thread can look at any time."""

    messages: int = 0
    bytes: int = 0
    rows: int = 0
    """Messages and releases."""
    oldest: float | None = None
    receipts: frozenset[int] = frozenset()
    given: frozenset[int] = frozenset()
    dropped: Mapping[OutboxDrop, int] = field(default_factory=dict)
    """Since the store was made."""
    order: int | None = None
    """By which order of routes the lanes are filled."""
    blocked: bool = False
    """The last `peek` ended at a row whose packet identifier another row has that is out for sending."""


class OutboxStore:
    """The queue in its file. Every method but `close` and `take_rescue` raises OutboxError, and then did nothing."""

    def __init__(self, path: Path, limits: OutboxLimits, clock: Callable[[], float]) -> None:
        self.figures = Figures()
        self._handed_out = _starts()
        """The last row of each lane that is out for sending; bounds touch none up to it."""
        self._out: dict[int, int] = {}
        """Those that are, and their packet identifiers."""
        self._blocked = False
        self._path = path
        self._ledger = Ledger(path)
        self._limits = limits
        self._clock = clock
        self._dropped: Counter[OutboxDrop] = Counter()

    def open(self) -> None:
        """Open or make the file; a damaged one is replaced."""
        self._run(lambda: None)

    def close(self) -> None:
        """Close the file."""
        self.rewind()
        self._ledger.close()

    def remove(self) -> None:
        """Close, and delete everything."""
        self.rewind()
        self._ledger.remove()
        self._ledger = Ledger(self._path)
        self.figures = Figures(dropped=self.figures.dropped)

    def set_aside(self) -> Path:
        """Close, and keep the file under another name."""
        self.rewind()
        moved_to = self._ledger.set_aside()
        self._ledger = Ledger(self._path)
        self.figures = Figures(dropped=self.figures.dropped)
        return moved_to

    def take_rescue(self) -> OutboxRescue | None:
        """Return what was rescued since somebody asked."""
        rescue, self._ledger.rescue = self._ledger.rescue, None
        return rescue

    def append(self, messages: Sequence[OutboxMessage]) -> AppendResult:
        """Commit messages at the end of the queue, in one transaction. Raises ValueError, too."""
        return self._run(lambda: self._append(messages))

    def rewind(self) -> None:
        """Nothing is out for sending any more."""
        self._handed_out = _starts()
        self._out = {}

    def note_order(self, order: int) -> None:
        """Note by which order of routes the lanes are filled."""
        self._run(lambda: self._note_order(order))

    def peek(self, limit_messages: int, limit_bytes: int) -> list[OutboxRow]:
        """Hand out the next rows, and remember in the file that they may be sent now."""
        try:
            rows = self._run(lambda: self._hand_out(limit_messages, limit_bytes))
        except OutboxError as error:
            if error.fault not in _WRITE_FAULTS:
                raise
            # A full disk must not keep the queue from being emptied.
            _LOGGER.debug("Handing out messages without a note in the file: %s", error)
            rows = self._run(lambda: self._read(limit_messages, limit_bytes))
            self._may_be_sent(rows)
        self._handed_out |= _last_of(rows)
        self._out |= {row.seq: row.mid for row in rows if row.qos}
        return rows

    def mark_received(self, seqs: Collection[int]) -> None:
        """Reduce QoS 2 rows to their release."""
        self._run(lambda: self._mark_received(seqs))

    def delete(self, seqs: Collection[int]) -> None:
        """Forget rows for good; what cannot be deleted now counts as gone and is deleted later."""
        try:
            self._run(lambda: self._delete(seqs))
        except OutboxError as error:
            if error.fault not in _WRITE_FAULTS:
                raise
            _LOGGER.debug("Deleting %d rows later: %s", len(seqs), error)
            self._run(lambda: self._ledger.delete_later(seqs))
        for seq in seqs:
            self._out.pop(seq, None)
        if not self.figures.rows:
            with suppress(OutboxError):
                self._run(self._ledger.shrink)

    def expire(self) -> dict[OutboxDrop, int]:
        """Drop what is too old; return how many, by reason."""
        return self._run(self._expire)

    def find(self, source_mid: int, packet: bytes) -> bool:
        """Tell whether this very packet, but for DUP, is still here."""
        return self._run(lambda: self._find(source_mid, packet))

    def remove_receipts(self, mids: Collection[int]) -> None:
        """Forget receipts."""
        self._run(lambda: self._remove_receipts(mids))

    def forget_local_session(self) -> None:
        """Forget all that the local broker's session had numbered."""
        self._run(self._forget_local_session)

    def _run[T](self, operation: Callable[[], T]) -> T:
        try:
            return self._ledger.run(operation)
        finally:
            tally = self._ledger.tally
            self.figures = Figures(
                messages=tally.messages,
                bytes=tally.bytes,
                rows=tally.messages + tally.released,
                oldest=tally.oldest,
                receipts=self._ledger.receipts,
                given=frozenset(tally.given.values()),
                dropped=dict(self._dropped),
                order=tally.order,
                blocked=self._blocked,
            )

    # In

    def _append(self, messages: Sequence[OutboxMessage]) -> AppendResult:
        now = self._clock()
        dropped: Counter[OutboxDrop] = Counter()
        rows: list[Row] = []
        receipts: set[int] = set()
        sources: dict[int, int] = {}
        with self._ledger.transaction():
            tally = self._ledger.tally
            seqs: list[int] = []
            self._drop_stale(dropped)
            taken = set(tally.given.values())
            for message in messages:
                if not self._make_place(message, rows, dropped):
                    break
                # What was sent has one lane, as it keeps its order; `peek` gives it first in any case.
                given_mid = self._given_mid(message, rows)
                given = given_mid is not None
                lane = tally.lanes[OutboxPriority.NORMAL if given else message.priority]
                seq = lane.next_seq
                lane.next_seq += 1
                seqs.append(seq)
                if message.needs_receipt:
                    receipts.add(message.source_mid)
                released = message.released
                unwanted = None if released else self._unwanted(message, now)
                if unwanted is not None:
                    dropped[unwanted] += 1
                    # As in Ledger.discard: the remote may know a QoS 2 message that was sent.
                    released = message.qos == 2 and given
                    if not released:
                        continue
                if len(taken) != len(tally.given):
                    taken = set(tally.given.values())
                mid = self._mid(message.qos, given_mid, taken)
                if given:
                    tally.given[seq] = mid
                    lane.sent_upto = seq
                if released:
                    rows.append(release_row(seq, mid, 1, now))
                    tally.released += 1
                else:
                    rows.append(_message_row(seq, mid, message, now, given=given))
                    tally.messages += 1
                    tally.bytes += len(message.packet)
                    if message.source_mid:
                        sources[message.source_mid] = seq
            self._ledger.insert(rows)
            if self._limits.policy is OutboxPolicy.DROP_OLDEST:
                self._drop_oldest(dropped)
            self._ledger.db.executemany("INSERT OR IGNORE INTO receipts VALUES (?)", [(mid,) for mid in receipts])
        self._ledger.receipts |= receipts
        self._ledger.sources |= sources
        return AppendResult(seqs, len(messages) - len(seqs), self._count(dropped))

    def _make_place(self, message: OutboxMessage, rows: list[Row], dropped: Counter[OutboxDrop]) -> bool:
        """Take out what the message replaces; False, and nothing done, if the bounds refuse the message."""
        tally, limits = self._ledger.tally, self._limits
        replaced: list[Entry] = []
        if message.replaces_topic:
            self._ledger.insert(rows)
            replaced = self._ledger.db.execute(
                """SELECT seq, qos, size FROM messages INDEXED BY messages_latest
                WHERE topic = ? AND latest = 1 AND released = 0""",
                (message.topic.encode(),),
            ).fetchall()
            replaced = [row for row in replaced if not self._is_handed_out(row[0])]
        size = len(message.packet)
        # What is larger than the whole Outbox would be refused for ever, and everything behind it.
        if limits.policy is OutboxPolicy.REFUSE and not message.released and size <= limits.bytes:
            messages = tally.messages - len(replaced) + 1
            size += tally.bytes - sum(row[2] for row in replaced)
            if messages > limits.messages or size > limits.bytes:
                return False
        if replaced:
            self._ledger.discard(replaced)
            dropped[OutboxDrop.REPLACED] += len(replaced)
        return True

    def _is_handed_out(self, seq: int) -> bool:
        return seq <= self._handed_out[lane_of(seq)]

    def _unwanted(self, message: OutboxMessage, now: float) -> OutboxDrop | None:
        if message.expires_at is not None and message.expires_at <= now:
            return OutboxDrop.EXPIRED
        return OutboxDrop.FULL_BYTES if len(message.packet) > self._limits.bytes else None

    def _given_mid(self, message: OutboxMessage, rows: list[Row]) -> int | None:
        """Return the identifier under which a message was sent; None: it was not, or another one here has got it."""
        tally, mid = self._ledger.tally, message.sent_mid
        if mid is None or message.released or len(tally.given) == tally.messages + tally.released:
            return mid
        self._ledger.insert(rows)
        return None if self._ledger.is_assigned(mid) else mid

    def _mid(self, qos: int, given_mid: int | None, taken: set[int]) -> int:
        tally = self._ledger.tally
        if given_mid is not None:
            if given_mid in taken or len(taken) >= _MAX_GIVEN:
                raise ValueError(f"{given_mid} is taken, or more messages were sent than a window can hold")
            taken.add(given_mid)
            return given_mid
        if qos == 0:
            return 0
        mid = tally.last_mid % MAX_MID + 1
        while mid in taken:
            mid = mid % MAX_MID + 1
        tally.last_mid = mid
        return mid

    # Out

    def _hand_out(self, limit_messages: int, limit_bytes: int) -> list[OutboxRow]:
        dropped: Counter[OutboxDrop] = Counter()
        with self._ledger.transaction():
            self._drop_stale(dropped)
            rows = self._read(limit_messages, limit_bytes)
            self._may_be_sent(rows)
        self._count(dropped)
        return rows

    def _may_be_sent(self, rows: Sequence[OutboxRow]) -> None:
        lanes = self._ledger.tally.lanes
        for priority, seq in _last_of(rows).items():
            lanes[priority].sent_upto = max(lanes[priority].sent_upto, seq)

    def _spans(self) -> Iterator[tuple[int, int, bool]]:
        """Yield after which row to read up to which, and whether they may have been sent: these first.

        Of these the normal lane begins: it has those that came in with their identifier, whatever their priority, and
        no later message of their topics may pass them.
        """
        lanes = self._ledger.tally.lanes
        for priority in (OutboxPriority.NORMAL, OutboxPriority.HIGH, OutboxPriority.LOW):
            yield self._handed_out[priority], lanes[priority].sent_upto, True
        for priority in LANES:
            yield max(self._handed_out[priority], lanes[priority].sent_upto), lanes[priority].next_seq - 1, False

    def _read(self, limit_messages: int, limit_bytes: int) -> list[OutboxRow]:
        tally = self._ledger.tally
        rows: list[OutboxRow] = []
        size = 0
        row: Row
        # After a cycle of the identifiers a row of one lane may have that of a row of another that is still out. Never
        # twice at the remote, or a release of the one would be taken for the other's, also after a crash.
        out = set(self._out.values())
        self._blocked = False
        select = f"SELECT {COLUMNS} FROM messages WHERE seq > ? AND seq <= ? ORDER BY seq"  # noqa: S608
        for after, upto, sent in self._spans():
            if upto <= after:
                continue
            # Closed whatever happens: a statement left half read keeps the file locked when it has to be replaced.
            with closing(self._ledger.db.execute(select, (after, upto))) as cursor:
                for row in cursor:
                    if len(rows) == limit_messages or (rows and size + row[7] > limit_bytes):
                        return rows
                    if row[0] in tally.undeleted:
                        continue
                    verify(row)
                    seq, mid, qos, _, _, released, _, _, created_at, expires_at, _, topic, packet = row
                    if qos and mid in out:
                        self._blocked = True
                        return rows
                    if qos:
                        out.add(mid)
                    rows.append(
                        OutboxRow(seq, mid, qos, packet, topic.decode(), created_at, expires_at, sent, bool(released))
                    )
                    size += row[7]
        return rows

    def _note_order(self, order: int) -> None:
        with self._ledger.transaction():
            self._ledger.tally.order = order

    def _delete(self, seqs: Collection[int]) -> None:
        with self._ledger.transaction():
            self._ledger.delete(seqs)

    def _mark_received(self, seqs: Collection[int]) -> None:
        with self._ledger.transaction():
            self._ledger.release(seqs)

    # What the local broker may send again

    def _find(self, source_mid: int, packet: bytes) -> bool:
        seq = self._ledger.sources.get(source_mid, 0)
        lane = self._ledger.tally.lanes[lane_of(seq)]
        if seq <= max(lane.source_from, lane.next_seq - 1 - SOURCE_REACH):
            return False
        found = self._ledger.db.execute(
            "SELECT packet FROM messages WHERE seq = ? AND source_mid = ?", (seq, source_mid)
        ).fetchone()
        return found is not None and _without_dup(found[0]) == _without_dup(packet)

    def _remove_receipts(self, mids: Collection[int]) -> None:
        with self._ledger.transaction():
            self._ledger.db.executemany("DELETE FROM receipts WHERE mid = ?", [(mid,) for mid in mids])
        self._ledger.receipts = self._ledger.receipts.difference(mids)

    def _forget_local_session(self) -> None:
        with self._ledger.transaction():
            tally = self._ledger.tally
            for lane in tally.lanes.values():
                lane.source_from = lane.next_seq - 1
            self._ledger.db.execute("DELETE FROM receipts")
        self._ledger.receipts = frozenset()
        self._ledger.sources.clear()

    # Bounds

    def _expire(self) -> dict[OutboxDrop, int]:
        dropped: Counter[OutboxDrop] = Counter()
        with self._ledger.transaction():
            self._drop_stale(dropped)
        return self._count(dropped)

    def _drop_stale(self, dropped: Counter[OutboxDrop]) -> None:
        now = self._clock()
        expired = self._ledger.db.execute(
            """SELECT seq, qos, size FROM messages INDEXED BY messages_expiry
            WHERE expires_at IS NOT NULL AND expires_at <= ?""",
            (now,),
        ).fetchall()
        expired = [row for row in expired if not self._is_handed_out(row[0])]
        self._ledger.discard(expired)
        dropped[OutboxDrop.EXPIRED] += len(expired)
        aged: list[Entry] = []
        for priority in LANES:
            with closing(self._droppable(priority)) as cursor:
                for seq, qos, size, created_at in cursor:
                    if created_at > now - self._limits.age:
                        break
                    aged.append((seq, qos, size))
        self._ledger.discard(aged)
        dropped[OutboxDrop.AGE] += len(aged)

    def _drop_oldest(self, dropped: Counter[OutboxDrop]) -> None:
        """Keep to the bounds: the lowest priority goes first, and of that the oldest."""
        messages = self._ledger.tally.messages - self._limits.messages
        size = self._ledger.tally.bytes - self._limits.bytes
        oldest: list[Entry] = []
        for priority in reversed(LANES):
            if messages <= 0 and size <= 0:
                break
            with closing(self._droppable(priority)) as cursor:
                for seq, qos, row_size, _ in cursor:
                    if messages <= 0 and size <= 0:
                        break
                    dropped[OutboxDrop.FULL_MESSAGES if messages > 0 else OutboxDrop.FULL_BYTES] += 1
                    oldest.append((seq, qos, row_size))
                    messages -= 1
                    size -= row_size
        self._ledger.discard(oldest)

    def _droppable(self, priority: OutboxPriority) -> sqlite3.Cursor:
        return self._ledger.db.execute(
            """SELECT seq, qos, size, created_at FROM messages
            WHERE seq > ? AND seq < ? AND released = 0 ORDER BY seq""",
            (self._handed_out[priority], LANES[priority].stop),
        )

    def _count(self, dropped: Counter[OutboxDrop]) -> dict[OutboxDrop, int]:
        """Add up what a committed transaction dropped."""
        self._dropped += dropped
        return dict(+dropped)


def _last_of(rows: Sequence[OutboxRow]) -> dict[OutboxPriority, int]:
    """Return the last row of each lane among rows that are in the order of `peek`."""
    return {lane_of(row.seq): row.seq for row in rows}


def _starts() -> dict[OutboxPriority, int]:
    """Return the place before the first of each lane."""
    return {priority: max(1, places.start) - 1 for priority, places in LANES.items()}


def _message_row(seq: int, mid: int, message: OutboxMessage, now: float, *, given: bool) -> Row:
    return sealed(
        (
            seq,
            mid,
            message.qos,
            given,
            message.replaces_topic,
            False,
            message.source_mid,
            0,
            now,
            message.expires_at,
            0,
            message.topic.encode(),
            message.packet,
        )
    )


def _without_dup(packet: bytes) -> bytes:
    """Return a PUBLISH packet with DUP cleared: the one difference between a message and the same sent again."""
    return bytes((packet[0] & ~0x08,)) + packet[1:] if packet else packet
