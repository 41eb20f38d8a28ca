"""The Outbox's file: its format, opening it, and saving what can be read of a damaged one. Everything here blocks."""

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
import errno
from itertools import batched
import logging
import os
from pathlib import Path
import sqlite3
import struct
from typing import Final
import zlib

from .outbox_model import MAX_MID, OutboxError, OutboxFault, OutboxPriority, OutboxRescue

_LOGGER = logging.getLogger(__name__)

type Row = tuple[int, int, int, int, int, int, int, int, float, float | None, int, bytes, bytes]
"""A row of `messages`, in the order of COLUMNS."""

COLUMNS: Final = (
    "seq, mid, qos, given, latest, released, source_mid, size, created_at, expires_at, checksum, topic, packet"
)
_VALUES: Final = f"INTO messages ({COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)"
INSERT: Final = f"INSERT {_VALUES}"
REPLACE: Final = f"REPLACE {_VALUES}"
MAX_SEQ: Final = 2**62
LANES: Final = {
    OutboxPriority.HIGH: range(2**60, 2**61),
    OutboxPriority.NORMAL: range(2**60),
    OutboxPriority.LOW: range(2**61, MAX_SEQ),
}
"""The places of each priority, in the order in which they are handed out. The normal ones are those of all earlier
versions, to which a file with the others is a queue as any."""
_ORDER_ROW: Final = 3
"""Row of `state` beside those of the lanes, which have the number of their priority; but normal has 0, as ever."""
STATE_ROWS: Final = {OutboxPriority.NORMAL: 0, OutboxPriority.HIGH: 1, OutboxPriority.LOW: 2}

_APPLICATION_ID: Final = int.from_bytes(b"QBox")
_VERSION: Final = 1
_SCHEMA: Final = (
    # given: `mid` is the one under which the message was sent before it came in. latest: a newer message of the topic
    # may take its place. released: the remote has it, only PUBREL is left. size: of the packet, so that no packet need
    # be read to count. checksum: SQLite has none, and flash memory forgets.
    """CREATE TABLE messages (
        seq INTEGER PRIMARY KEY,
        mid INTEGER NOT NULL,
        qos INTEGER NOT NULL,
        given INTEGER NOT NULL,
        latest INTEGER NOT NULL,
        released INTEGER NOT NULL,
        source_mid INTEGER NOT NULL,
        size INTEGER NOT NULL,
        created_at REAL NOT NULL,
        expires_at REAL,
        checksum INTEGER NOT NULL,
        topic BLOB NOT NULL,
        packet BLOB NOT NULL
    ) STRICT""",
    "CREATE INDEX messages_latest ON messages (topic) WHERE latest = 1",
    "CREATE INDEX messages_expiry ON messages (expires_at) WHERE expires_at IS NOT NULL",
    "CREATE TABLE receipts (mid INTEGER PRIMARY KEY) STRICT",
    # A row for each lane (0 is always there). sent_upto: rows up to this one may have been sent to the remote.
    # source_from: rows up to this one came from an earlier session of the local broker, so their source_mid means
    # nothing any more. One row more has in sent_upto by which order of routes the lanes were filled.
    "CREATE TABLE state (id INTEGER PRIMARY KEY, sent_upto INTEGER NOT NULL, source_from INTEGER NOT NULL) STRICT",
    "INSERT INTO state VALUES (0, 0, 0)",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_VERSION}",
)
_NAMES: Final = {"messages", "messages_latest", "messages_expiry", "receipts", "state"}
_LOCK_TIMEOUT: Final = 1.0
"""Seconds to wait for another process that has the file open; a Home Assistant that is just ending, at most."""
_WAL_KEPT: Final = 8 * 1024 * 1024
"""Bytes of the write-ahead log that stay allocated: its blocks are what deletes are written to on a full disk."""
_CORRUPT_KEPT: Final = 2
_RESCUE_BATCH: Final = 500
_HEAD: Final = struct.Struct(">qHBBBBHdd")

