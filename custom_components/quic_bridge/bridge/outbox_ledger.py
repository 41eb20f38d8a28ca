"""The Outbox's open file and the exact tally of what is in it. Everything here blocks, one thing at a time."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
import json
import logging
import math
from pathlib import Path
import sqlite3
from typing import Final

from . import outbox_file
from .outbox_file import (
    INSERT,
    LANES,
    MAX_SEQ,
    REPLACE,
    DamagedError,
    Row,
    connect,
    errors_named,
    lane_of,
    read_state,
    sealed,
    write_order,
    write_state,
)
from .outbox_model import OutboxError, OutboxFault, OutboxPriority, OutboxRescue

_LOGGER = logging.getLogger(__name__)

SOURCE_REACH: Final = 32_768
"""Rows further back than this come from an earlier cycle of the local broker's packet identifiers."""
_SHRINK_FROM: Final = 1024 * 1024
"""Bytes of an empty file worth giving back."""

type Entry = tuple[int, int, int]
"""What deciding about a row takes: seq, QoS, size."""


@dataclass(slots=True, kw_only=True)
class Lane:
    """What is known of the rows of one priority."""

    next_seq: int
    sent_upto: int
    """Rows up to this one may have been sent to the remote, by this process or by one that was killed."""
    source_from: int
    """Rows up to this one came from an earlier session of the local broker."""


def _new_lanes() -> dict[OutboxPriority, Lane]:
    return {
        priority: Lane(next_seq=max(1, places.start), sent_upto=max(1, places.start) - 1, source_from=0)
        for priority, places in LANES.items()
    }


@dataclass(slots=True, kw_only=True)
class Tally:
    """What is known of the file without reading it. A transaction that fails takes it back."""

    messages: int = 0
    bytes: int = 0
    released: int = 0
    """QoS 2 rows of which only the release is left; they are not among `messages`."""
    oldest: float | None = None
    lanes: dict[OutboxPriority, Lane] = field(default_factory=_new_lanes)
    order: int | None = None
    """By which order of routes the lanes are filled."""
    last_mid: int = 0
    given: dict[int, int] = field(default_factory=dict)
    """seq and mid of the rows that came in with their identifier."""
    undeleted: frozenset[int] = frozenset()
    """Rows that are done with but still in the file, because deleting them failed. They count as gone."""

    def copied_lanes(self) -> dict[OutboxPriority, Lane]:
        """Return the lanes as they are now."""
        return {priority: replace(lane) for priority, lane in self.lanes.items()}

    def may_have_been_sent(self, seq: int) -> bool:
        """Whether the remote may know a row."""
        return seq <= self.lanes[lane_of(seq)].sent_upto


