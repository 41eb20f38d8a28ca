"""How the bridge takes a burst: 10,000 messages at once from the local to the remote broker, and a waiting backlog.

    python -m benchmarks.burst [--messages N] [--runs N] [--size BYTES] [--only WAY] [--json] [--profile FILE]

Beside it, in the same run: the bridge over plain TCP, mosquitto's own bridge, and no bridge at all. What each figure
means is said in docs/benchmarks.md.
"""

import argparse
import asyncio
from dataclasses import asdict, dataclass
import json
from pathlib import Path
import sys
from typing import Final

from . import common
from .common import NOT_BRIDGED, TOPIC, WIDE_WINDOW, Stage, Tally, Way

EMQX_WINDOW: Final = 32
"""EMQX's default of max_inflight, which it announces as its Receive Maximum."""
_WARM_UP: Final = 500
_STAGE_TIMEOUT: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the table."""

    way: Way
    window: int
    qos: int
    drain: bool = False
    """The bridge is connected when all messages wait in the local broker already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run of a line.

    CPU is in microseconds a message. None: there is no bridge process, or not all messages arrived.
    """

    tally: Tally
    per_second: float | None
    """Messages, by the time from the first call to the last arrival."""
    bridge_us: float | None
    broker_us: float | None
    """CPU of the local broker beyond what it takes to accept the same burst that nobody wants."""
    broker_whole_us: float | None
    """All CPU of the local broker."""
    stall_ms: float | None
    stall_cpu_ms: float | None
    rss_mib: float | None


def lines() -> list[Line]:
    """What is measured, in the order of the table."""
    bursts = [Line(way=way, window=WIDE_WINDOW, qos=qos) for qos in (0, 1, 2) for way in Way]
    narrow = [Line(way=way, window=EMQX_WINDOW, qos=qos) for qos in (1, 2) for way in common.BRIDGES]
    drains = [Line(way=way, window=WIDE_WINDOW, qos=1, drain=True) for way in (Way.QUIC, Way.TCP)]
    return bursts + narrow + drains


async def measure(stage: Stage, line: Line, messages: int, size: int) -> Measured:
    """Send one burst through a stage that is up."""
    payloads = common.payloads(messages, size)
    loop = asyncio.get_running_loop()
    local, publisher, subscriber, bridge = stage.local, stage.publisher, stage.subscriber, stage.bridge
    subscriber.messages.clear()
    before = common.cpu_seconds(local.pid)
    await publisher.burst(NOT_BRIDGED, payloads, line.qos)
    accepting = common.cpu_seconds(local.pid) - before

    before = common.cpu_seconds(local.pid)
    if line.drain:
        if bridge is None:
            raise ValueError("nothing to connect later")
        await bridge.command("stop")
        await publisher.burst(TOPIC, payloads, line.qos)
    if bridge is not None:
        await bridge.command("mark")
    began = loop.time()
    if line.drain and bridge is not None:
        await bridge.command("start")
        result = await common.arrivals(subscriber, messages)
    else:
        async with asyncio.TaskGroup() as group:
            group.create_task(publisher.burst(TOPIC, payloads, line.qos))
            result = await common.arrivals(subscriber, messages)
    usage = None if bridge is None else await bridge.report()
    whole = common.cpu_seconds(local.pid) - before
    complete = not result.lost

    def micro(seconds: float) -> float | None:
        return seconds / messages * 1e6 if complete else None

    return Measured(
        tally=result,
        per_second=messages / (subscriber.messages[-1].time - began) if complete else None,
        bridge_us=None if usage is None else micro(usage.cpu_s),
        broker_us=micro(whole - accepting),
        broker_whole_us=micro(whole),
        stall_ms=None if usage is None else usage.stall_ms,
        stall_cpu_ms=None if usage is None else usage.stall_cpu_ms,
        rss_mib=None if usage is None else usage.rss_mib,
    )


async def run_once(
    wanted: list[Line], messages: int, size: int, profile: Path | None = None
) -> list[tuple[Line, Measured]]:
    """Measure each line once, those of the same way and window on one stage."""
    measured: list[tuple[Line, Measured]] = []
    for way, window in dict.fromkeys((line.way, line.window) for line in wanted):
        async with asyncio.timeout(_STAGE_TIMEOUT), Stage(way, window, profile) as stage:
            await stage.publisher.burst(TOPIC, common.payloads(_WARM_UP, size), 1)
            await common.arrivals(stage.subscriber, _WARM_UP)
            measured += [
                (line, await measure(stage, line, messages, size))
                for line in wanted
                if (line.way, line.window) == (way, window)
            ]
    return measured


async def run_all(wanted: list[Line], arguments: argparse.Namespace) -> dict[Line, list[Measured]]:
    """Repeat all lines in turn, so that what else the machine does falls on all alike."""
    results: dict[Line, list[Measured]] = {line: [] for line in wanted}
    for number in range(arguments.runs):
        common.progress(f"run {number + 1} of {arguments.runs}")
        for line, measured in await run_once(wanted, arguments.messages, arguments.size, arguments.profile):
            results[line].append(measured)
    return results


def show(results: dict[Line, list[Measured]]) -> str:
    """Set the table: medians, but the worst of what must not happen."""
    head = (
        "", "QoS", "window", "delivered", "lost", "out of order", "duplicates", "msg/s", "bridge us", "broker us",
        "both us", "stall ms", "worst", "CPU ms", "RSS MiB",
    )  # fmt: skip
    rows = []
    for line, runs in results.items():
        tallies = [run.tally for run in runs]
        bridge = common.median([run.bridge_us for run in runs])
        stalls = [run.stall_ms for run in runs if run.stall_ms is not None]
        both = common.median([run.broker_us + (run.bridge_us or 0) for run in runs if run.broker_us is not None])
        rows.append(
            (
                f"{line.way}{', backlog' if line.drain else ''}",
                str(line.qos),
                str(line.window) if line.qos and line.way is not Way.DIRECT else "-",
                str(min(item.delivered for item in tallies)),
                str(max(item.lost for item in tallies)),
                str(max(item.out_of_order for item in tallies)),
                str(max(item.duplicates for item in tallies)),
                common.figure(common.median([run.per_second for run in runs])),
                common.figure(bridge, 1),
                common.figure(common.median([run.broker_us for run in runs]), 1),
                common.figure(both, 1),
                common.figure(common.median(stalls), 1),
                common.figure(max(stalls, default=None), 1),
                common.figure(common.median([run.stall_cpu_ms for run in runs]), 1),
                common.figure(common.median([run.rss_mib for run in runs])),
            )
        )
    return common.table(head, rows)


def main() -> int:
    """Measure and print."""
    parser = common.parser(__doc__, runs=3)
    parser.add_argument("--messages", type=int, default=10_000, help="messages of a burst (10000)")
    parser.add_argument("--only", choices=[way.name.lower() for way in Way], help="one way only")
    parser.add_argument("--profile", type=Path, help="write a cProfile of the bridge in a QoS 1 burst over QUIC there")
    arguments = parser.parse_args()
    wanted = [line for line in lines() if arguments.only in {None, line.way.name.lower()}]
    if arguments.profile is not None:
        wanted = [Line(way=Way.QUIC, window=WIDE_WINDOW, qos=1)]
        arguments.profile = arguments.profile.absolute()
    around = common.surroundings()
    results = common.run(run_all(wanted, arguments), limit=60.0 + 120.0 * arguments.runs)
    if arguments.json:
        result = {
            "benchmark": "burst",
            "messages": arguments.messages,
            "size": arguments.size,
            "surroundings": around,
            "lines": [asdict(line) | {"runs": [asdict(run) for run in runs]} for line, runs in results.items()],
        }
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        print(f"Bursts of {arguments.messages} messages of {arguments.size} bytes, median of {arguments.runs} runs\n")
        print(show(results))
        print(f"\n{common.describe(around)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
