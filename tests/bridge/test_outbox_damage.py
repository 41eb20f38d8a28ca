"""The Outbox against damaged files."""

import os
from pathlib import Path
from random import Random
import shutil

import pytest

from custom_components.quic_bridge.bridge.outbox import Outbox, OutboxError, OutboxFault, OutboxLimits, OutboxRescue

from .outbox_support import Clock, enlarge, everything, message, numbers, reopened, size, small_disk
from .outbox_writer import numbered

PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


async def filled(path: Path, count: int) -> None:
    outbox = Outbox(path, clock=Clock())
    await outbox.open()
    await outbox.append([numbered(n) for n in range(count)])
    await outbox.peek(10, 1_000_000)
    await outbox.close()


def pages_of_kind(path: Path, kind: int) -> list[int]:
    """Return the numbers of b-tree pages whose first byte is `kind`: 13 is a leaf of a table, 5 is above leaves."""
    content = path.read_bytes()
    return [place // PAGE for place in range(PAGE, len(content), PAGE) if content[place] == kind]


def overwrite(path: Path, place: int, content: bytes) -> None:
    path.touch()
    with path.open("r+b") as file:
        file.seek(place)
        file.write(content)


def files(folder: Path) -> set[Path]:
    return set(folder.iterdir())


def flip(path: Path, n: int) -> None:
    """Turn one bit of the packet of message `n`."""
    content = path.read_bytes()
    place = content.index(numbered(n).packet) + 4
    overwrite(path, place, bytes((content[place] ^ 0x10,)))


async def test_spoilt_leaves_cost_only_their_own_rows(path: Path) -> None:
    random = Random(5)
    await filled(path, 3000)
    leaves = pages_of_kind(path, 13)
    for page in random.sample(leaves, 4):
        overwrite(path, page * PAGE, random.randbytes(PAGE))
    outbox = Outbox(path, clock=Clock())
    opened = await outbox.open()
    assert opened.rescue is not None
    assert not opened.rescue.receipts_lost
    assert opened.receipts == 1000
    rows = await everything(outbox)
    found = numbers(rows)
    assert opened.messages == outbox.messages == opened.rescue.rows == len(found)
    # A row of 5 bytes takes about 60 in its page: at most 70 of them to a page.
    assert 3000 - 4 * 70 < len(found) < 3000
    assert found == sorted(set(found))
    assert [(row.packet, row.mid) for row in rows] == [
        (numbered(n).packet, 0 if n % 3 == 0 else n - n // 3) for n in found
    ]
    assert [row.seq for row in rows if row.sent] == [row.seq for row in rows if row.seq <= 10]
    assert (await outbox.append([message(1)])).seqs[0] > rows[-1].seq
    await outbox.close()
    assert opened.rescue.moved_to.exists()


async def test_one_wrong_bit_costs_one_row(path: Path) -> None:
    """SQLite does not notice it; and a wrong packet must not reach the remote."""
    await filled(path, 500)
    flip(path, 222)
    rows, rescue, times = await reopened(path)
    assert numbers(rows) == [n for n in range(500) if n != 222]
    assert rescue is not None
    assert (rescue.rows, rescue.damaged, times) == (499, 1, 1)


@pytest.mark.parametrize("seed", range(25))
async def test_random_damage_never_brings_up_anything_wrong(path: Path, seed: int) -> None:
    random = Random(seed)
    await filled(path, 600)
    total = size(path)
    for _ in range(random.randint(1, 6)):
        length = random.choice((1, 8, 100, PAGE, 3 * PAGE))
        overwrite(path, random.randrange(total - length), random.randbytes(length))
    if seed % 5 == 0:
        os.truncate(path, random.randrange(total))
    rows, rescue, times = await reopened(path)
    found = numbers(rows)
    assert found == sorted(set(found))
    assert [row.packet for row in rows] == [numbered(n).packet for n in found]
    if len(found) < 600:
        assert rescue is not None
    assert times <= 1
    again, rescue, _ = await reopened(path)
    assert numbers(again) == [*found, 7_777_777]
    assert rescue is None


@pytest.mark.parametrize(
    "content",
    [b"not a database" * 1000, bytes(3 * PAGE), b"SQLite format 3\0" + b"\xff" * 9000],
    ids=["text", "zeros", "header"],
)
async def test_file_that_is_nothing_of_ours(path: Path, content: bytes) -> None:
    overwrite(path, 0, content)
    rows, rescue, _ = await reopened(path)
    assert rows == []
    assert rescue is not None
    assert rescue.receipts_lost
    assert rescue.moved_to.read_bytes() == content


async def test_empty_file_is_a_new_one(path: Path) -> None:
    overwrite(path, 0, b"")
    rows, rescue, _ = await reopened(path)
    assert (rows, rescue) == ([], None)


async def test_only_the_last_two_damaged_files_are_kept(path: Path) -> None:
    damage = path.with_name("damage")
    overwrite(damage, 0, b"damage" * 1000)
    kept = []
    for _ in range(4):
        shutil.copy(damage, path)
        _, rescue, _ = await reopened(path)
        assert rescue is not None
        kept.append(rescue.moved_to)
    assert files(path.parent) == {path, damage, *kept[-2:]}


async def test_damage_while_it_is_open_is_mended_on_the_way(path: Path) -> None:
    rescues: list[OutboxRescue] = []
    outbox = Outbox(path, OutboxLimits(messages=5000), clock=Clock(), on_rescue=rescues.append)
    await outbox.open()
    for start in range(0, 5000, 500):
        await outbox.append([numbered(n) for n in range(start, start + 500)])
    first = await outbox.peek(10, 1_000_000)
    # Out of the log and out of SQLite's cache.
    db = outbox._store._ledger.db
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    db.execute("PRAGMA shrink_memory")
    for page in pages_of_kind(path, 13)[20:23]:
        overwrite(path, page * PAGE, bytes(range(256)) * 16)
    rows = await everything(outbox)
    assert len(rescues) == 1
    assert rescues[0].rows == outbox.messages == len(rows)
    assert 5000 - 3 * 70 < len(rows) < 5000
    assert [(row.seq, row.mid) for row in rows[:10]] == [(row.seq, row.mid) for row in first]
    assert all(row.packet == numbered(row.seq - 1).packet for row in rows)
    await outbox.delete([row.seq for row in rows])
    assert outbox.is_empty
    assert (await outbox.append([message(1)])).seqs[0] == 5001
    await outbox.close()


async def test_rescue_that_was_cut_short(path: Path, tmp_path: Path) -> None:
    await filled(path, 100)
    rescued = path.with_name(f"{path.name}.rescue")
    # Before the damaged file moved: whatever there is of the new one is worth nothing.
    shutil.copy(path, rescued)
    overwrite(rescued, PAGE, bytes(PAGE))
    rows, rescue, _ = await reopened(path)
    assert (len(rows), rescue) == (100, None)
    assert not rescued.exists()
    # After it moved: the new file is complete, and the old one's log must not be played into it.
    shutil.move(path, rescued)
    overwrite(tmp_path / "outbox.db-wal", 0, b"old")
    rows, rescue, _ = await reopened(path)
    assert (len(rows), rescue) == (101, None)
    assert files(tmp_path) == {path}


async def test_rescue_on_a_full_disk_waits_for_space(tmp_path: Path) -> None:
    await filled(tmp_path / "outbox.db", 600)
    flip(tmp_path / "outbox.db", 300)
    folder = tmp_path / "small"
    with small_disk(folder, size(tmp_path / "outbox.db") * 3 // 2 // 1024):
        shutil.copy(tmp_path / "outbox.db", folder)
        outbox = Outbox(folder / "outbox.db", clock=Clock())
        opened = await outbox.open()
        assert opened.rescue is None
        for _ in range(2):
            with pytest.raises(OutboxError) as caught:
                await outbox.peek(1000, 10_000_000)
            assert caught.value.fault is OutboxFault.DISK_FULL
        enlarge(folder)
        assert numbers(await outbox.peek(1000, 10_000_000)) == [n for n in range(600) if n != 300]
        await outbox.close()
