"""What the Outbox does with its file. Everything here blocks, and only one thing may be done at a time."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
import json
import logging
from pathlib import Path
import sqlite3
from typing import Final

from . import outbox_file
from .outbox_file import COLUMNS, INSERT, MAX_SEQ, DamagedError, Row, connect, errors_named, sealed, verify
from .outbox_model import (
    MAX_MID,
    AppendResult,
    OutboxDrop,
    OutboxError,
    OutboxFault,
    OutboxLimits,
    OutboxMessage,
    OutboxPolicy,
    OutboxRescue,
    OutboxRow,
)

_LOGGER = logging.getLogger(__name__)

_WRITE_FAULTS: Final = {OutboxFault.DISK_FULL, OutboxFault.IO_ERROR, OutboxFault.NOT_WRITABLE}
_MAX_GIVEN: Final = 30_000
"""Most messages with an identifier of their own: it leaves the counter a cycle of more than 30,000."""
_SOURCE_REACH: Final = 32_768
"""Rows further back than this come from an earlier cycle of the local broker's packet identifiers."""
_SHRINK_FROM: Final = 1024 * 1024
"""Bytes of an empty file worth giving back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the Outbox holds, as of the last operation."""

    messages: int = 0
    bytes: int = 0
    rows: int = 0
    """Messages and releases."""
    oldest: float | None = None
    receipts: frozenset[int] = frozenset()
    given: frozenset[int] = frozenset()
    dropped: Mapping[OutboxDrop, int] = field(default_factory=dict)
    """Since the store was made."""


@dataclass(slots=True, kw_only=True)
class _Tally:
    """What is known of the file without reading it; taken back when a transaction fails."""

    messages: int = 0
    bytes: int = 0
    released: int = 0
    oldest: float | None = None
    next_seq: int = 1
    last_mid: int = 0
    sent_upto: int = 0
    source_from: int = 0
    given: dict[int, int] = field(default_factory=dict)
    """seq to mid of rows that came in with their identifier."""
    undeleted: set[int] = field(default_factory=set)
    """Rows that are done with but still in the file, because deleting them failed. They count as gone."""


