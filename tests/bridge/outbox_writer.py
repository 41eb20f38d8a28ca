"""A process that uses an Outbox until it is killed, for the tests of what is left then.

Run as a module it waits for lines `path log seed first` on standard input; for each it forks a writer, prints the
writer's process id, and prints `gone` when the writer has ended. Forking saves the imports of every life.

The writer notes what it does in the log, one line each: lower case when it begins, upper case when the Outbox says that
it is done. `a first count`, `A first count seq`: appended messages with these numbers, from place `seq` on;
`m`: marked received, `d`: deleted, each with places; `r`: removed receipts.
"""

import asyncio
from collections.abc import Sequence
import os
from pathlib import Path
from random import Random
import sys

from custom_components.quic_bridge.bridge.outbox import Outbox, OutboxMessage

from .outbox_support import message


def numbered(number: int) -> OutboxMessage:
    """Make the message that the writer appends under this number."""
    return message(
        number,
        qos=number % 3,
        size=(5, 200, 6000)[number // 7 % 3],
        source_mid=number % 65_535 + 1,
        needs_receipt=number % 3 == 2,
    )


async def write(path: Path, log: int, seed: int, first: int) -> None:
    """Append, hand out, mark, delete, at random and for ever."""
    random = Random(seed)
    outbox = Outbox(path)
    await outbox.open()

    def note(letter: str, values: Sequence[int]) -> None:
        os.write(log, f"{letter} {' '.join(map(str, values))}\n".encode())

    while True:
        # The queue grows and shrinks, down to empty.
        if random.random() < (0.7, 0.1)[first // 1000 % 2]:
            count = random.randint(1, 60)
            note("a", (first, count))
            result = await outbox.append([numbered(n) for n in range(first, first + count)])
            note("A", (first, count, result.seqs[0]))
            first += count
            continue
        outbox.rewind()
        rows = await outbox.peek(random.randint(1, 80), 1_000_000)
        if random.random() < 0.5:
            some = [row.seq for row in rows if row.qos == 2 and not row.released]
            note("m", some)
            await outbox.mark_received(some)
            note("M", some)
        else:
            some = [row.seq for row in rows if random.random() < 0.9]
            note("d", some)
            await outbox.delete(some)
            note("D", some)
        some = random.sample(sorted(outbox.receipts), k=len(outbox.receipts) // 3)
        note("r", some)
        await outbox.remove_receipts(some)
        note("R", some)
        if outbox.is_empty:
            first += 1000 - first % 1000


def main() -> None:
    """Fork a writer for each line of input."""
    for line in sys.stdin:
        path, log, seed, first = line.split()
        pid = os.fork()
        if pid == 0:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            asyncio.run(write(Path(path), descriptor, int(seed), int(first)))
        print(pid, flush=True)
        os.waitpid(pid, 0)
        print("gone", flush=True)


if __name__ == "__main__":
    main()
