"""The Outbox against kill -9, torn logs and full disks."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
import os
from pathlib import Path
from random import Random
import resource
import signal
import subprocess
import sys
import time

import pytest

from custom_components.quic_bridge.bridge.outbox import Outbox, OutboxError, OutboxFault, OutboxRow

from .outbox_support import Clock, copy_files, enlarge, everything, message, numbers, reopened, small_disk
from .outbox_writer import numbered


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@pytest.fixture
async def outbox(path: Path) -> AsyncIterator[Outbox]:
    outbox = Outbox(path, clock=Clock())
    await outbox.open()
    yield outbox
    await outbox.close()


# Killed


class Life:
    """What a writer's log says must be, and may be, in the file."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[int, bool]] = {}
        """Place to number and released."""
        self.receipts: set[int] = set()
        self.first = 1
        self._read = 0

    def follow(self, log: Path) -> tuple[str, list[int]] | None:
        """Take in what was done since the last time; return what was begun and perhaps not done."""
        doubt: tuple[str, list[int]] | None = None
        text = log.read_text()
        for line in text[self._read :].splitlines():
            letter, *values = line.split()
            arguments = [int(value) for value in values]
            doubt = (letter, arguments) if letter.islower() else None
            if letter == "a":
                self.first = max(self.first, sum(arguments))
            elif letter.isupper():
                self.do(letter, arguments)
        self._read = len(text)
        return doubt

    def do(self, letter: str, arguments: list[int]) -> None:
        """Do what the writer did."""
        if letter == "A":
            first, count, seq = arguments
            self.rows |= {seq + n: (first + n, False) for n in range(count)}
            self.receipts |= {numbered(n).source_mid for n in range(first, first + count) if n % 3 == 2}
        elif letter == "D":
            for seq in arguments:
                self.rows.pop(seq)
        elif letter == "M":
            self.rows |= {seq: (self.rows[seq][0], True) for seq in arguments}
        elif letter == "R":
            self.receipts -= set(arguments)

    def fits(self, rows: list[OutboxRow], receipts: frozenset[int]) -> bool:
        """Compare, to the last byte."""
        if [row.seq for row in rows] != sorted(self.rows) or receipts != self.receipts:
            return False
        return all(
            row.released if released else not row.released and row.packet == numbered(n).packet
            for row, (n, released) in zip(rows, (self.rows[row.seq] for row in rows), strict=True)
        )