class Ledger:
    """The file, opened when it is first needed and again after whatever closed it."""

    def __init__(self, path: Path) -> None:
        self.tally = Tally()
        self.receipts: frozenset[int] = frozenset()
        self.sources: dict[int, int] = {}
        """The newest row of each packet identifier of the local broker."""
        self.rescue: OutboxRescue | None = None
        """What became of the last damaged file; for others to take away."""
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._noted = self.tally.copied_lanes()
        self._noted_order: int | None = None
        """As they are in the file."""

    @property
    def db(self) -> sqlite3.Connection:
        """The connection; only within `run`."""
        if self._db is None:
            raise OutboxError(OutboxFault.CLOSED, "the Outbox is closed")
        return self._db

    def run[T](self, operation: Callable[[], T]) -> T:
        """Do it; replace a damaged file and do it again, or make room on a full disk and do it again.

        Raises OutboxError; what is a mistake of our own is raised as it is.
        """
        try:
            return self._attempt(operation)
        except OutboxError as error:
            if error.fault is OutboxFault.CORRUPT:
                self._replace_file(error.text)
            elif error.fault is OutboxFault.DISK_FULL and self._db is not None:
                # Once all of the log is in the file, it is written again from its start, in blocks that it has.
                with suppress(sqlite3.Error):
                    self._db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
            else:
                raise
        return self._attempt(operation)

    def close(self) -> None:
        """Close the file; never fails."""
        if self._db is not None and self.tally.undeleted:
            with suppress(OutboxError):
                self.run(self._delete_undeleted)
        self._disconnect()

    def remove(self) -> None:
        """Close and delete everything. Raises OutboxError."""
        self._disconnect()
        with errors_named():
            outbox_file.remove(self._path)

    def set_aside(self) -> Path:
        """Close, and keep the file under another name. Raises OutboxError."""
        self._disconnect()
        with errors_named():
            return outbox_file.move_aside(self._path)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing, in the file and in the tally. Rows left undeleted go with it."""
        db = self.db
        before = replace(self.tally, given=self.tally.given.copy(), lanes=self.tally.copied_lanes())
        db.execute("BEGIN IMMEDIATE")
        try:
            if before.undeleted:
                db.execute(
                    "DELETE FROM messages WHERE seq IN (SELECT value FROM json_each(?))", (as_json(before.undeleted),)
                )
                self.tally.undeleted = frozenset()
            yield
            for priority, lane in self.tally.lanes.items():
                noted = self._noted[priority]
                if (lane.sent_upto, lane.source_from) != (noted.sent_upto, noted.source_from):
                    write_state(db, priority, lane.sent_upto, lane.source_from)
            if self.tally.order is not None and self.tally.order != self._noted_order:
                write_order(db, self.tally.order)
            self._find_oldest()
            db.execute("COMMIT")
        except BaseException:
            self.tally = before
            try:
                # SQLite may have rolled back by itself.
                if db.in_transaction:
                    db.execute("ROLLBACK")
            except sqlite3.Error:
                # Closing rolls back too, and the next operation opens the file again.
                self._disconnect()
            raise
        self._noted = self.tally.copied_lanes()
        self._noted_order = self.tally.order

    # Within a transaction

    def insert(self, rows: list[Row]) -> None:
        """Write rows that are in the tally already, and empty the list."""
        self.db.executemany(INSERT, rows)
        rows.clear()

    def is_assigned(self, mid: int) -> bool:
        """Whether a row has this packet identifier from here. Looks at all of them."""
        found = self.db.execute(
            """SELECT seq FROM messages WHERE mid = ? AND given = 0 AND qos > 0
            AND seq NOT IN (SELECT value FROM json_each(?)) LIMIT 1""",
            (mid, as_json(self.tally.undeleted)),
        ).fetchone()
        return found is not None

    def discard(self, entries: Iterable[Entry]) -> None:
        """Take rows out without delivering them.

        Of a QoS 2 message that the remote may have, the release stays: without PUBREL the remote would keep its packet
        identifier, and take the next message with that identifier for this one.
        """
        seqs, released = set[int](), set[int]()
        for seq, qos, _ in entries:
            (released if qos == 2 and self.tally.may_have_been_sent(seq) else seqs).add(seq)
        self.release(released)
        self.delete(seqs)

    def delete(self, seqs: Collection[int]) -> None:
        """Take rows out."""
        if seqs:
            self._count_out(
                self.db.execute(
                    "DELETE FROM messages WHERE seq IN (SELECT value FROM json_each(?)) RETURNING seq, size, released",
                    (as_json(seqs),),
                ).fetchall()
            )

    def release(self, seqs: Collection[int]) -> None:
        """Reduce QoS 2 rows to their release."""
        if not seqs:
            return
        rows = self.db.execute(
            """SELECT seq, mid, given, created_at, size FROM messages
            WHERE qos = 2 AND released = 0 AND seq IN (SELECT value FROM json_each(?))""",
            (as_json(seqs),),
        ).fetchall()
        self.db.executemany(REPLACE, [release_row(*row[:4]) for row in rows])
        self.tally.messages -= len(rows)
        self.tally.bytes -= sum(row[4] for row in rows)
        self.tally.released += len(rows)

    # Outside of one

    def delete_later(self, seqs: Collection[int]) -> None:
        """Count rows as gone that cannot be deleted now."""
        gone = self.db.execute(
            "SELECT seq, size, released FROM messages WHERE seq IN (SELECT value FROM json_each(?))", (as_json(seqs),)
        ).fetchall()
        self._count_out(row for row in gone if row[0] not in self.tally.undeleted)
        self.tally.undeleted |= {row[0] for row in gone}
        self._find_oldest()

    def shrink(self) -> None:
        """Give the disk back what an empty file does not need; cheap, because nothing is left to be moved."""
        self.sources.clear()
        pages: int = self.db.execute("PRAGMA page_count").fetchone()[0]
        page_size: int = self.db.execute("PRAGMA page_size").fetchone()[0]
        if pages * page_size > _SHRINK_FROM:
            self.db.execute("VACUUM")
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _delete_undeleted(self) -> None:
        with self.transaction():
            pass

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
            self.rescue = rescue = outbox_file.rescue(self._path, why)
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
        before, undeleted = self.tally, as_json(self.tally.undeleted)
        rows, size, released, last = self.db.execute(
            """SELECT count(*), coalesce(sum(size), 0), coalesce(sum(released), 0), coalesce(max(seq), 0) FROM messages
            WHERE seq NOT IN (SELECT value FROM json_each(?))""",
            (undeleted,),
        ).fetchone()
        state, order = read_state(self.db)
        if last >= MAX_SEQ:
            raise DamagedError("the state is damaged")
        tally = Tally(
            messages=rows - released,
            bytes=size,
            released=released,
            order=order,
            last_mid=before.last_mid,
            undeleted=before.undeleted,
        )
        self._noted, self._noted_order = {}, order
        self.sources = {}
        newest = (-math.inf, 0)
        for priority, places in LANES.items():
            sent_upto, source_from = state[priority]
            last = self.db.execute(
                "SELECT coalesce(max(seq), 0) FROM messages WHERE seq >= ? AND seq < ?", (places.start, places.stop)
            ).fetchone()[0]
            lane = Lane(
                next_seq=max(last, sent_upto, source_from, before.lanes[priority].next_seq - 1) + 1,
                sent_upto=max(sent_upto, before.lanes[priority].sent_upto),
                source_from=source_from,
            )
            tally.lanes[priority] = lane
            self._noted[priority] = replace(lane, sent_upto=sent_upto)
            tally.given |= dict(
                self.db.execute(
                    """SELECT seq, mid FROM messages WHERE seq >= ? AND seq <= ? AND given = 1
                    AND seq NOT IN (SELECT value FROM json_each(?))""",
                    (places.start, sent_upto, undeleted),
                )
            )
            counted = self.db.execute(
                """SELECT created_at, mid FROM messages WHERE seq >= ? AND seq < ? AND given = 0 AND qos > 0
                ORDER BY seq DESC LIMIT 1""",
                (places.start, places.stop),
            ).fetchone()
            newest = max(newest, counted or newest)
            # Where an identifier is in several lanes it is not known which row is the newest. `find` compares the whole
            # packet, so at worst a message that is repeated is taken for a new one.
            self.sources |= dict(
                self.db.execute(
                    """SELECT source_mid, max(seq) FROM messages WHERE seq > ? AND seq < ? AND source_mid > 0
                    GROUP BY source_mid""",
                    (max(source_from, last - SOURCE_REACH, places.start - 1), places.stop),
                )
            )
        tally.last_mid = tally.last_mid or newest[1]
        self.receipts = frozenset(mid for (mid,) in self.db.execute("SELECT mid FROM receipts"))
        self.tally = tally
        self._find_oldest()

    def _count_out(self, gone: Iterable[tuple[int, int, int]]) -> None:
        tally = self.tally
        for seq, size, released in gone:
            tally.messages -= 1 - released
            tally.released -= released
            tally.bytes -= size
            tally.given.pop(seq, None)

    def _find_oldest(self) -> None:
        self.tally.oldest = min(
            (at for places in LANES.values() if (at := self._oldest_in(places)) is not None), default=None
        )

    def _oldest_in(self, places: range) -> float | None:
        select = "SELECT seq, created_at FROM messages WHERE seq >= ? AND seq < ? AND released = 0 ORDER BY seq"
        with closing(self.db.execute(select, (places.start, places.stop))) as cursor:
            return next((at for seq, at in cursor if seq not in self.tally.undeleted), None)


def as_json(seqs: Collection[int]) -> str:
    """Return what SQLite's json_each takes apart again: any number of values in one parameter."""
    return json.dumps(list(seqs))


def release_row(seq: int, mid: int, given: int, created_at: float) -> Row:
    """Return what stays of a QoS 2 message once the remote has it."""
    return sealed((seq, mid, 2, given, 0, 1, 0, 0, created_at, None, 0, b"", b""))
