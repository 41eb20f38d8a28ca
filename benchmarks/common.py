"""What the benchmarks of the running bridge share: the stage, the clocks, medians, the output."""

import argparse
import asyncio
from collections.abc import Coroutine, Mapping, Sequence
import contextlib
from dataclasses import asdict, dataclass
from enum import StrEnum
import gc
import importlib.metadata
import json
import os
from pathlib import Path
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Final, Self, override

from tests.support.certs import Certificates
from tests.support.client import Client
from tests.support.front_process import FrontProcess
from tests.support.mosquitto import Mosquitto, MosquittoOptions, mosquitto_path
from tests.support.set_up import SetUp

from .bridge_process import REPOSITORY, Settings, Usage

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

WIDE_WINDOW: Final = 1000
"""Receive Maximum of the remote broker where the window is not to be the limit: the bridge's own."""
TOPIC: Final = "bridged/burst"
TOPIC_FILTER: Final = "bridged/#"
NOT_BRIDGED: Final = "local/burst"
_CORES: Final = 2
_READY_TIMEOUT: Final = 20.0
_STOP_TIMEOUT: Final = 10.0
_COMMAND_TIMEOUT: Final = 20.0
_QUIET: Final = 3.0
"""Seconds without a message after which those that are missing count as lost."""
_SETTLE: Final = 0.2
"""Seconds for acknowledgements that are still under way, and for copies that come late."""


class Way(StrEnum):
    """What carries the messages from the local to the remote broker."""

    QUIC = "quic_bridge, QUIC"
    TCP = "quic_bridge, TCP"
    MOSQUITTO = "mosquitto's bridge, TCP"
    DIRECT = "no bridge, one broker"
    """What the publisher, the subscriber and a broker do without a bridge: what the others can reach at best."""


BRIDGES: Final = (Way.QUIC, Way.TCP, Way.MOSQUITTO)


class CommandProcess:
    """A program of this package that obeys commands; it ends when its input does, so it cannot outlive this process."""

    def __init__(self, module: str, settings: DataclassInstance, log_file: Path) -> None:
        """`settings` are its argument, as JSON."""
        self._module = module
        self._settings = settings
        self._log_file = log_file
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        with self._log_file.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._module,
                json.dumps(asdict(self._settings)),
                cwd=REPOSITORY,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT):
                await process.wait()
        except TimeoutError, asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise

    async def command(self, command: str) -> dict[str, float]:
        """Have a command carried out; raises RuntimeError with the process's log when it is not."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError(f"{self._module} does not run")
        process.stdin.write(command.encode() + b"\n")
        async with asyncio.timeout(_COMMAND_TIMEOUT):
            answer = await process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._module} failed at {command!r}:\n{self._log_file.read_text()}")
        result: dict[str, float] = json.loads(answer)
        return result


class BridgeProcess(CommandProcess):
    """`python -m benchmarks.bridge_process`."""

    def __init__(self, settings: Settings, log_file: Path) -> None:
        super().__init__("benchmarks.bridge_process", settings, log_file)

    async def report(self) -> Usage:
        """Return what it used since the last `mark`."""
        answer = await self.command("report")
        return Usage(**answer)  # type: ignore[arg-type] # `turns` is an integer in JSON, too


class Stage(SetUp):
    """A publisher, a local broker, what is to be measured, a remote broker, a subscriber.

    Publisher and subscriber are this process, everything else has one of its own, all new with each stage, and all
    on the same two cores.
    """

    local: Mosquitto
    publisher: Client
    subscriber: Client
    bridge: BridgeProcess | None = None

    def __init__(self, way: Way, window: int, profile: Path | None = None) -> None:
        """Prepare; `window` is the Receive Maximum of the remote broker."""
        super().__init__()
        self.way = way
        self.window = window
        self._profile = profile

    @override
    async def _set_up(self) -> None:
        async with asyncio.timeout(_READY_TIMEOUT):
            folder = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="quic-bridge-benchmark-")))
            remote = Mosquitto(folder, _options(self.window), name="remote")
            await self.enter_async_context(remote)
            extra = _mosquitto_bridge(remote) if self.way is Way.MOSQUITTO else ()
            self.local = Mosquitto(folder, _options(WIDE_WINDOW, extra), name="local")
            await self.enter_async_context(self.local)
            if self.way in {Way.QUIC, Way.TCP}:
                await self._start_bridge(folder, remote)
            receiving = self.local if self.way is Way.DIRECT else remote
            self.publisher = await self.enter_async_context(Client(self.local.host, self.local.port))
            self.subscriber = await self.enter_async_context(Client(receiving.host, receiving.port))
            await self.subscriber.subscribe(TOPIC_FILTER, qos=2)
            await self._see_a_message_cross()

    async def _start_bridge(self, folder: Path, remote: Mosquitto) -> None:
        certificates = Certificates(folder)
        address = remote.address
        if self.way is Way.QUIC:
            front = await self.enter_async_context(FrontProcess(folder, address, certificates.server))
            address = front.address
        settings = Settings(
            transport="quic" if self.way is Way.QUIC else "tcp",
            local=self.local.address,
            remote=address,
            topic_filter=TOPIC_FILTER,
            ca_file=str(certificates.ca_file),
            profile=None if self._profile is None else str(self._profile),
        )
        self.bridge = await self.enter_async_context(BridgeProcess(settings, folder / "bridge.log"))
        await self.bridge.command("start")

    async def _see_a_message_cross(self) -> None:
        """Return when the way is open and empty. Connected is too early: the bridge may still subscribe."""
        messages = self.subscriber.messages
        while not messages:
            await self.publisher.publish(TOPIC, b"open?", 1)
            with contextlib.suppress(TimeoutError):
                await self.subscriber.wait_for(1, timeout=0.1)
        # mosquitto's bridge may turn around what it was given before it was connected, but nothing after that.
        await self.publisher.publish(TOPIC, b"open", 1)
        await self.subscriber.wait_for(lambda messages: messages[-1].payload == b"open")
        messages.clear()


def _options(window: int, extra: Sequence[str] = ()) -> MosquittoOptions:
    # No bound on what waits, or mosquitto drops above 1000. Its log of every packet would cost more than the packets.
    return MosquittoOptions(
        max_inflight_messages=window, max_queued_messages=0, extra=["log_type none", "log_type error", *extra]
    )


def _mosquitto_bridge(remote: Mosquitto) -> tuple[str, ...]:
    return (
        "connection benchmark",
        f"address {remote.host}:{remote.port}",
        "bridge_protocol_version mqttv50",
        "cleansession false",
        "notifications false",
        f"topic {TOPIC_FILTER} out 2",
    )


def cpu_seconds(pid: int) -> float:
    """CPU that a process of any kind has used so far, in user and kernel mode, to the nanosecond.

    Linux's CPU clock of the process (clock_getcpuclockid); /proc has it in steps of 10 ms only.
    """
    return time.clock_gettime(~pid << 3 | 2)


def payloads(count: int, size: int) -> list[bytes]:
    """Numbered payloads of `size` bytes (8 at least)."""
    return [number.to_bytes(8).ljust(size, b".") for number in range(count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What became of numbered messages."""

    sent: int
    delivered: int
    """Different messages that arrived."""
    lost: int
    duplicates: int
    out_of_order: int
    """Messages that arrived, for the first time, after one that was sent later."""