@contextmanager
def nursery() -> Iterator[Callable[[Path, Path, int, int, int], None]]:
    """Start the process that forks writers; give what starts a writer and kills it when its log has grown so much."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.bridge.outbox_writer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def live(path: Path, log: Path, seed: int, first: int, growth: int) -> None:
            until = log.stat().st_size + growth
            print(path, log, seed, first, file=stdin, flush=True)
            pid = int(stdout.readline())
            deadline = time.monotonic() + 20
            while log.stat().st_size < until:
                assert time.monotonic() < deadline
            os.kill(pid, signal.SIGKILL)
            assert stdout.readline() == "gone\n"

        yield live
        stdin.close()
        assert process.wait(10) == 0


@pytest.mark.parametrize("seed", range(3))
async def test_killed_at_any_instant_it_holds_what_it_said_it_holds(path: Path, tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    log = tmp_path / "log"
    log.touch()
    life = Life()
    mids: dict[int, int] = {}
    with nursery() as live:
        for turn in range(8):
            live(path, log, seed * 1000 + turn, life.first, random.randrange(50, 12_000))
            doubt = life.follow(log)

            outbox = Outbox(path)
            opened = await outbox.open()
            assert opened.rescue is None
            rows = await everything(outbox)
            receipts = frozenset(outbox.receipts)
            assert outbox.messages == sum(not row.released for row in rows)
            assert outbox.bytes == sum(len(row.packet) for row in rows)
            await outbox.close()

            if not life.fits(rows, receipts):
                assert doubt is not None
                letter, arguments = doubt
                if letter == "a":
                    seq = rows[len(rows) - arguments[1]].seq
                    arguments = [*arguments, seq]
                life.do(letter.upper(), arguments)
                assert life.fits(rows, receipts), doubt
            order = [life.rows[row.seq][0] for row in rows]
            assert order == sorted(order)
            for row in rows:
                assert mids.setdefault(life.rows[row.seq][0], row.mid) == row.mid
            assert len({row.mid for row in rows if row.mid}) == sum(row.qos > 0 for row in rows)
    assert life.first > 500


async def test_torn_log_holds_whole_batches(outbox: Outbox, path: Path, tmp_path: Path) -> None:
    """Power fails while the log is written: its end is missing, or is whatever the disk made of it."""
    random = Random(1)
    ends = [0]
    for _ in range(25):
        count = random.randint(1, 40)
        await outbox.append([numbered(n) for n in range(ends[-1], ends[-1] + count)])
        ends.append(ends[-1] + count)
    await outbox.delete([row.seq for row in await outbox.peek(30, 10_000_000)])
    seen = set[int]()
    for turn in range(25):
        copy = copy_files(path, tmp_path / str(turn))
        log = copy.with_name(f"{copy.name}-wal")
        content = log.read_bytes()
        cut = random.randrange(len(content))
        log.write_bytes(content[:cut] + random.randbytes(random.choice((0, 100, 5000))))
        rows, rescue, _ = await reopened(copy)
        assert rescue is None
        found = numbers(rows)
        seen.add(len(found))
        assert found in ([*range(end)] for end in ends)
    assert len(seen) > 5


# Disk full


async def test_full_disk(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    with small_disk(folder, 1500):
        outbox = Outbox(folder / "outbox.db", clock=Clock())
        await outbox.open()
        taken = await fill(outbox)
        assert taken > 300
        for _ in range(2):
            with pytest.raises(OutboxError) as caught:
                await outbox.append([numbered(n) for n in range(taken, taken + 200)])
            assert caught.value.fault is OutboxFault.DISK_FULL
            assert outbox.messages == taken
        receipts = frozenset(outbox.receipts)
        assert receipts == {numbered(n).source_mid for n in range(taken) if n % 3 == 2}
        # It is emptied although nothing more fits in.
        rows = await everything(outbox)
        assert numbers(rows) == list(range(taken))
        await outbox.delete([row.seq for row in rows[:100]])
        assert outbox.messages == taken - 100
        outbox.rewind()
        assert numbers(await everything(outbox)) == list(range(100, taken))
        enlarge(folder)
        await outbox.append([numbered(taken)])
        assert outbox.messages == taken - 99
        copy = copy_files(folder / "outbox.db", tmp_path / "copy")
        await outbox.close()
    rows, rescue, _ = await reopened(copy)
    assert rescue is None
    assert numbers(rows) == list(range(100, taken + 1))


async def fill(outbox: Outbox) -> int:
    """Append until nothing more fits; return how many messages did."""

    async def append_for_ever(count: int) -> None:
        while True:
            first = outbox.messages
            await outbox.append([numbered(n) for n in range(first, first + count)])
            assert outbox.messages == first + count

    for count in (40, 1):
        with pytest.raises(OutboxError) as caught:
            await append_for_ever(count)
        assert caught.value.fault is OutboxFault.DISK_FULL
    return outbox.messages


async def test_file_that_may_not_grow(outbox: Outbox) -> None:
    db = outbox._store._ledger.db
    await outbox.append([numbered(n) for n in range(100)])
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0] + 3}")
    with pytest.raises(OutboxError) as caught:
        await outbox.append([numbered(n) for n in range(100, 300)])
    assert caught.value.fault is OutboxFault.DISK_FULL
    assert outbox.messages == 100
    db.execute("PRAGMA max_page_count = 100000")
    await outbox.append([numbered(n) for n in range(100, 300)])
    rows = await everything(outbox)
    assert numbers(rows) == list(range(300))
    assert [row.mid for row in rows if row.qos] == list(range(1, 201))


async def test_write_error(outbox: Outbox, path: Path, tmp_path: Path) -> None:
    await outbox.append([numbered(n) for n in range(50)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name(f"{path.name}-wal").stat().st_size + 100, hard))
    try:
        with pytest.raises(OutboxError) as caught:
            await outbox.append([numbered(n) for n in range(50, 90)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.fault is OutboxFault.IO_ERROR
    assert outbox.messages == 50
    await outbox.append([numbered(n) for n in range(50, 60)])
    rows, _, _ = await reopened(copy_files(path, tmp_path / "copy"))
    assert numbers(rows) == list(range(60))


async def test_deletes_that_fail_are_made_up_for(outbox: Outbox, path: Path, tmp_path: Path) -> None:
    await outbox.append([message(n, qos=2) for n in range(20)])
    db = outbox._store._ledger.db
    db.execute("PRAGMA query_only = ON")
    rows = await everything(outbox)
    assert numbers(rows) == list(range(20))
    await outbox.delete([1, 2, 3])
    await outbox.delete([3, 4])
    assert (outbox.messages, outbox.bytes) == (16, 16 * len(message(0).packet))
    outbox.rewind()
    assert numbers(await everything(outbox)) == list(range(4, 20))
    with pytest.raises(OutboxError) as caught:
        await outbox.mark_received([5])
    assert caught.value.fault is OutboxFault.NOT_WRITABLE
    assert outbox.messages == 16

    # Killed now, they would be sent again: that is why PUBREC has to be on disk before PUBREL goes out.
    rows, _, _ = await reopened(copy_files(path, tmp_path / "killed"))
    assert numbers(rows) == list(range(20))

    db.execute("PRAGMA query_only = OFF")
    await outbox.expire()
    rows, _, _ = await reopened(copy_files(path, tmp_path / "later"))
    assert numbers(rows) == list(range(4, 20))
    assert all(row.sent for row in rows)
    assert outbox.messages == 16

    # All gone, and the file cannot be written: it is empty all the same.
    db.execute("PRAGMA query_only = ON")
    await outbox.delete([row.seq for row in rows])
    assert outbox.is_empty
    assert await everything(outbox) == []
    db.execute("PRAGMA query_only = OFF")
    await outbox.close()
    rows, _, _ = await reopened(path)
    assert rows == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_folder_that_may_not_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o500)
    with pytest.raises(OutboxError) as caught:
        await Outbox(folder / "outbox.db").open()
    assert caught.value.fault is OutboxFault.NOT_WRITABLE


async def test_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outbox = Outbox(tmp_path / "file" / "outbox.db")
    with pytest.raises(OutboxError) as caught:
        await outbox.open()
    assert caught.value.fault is OutboxFault.IO_ERROR
    await outbox.close()
