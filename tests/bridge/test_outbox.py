"""The Outbox: order, identifiers, bounds, what survives a restart."""

import asyncio
from collections.abc import AsyncIterator
import contextlib
from itertools import pairwise
from pathlib import Path
import sqlite3
import stat

import pytest

from custom_components.quic_bridge.bridge.outbox import (
    Outbox,
    OutboxDrop,
    OutboxError,
    OutboxFault,
    OutboxLimits,
    OutboxMessage,
    OutboxPolicy,
    OutboxPriority,
    OutboxRow,
)

from .outbox_support import Clock, copy_files, everything, message, numbers, packets, size

ALL = 1_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "outbox.db"


@pytest.fixture
async def outbox(path: Path) -> AsyncIterator[Outbox]:
    outbox = Outbox(path, clock=Clock())
    await outbox.open()
    yield outbox
    await outbox.close()


async def test_keeps_order_and_content_across_reopening(outbox: Outbox, path: Path) -> None:
    sent = [message(n, qos=n % 3, size=1 + n * 40 % 9000) for n in range(200)]
    assert list((await outbox.append(sent[:50])).seqs) == list(range(1, 51))
    assert list((await outbox.append(sent[50:])).seqs) == list(range(51, 201))
    assert outbox.messages == 200
    assert outbox.bytes == sum(len(one.packet) for one in sent)
    before = await everything(outbox)
    assert [(row.packet, row.topic, row.qos) for row in before] == [(one.packet, one.topic, one.qos) for one in sent]
    await outbox.close()

    again = Outbox(path, clock=Clock())
    opened = await again.open()
    assert (opened.messages, opened.bytes, opened.rescue) == (200, outbox.bytes, None)
    after = await everything(again)
    assert [row.mid for row in after] == [row.mid for row in before]
    assert packets(after) == packets(before)
    await again.close()


async def test_is_on_disk_when_append_returns(outbox: Outbox, path: Path, tmp_path: Path) -> None:
    await outbox.append([message(n, qos=2, source_mid=n + 1, needs_receipt=True) for n in range(30)])
    copy = Outbox(copy_files(path, tmp_path / "copy"), clock=Clock())
    opened = await copy.open()
    assert (opened.messages, opened.receipts) == (30, 30)
    await copy.close()


async def test_syncs_every_commit(outbox: Outbox) -> None:
    db = outbox._store._ledger.db
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)


async def test_file_is_private(outbox: Outbox, path: Path) -> None:
    await outbox.append([message(1)])
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


async def test_peek_respects_limits_and_gives_at_least_one(outbox: Outbox) -> None:
    await outbox.append([message(n, size=100) for n in range(10)])
    size = len(message(0, size=100).packet)
    assert len(await outbox.peek(3, ALL)) == 3
    assert len(await outbox.peek(ALL, size * 4 + 1)) == 4
    assert [row.seq for row in await outbox.peek(ALL, 1)] == [8]
    assert len(await outbox.peek(ALL, ALL)) == 2
    assert await outbox.peek(ALL, ALL) == []
    outbox.rewind()
    assert len(await outbox.peek(ALL, ALL)) == 10


async def test_sent_flag_survives_a_crash(outbox: Outbox, path: Path, tmp_path: Path) -> None:
    await outbox.append([message(n) for n in range(10)])
    first = await outbox.peek(4, ALL)
    assert not any(row.sent for row in first)
    copy = Outbox(copy_files(path, tmp_path / "copy"), clock=Clock())
    await copy.open()
    assert [row.sent for row in await everything(copy)] == [True] * 4 + [False] * 6
    await copy.close()


async def test_delete_and_emptiness(outbox: Outbox, path: Path) -> None:
    assert outbox.is_empty
    assert outbox.oldest is None
    clock = outbox._store._clock
    assert isinstance(clock, Clock)
    await outbox.append([message(1), message(2)])
    clock.now += 5
    await outbox.append([message(3)])
    assert outbox.oldest == Clock.START
    await outbox.delete([1, 2, 2, 77])
    assert outbox.oldest == Clock.START + 5
    assert outbox.messages == 1
    await outbox.delete([3])
    assert outbox.is_empty
    assert (outbox.messages, outbox.bytes, outbox.oldest) == (0, 0, None)


