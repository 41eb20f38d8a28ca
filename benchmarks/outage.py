"""What an outage of the remote costs: one message a second with QoS 1 while the remote is away for half a minute.

    python -m benchmarks.outage [--seconds N] [--rate N] [--runs N] [--case CASE] [--json]

The bridge has its default settings, back-off and Outbox included. The remote is killed (kill -9), closed in good order
(CONNECTION_CLOSE), frozen (SIGSTOP, half as long again), or was never there. What each figure means is said in
docs/benchmarks.md.
"""

import argparse
import asyncio
import contextlib
from dataclasses import asdict, dataclass
from enum import StrEnum
import json
from pathlib import Path
import sys
import tempfile
from typing import Final, override

from tests.support.bridge_process import BridgeProcess, BridgeSettings
from tests.support.certs import Certificates
from tests.support.client import Client
from tests.support.front_process import FrontProcess
from tests.support.mosquitto import Mosquitto, MosquittoOptions
from tests.support.processes import free_port, wait_until
from tests.support.set_up import SetUp

from . import common
from .common import TOPIC, TOPIC_FILTER, Tally

_BEFORE: Final = 3.0
"""Seconds of traffic before the outage."""
_AFTER: Final = 3.0
"""Seconds of traffic after the first delivery."""
_PATIENCE: Final = 90.0
"""Seconds after the remote's return in which the first message has to arrive."""
_STATE_TIMEOUT: Final = 45.0
"""Longer than the bridge needs to notice silence with its default timers (20 s)."""


class Case(StrEnum):
    """How the remote goes away."""

    KILLED = "killed"
    CLOSED = "closed in good order"
    FROZEN = "frozen"
    NEVER = "never connected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One outage. Times in seconds."""

    away_s: float
    noticed_s: float | None
    """From the outage's beginning until the bridge says that the remote is gone."""
    first_s: float | None
    """From the remote's return until the first message arrives; None: none did."""
    outage: int
    """Messages that were published while the remote was away."""
    outage_delivered: int
    caught_up_s: float | None
    """From the remote's return until all messages of the outage have arrived."""
    tally: Tally
    """All messages, those of before and after the outage too."""


