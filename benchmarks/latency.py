"""How long a message takes at a calm pace (100 a second), and what the bridge spends on it.

    python -m benchmarks.latency [--rate N] [--seconds N] [--runs N] [--size BYTES] [--qos N] [--json]

Beside it, in the same run: the bridge over plain TCP, mosquitto's own bridge, and no bridge at all. What each figure
means is said in docs/benchmarks.md.
"""

import argparse
import asyncio
from dataclasses import asdict, dataclass
import json
import statistics
import sys
from typing import Final

from . import common
from .common import NOT_BRIDGED, TOPIC, WIDE_WINDOW, Stage, Tally, Way

_WARM_UP: Final = 100
_EXTRA_TIME: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run. Latency runs from the publisher's call to the subscriber's, both in the same process."""

    tally: Tally
    p50_ms: float
    p99_ms: float
    longest_ms: float
    bridge_us: float | None
    """CPU of the bridge process for each message, in microseconds; None where there is no bridge process."""
    bridge_percent: float | None
    """The same as percent of one core."""
    broker_us: float
    """CPU of the local broker beyond what it takes to accept the same messages when nobody wants them."""
    turns: float | None
    """Turns of the bridge's event loop for each message."""
    stall_ms: float | None


async def publish_paced(stage: Stage, topic: str, payloads: list[bytes], rate: float, qos: int) -> list[float]:
    """Publish one by one on a clock; returns the loop's time of each call."""
    loop = asyncio.get_running_loop()
    sent = []
    began = loop.time()
    for number, payload in enumerate(payloads):
        await asyncio.sleep(began + number / rate - loop.time())
        sent.append(loop.time())
        await stage.publisher.publish(topic, payload, qos)
    return sent


async def measure(way: Way, arguments: argparse.Namespace) -> Measured:
    """Set a stage up and send messages through it at the wanted pace."""
    count, qos, rate = round(arguments.rate * arguments.seconds), arguments.qos, arguments.rate
    payloads = common.payloads(count, arguments.size)
    limit = 2 * arguments.seconds + _EXTRA_TIME
    async with asyncio.timeout(limit), Stage(way, WIDE_WINDOW) as stage:
        local, subscriber, bridge = stage.local, stage.subscriber, stage.bridge
        await publish_paced(stage, TOPIC, payloads[:_WARM_UP], 5 * rate, qos)
        await common.arrivals(subscriber, min(count, _WARM_UP))
        subscriber.messages.clear()
        before = common.cpu_seconds(local.pid)
        await publish_paced(stage, NOT_BRIDGED, payloads, rate, qos)
        accepting = common.cpu_seconds(local.pid) - before

        before = common.cpu_seconds(local.pid)
        if bridge is not None:
            await bridge.command("mark")
        sent = await publish_paced(stage, TOPIC, payloads, rate, qos)
        result = await common.arrivals(subscriber, count)
        usage = None if bridge is None else await bridge.report()
        broker = common.cpu_seconds(local.pid) - before - accepting
        delays = [message.time - sent[int.from_bytes(message.payload[:8])] for message in subscriber.messages]
    percentiles = statistics.quantiles(delays, n=100, method="inclusive")
    return Measured(
        tally=result,
        p50_ms=percentiles[49] * 1000,
        p99_ms=percentiles[98] * 1000,
        longest_ms=max(delays) * 1000,
        bridge_us=None if usage is None else usage.cpu_s / count * 1e6,
        bridge_percent=None if usage is None else usage.cpu_s / arguments.seconds * 100,
        broker_us=broker / count * 1e6,
        turns=None if usage is None else usage.turns / count,
        stall_ms=None if usage is None else usage.stall_ms,
    )


async def run_all(arguments: argparse.Namespace) -> dict[Way, list[Measured]]:
    """Repeat all ways in turn, so that what else the machine does falls on all alike."""
    results: dict[Way, list[Measured]] = {way: [] for way in Way}
    for number in range(arguments.runs):
        common.progress(f"run {number + 1} of {arguments.runs}")
        for way, runs in results.items():
            runs.append(await measure(way, arguments))
    return results


def show(results: dict[Way, list[Measured]]) -> str:
    """Set the table: medians, but the worst of what must not happen."""
    head = (
        "", "lost", "p50 ms", "p99 ms", "longest", "bridge us", "% of a core", "broker us", "turns",
        "stall ms",
    )  # fmt: skip
    rows = []
    for way, runs in results.items():
        rows.append(
            (
                str(way),
                str(max(run.tally.lost for run in runs)),
                common.figure(common.median([run.p50_ms for run in runs]), 2),
                common.figure(common.median([run.p99_ms for run in runs]), 2),
                common.figure(max(run.longest_ms for run in runs), 1),
                common.figure(common.median([run.bridge_us for run in runs])),
                common.figure(common.median([run.bridge_percent for run in runs]), 1),
                common.figure(common.median([run.broker_us for run in runs])),
                common.figure(common.median([run.turns for run in runs]), 1),
                common.figure(common.median([run.stall_ms for run in runs]), 1),
            )
        )
    return common.table(head, rows)


def main() -> int:
    """Measure and print."""
    parser = common.parser(__doc__, runs=3)
    parser.add_argument("--rate", type=float, default=100.0, help="messages a second (100)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a run (10)")
    parser.add_argument("--qos", type=int, choices=(0, 1, 2), default=1)
    arguments = parser.parse_args()
    around = common.surroundings()
    limit = arguments.runs * len(Way) * (2 * arguments.seconds + _EXTRA_TIME)
    results = common.run(run_all(arguments), limit)
    if arguments.json:
        result = {
            "benchmark": "latency",
            "rate": arguments.rate,
            "seconds": arguments.seconds,
            "qos": arguments.qos,
            "size": arguments.size,
            "surroundings": around,
            "lines": [{"way": way, "runs": [asdict(run) for run in runs]} for way, runs in results.items()],
        }
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        print(
            f"{arguments.rate:g} messages of {arguments.size} bytes a second with QoS {arguments.qos} "
            f"for {arguments.seconds:g} s, median of {arguments.runs} runs\n"
        )
        print(show(results))
        print(f"\n{common.describe(around)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