async def test_seq_is_not_reused_after_a_restart_as_if_sent(outbox: Outbox, path: Path) -> None:
    """An emptied file must not give new rows the places that the note of sent rows is about."""
    await outbox.append([message(n) for n in range(5)])
    await outbox.delete([row.seq for row in await everything(outbox)])
    await outbox.close()
    again = Outbox(path, clock=Clock())
    await again.open()
    await again.append([message(9)])
    assert [row.sent for row in await everything(again)] == [False]
    await again.close()


async def test_file_shrinks_when_empty_and_log_stays_bounded(outbox: Outbox, path: Path) -> None:
    for _ in range(20):
        await outbox.append([message(n, size=1000) for n in range(500)])
        assert size(path.with_name(f"{path.name}-wal")) < 12 * 1024 * 1024
    assert size(path) > 10_000_000
    rows = await outbox.peek(ALL, ALL * 1000)
    await outbox.delete([row.seq for row in rows])
    assert size(path) < 200_000
    await outbox.append([message(1)])
    assert numbers(await everything(outbox)) == [1]


# Packet identifiers


async def test_mids_are_distinct_in_every_window_and_given_ones_are_skipped(outbox: Outbox, path: Path) -> None:
    given = [message(n, qos=1 + n % 2, sent_mid=mid) for n, mid in enumerate(range(500, 60_000, 97))]
    await outbox.append(given)
    for _ in range(14):
        await outbox.append([message(0, qos=1, size=1)] * 5000)
    rows = await outbox.peek(ALL, ALL * 100)
    assert [row.mid for row in rows[: len(given)]] == [one.sent_mid for one in given]
    assert all(row.sent for row in rows[: len(given)])
    seen: dict[int, int] = {}
    for place, row in enumerate(rows):
        assert 1 <= row.mid <= 65_535
        assert place - seen.get(row.mid, -30_000) >= 30_000
        seen[row.mid] = place
    taken = {one.sent_mid for one in given}
    assert not taken & {row.mid for row in rows[len(given) :]}


async def test_counter_continues_after_a_restart(outbox: Outbox, path: Path) -> None:
    await outbox.append([message(1, sent_mid=2), message(2), message(3), message(4, qos=0)])
    await outbox.close()
    again = Outbox(path, clock=Clock())
    await again.open()
    await again.append([message(5)])
    assert [row.mid for row in await everything(again)] == [2, 1, 3, 0, 4]
    await again.close()


async def test_messages_that_were_sent_keep_their_identifiers_and_have_them_alone(outbox: Outbox) -> None:
    assert outbox.may_have_been_sent(7)
    await outbox.append([message(1, sent_mid=7)])
    assert not outbox.may_have_been_sent(7)
    assert outbox.may_have_been_sent(8)
    with pytest.raises(ValueError, match="taken"):
        await outbox.append([message(2, sent_mid=8), message(3, sent_mid=7)])
    assert outbox.has_only_sent
    await outbox.append([message(4)])
    assert not outbox.has_only_sent
    # 4 has got the identifier 1, and one that was sent under it comes too late. The remote may know what is before.
    await outbox.append([message(5), message(6, sent_mid=9), message(7, sent_mid=1), message(8)])
    rows = await everything(outbox)
    assert numbers(rows) == [1, 4, 5, 6, 7, 8]
    assert [row.mid for row in rows] == [7, 1, 2, 9, 3, 4]
    assert [row.sent for row in rows] == [True, True, True, True, False, False]


@pytest.mark.parametrize(
    "wrong",
    [
        {"qos": 3},
        {"qos": 0, "sent_mid": 5},
        {"sent_mid": 65_536},
        {"source_mid": 65_536},
        {"qos": 1, "source_mid": 1, "needs_receipt": True},
        {"qos": 2, "needs_receipt": True},
        {"qos": 2, "released": True},
    ],
)
def test_messages_that_make_no_sense(wrong: dict[str, int | bool]) -> None:
    with pytest.raises(ValueError, match=r"QoS|identifier"):
        message(1, **wrong)  # type: ignore[arg-type]