_FAULTS: Final = {
    sqlite3.SQLITE_FULL: OutboxFault.DISK_FULL,
    sqlite3.SQLITE_READONLY: OutboxFault.NOT_WRITABLE,
    sqlite3.SQLITE_PERM: OutboxFault.NOT_WRITABLE,
    sqlite3.SQLITE_CANTOPEN: OutboxFault.NOT_WRITABLE,
    sqlite3.SQLITE_IOERR: OutboxFault.IO_ERROR,
    sqlite3.SQLITE_BUSY: OutboxFault.IN_USE,
    sqlite3.SQLITE_LOCKED: OutboxFault.IN_USE,
    sqlite3.SQLITE_CORRUPT: OutboxFault.CORRUPT,
    sqlite3.SQLITE_NOTADB: OutboxFault.CORRUPT,
}
_NOT_DAMAGE: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_CANTOPEN,
}
"""Errors while reading a damaged file that say nothing about what is in it."""
_OS_FAULTS: Final = {
    errno.ENOSPC: OutboxFault.DISK_FULL,
    errno.EDQUOT: OutboxFault.DISK_FULL,
    errno.EROFS: OutboxFault.NOT_WRITABLE,
    errno.EACCES: OutboxFault.NOT_WRITABLE,
    errno.EPERM: OutboxFault.NOT_WRITABLE,
}


class DamagedError(Exception):
    """The file can be read as a database, but what is in it is not what was written."""


def lane_of(seq: int) -> OutboxPriority:
    """Return the lane of a row."""
    if seq < LANES[OutboxPriority.HIGH].start:
        return OutboxPriority.NORMAL
    return OutboxPriority.HIGH if seq < LANES[OutboxPriority.LOW].start else OutboxPriority.LOW


def read_state(db: sqlite3.Connection) -> tuple[dict[OutboxPriority, tuple[int, int]], int | None]:
    """Return sent_upto and source_from of each lane, and the order of routes, if it was noted. Raises DamagedError."""
    found = {row[0]: (row[1], row[2]) for row in db.execute("SELECT id, sent_upto, source_from FROM state")}
    if 0 not in found or not all(
        isinstance(value, int) and 0 <= value < MAX_SEQ for values in found.values() for value in values
    ):
        raise DamagedError("the state is damaged")
    marks = {}
    for lane, places in LANES.items():
        start = places.start - 1 if places.start else 0
        sent_upto, source_from = found.get(STATE_ROWS[lane], (start, start))
        if sent_upto >= places.stop or source_from >= places.stop:
            raise DamagedError("the state is damaged")
        marks[lane] = max(sent_upto, start), max(source_from, start)
    return marks, found[_ORDER_ROW][0] if _ORDER_ROW in found else None


def write_state(db: sqlite3.Connection, lane: OutboxPriority, sent_upto: int, source_from: int) -> None:
    """Note what is known of a lane."""
    db.execute("REPLACE INTO state VALUES (?, ?, ?)", (STATE_ROWS[lane], sent_upto, source_from))


def write_order(db: sqlite3.Connection, order: int) -> None:
    """Note by which order of routes the lanes are filled."""
    db.execute("REPLACE INTO state VALUES (?, ?, 0)", (_ORDER_ROW, order))


@contextmanager
def errors_named() -> Iterator[None]:
    """Turn what SQLite and the system report into OutboxError.

    An error with no name here is a mistake in our own SQL: it stays what it is and is not taken for a full disk.
    """
    try:
        yield
    except DamagedError as error:
        raise OutboxError(OutboxFault.CORRUPT, str(error)) from error
    except OSError as error:
        fault = _OS_FAULTS.get(error.errno or 0, OutboxFault.IO_ERROR)
        raise OutboxError(fault, error.strerror or str(error)) from error
    except sqlite3.Error as error:
        found = _FAULTS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
        if found is None:
            raise
        raise OutboxError(found, str(error)) from error


def checksum(row: Row) -> int:
    """CRC-32 of everything in a row that matters. Raises DamagedError where a value cannot even be one of ours."""
    seq, mid, qos, given, latest, released, source_mid, _, created_at, expires_at, _, topic, packet = row
    try:
        head = _HEAD.pack(
            seq, mid, qos, given, latest, released, source_mid, created_at, -1.0 if expires_at is None else expires_at
        )
        return zlib.crc32(packet, zlib.crc32(topic, zlib.crc32(head)))
    except (struct.error, TypeError) as error:
        raise DamagedError(f"row {seq} is damaged") from error


