"""The Outbox beside a list that follows the same rules, through whatever hypothesis comes up with."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
import shutil
import tempfile
from typing import Final, override

from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
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

from .outbox_support import Clock, copy_files

FIRSTS: Final = {OutboxPriority.HIGH: 2**60, OutboxPriority.NORMAL: 1, OutboxPriority.LOW: 2**61}
"""The first place of each priority, in the order in which they are handed out."""
MAX_MESSAGES: Final = 8
MAX_BYTES: Final = 400
MAX_AGE: Final = 60.0


@dataclass(frozen=True)
class Row:
    """A row as the model has it."""

    seq: int
    mid: int
    given: bool
    message: OutboxMessage
    created_at: float
    released: bool = False

    @property
    def lane(self) -> OutboxPriority:
        """Which queue it is in."""
        return max((lane for lane, first in FIRSTS.items() if first <= self.seq), key=FIRSTS.__getitem__)

    @property
    def size(self) -> int:
        """Bytes that count."""
        return 0 if self.released else len(self.message.packet)


class Model:
    """The rules of the Outbox on a list."""

    def __init__(self, policy: OutboxPolicy) -> None:
        self.policy = policy
        self.rows: list[Row] = []
        """By their places."""
        self.still_in_file: list[Row] = []
        """Deleted, but not in the file yet."""
        self.receipts: set[int] = set()
        self.dropped: Counter[OutboxDrop] = Counter()
        self.next_seq = dict(FIRSTS)
        self.last_mid = 0
        self.sent_upto = {lane: first - 1 for lane, first in FIRSTS.items()}
        self.source_from = dict(self.sent_upto)
        self.handed_out = dict(self.sent_upto)

    @property
    def messages(self) -> list[Row]:
        """Rows that count."""
        return [row for row in self.rows if not row.released]

    def _drop(self, row: Row, reason: OutboxDrop) -> None:
        self.dropped[reason] += 1
        place = self.rows.index(row)
        if row.message.qos == 2 and self.sent(row):
            self.rows[place] = replace(row, released=True)
        else:
            del self.rows[place]

    def sent(self, row: Row) -> bool:
        """Whether the remote may have it."""
        return row.seq <= self.sent_upto[row.lane]

    def out(self, row: Row) -> bool:
        """Whether it is handed out."""
        return row.seq <= self.handed_out[row.lane]

    def _droppable(self) -> list[Row]:
        """Those that may go, the least important and of these the oldest first."""
        return sorted((row for row in self.messages if not self.out(row)), key=lambda row: (-row.lane, row.seq))

    def peek(self, count: int, size: int) -> list[Row]:
        """Hand out."""
        inside = [row for row in self.rows if not self.out(row)]
        # Of what was sent the normal lane is the first, and its places are the lowest.
        inside.sort(key=lambda row: (not self.sent(row), 0 if self.sent(row) else row.lane, row.seq))
        found: list[Row] = []
        for row in inside[:count]:
            if found and sum(row.size for row in found) + row.size > size:
                break
            found.append(row)
        return found

    def expire(self, now: float) -> None:
        """Drop what is too old."""
        for row in self._droppable():
            if row.message.expires_at is not None and row.message.expires_at <= now:
                self._drop(row, OutboxDrop.EXPIRED)
        for row in self._droppable():
            if row.created_at <= now - MAX_AGE:
                self._drop(row, OutboxDrop.AGE)

    def append(self, messages: list[OutboxMessage], now: float) -> int:
        """Return how many were taken."""
        self.still_in_file.clear()
        self.expire(now)
        for taken, message in enumerate(messages):
            replaced = [
                row
                for row in self._droppable()
                if message.replaces_topic and row.message.replaces_topic and row.message.topic == message.topic
            ]
            size = len(message.packet)
            if self.policy is OutboxPolicy.REFUSE and not message.released and size <= MAX_BYTES:
                rest = [row for row in self.messages if row not in replaced]
                if len(rest) == MAX_MESSAGES or sum(row.size for row in rest) + size > MAX_BYTES:
                    return taken
            for row in replaced:
                self._drop(row, OutboxDrop.REPLACED)
            given = message.sent_mid is not None and (
                message.released or message.sent_mid not in [row.mid for row in self.rows if not row.given]
            )
            lane = OutboxPriority.NORMAL if given else message.priority
            before = (self.sent_upto[lane], self.last_mid)
            seq = self.next_seq[lane]
            row = Row(seq, self._mid(message, given=given), given, message, now, message.released)
            self.next_seq[lane] += 1
            self.rows.append(row)
            self.rows.sort(key=lambda row: row.seq)
            if message.needs_receipt:
                self.receipts.add(message.source_mid)
            if given:
                self.sent_upto[lane] = row.seq
            if not row.released and message.expires_at is not None and message.expires_at <= now:
                self._drop(row, OutboxDrop.EXPIRED)
            elif not row.released and size > MAX_BYTES:
                self._drop(row, OutboxDrop.FULL_BYTES)
            if seq not in [row.seq for row in self.rows]:
                self.sent_upto[lane], self.last_mid = before
        if self.policy is OutboxPolicy.DROP_OLDEST:
            for row in self._droppable():
                if len(self.messages) > MAX_MESSAGES:
                    self._drop(row, OutboxDrop.FULL_MESSAGES)
                elif sum(row.size for row in self.rows) > MAX_BYTES:
                    self._drop(row, OutboxDrop.FULL_BYTES)
        return len(messages)

    def _mid(self, message: OutboxMessage, *, given: bool) -> int:
        if given or message.qos == 0:
            return message.sent_mid or 0
        self.last_mid += 1
        while self.last_mid in [row.mid for row in self.rows if row.given]:
            self.last_mid += 1
        return self.last_mid

    def restart(self) -> None:
        """What a new process knows."""
        self.rewind()
        self.dropped.clear()
        for lane in FIRSTS:
            places = [row.seq for row in self.rows if row.lane == lane]
            self.next_seq[lane] = max([self.sent_upto[lane], self.source_from[lane], *places]) + 1
        counted = [
            (row.created_at, row.mid)
            for lane in FIRSTS
            for row in [row for row in self.rows if row.lane == lane and not row.given and row.message.qos][-1:]
        ]
        self.last_mid = max(counted)[1] if counted else 0

    def rewind(self) -> None:
        """Nothing is handed out any more."""
        self.handed_out = {lane: first - 1 for lane, first in FIRSTS.items()}

    def crash(self) -> None:
        """What was not in the file never happened."""
        self.rows = sorted([*self.rows, *self.still_in_file], key=lambda row: row.seq)
        self.still_in_file.clear()
        self.restart()


@dataclass(frozen=True)
class Draft:
    """What a message is to be like, as far as the rules allow it."""

    qos: int
    sent_mid: int | None
    lifetime: float | None
    padding: int
    topic: str
    replaces_topic: bool
    receipt: bool
    released: bool
    priority: OutboxPriority


CHOICES: Final = (
    (1, 2, 2, 0),
    (None, None, *range(1, 13)),
    (None, None, None, 0.0, 10.0, 40.0),
    (0, 0, 20, 100, 350, MAX_BYTES),
    ("a", "b", "c", "d"),
    (False, False, True),
    (False, True),
    (False, False, True),
    (OutboxPriority.NORMAL, *OutboxPriority),
)
DRAFTS: Final = st.builds(Draft, *(st.sampled_from(choices) for choices in CHOICES))


class OutboxMachine(RuleBasedStateMachine):
    """Does the same to both."""

    @initialize(policy=st.sampled_from(OutboxPolicy))
    def begin(self, policy: OutboxPolicy) -> None:
        """Open."""
        self.folder = Path(tempfile.mkdtemp())
        self.lives = 0
        self.count = 0
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.model = Model(policy)
        self._open(self.folder / "0" / "outbox.db")

    def _open(self, path: Path) -> None:
        self.path = path
        limits = OutboxLimits(messages=MAX_MESSAGES, bytes=MAX_BYTES, age=MAX_AGE, policy=self.model.policy)
        self.outbox = Outbox(path, limits, clock=self.clock)
        opened = self.do(self.outbox.open())
        assert opened.rescue is None
        assert opened.messages == len(self.model.messages)

    def do[T](self, operation: Awaitable[T]) -> T:
        """Run it."""

        async def wait() -> T:
            return await operation

        return self.runner.run(wait())

    @override
    def teardown(self) -> None:
        """Close."""
        if hasattr(self, "outbox"):
            self.do(self.outbox.close())
            self.runner.close()
            shutil.rmtree(self.folder)

    @rule(drafts=st.lists(DRAFTS, min_size=1, max_size=5))
    def append(self, drafts: list[Draft]) -> None:
        """A batch, with messages that were sent among others."""
        batch: list[OutboxMessage] = []
        given = {row.mid for row in self.model.rows if row.given}
        only_sent = all(row.given for row in self.model.rows)
        assert self.outbox.has_only_sent == only_sent
        for mid in range(1, 13):
            assert self.outbox.may_have_been_sent(mid) == (mid not in given)
        for draft in drafts:
            sent_mid = draft.sent_mid if draft.qos and draft.sent_mid not in given else None
            only_sent = only_sent and sent_mid is not None
            if sent_mid is not None:
                given.add(sent_mid)
            self.count += 1
            batch.append(
                OutboxMessage(
                    packet=self.count.to_bytes(4) + bytes(draft.padding),
                    topic=draft.topic,
                    qos=draft.qos,
                    source_mid=self.count % 65_535 + 1,
                    sent_mid=sent_mid,
                    expires_at=None if draft.lifetime is None else self.clock.now + draft.lifetime,
                    priority=draft.priority,
                    replaces_topic=draft.replaces_topic,
                    needs_receipt=draft.qos == 2 and draft.receipt,
                    released=draft.qos == 2 and only_sent and draft.released,
                )
            )
        before = self.model.dropped.copy()
        taken = self.model.append(batch, self.clock.now)
        result = self.do(self.outbox.append(batch))
        assert len(result.seqs) == taken
        assert result.refused == len(batch) - taken
        assert result.dropped == self.model.dropped - before

    @rule(after=st.booleans(), count=st.integers(1, 6), size=st.sampled_from((1, 150, 10_000)))
    def peek(self, after: bool, count: int, size: int) -> None:
        """Hand out."""
        if not after:
            self.rewind()
        self.model.still_in_file.clear()
        self.model.expire(self.clock.now)
        expected = self.model.peek(count, size)
        rows = self.do(self.outbox.peek(count, size))
        assert rows == [self.expected(row) for row in expected]
        for row in expected:
            self.model.sent_upto[row.lane] = max(self.model.sent_upto[row.lane], row.seq)
            self.model.handed_out[row.lane] = row.seq

    def expected(self, row: Row) -> OutboxRow:
        """Return what `peek` is to give."""
        one, released = row.message, row.released
        return OutboxRow(
            seq=row.seq,
            mid=row.mid,
            qos=one.qos,
            packet=b"" if released else one.packet,
            topic="" if released else one.topic,
            created_at=row.created_at,
            expires_at=None if released else one.expires_at,
            sent=self.model.sent(row),
            released=released,
        )

    @rule(chosen=st.sets(st.integers(0, 7)), fails=st.booleans())
    def delete(self, chosen: set[int], fails: bool) -> None:
        """Some of what is handed out; sometimes the file cannot be written."""
        gone = [row for n, row in enumerate(self.model.rows) if n in chosen and self.model.out(row)]
        self.model.rows = [row for row in self.model.rows if row not in gone]
        self.model.still_in_file = [*self.model.still_in_file, *gone] if fails else []
        self.writable(not fails)
        self.do(self.outbox.delete([row.seq for row in gone]))
        self.writable(True)

    @rule(chosen=st.sets(st.integers(0, 7)), fails=st.booleans())
    def mark_received(self, chosen: set[int], fails: bool) -> None:
        """Some of what is handed out."""
        rows = [row for n, row in enumerate(self.model.rows) if n in chosen and self.model.out(row)]
        rows = [row for row in rows if row.message.qos == 2 and not row.released]
        seqs = [row.seq for row in rows]
        if fails and rows:
            self.writable(False)
            try:
                self.do(self.outbox.mark_received(seqs))
            except OutboxError as error:
                assert error.fault is OutboxFault.NOT_WRITABLE  # noqa: PT017
            else:
                raise AssertionError
            finally:
                self.writable(True)
            return
        self.do(self.outbox.mark_received(seqs))
        self.model.still_in_file.clear()
        self.model.rows = [replace(row, released=True) if row in rows else row for row in self.model.rows]

    def writable(self, yes: bool) -> None:
        """Have SQLite refuse to write, or not."""
        self.outbox._store._ledger.db.execute(f"PRAGMA query_only = {'OFF' if yes else 'ON'}")

    @rule(number=st.integers(1, 60))
    def find(self, number: int) -> None:
        """A message that the local broker sends again."""
        rows = [row for row in self.model.rows if row.message.source_mid == number and not row.released]
        for row in rows:
            assert self.do(self.outbox.find(number, row.message.packet))
        if not rows and number not in [row.message.source_mid for row in self.model.still_in_file]:
            assert not self.do(self.outbox.find(number, (number - 1).to_bytes(4)))

    @rule(chosen=st.sets(st.integers(1, 60)))
    def remove_receipts(self, chosen: set[int]) -> None:
        """PUBREL."""
        self.do(self.outbox.remove_receipts(chosen))
        self.model.still_in_file.clear()
        self.model.receipts -= chosen

    @rule()
    def forget_local_session(self) -> None:
        """The local broker lost it."""
        self.do(self.outbox.forget_local_session())
        self.model.still_in_file.clear()
        self.model.receipts.clear()
        self.model.source_from = {lane: place - 1 for lane, place in self.model.next_seq.items()}
        self.model.rows = [
            replace(row, message=replace(row.message, source_mid=0, needs_receipt=False)) for row in self.model.rows
        ]

    @rule()
    def rewind(self) -> None:
        """The remote is lost."""
        self.outbox.rewind()
        self.model.rewind()

    @rule(seconds=st.sampled_from((1.0, 9.0, 30.0)))
    def wait(self, seconds: float) -> None:
        """Time passes, and nobody looks."""
        self.clock.now += seconds

    @rule()
    def expire(self) -> None:
        """Somebody looks."""
        before = self.model.dropped.copy()
        self.model.still_in_file.clear()
        self.model.expire(self.clock.now)
        assert self.do(self.outbox.expire()) == self.model.dropped - before

    @rule()
    def restart(self) -> None:
        """In good order."""
        self.do(self.outbox.close())
        self.model.still_in_file.clear()
        self.model.restart()
        self._open(self.path)

    @rule()
    def crash(self) -> None:
        """Go on with the files as a killed process would leave them."""
        self.lives += 1
        path = copy_files(self.path, self.folder / str(self.lives))
        self.do(self.outbox.close())
        self.model.crash()
        self._open(path)

    @precondition(lambda self: hasattr(self, "outbox"))
    @invariant()
    def same(self) -> None:
        """Every figure, and every row."""
        model, outbox = self.model, self.outbox
        assert outbox.messages == len(model.messages)
        assert outbox.bytes == sum(row.size for row in model.rows)
        assert outbox.oldest == min((row.created_at for row in model.messages), default=None)
        assert outbox.is_empty == (not model.rows)
        assert outbox.receipts == model.receipts
        assert outbox.dropped == +model.dropped
        mids = [row.mid for row in model.rows if row.message.qos]
        assert len(set(mids)) == len(mids)
        rows = outbox._store._ledger.db.execute(
            "SELECT seq, mid, released, packet FROM messages ORDER BY seq"
        ).fetchall()
        in_file = sorted([*model.rows, *model.still_in_file], key=lambda row: row.seq)
        assert rows == [
            (row.seq, row.mid, row.released, b"" if row.released else row.message.packet) for row in in_file
        ]


TestOutboxModel = OutboxMachine.TestCase
TestOutboxModel.settings = settings(max_examples=50, stateful_step_count=40, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("policy", OutboxPolicy)
@pytest.mark.parametrize("seed", range(3))
def test_long_lives(policy: OutboxPolicy, seed: int) -> None:
    """The same at greater length than hypothesis goes: states that only a long history leads to."""
    random = Random(seed)
    machine = OutboxMachine()
    machine.begin(policy)

    def append() -> None:
        machine.append([Draft(*(random.choice(choices) for choices in CHOICES)) for _ in range(random.randint(1, 5))])

    def some() -> set[int]:
        return set(random.sample(range(8), random.randint(0, 8)))

    steps: dict[Callable[[], object], int] = {
        append: 8,
        lambda: machine.peek(random.random() < 0.5, random.randint(1, 6), random.choice((1, 150, 10_000))): 6,
        lambda: machine.delete(some(), random.random() < 0.3): 5,
        lambda: machine.mark_received(some(), random.random() < 0.3): 2,
        lambda: machine.find(max(1, machine.count - random.randrange(10))): 2,
        lambda: machine.remove_receipts(
            {*random.sample(sorted(machine.model.receipts), len(machine.model.receipts) // 2)}
        ): 1,
        machine.forget_local_session: 1,
        machine.rewind: 3,
        lambda: machine.wait(random.choice((1.0, 9.0, 30.0))): 3,
        machine.expire: 1,
        machine.restart: 1,
        machine.crash: 1,
    }
    try:
        for step in random.choices([*steps], [*steps.values()], k=2000):
            step()
            machine.same()
    finally:
        machine.teardown()
    assert machine.lives > 5