# QoS 2 towards the remote


async def test_release_survives_a_crash_and_keeps_its_place(outbox: Outbox, path: Path, tmp_path: Path) -> None:
    await outbox.append([message(n, qos=2) for n in range(3)])
    mids = [row.mid for row in await outbox.peek(ALL, ALL)]
    await outbox.mark_received([2])
    assert outbox.messages == 2
    assert outbox.bytes == len(message(0).packet) * 2
    copy = Outbox(copy_files(path, tmp_path / "copy"), clock=Clock())
    await copy.open()
    rows = await everything(copy)
    assert [row.released for row in rows] == [False, True, False]
    assert [row.mid for row in rows] == mids
    assert (rows[1].packet, rows[1].topic) == (b"", "")
    await copy.delete([1, 3])
    assert copy.messages == 0
    assert not copy.is_empty
    await copy.delete([2])
    assert copy.is_empty
    await copy.close()


async def test_priorities(outbox: Outbox, path: Path, tmp_path: Path) -> None:
    """First what may have been sent before, also after a crash; then by priority. In each the order is kept."""
    high, normal, low = OutboxPriority
    await outbox.append([message(1, sent_mid=7, priority=low), message(2, sent_mid=3)])
    await outbox.append([message(n, priority=priority) for n, priority in enumerate((low, normal, high, low, high), 3)])
    assert numbers(await outbox.peek(4, ALL)) == [1, 2, 5, 7]
    # What comes while it is emptied, too.
    await outbox.append([message(8, priority=high), message(9, priority=low)])
    assert numbers(await outbox.peek(3, ALL)) == [8, 4, 3]
    copy = Outbox(copy_files(path, tmp_path / "copy"), clock=Clock())
    await copy.open()
    await copy.append([message(10, priority=high)])
    rows = await everything(copy)
    assert numbers(rows) == [1, 2, 4, 5, 7, 8, 3, 10, 6, 9]
    assert [row.sent for row in rows] == [True] * 7 + [False] * 3
    assert len({row.mid for row in rows}) == 10
    await copy.close()


async def test_no_identifier_is_out_twice(outbox: Outbox) -> None:
    """After 65,535 messages the identifiers come again, and a row of another priority may have one that is out."""
    await outbox.append([message(1, qos=2), message(2, qos=2)])
    rows = await outbox.peek(ALL, ALL)
    outbox._store._ledger.tally.last_mid = 0
    await outbox.append([message(n, qos=2, priority=OutboxPriority.HIGH) for n in (3, 4)])
    assert await outbox.peek(ALL, ALL) == []
    assert outbox.blocked
    await outbox.mark_received([row.seq for row in rows])
    assert await outbox.peek(ALL, ALL) == []
    await outbox.delete([rows[0].seq])
    assert numbers(await outbox.peek(ALL, ALL)) == [3]
    assert outbox.blocked
    await outbox.delete([rows[1].seq])
    assert numbers(await outbox.peek(ALL, ALL)) == [4]
    assert not outbox.blocked


async def test_release_can_come_in(outbox: Outbox) -> None:
    """The remote went away between PUBREC and PUBCOMP of a message that was passed through."""
    await outbox.append([message(1, qos=2, sent_mid=40, source_mid=40, needs_receipt=True, released=True), message(2)])
    rows = await everything(outbox)
    assert [(row.mid, row.released, row.packet) for row in rows] == [(40, True, b""), (1, False, message(2).packet)]
    assert outbox.receipts == {40}
    assert outbox.messages == 1