class Scene(SetUp):
    """Two brokers, the front that goes away, the bridge, a publisher with a clock and a subscriber."""

    front: FrontProcess
    bridge: BridgeProcess
    publisher: Client
    subscriber: Client

    def __init__(self, rate: float, size: int) -> None:
        """Prepare; `rate` is messages a second."""
        super().__init__()
        self._rate = rate
        self._size = size
        self._ended = asyncio.Event()
        self.published = 0

    @override
    async def _set_up(self) -> None:
        folder = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="quic-bridge-benchmark-")))
        local = Mosquitto(folder, MosquittoOptions(max_queued_messages=0), name="local")
        remote = Mosquitto(folder, MosquittoOptions(max_queued_messages=0), name="remote")
        for broker in (local, remote):
            await self.enter_async_context(broker)
        self.publisher = await self.enter_async_context(Client(local.host, local.port))
        self.subscriber = await self.enter_async_context(Client(remote.host, remote.port))
        await self.subscriber.subscribe(TOPIC_FILTER, qos=2)
        certificates = Certificates(folder)
        self.front = FrontProcess(folder, remote.address, certificates.server, port=free_port())
        self.push_async_callback(self.front.stop)
        self.bridge = BridgeProcess(
            folder,
            BridgeSettings(
                local=local.address,
                remote=self.front.address,
                ca_file=str(certificates.ca_file),
                routes=(("to_remote", TOPIC_FILTER),),
                outbox=str(folder / "outbox.db"),
            ),
        )
        self.push_async_callback(self.bridge.stop)

    async def publish(self) -> None:
        """Publish one message after the other on a clock, until told to end."""
        began = asyncio.get_running_loop().time()
        while not self._ended.is_set():
            payload = self.published.to_bytes(8).ljust(self._size, b".")
            self.published += 1
            await self.publisher.publish(TOPIC, payload, 1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(began + self.published / self._rate):
                    await self._ended.wait()

    def end(self) -> None:
        """Publish no more."""
        self._ended.set()

    async def until_state(self, *states: str) -> None:
        """Wait until the bridge is in one of these states; raises TimeoutError."""

        def seen() -> bool:
            self.bridge.read()
            return self.bridge.report is not None and self.bridge.report.state in states

        await wait_until(seen, _STATE_TIMEOUT, f"state {' or '.join(states)}")

    def delivered(self, numbers: range) -> int:
        """How many of these messages have arrived."""
        return len({int.from_bytes(message.payload[:8]) for message in self.subscriber.messages}.intersection(numbers))


async def _go_away(scene: Scene, case: Case) -> None:
    match case:
        case Case.KILLED:
            await scene.front.kill()
        case Case.CLOSED:
            await scene.front.stop()
        case Case.FROZEN:
            scene.front.freeze()
        case Case.NEVER:
            pass


async def measure(case: Case, arguments: argparse.Namespace) -> Measured:
    """Measure one outage."""
    loop = asyncio.get_running_loop()
    away = arguments.seconds * (1.5 if case is Case.FROZEN else 1.0)
    async with Scene(arguments.rate, arguments.size) as scene, asyncio.TaskGroup() as group:
        subscriber = scene.subscriber
        if case is not Case.NEVER:
            await scene.front.start()
        await scene.bridge.start()
        # What is published before the bridge has subscribed is not its business.
        await scene.until_state("remote_down" if case is Case.NEVER else "running")
        publishing = group.create_task(scene.publish())
        if case is not Case.NEVER:
            await asyncio.sleep(_BEFORE)
        first = scene.published
        began = loop.time()
        await _go_away(scene, case)
        noticing = group.create_task(_noticed(scene, began))
        await asyncio.sleep(began + away - loop.time())
        before = len(subscriber.messages)
        if case is Case.FROZEN:
            scene.front.thaw()
        else:
            await scene.front.start()
        back = loop.time()
        outage = range(first, scene.published)
        with contextlib.suppress(TimeoutError):
            await subscriber.wait_for(before + 1, timeout=_PATIENCE)
        caught_up = None
        with contextlib.suppress(TimeoutError):
            await wait_until(lambda: scene.delivered(outage) == len(outage), _PATIENCE)
            caught_up = loop.time() - back
        await asyncio.sleep(_AFTER)
        scene.end()
        await publishing
        noticing.cancel()
        tally = await common.arrivals(subscriber, scene.published)
        arrived = [message.time - back for message in subscriber.messages[before:]]
        return Measured(
            away_s=away,
            noticed_s=None if noticing.cancelled() or not noticing.done() else noticing.result(),
            first_s=arrived[0] if arrived else None,
            outage=len(outage),
            outage_delivered=scene.delivered(outage),
            caught_up_s=caught_up,
            tally=tally,
        )


async def _noticed(scene: Scene, began: float) -> float | None:
    with contextlib.suppress(TimeoutError):
        await scene.until_state("remote_down")
        return asyncio.get_running_loop().time() - began
    return None


async def run_all(cases: list[Case], arguments: argparse.Namespace) -> dict[Case, list[Measured]]:
    """Measure the cases side by side, each with brokers and a bridge of its own: together they are idle, too."""
    results: dict[Case, list[Measured]] = {case: [] for case in cases}
    for number in range(arguments.runs):
        common.progress(f"run {number + 1} of {arguments.runs}")
        for case, measured in zip(
            cases, await asyncio.gather(*(measure(case, arguments) for case in cases)), strict=True
        ):
            results[case].append(measured)
    return results


def show(results: dict[Case, list[Measured]]) -> str:
    """Set the table: medians and worst of the times, the worst of what must not happen."""
    head = (
        "", "away s", "noticed s", "first s", "worst", "caught up s", "of the outage", "lost", "out of order",
        "duplicates",
    )  # fmt: skip
    rows = []
    for case, runs in results.items():
        tallies = [run.tally for run in runs]
        worst = max((run.first_s for run in runs if run.first_s is not None), default=None)
        rows.append(
            (
                str(case),
                common.figure(runs[0].away_s),
                common.figure(common.median([run.noticed_s for run in runs]), 1),
                common.figure(common.median([run.first_s for run in runs]), 2),
                common.figure(worst, 2),
                common.figure(common.median([run.caught_up_s for run in runs]), 2),
                " ".join(f"{run.outage_delivered}/{run.outage}" for run in runs),
                str(max(item.lost for item in tallies)),
                str(max(item.out_of_order for item in tallies)),
                str(max(item.duplicates for item in tallies)),
            )
        )
    return common.table(head, rows)


def main() -> int:
    """Measure and print."""
    parser = common.parser(__doc__, runs=1)
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the outage (30)")
    parser.add_argument("--rate", type=float, default=1.0, help="messages a second (1)")
    parser.add_argument("--case", choices=[case.name.lower() for case in Case], help="one case only")
    arguments = parser.parse_args()
    cases = [case for case in Case if arguments.case in {None, case.name.lower()}]
    around = common.surroundings()
    limit = arguments.runs * (2 * arguments.seconds + 2 * _PATIENCE + _STATE_TIMEOUT)
    results = common.run(run_all(cases, arguments), limit)
    if arguments.json:
        result = {
            "benchmark": "outage",
            "seconds": arguments.seconds,
            "rate": arguments.rate,
            "size": arguments.size,
            "surroundings": around,
            "lines": [{"case": case, "runs": [asdict(run) for run in runs]} for case, runs in results.items()],
        }
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        print(
            f"{arguments.rate:g} message a second of {arguments.size} bytes with QoS 1, default settings, "
            f"{arguments.runs} run(s)\n"
        )
        print(show(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