def sealed(row: Row) -> Row:
    """Return the row with its checksum and size filled in."""
    return (*row[:7], len(row[12]), *row[8:10], checksum(row), *row[11:])


def verify(row: Row) -> None:
    """Raise DamagedError if the row is not what was written."""
    if checksum(row) != row[10] or len(row[12]) != row[7]:
        raise DamagedError(f"row {row[0]} is damaged")


def connect(path: Path) -> sqlite3.Connection:
    """Open the file, making it if there is none.

    Raises sqlite3.Error, OSError, DamagedError for a file that is not ours, OutboxError for one of a later version.
    """
    # Messages are nobody else's business, and SQLite gives its -wal the same mode. Only when it is new: closing a
    # second descriptor of a file ends this process's POSIX locks on it.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    db = sqlite3.connect(path, timeout=_LOCK_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        # Exclusive: a second bridge on the same file gets an error, and there is no shared memory file.
        for pragma in (
            "locking_mode = EXCLUSIVE",
            "journal_mode = WAL",
            "synchronous = FULL",
            f"journal_size_limit = {_WAL_KEPT}",
            "temp_store = MEMORY",
            "cell_size_check = ON",
            "trusted_schema = OFF",
        ):
            db.execute(f"PRAGMA {pragma}").fetchall()
        _check_format(db, path.name)
    except BaseException:
        db.close()
        raise
    return db


def _check_format(db: sqlite3.Connection, name: str) -> None:
    """Give a new file its tables; raise DamagedError or OutboxError for one that cannot be used."""
    application: int = db.execute("PRAGMA application_id").fetchone()[0]
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    found = {row[0] for row in db.execute("SELECT name FROM sqlite_schema")}
    if application == version == 0 and not found:
        db.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            db.execute(statement)
        db.execute("COMMIT")
    elif application != _APPLICATION_ID or version < _VERSION:
        raise DamagedError(f"{name} is not an Outbox")
    elif version > _VERSION:
        raise OutboxError(
            OutboxFault.TOO_NEW,
            f"{name} was written by a later version of this integration (format {version}, known: {_VERSION})",
        )
    elif found != _NAMES:
        raise DamagedError(f"{name} lacks its tables")