async def test_dropping_a_qos2_message_that_may_have_been_sent_leaves_its_release(path: Path) -> None:
    """Else the remote would take the next message with that identifier for the one it still waits to release."""
    outbox = Outbox(path, OutboxLimits(messages=3), clock=Clock())
    await outbox.open()
    await outbox.append([message(1, qos=2, sent_mid=9), message(2, qos=1, sent_mid=10), message(3, qos=2)])
    result = await outbox.append([message(n, qos=2) for n in range(4, 7)])
    assert result.dropped == {OutboxDrop.FULL_MESSAGES: 3}
    rows = await everything(outbox)
    assert [(row.mid, row.released) for row in rows] == [(9, True), (2, False), (3, False), (4, False)]
    assert outbox.messages == 3
    await outbox.close()


# Towards the local broker


async def test_receipts(outbox: Outbox, path: Path) -> None:
    await outbox.append([message(n, qos=2, source_mid=n, needs_receipt=n != 3) for n in range(1, 6)])
    assert outbox.receipts == {1, 2, 4, 5}
    await outbox.remove_receipts([2, 3, 5])
    assert outbox.receipts == {1, 4}
    await outbox.delete([row.seq for row in await everything(outbox)])
    assert outbox.receipts == {1, 4}
    await outbox.close()
    again = Outbox(path, clock=Clock())
    assert (await again.open()).receipts == 2
    assert again.receipts == {1, 4}
    await again.forget_local_session()
    assert again.receipts == set()
    await again.close()
    await again.open()
    assert again.receipts == set()
    await again.close()


async def test_find_knows_a_message_that_is_sent_again(outbox: Outbox, path: Path) -> None:
    sent = [message(n, qos=1, source_mid=n) for n in range(1, 4)]
    await outbox.append(sent)
    again = bytes((sent[1].packet[0] | 0x08,)) + sent[1].packet[1:]
    for box in (outbox, Outbox(path, clock=Clock())):
        if box is not outbox:
            await outbox.close()
            await box.open()
        assert await box.find(2, again)
        assert not await box.find(1, again)
        assert not await box.find(4, again)
        assert not await box.find(2, sent[1].packet + b"x")
    await box.append([message(9, qos=1, source_mid=2)])
    assert not await box.find(2, again)
    await box.delete([1])
    assert not await box.find(1, sent[0].packet)
    assert await box.find(3, sent[2].packet)
    await box.forget_local_session()
    assert not await box.find(3, sent[2].packet)
    await box.close()
    await box.open()
    assert not await box.find(3, sent[2].packet)
    await box.close()


async def test_find_does_not_reach_back_into_an_earlier_cycle(outbox: Outbox) -> None:
    """The same reading under the same identifier, 40,000 messages later, is a new message."""
    await outbox.append([message(1, source_mid=77)])
    assert await outbox.find(77, message(1).packet)
    await outbox.append([message(0, size=1)] * 40_000)
    assert not await outbox.find(77, message(1).packet)


# Bounds


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (OutboxLimits(messages=10), OutboxDrop.FULL_MESSAGES),
        (OutboxLimits(bytes=10 * len(message(0, size=50).packet)), OutboxDrop.FULL_BYTES),
    ],
)
async def test_over_a_bound_the_oldest_go(path: Path, limits: OutboxLimits, reason: OutboxDrop) -> None:
    outbox = Outbox(path, limits, clock=Clock())
    await outbox.open()
    assert (await outbox.append([message(n, size=50) for n in range(10)])).dropped == {}
    result = await outbox.append([message(n, size=50) for n in range(10, 13)])
    assert (len(result.seqs), result.refused, result.dropped) == (3, 0, {reason: 3})
    assert outbox.messages == 10
    # Rows that are out for sending stay, and the newest give way instead.
    assert numbers(await outbox.peek(8, ALL)) == list(range(3, 11))
    assert (await outbox.append([message(n, size=50) for n in range(13, 17)])).dropped == {reason: 4}
    outbox.rewind()
    await outbox.append([message(17, size=50)])
    assert numbers(await everything(outbox)) == [4, 5, 6, 7, 8, 9, 10, 15, 16, 17]
    assert outbox.dropped == {reason: 8}
    await outbox.close()


