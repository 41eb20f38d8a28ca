"""How fast the Outbox takes messages, gives them back and forgets them, and how long it keeps the event loop waiting.

    python -m benchmarks.outbox [--messages N] [--batch N] [--size BYTES] [--folder PATH] [--json]

The figures depend on the disk of `--folder`: each batch is one durable commit. The probe beside them is one write and
fsync of 4 KiB on the same disk: what a commit costs there at the least.
"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
import gc
import json
import os
from pathlib import Path
import sys
import tempfile
import time
from typing import Self

from custom_components.quic_bridge.bridge.outbox import Outbox, OutboxLimits, OutboxMessage


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table."""

    name: str
    messages: int
    seconds: float
    per_second: float
    slowest_ms: float
    """The longest single call."""
    stall_ms: float
    """The longest time in which the event loop could not run anything else."""


class StallMeter:
    """Keeps the loop turning, and remembers the longest turn."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._turn())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _turn(self) -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.0005)
            now = time.perf_counter()
            self.longest = max(self.longest, now - last - 0.0005)
            last = now


async def measure(name: str, messages: int, step: Callable[[], Awaitable[bool]]) -> Figure:
    """Call `step` until it returns False."""
    slowest = 0.0
    async with StallMeter() as meter:
        began = last = time.perf_counter()
        going = True
        while going:
            going = await step()
            now = time.perf_counter()
            slowest = max(slowest, now - last)
            last = now
    seconds = last - began
    return Figure(name, messages, seconds, messages / seconds, slowest * 1000, meter.longest * 1000)


def fsync_probe(folder: Path, count: int = 50) -> float:
    """Return the mean milliseconds of a 4 KiB append with fsync."""
    path = folder / "probe"
    with path.open("wb", buffering=0) as file:
        began = time.perf_counter()
        for _ in range(count):
            file.write(bytes(4096))
            os.fsync(file.fileno())
        seconds = time.perf_counter() - began
    path.unlink()
    return seconds / count * 1000


async def run(folder: Path, count: int, batch: int, size: int) -> list[Figure]:
    """Fill the Outbox, open it again, empty it."""
    path = folder / "outbox.db"
    limits = OutboxLimits(messages=max(count, 1))
    payload = os.urandom(max(size - 24, 1))
    packet = b"\x32\x7f\x00\x12home/sensor/000001\x00\x00" + payload
    messages = [
        OutboxMessage(packet=packet, topic=f"home/sensor/{n % 1000:06}", qos=1 + n % 2, source_mid=n % 65_535 + 1)
        for n in range(count)
    ]
    # The test's own objects are not to be what the garbage collector looks through while the Outbox is timed.
    gc.collect()
    gc.freeze()
    figures = []
    outbox = Outbox(path, limits)
    await outbox.open()
    place = 0

    async def append() -> bool:
        nonlocal place
        await outbox.append(messages[place : place + batch])
        place += batch
        return place < count

    figures.append(await measure(f"append, batches of {batch}", count, append))

    async def append_full() -> bool:
        nonlocal place
        await outbox.append(messages[place : place + batch])
        place += batch
        return place < count // 4

    place = 0
    figures.append(await measure("append when full (drops the oldest)", count // 4, append_full))
    await outbox.close()

    async def reopen() -> bool:
        await outbox.open()
        return False

    figures.append(await measure(f"open with {count} messages", count, reopen))

    async def drain() -> bool:
        rows = await outbox.peek(batch, 1024 * 1024)
        if not rows:
            return False
        await outbox.mark_received([row.seq for row in rows if row.qos == 2])
        await outbox.delete([row.seq for row in rows])
        return True

    figures.append(await measure("drain: peek, mark received, delete", count, drain))
    place = 0

    async def append_single() -> bool:
        nonlocal place
        await outbox.append(messages[place : place + 1])
        place += 1
        return place < min(count, 500)

    figures.append(await measure("append, one by one", min(count, 500), append_single))
    await outbox.remove()
    return figures


def main() -> int:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--size", type=int, default=150, help="bytes of a PUBLISH packet")
    parser.add_argument("--folder", type=Path, default=None, help="where to put the file (default: a temporary folder)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        probe = fsync_probe(Path(name))
        figures = asyncio.run(run(Path(name), arguments.messages, arguments.batch, arguments.size))
    if arguments.json:
        result = {
            "benchmark": "outbox",
            "batch": arguments.batch,
            "size": arguments.size,
            "fsync_ms": probe,
            "figures": [asdict(figure) for figure in figures],
        }
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        print(f"{arguments.size} bytes each; one fsync of 4 KiB takes {probe:.2f} ms here\n")
        print(f"{'':38}{'messages':>10}{'seconds':>10}{'per second':>12}{'slowest ms':>12}{'stall ms':>10}")
        for figure in figures:
            print(
                f"{figure.name:38}{figure.messages:10}{figure.seconds:10.3f}{figure.per_second:12.0f}"
                f"{figure.slowest_ms:12.2f}{figure.stall_ms:10.2f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
