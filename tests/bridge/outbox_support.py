"""What the Outbox's tests share."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
import os
from pathlib import Path
import shutil
import subprocess

import pytest

from custom_components.quic_bridge.bridge.outbox import Outbox, OutboxMessage, OutboxPriority, OutboxRescue, OutboxRow


class Clock:
    """Unix time that stands still until it is moved."""

    START = 1_800_000_000.0

    def __init__(self) -> None:
        self.now = self.START

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def message(
    number: int,
    *,
    qos: int = 1,
    size: int = 60,
    topic: str = "home/sensor",
    source_mid: int = 0,
    sent_mid: int | None = None,
    expires_at: float | None = None,
    replaces_topic: bool = False,
    needs_receipt: bool = False,
    released: bool = False,
    priority: OutboxPriority = OutboxPriority.NORMAL,
) -> OutboxMessage:
    """Make a message whose packet says which one it is; `size` counts what follows the number."""
    return OutboxMessage(
        packet=bytes((0x30 | qos << 1,)) + number.to_bytes(8) + number.to_bytes(8)[-1:] * size,
        topic=topic,
        qos=qos,
        source_mid=source_mid,
        sent_mid=sent_mid,
        expires_at=expires_at,
        replaces_topic=replaces_topic,
        needs_receipt=needs_receipt,
        released=released,
        priority=priority,
    )


def number(packet: bytes) -> int:
    """Return the number of the message, after a look at whether all of it is there."""
    assert packet[9:] == packet[8:9] * len(packet[9:])
    return int.from_bytes(packet[1:9])


def packets(rows: Sequence[OutboxRow]) -> list[bytes]:
    """Return the packets alone."""
    return [row.packet for row in rows]


def numbers(rows: Sequence[OutboxRow]) -> list[int]:
    """Return which messages the rows are."""
    return [number(row.packet) for row in rows]


def size(path: Path) -> int:
    """Return the size of the file with its log."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


async def everything(outbox: Outbox) -> list[OutboxRow]:
    """Hand out all rows in portions, from the start."""
    outbox.rewind()
    rows: list[OutboxRow] = []
    while portion := await outbox.peek(700, 1_000_000):
        rows += portion
    return rows


def copy_files(path: Path, folder: Path) -> Path:
    """Copy an Outbox that is in use: what a process that is killed at this moment leaves behind."""
    folder.mkdir(parents=True)
    for file in path.parent.glob(f"{path.name}*"):
        shutil.copy(file, folder / file.name)
    return folder / path.name


async def reopened(path: Path) -> tuple[list[OutboxRow], OutboxRescue | None, int]:
    """Open the file, and return the rows, what was rescued, and how often it had to be."""
    rescues: list[OutboxRescue] = []
    outbox = Outbox(path, clock=Clock(), on_rescue=rescues.append)
    opened = await outbox.open()
    rows = await everything(outbox)
    if opened.rescue is not None:
        rescues.append(opened.rescue)
    await outbox.append([message(7_777_777)])
    assert number((await outbox.peek(1, 1))[0].packet) == 7_777_777
    await outbox.close()
    return rows, rescues[-1] if rescues else None, len(rescues)


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """Make a file system of that size at the folder; skip the test where that is not allowed."""
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("may not mount a small file system here")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def enlarge(folder: Path) -> None:
    """Give that file system space."""
    subprocess.run(["mount", "-o", "remount,size=16m", folder], check=True)