async def test_over_a_bound_the_least_important_go_first(path: Path) -> None:
    outbox = Outbox(path, OutboxLimits(messages=4), clock=Clock())
    await outbox.open()
    lanes = (OutboxPriority.HIGH, OutboxPriority.NORMAL, OutboxPriority.LOW, OutboxPriority.LOW)
    await outbox.append([message(n, priority=priority) for n, priority in enumerate(lanes)])
    result = await outbox.append([message(n) for n in (4, 5, 6)])
    assert result.dropped == {OutboxDrop.FULL_MESSAGES: 3}
    assert numbers(await everything(outbox)) == [0, 4, 5, 6]
    await outbox.close()


async def test_refusing_takes_what_fits_from_the_front(path: Path) -> None:
    outbox = Outbox(path, OutboxLimits(messages=5, bytes=10_000, policy=OutboxPolicy.REFUSE), clock=Clock())
    await outbox.open()
    await outbox.append([message(1), message(2), message(3)])
    batch = [message(n, qos=2, source_mid=n, needs_receipt=True) for n in range(4, 8)]
    result = await outbox.append(batch)
    assert (len(result.seqs), result.refused, result.dropped) == (2, 2, {})
    assert outbox.receipts == {4, 5}
    assert (await outbox.append(batch[2:])).refused == 2
    await outbox.delete([1])
    # A small message behind one that does not fit waits too: order before use of space.
    result = await outbox.append([message(8, size=9900), message(9)])
    assert (len(result.seqs), result.refused) == (0, 2)
    # What would never fit must not block the way for ever.
    result = await outbox.append([message(10, size=10_001), message(11)])
    assert (len(result.seqs), result.refused, result.dropped) == (2, 0, {OutboxDrop.FULL_BYTES: 1})
    assert numbers(await everything(outbox)) == [2, 3, 4, 5, 11]
    await outbox.close()


async def test_one_message_larger_than_everything_costs_only_itself(path: Path) -> None:
    outbox = Outbox(path, OutboxLimits(bytes=1000), clock=Clock())
    await outbox.open()
    await outbox.append([message(1)])
    result = await outbox.append([message(2, size=1001, qos=2, source_mid=5, needs_receipt=True), message(3)])
    assert (len(result.seqs), result.dropped) == (2, {OutboxDrop.FULL_BYTES: 1})
    assert outbox.receipts == {5}
    assert numbers(await everything(outbox)) == [1, 3]
    await outbox.close()


async def test_age_and_expiry(path: Path) -> None:
    clock = Clock()
    outbox = Outbox(path, OutboxLimits(age=100), clock=clock)
    await outbox.open()
    await outbox.append([message(1), message(2, expires_at=clock.now + 50), message(3, expires_at=clock.now)])
    assert outbox.dropped == {OutboxDrop.EXPIRED: 1}
    clock.now += 49
    await outbox.append([message(4)])
    assert await outbox.expire() == {}
    clock.now += 1
    assert await outbox.expire() == {OutboxDrop.EXPIRED: 1}
    clock.now += 49
    assert await outbox.expire() == {}
    clock.now += 1
    assert numbers(await everything(outbox)) == [4]
    assert outbox.dropped == {OutboxDrop.EXPIRED: 2, OutboxDrop.AGE: 1}
    # What is out for sending is the forwarder's to judge.
    clock.now += 1000
    assert await outbox.expire() == {}
    outbox.rewind()
    assert await outbox.expire() == {OutboxDrop.AGE: 1}
    assert outbox.is_empty
    await outbox.close()


async def test_latest_of_a_topic_takes_the_place_of_earlier_ones(outbox: Outbox) -> None:
    def latest(n: int, topic: str) -> OutboxMessage:
        return message(n, qos=0, topic=topic, replaces_topic=True)

    await outbox.append([latest(1, "a"), message(2, qos=0, topic="a"), latest(3, "b"), latest(4, "a")])
    assert outbox.dropped == {OutboxDrop.REPLACED: 1}
    result = await outbox.append([latest(5, "a"), message(6), latest(7, "a")])
    assert result.dropped == {OutboxDrop.REPLACED: 2}
    await outbox.peek(2, ALL)
    await outbox.append([latest(8, "a"), latest(9, "b")])
    rows = await everything(outbox)
    assert numbers(rows) == [2, 3, 6, 8, 9]
    assert [row.mid for row in rows] == [0, 0, 1, 0, 0]