def prepare(path: Path) -> None:
    """Make the folder, and finish or undo a rescue that was cut short. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rescued = _rescued_path(path)
    if rescued.exists() and not path.exists():
        # The damaged file was moved aside, so the new one is complete. A write-ahead log that still lies here belongs
        # to the damaged file; SQLite would play it into the new one.
        _unlink(_beside(path))
        rescued.rename(path)
        _sync_folder(path)
    _unlink((rescued, *_beside(rescued)))


def rescue(path: Path, why: str) -> OutboxRescue:
    """Replace a damaged file by a new one with all rows that can still be read; the damaged one is moved aside.

    The new file is complete and on disk before the old one moves, so a crash or a full disk in between loses nothing.
    Raises sqlite3.Error or OSError when the new file cannot be written; the damaged one is then still in place.
    """
    rescued = _rescued_path(path)
    _unlink((rescued, *_beside(rescued)))
    with closing(sqlite3.connect(path, timeout=_LOCK_TIMEOUT, isolation_level=None)) as old:
        old.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
        with closing(connect(rescued)) as new:
            rows, damaged, receipts_lost = _copy(old, new)
            # Closing does this too, but silently when it fails; and only the file itself is moved into place.
            new.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    moved_to = move_aside(path)
    rescued.rename(path)
    _sync_folder(path)
    # The names sort by time, unless the clock was put back: the one just made stays in any case.
    earlier = sorted(set(path.parent.glob(f"{path.name}.corrupt-*[0-9]")) - {moved_to})
    for extra in earlier[: 1 - _CORRUPT_KEPT]:
        _unlink((extra, *_beside(extra)))
    return OutboxRescue(moved_to=moved_to, rows=rows, damaged=damaged, receipts_lost=receipts_lost, text=why)


def remove(path: Path) -> None:
    """Delete the file and everything that was ever put beside it. Raises OSError."""
    _unlink((path, *_beside(path), *path.parent.glob(f"{path.name}.corrupt-*")))
    rescued = _rescued_path(path)
    _unlink((rescued, *_beside(rescued)))


def _copy(old: sqlite3.Connection, new: sqlite3.Connection) -> tuple[int, int, bool]:
    """Return how many rows were copied, how many were damaged, and whether the receipts are lost."""
    damaged: set[int] = set()
    rows = 0
    last: dict[OutboxPriority, int] = {}
    for batch in batched(_readable_rows(old, damaged), _RESCUE_BATCH, strict=False):
        new.execute("BEGIN IMMEDIATE")
        new.executemany(INSERT, batch)
        new.execute("COMMIT")
        rows += len(batch)
        last |= {lane_of(row[0]): row[0] for row in batch}
    receipts: list[tuple[int]] = []
    receipts_lost = False
    # Not knowing better: every row may have been sent, and all are of the local broker's present session. The order is
    # unknown, too, and no order of routes has the number 0.
    state = {lane: (seq, 0) for lane, seq in last.items()}
    order: int | None = 0
    try:
        for (mid,) in old.execute("SELECT mid FROM receipts"):
            if isinstance(mid, int) and 1 <= mid <= MAX_MID:
                receipts.append((mid,))
    except sqlite3.DatabaseError as error:
        _raise_unless_damage(error)
        receipts_lost = True
    try:
        state, order = read_state(old)
    except sqlite3.DatabaseError as error:
        _raise_unless_damage(error)
    except DamagedError as error:
        _LOGGER.debug("The state of the damaged Outbox: %s", error)
    new.execute("BEGIN IMMEDIATE")
    new.executemany("INSERT INTO receipts VALUES (?)", receipts)
    for lane, (sent_upto, source_from) in state.items():
        write_state(new, lane, sent_upto, source_from)
    if order is not None:
        write_order(new, order)
    new.execute("COMMIT")
    return rows, len(damaged), receipts_lost


def _readable_rows(db: sqlite3.Connection, damaged: set[int]) -> Iterator[Row]:
    """Yield all rows that can be read and are as they were written, in order; stepping over pages that cannot."""
    after = 0
    while True:
        try:
            row: Row
            for row in db.execute(f"SELECT {COLUMNS} FROM messages WHERE seq > ? ORDER BY seq", (after,)):  # noqa: S608
                try:
                    verify(row)
                except DamagedError:
                    damaged.add(row[0])
                    continue
                if row[0] > after:
                    after = row[0]
                    yield row
        except sqlite3.DatabaseError as error:
            _raise_unless_damage(error)
            gap = _unreadable_gap(db, after)
            if gap is None:
                return
            after += gap
        else:
            return


def _unreadable_gap(db: sqlite3.Connection, after: int) -> int | None:
    """Return the smallest step from `after` behind which reading works again; None: nowhere."""

    def readable(step: int) -> bool:
        try:
            db.execute(f"SELECT {COLUMNS} FROM messages WHERE seq > ? ORDER BY seq LIMIT 1", (after + step,)).fetchone()  # noqa: S608
        except sqlite3.DatabaseError as error:
            _raise_unless_damage(error)
            return False
        return True

    good = 1
    while not readable(good):
        good *= 2
        if after + good >= MAX_SEQ:
            return None
    bad = good // 2
    while good - bad > 1:
        middle = (bad + good) // 2
        if readable(middle):
            good = middle
        else:
            bad = middle
    return good


def _raise_unless_damage(error: sqlite3.DatabaseError) -> None:
    if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _NOT_DAMAGE:
        raise error


def move_aside(path: Path) -> Path:
    """Keep the file under another name, which is returned, so that a new one can be made. Raises OSError."""
    aside = path.with_name(f"{path.name}.corrupt-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
    # In this order: a log without its file is what `prepare` knows how to clear up.
    path.rename(aside)
    with suppress(FileNotFoundError):
        path.with_name(f"{path.name}-wal").rename(aside.with_name(f"{aside.name}-wal"))
    return aside


def _rescued_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.rescue")


def _beside(path: Path) -> tuple[Path, ...]:
    """Return the files that SQLite may keep beside a database."""
    return tuple(path.with_name(f"{path.name}-{suffix}") for suffix in ("wal", "shm", "journal"))


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    """Make renames in the file's folder last through a power cut."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