def tally(arrived: Sequence[bytes], sent: int) -> Tally:
    """Compare what arrived with what was sent."""
    seen: set[int] = set()
    out_of_order = 0
    highest = -1
    for payload in arrived:
        number = int.from_bytes(payload[:8])
        if number in seen:
            continue
        seen.add(number)
        if number < highest:
            out_of_order += 1
        highest = max(highest, number)
    return Tally(
        sent=sent,
        delivered=len(seen),
        lost=sent - len(seen),
        duplicates=len(arrived) - len(seen),
        out_of_order=out_of_order,
    )


async def arrivals(subscriber: Client, sent: int) -> Tally:
    """Wait until all numbered messages are there, or nothing has come for a while."""
    result = tally(subscriber.payloads, sent)
    while result.lost:
        before = len(subscriber.messages)
        with contextlib.suppress(TimeoutError):
            await subscriber.wait_for(before + result.lost, timeout=_QUIET)
        if len(subscriber.messages) == before:
            break
        result = tally(subscriber.payloads, sent)
    await asyncio.sleep(_SETTLE)
    return tally(subscriber.payloads, sent)


# --- what is common to the programs ---------------------------------------------------------------------------------


def parser(description: str | None, *, runs: int) -> argparse.ArgumentParser:
    """Make a parser with the options that all have."""
    made = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    made.add_argument("--runs", type=int, default=runs, help=f"runs of each line, of which medians are shown ({runs})")
    made.add_argument("--size", type=int, default=256, help="bytes of payload (256)")
    made.add_argument("--json", action="store_true", help="print all runs as JSON instead of a table")
    return made


def surroundings() -> dict[str, object]:
    """Tell what the figures depend on."""
    mosquitto = subprocess.run([mosquitto_path(), "-h"], capture_output=True, text=True, check=False).stdout
    return {
        "python": sys.version.split()[0],
        "aioquic": importlib.metadata.version("aioquic"),
        "mosquitto": mosquitto.partition("\n")[0].removeprefix("mosquitto version "),
        "cores": min(_CORES, len(os.sched_getaffinity(0))),
        "load_before": os.getloadavg()[0],
    }


def describe(around: Mapping[str, object]) -> str:
    """Put the surroundings into one line."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in around.items())


def run[Result](main: Coroutine[object, object, Result], limit: float) -> Result:
    """Run a benchmark on two cores for at most `limit` seconds; Ctrl-C and SIGTERM end it and all that it started."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:_CORES])
    # The subscriber keeps every message; a collection that looks through them all would be taken for latency.
    gc.disable()

    async def bounded() -> Result:
        task = asyncio.current_task()
        if task is not None:
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        async with asyncio.timeout(limit):
            return await main

    try:
        return asyncio.run(bounded())
    except asyncio.CancelledError:
        sys.exit("ended by a signal")


def median(values: Sequence[float | None]) -> float | None:
    """Median of those values that there are; None if there are none."""
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def figure(value: float | None, digits: int = 0) -> str:
    """Show a figure, or that there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Set a table: first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    )


def progress(text: str) -> None:
    """Say on standard error what is going on."""
    print(text, file=sys.stderr, flush=True)