# Life


async def test_operations_run_in_the_order_of_the_calls(outbox: Outbox) -> None:
    await asyncio.gather(*(outbox.append([message(n)]) for n in range(50)))
    assert numbers(await everything(outbox)) == list(range(50))


async def test_cancelled_callers_leave_whole_operations(outbox: Outbox, path: Path) -> None:
    """A cancelled append is in the file wholly or not at all, and the next operation waits for it."""
    for n in range(40):
        task = asyncio.create_task(outbox.append([message(n * 100 + k) for k in range(100)]))
        for _ in range(n % 4):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):  # it may have been quicker
            await task
        assert len(await everything(outbox)) == outbox.messages
        assert outbox.messages % 100 == 0
    await outbox.close()
    kept = numbers(await _reopened(path))
    assert kept
    assert len(kept) % 100 == 0
    assert all(a < b for a, b in pairwise(kept))


async def test_rewind_during_a_peek_wins(path: Path) -> None:
    outbox = Outbox(path, OutboxLimits(messages=5), clock=Clock())
    await outbox.open()
    await outbox.append([message(n) for n in range(5)])
    task = asyncio.create_task(outbox.peek(ALL, ALL))
    await asyncio.sleep(0)
    outbox.rewind()
    assert len(await task) == 5
    await outbox.append([message(5)])
    assert numbers(await everything(outbox)) == list(range(1, 6))
    await outbox.close()


async def test_closed_and_removed(outbox: Outbox, path: Path) -> None:
    await outbox.append([message(1)])
    await outbox.close()
    await outbox.close()
    assert {file.name for file in path.parent.iterdir()} == {path.name}
    with pytest.raises(OutboxError) as caught:
        await outbox.append([message(2)])
    assert caught.value.fault is OutboxFault.CLOSED
    await outbox.open()
    assert outbox.messages == 1
    await outbox.remove()
    assert list(path.parent.iterdir()) == []
    assert outbox.is_empty
    await outbox.open()
    assert list((await outbox.append([message(3)])).seqs) == [1]


async def test_remove_without_open(path: Path) -> None:
    outbox = Outbox(path)
    await outbox.open()
    await outbox.close()
    (path.parent / f"{path.name}.corrupt-20260101T000000-0").touch()
    other = path.parent / "other.db"
    other.touch()
    await Outbox(path).remove()
    assert list(path.parent.iterdir()) == [other]


async def test_close_waits_for_what_is_under_way(outbox: Outbox, path: Path) -> None:
    appends = [asyncio.create_task(outbox.append([message(n)] * 200)) for n in range(5)]
    await asyncio.sleep(0)
    await outbox.close()
    assert all(task.done() for task in appends)
    assert len(await _reopened(path)) == 1000


async def test_two_bridges_cannot_share_a_file(outbox: Outbox, path: Path) -> None:
    await outbox.append([message(1)])
    second = Outbox(path)
    with pytest.raises(OutboxError) as caught:
        await second.open()
    assert caught.value.fault is OutboxFault.IN_USE
    await outbox.close()
    assert (await second.open()).messages == 1
    await second.close()


async def test_file_of_a_later_version_is_left_alone(path: Path) -> None:
    outbox = Outbox(path)
    await outbox.open()
    await outbox.close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(OutboxError, match="later version") as caught:
        await outbox.open()
    assert caught.value.fault is OutboxFault.TOO_NEW
    assert [file.name for file in path.parent.iterdir()] == [path.name]


async def _reopened(path: Path) -> list[OutboxRow]:
    outbox = Outbox(path, clock=Clock())
    await outbox.open()
    rows = await everything(outbox)
    await outbox.close()
    return rows