class OutboxStore:
    """The queue in its file."""

    def __init__(self, path: Path, limits: OutboxLimits, clock: Callable[[], float]) -> None:
        self.figures = Figures()
        self.handed_out = 0
        """The last row that is out for sending; bounds touch none up to it."""
        self._clock = clock
        self._path = path
        self._limits = limits
        self._db: sqlite3.Connection | None = None
        self._tally = _Tally()
        self._receipts: frozenset[int] = frozenset()
        self._sources: dict[int, int] = {}
        """The newest row of each packet identifier of the local broker, as far as `find` may look back."""
        self._dropped: Counter[OutboxDrop] = Counter()
        self._rescue: OutboxRescue | None = None

    def open(self) -> None:
        """Open or make the file; a damaged one is replaced. Raises OutboxError."""
        self._run(lambda: None)

    def close(self) -> None:
        """Close the file; never fails."""
        if self._db is not None and self._tally.undeleted:
            with suppress(OutboxError):
                self._run(self._delete_undeleted)
        self._disconnect()

    def remove(self) -> None:
        """Close and delete everything. Raises OutboxError."""
        self._disconnect()
        with errors_named():
            outbox_file.remove(self._path)

    def take_rescue(self) -> OutboxRescue | None:
        """Return what was rescued since the last time somebody asked."""
        rescue, self._rescue = self._rescue, None
        return rescue

    def append(self, messages: Sequence[OutboxMessage]) -> AppendResult:
        """Commit messages at the end of the queue, in one transaction. Raises OutboxError, ValueError."""
        return self._run(lambda: self._append(messages))

    def peek(self, after_seq: int, limit_messages: int, limit_bytes: int) -> list[OutboxRow]:
        """Return the rows after `after_seq`, and remember in the file that they may be sent now. Raises OutboxError."""
        try:
            return self._run(lambda: self._hand_out(after_seq, limit_messages, limit_bytes))
        except OutboxError as error:
            if error.fault not in _WRITE_FAULTS:
                raise
            # A full disk must not keep the queue from being emptied.
            _LOGGER.debug("Handing out messages without a note in the file: %s", error)
        return self._run(lambda: self._read(after_seq, limit_messages, limit_bytes))

    def delete(self, seqs: Collection[int]) -> None:
        """Forget rows for good; what cannot be deleted now is deleted later. Raises OutboxError if nothing works."""
        try:
            self._run(lambda: self._delete(seqs))
        except OutboxError as error:
            if error.fault not in _WRITE_FAULTS:
                raise
            _LOGGER.debug("Deleting %d messages later: %s", len(seqs), error)
            self._run(lambda: self._delete_later(seqs))
        if not self.figures.rows and not self._tally.undeleted:
            with suppress(OutboxError):
                self._run(self._shrink)

    def mark_received(self, seqs: Collection[int]) -> None:
        """Reduce QoS 2 rows to their release. Raises OutboxError."""
        self._run(lambda: self._mark_received(seqs))

    def remove_receipts(self, mids: Collection[int]) -> None:
        """Forget receipts. Raises OutboxError."""
        self._run(lambda: self._remove_receipts(mids))

    def forget_local_session(self) -> None:
        """Forget all that the local broker's session had numbered. Raises OutboxError."""
        self._run(self._forget_local_session)

    def find(self, source_mid: int, packet: bytes) -> bool:
        """Tell whether this very packet, but for DUP, is still here. Raises OutboxError."""
        return self._run(lambda: self._find(source_mid, packet))

    def expire(self) -> dict[OutboxDrop, int]:
        """Drop what is too old; return how many, by reason. Raises OutboxError."""
        return self._run(lambda: self._expire())

    # Running an operation

    @property
    def _file(self) -> sqlite3.Connection:
        if self._db is None:
            raise OutboxError(OutboxFault.CLOSED, "the Outbox is closed")
        return self._db

    def _run[T](self, operation: Callable[[], T]) -> T:
        """Do it; replace a damaged file and do it again; make room in the log of a full disk and do it again."""
        try:
            try:
                result = self._attempt(operation)
            except OutboxError as error:
                if error.fault is OutboxFault.CORRUPT:
                    self._replace_file(error.text)
                elif error.fault is OutboxFault.DISK_FULL and self._db is not None:
                    # Once all of the log is in the file, it is written again from its start, in blocks it has.
                    with suppress(sqlite3.Error):
                        self._db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
                else:
                    raise
                result = self._attempt(operation)
        finally:
            tally = self._tally
            self.figures = Figures(
                messages=tally.messages,
                bytes=tally.bytes,
                rows=tally.messages + tally.released,
                oldest=tally.oldest,
                receipts=self._receipts,
                given=frozenset(tally.given.values()),
                dropped=dict(self._dropped),
            )
        return result

    def _attempt[T](self, operation: Callable[[], T]) -> T:
        with errors_named():
            if self._db is None:
                outbox_file.prepare(self._path)
                self._db = connect(self._path)
                try:
                    self._load()
                except BaseException:
                    self._disconnect()
                    raise
            return operation()

    def _replace_file(self, why: str) -> None:
        self._disconnect()
        with errors_named():
            self._rescue = rescue = outbox_file.rescue(self._path, why)
        _LOGGER.warning(
            "The Outbox's file was damaged (%s): %d rows saved, %d found spoilt; the old file is kept as %s",
            why,
            rescue.rows,
            rescue.damaged,
            rescue.moved_to.name,
        )

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _load(self) -> None:
        """Learn what is in the file. It reads all pages of the table but for long packets, so damage shows here."""
        before, undeleted = self._tally, json.dumps(list(self._tally.undeleted))
        found = self._file.execute(
            """SELECT count(*), coalesce(sum(size), 0), coalesce(sum(released), 0), coalesce(max(seq), 0) FROM messages
            WHERE seq NOT IN (SELECT value FROM json_each(?))""",
            (undeleted,),
        ).fetchone()
        rows, size, released, last = found
        state = self._file.execute("SELECT sent_upto, source_from FROM state").fetchone()
        if state is None or not (0 <= state[0] < MAX_SEQ and 0 <= state[1] < MAX_SEQ and last < MAX_SEQ):
            raise DamagedError("the state is damaged")
        tally = _Tally(
            messages=rows - released,
            bytes=size,
            released=released,
            next_seq=max(last, state[0], before.next_seq - 1) + 1,
            sent_upto=state[0],
            source_from=state[1],
            undeleted=before.undeleted,
        )
        tally.given = dict(
            self._file.execute(
                """SELECT seq, mid FROM messages WHERE seq <= ? AND given = 1
                AND seq NOT IN (SELECT value FROM json_each(?))""",
                (tally.sent_upto, undeleted),
            )
        )
        counted = self._file.execute(
            "SELECT mid FROM messages WHERE given = 0 AND qos > 0 ORDER BY seq DESC LIMIT 1"
        ).fetchone()
        tally.last_mid = before.last_mid or (counted[0] if counted else 0)
        self._sources = dict(
            self._file.execute(
                "SELECT source_mid, max(seq) FROM messages WHERE seq > ? AND source_mid > 0 GROUP BY source_mid",
                (max(tally.source_from, last - _SOURCE_REACH),),
            )
        )
        self._receipts = frozenset(mid for (mid,) in self._file.execute("SELECT mid FROM receipts"))
        self._tally = tally
        self._find_oldest()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing, in the file and in the tally. What was left undeleted goes with it."""
        db = self._file
        before = replace(self._tally, given=self._tally.given.copy())
        db.execute("BEGIN IMMEDIATE")
        try:
            if before.undeleted:
                db.execute(
                    "DELETE FROM messages WHERE seq IN (SELECT value FROM json_each(?))",
                    (json.dumps(list(before.undeleted)),),
                )
                self._tally.undeleted = set()
            yield
            self._find_oldest()
            db.execute("COMMIT")
        except BaseException:
            self._tally = before
            try:
                # SQLite may have rolled back by itself.
                if db.in_transaction:
                    db.execute("ROLLBACK")
            except sqlite3.Error:
                # Closing rolls back too; the next operation opens the file again.
                self._disconnect()
            raise

    # In

    def _append(self, messages: Sequence[OutboxMessage]) -> AppendResult:
        dropped: Counter[OutboxDrop] = Counter()
        rows: list[Row] = []
        receipts: set[int] = set()
        sources: dict[int, int] = {}
        now = self._clock()
        with self._transaction():
            tally, limits = self._tally, self._limits
            sent_upto, first = tally.sent_upto, tally.next_seq
            self._drop_stale(dropped)
            taken = set(tally.given.values())
            for message in messages:
                if not self._make_place(message, rows, dropped):
                    break
                seq = tally.next_seq
                tally.next_seq += 1
                if message.needs_receipt:
                    receipts.add(message.source_mid)
                mid = self._mid(message, taken)
                unwanted = None
                if message.expires_at is not None and message.expires_at <= now:
                    unwanted = OutboxDrop.EXPIRED
                elif len(message.packet) > limits.bytes:
                    unwanted = OutboxDrop.FULL_BYTES
                released = message.released
                if unwanted is not None and not released:
                    dropped[unwanted] += 1
                    if message.sent_mid is None or message.qos < 2:
                        continue
                    released = True
                if message.sent_mid is not None:
                    tally.given[seq] = mid
                    tally.sent_upto = seq
                if released:
                    rows.append(_release(seq, mid, 1, now))
                    tally.released += 1
                else:
                    rows.append(_row(seq, mid, message, now))
                    tally.messages += 1
                    tally.bytes += len(message.packet)
                    if message.source_mid:
                        sources[message.source_mid] = seq
            self._insert(rows)
            if limits.policy is OutboxPolicy.DROP_OLDEST:
                self._drop_oldest(dropped)
            self._file.executemany("INSERT OR IGNORE INTO receipts VALUES (?)", [(mid,) for mid in receipts])
            if tally.sent_upto != sent_upto:
                self._file.execute("UPDATE state SET sent_upto = ?", (tally.sent_upto,))
        self._receipts |= receipts
        self._sources |= sources
        self._dropped += dropped
        seqs = range(first, tally.next_seq)
        return AppendResult(seqs, len(messages) - len(seqs), dict(+dropped))

    def _make_place(self, message: OutboxMessage, rows: list[Row], dropped: Counter[OutboxDrop]) -> bool:
        """Take out what the message replaces; False, and nothing done, if the bounds refuse the message."""
        tally, limits = self._tally, self._limits
        replaced: list[tuple[int, int, int]] = []
        if message.replaces_topic:
            self._insert(rows)
            replaced = self._file.execute(
                """SELECT seq, qos, size FROM messages INDEXED BY messages_latest
                WHERE topic = ? AND latest = 1 AND seq > ? AND released = 0""",
                (message.topic.encode(), self.handed_out),
            ).fetchall()
        size = len(message.packet)
        # What is larger than the whole Outbox would be refused for ever, and everything behind it.
        if limits.policy is OutboxPolicy.REFUSE and not message.released and size <= limits.bytes:
            messages = tally.messages - len(replaced) + 1
            size += tally.bytes - sum(row[2] for row in replaced)
            if messages > limits.messages or size > limits.bytes:
                return False
        if replaced:
            self._discard(replaced)
            dropped[OutboxDrop.REPLACED] += len(replaced)
        return True

    def _mid(self, message: OutboxMessage, taken: set[int]) -> int:
        tally = self._tally
        if message.sent_mid is not None:
            if len(tally.given) != tally.messages + tally.released or len(taken) >= _MAX_GIVEN:
                raise ValueError("messages that were sent come first, and no more of them than a window")
            if message.sent_mid in taken:
                raise ValueError(f"two messages were sent with packet identifier {message.sent_mid}")
            taken.add(message.sent_mid)
            return message.sent_mid
        if message.qos == 0:
            return 0
        mid = tally.last_mid % MAX_MID + 1
        while mid in taken:
            mid = mid % MAX_MID + 1
        tally.last_mid = mid
        return mid

    def _insert(self, rows: list[Row]) -> None:
        self._file.executemany(INSERT, rows)
        rows.clear()

    # Out

    def _hand_out(self, after_seq: int, limit_messages: int, limit_bytes: int) -> list[OutboxRow]:
        dropped: Counter[OutboxDrop] = Counter()
        with self._transaction():
            self._drop_stale(dropped)
            rows = self._read(after_seq, limit_messages, limit_bytes)
            if rows and rows[-1].seq > self._tally.sent_upto:
                self._tally.sent_upto = rows[-1].seq
                self._file.execute("UPDATE state SET sent_upto = ?", (self._tally.sent_upto,))
        self._dropped += dropped
        return rows

    def _read(self, after_seq: int, limit_messages: int, limit_bytes: int) -> list[OutboxRow]:
        rows: list[OutboxRow] = []
        size = 0
        row: Row
        cursor = self._file.execute(f"SELECT {COLUMNS} FROM messages WHERE seq > ? ORDER BY seq", (after_seq,))  # noqa: S608
        for row in cursor:
            if len(rows) == limit_messages or (rows and size + row[7] > limit_bytes):
                break
            if row[0] in self._tally.undeleted:
                continue
            verify(row)
            seq, mid, qos, _, _, released, _, _, created_at, expires_at, _, topic, packet = row
            sent = seq <= self._tally.sent_upto
            rows.append(
                OutboxRow(seq, mid, qos, packet, topic.decode(), created_at, expires_at, sent, released=bool(released))
            )
            size += row[7]
        cursor.close()
        return rows

    def _delete(self, seqs: Collection[int]) -> None:
        with self._transaction():
            self._delete_rows(seqs)

    def _delete_later(self, seqs: Collection[int]) -> None:
        gone = self._file.execute(
            "SELECT seq, size, released FROM messages WHERE seq IN (SELECT value FROM json_each(?))",
            (json.dumps(list(seqs)),),
        ).fetchall()
        self._count_out(row for row in gone if row[0] not in self._tally.undeleted)
        self._tally.undeleted.update(row[0] for row in gone)
        self._find_oldest()

    def _mark_received(self, seqs: Collection[int]) -> None:
        with self._transaction():
            self._release_rows(seqs)

    def _delete_undeleted(self) -> None:
        with self._transaction():
            pass

    def _shrink(self) -> None:
        """Give the disk back what an empty queue does not need; cheap, because nothing is left to move."""
        self._sources.clear()
        pages = self._file.execute("PRAGMA page_count").fetchone()[0]
        if pages * self._file.execute("PRAGMA page_size").fetchone()[0] > _SHRINK_FROM:
            self._file.execute("VACUUM")
            self._file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    # What the local broker may send again

    def _remove_receipts(self, mids: Collection[int]) -> None:
        with self._transaction():
            self._file.executemany("DELETE FROM receipts WHERE mid = ?", [(mid,) for mid in mids])
        self._receipts = self._receipts.difference(mids)

    def _forget_local_session(self) -> None:
        with self._transaction():
            self._tally.source_from = self._tally.next_seq - 1
            self._file.execute("DELETE FROM receipts")
            self._file.execute("UPDATE state SET source_from = ?", (self._tally.source_from,))
        self._receipts = frozenset()
        self._sources.clear()

    def _find(self, source_mid: int, packet: bytes) -> bool:
        seq = self._sources.get(source_mid, 0)
        if seq <= max(self._tally.source_from, self._tally.next_seq - 1 - _SOURCE_REACH):
            return False
        found = self._file.execute(
            "SELECT packet FROM messages WHERE seq = ? AND source_mid = ?", (seq, source_mid)
        ).fetchone()
        return found is not None and _without_dup(found[0]) == _without_dup(packet)

    # Bounds

    def _expire(self) -> dict[OutboxDrop, int]:
        dropped: Counter[OutboxDrop] = Counter()
        with self._transaction():
            self._drop_stale(dropped)
        self._dropped += dropped
        return dict(+dropped)

    def _drop_stale(self, dropped: Counter[OutboxDrop]) -> None:
        now = self._clock()
        expired = self._file.execute(
            """SELECT seq, qos, size FROM messages INDEXED BY messages_expiry
            WHERE expires_at IS NOT NULL AND expires_at <= ? AND seq > ?""",
            (now, self.handed_out),
        ).fetchall()
        self._discard(expired)
        dropped[OutboxDrop.EXPIRED] += len(expired)
        aged: list[tuple[int, int, int]] = []
        cursor = self._file.execute(
            "SELECT seq, qos, size, created_at FROM messages WHERE seq > ? AND released = 0 ORDER BY seq",
            (self.handed_out,),
        )
        for seq, qos, size, created_at in cursor:
            if created_at > now - self._limits.age:
                break
            aged.append((seq, qos, size))
        cursor.close()
        self._discard(aged)
        dropped[OutboxDrop.AGE] += len(aged)

    def _drop_oldest(self, dropped: Counter[OutboxDrop]) -> None:
        messages = self._tally.messages - self._limits.messages
        size = self._tally.bytes - self._limits.bytes
        if messages <= 0 and size <= 0:
            return
        oldest: list[tuple[int, int, int]] = []
        cursor = self._file.execute(
            "SELECT seq, qos, size FROM messages WHERE seq > ? AND released = 0 ORDER BY seq", (self.handed_out,)
        )
        for row in cursor:
            if messages <= 0 and size <= 0:
                break
            dropped[OutboxDrop.FULL_MESSAGES if messages > 0 else OutboxDrop.FULL_BYTES] += 1
            oldest.append(row)
            messages -= 1
            size -= row[2]
        cursor.close()
        self._discard(oldest)

    def _discard(self, rows: Iterable[tuple[int, int, int]]) -> None:
        """Take rows (seq, QoS, size) out without delivering them.

        Of a QoS 2 message that the remote may have, the release stays: without PUBREL the remote would keep its packet
        identifier, and take the next message with that identifier for this one.
        """
        released = {seq for seq, qos, _ in rows if qos == 2 and seq <= self._tally.sent_upto}
        self._release_rows(released)
        self._delete_rows({seq for seq, _, _ in rows} - released)

    def _release_rows(self, seqs: Collection[int]) -> None:
        if not seqs:
            return
        rows = self._file.execute(
            """SELECT seq, mid, given, created_at, size FROM messages
            WHERE qos = 2 AND released = 0 AND seq IN (SELECT value FROM json_each(?))""",
            (json.dumps(list(seqs)),),
        ).fetchall()
        self._file.executemany(
            INSERT.replace("INSERT", "REPLACE", 1),
            [_release(seq, mid, given, created_at) for seq, mid, given, created_at, _ in rows],
        )
        self._tally.messages -= len(rows)
        self._tally.bytes -= sum(row[4] for row in rows)
        self._tally.released += len(rows)

    def _delete_rows(self, seqs: Collection[int]) -> None:
        if not seqs:
            return
        self._count_out(
            self._file.execute(
                "DELETE FROM messages WHERE seq IN (SELECT value FROM json_each(?)) RETURNING seq, size, released",
                (json.dumps(list(seqs)),),
            ).fetchall()
        )

    def _count_out(self, gone: Iterable[tuple[int, int, int]]) -> None:
        tally = self._tally
        for seq, size, released in gone:
            tally.messages -= 1 - released
            tally.released -= released
            tally.bytes -= size
            tally.given.pop(seq, None)

    def _find_oldest(self) -> None:
        cursor = self._file.execute("SELECT seq, created_at FROM messages WHERE released = 0 ORDER BY seq")
        self._tally.oldest = next((at for seq, at in cursor if seq not in self._tally.undeleted), None)
        cursor.close()


def _row(seq: int, mid: int, message: OutboxMessage, now: float) -> Row:
    return sealed(
        (
            seq,
            mid,
            message.qos,
            message.sent_mid is not None,
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


def _release(seq: int, mid: int, given: int, created_at: float) -> Row:
    """Return what stays of a QoS 2 message once the remote has it."""
    return sealed((seq, mid, 2, given, 0, 1, 0, 0, created_at, None, 0, b"", b""))


def _without_dup(packet: bytes) -> bytes:
    """Return a PUBLISH packet with DUP cleared: the one difference between a message and the same sent again."""
    return bytes((packet[0] & ~0x08,)) + packet[1:] if packet else packet
