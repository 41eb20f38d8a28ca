"""Rounds of traffic and faults, and the check after each."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Final

from .broker_log import BrokerFaults
from .faults import LANES, Chronicle, run_lane
from .ledger import COPIED, UNORDERED, Problem
from .world import World

_PEACE: Final = 0.5
"""Seconds of traffic without a fault at the end of a round."""
_STALL: Final = 15.0
"""Seconds without any arrival after which what is missing counts as lost."""
_SETTLE: Final = 0.6
"""Seconds for copies that come late, and for a report of the quiet bridge."""
_SHOWN: Final = 20
_SHOWN_ERRORS: Final = 4
_ALLOWED_DROPS: Final = {"disconnected"}
_PRESENCE: Final[Mapping[str, str | int]] = {
    "local_topic": "presence/remote",
    "remote_topic": "presence/home",
    "will_delay": 1,
}
_MORE_FDS: Final = 2
_FALLBACK_TASKS: Final = 2
"""Of a bridge on its way round: one waits for the session's end, one looks for something better."""
_MORE_RSS_KIB: Final = 48 * 1024
_MOST_THREADS: Final = 10


@dataclass(slots=True)
class Verdict:
    """What a run came to."""

    rounds: int = 0
    faults: int = 0
    published: int = 0
    arrived: int = 0
    unasked: int = 0
    repeats: int = 0
    forgiven: int = 0
    """Messages that a broker itself sent twice, or in the wrong order."""
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing was lost, and nothing else was wrong."""
        return not self.problems


class Soak:
    """A run: the same seed makes the same decisions, though not at the same instants."""

    def __init__(self, folder: Path, seed: int, say: Callable[[str], None], *, rate: float = 200.0) -> None:
        """Prepare in an empty folder; `say` takes lines of progress, `rate` is messages a second in all."""
        self._folder = folder
        self._seed = seed
        self._say = say
        self._rate = rate
        self._quiet: dict[bool, tuple[int, int]] = {}
        self._resident: tuple[int, int] | None = None
        self.verdict = Verdict()

    async def run(self, seconds: float, round_seconds: float = 30.0, first: int = 0) -> Verdict:
        """Run rounds until `seconds` have passed or something is wrong; `first` is the number of the first round."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        async with World(self._folder, f"{self._seed}", self._rate) as world:
            number = first
            while self.verdict.good and (number == first or loop.time() + round_seconds <= deadline):
                try:
                    await self._round(world, number, round_seconds)
                except (TimeoutError, RuntimeError) as error:
                    self._complain(f"round {number}: {error}")
                number += 1
            await world.stop_bridge()
            for complaint in world.complaints:
                self._complain(complaint)
        return self.verdict

    # --- one round ----------------------------------------------------------------------------------------------------

    async def _round(self, world: World, number: int, seconds: float) -> None:
        random = Random(f"{self._seed} round {number}")
        await self._prepare(world, random)
        lanes = random.sample(sorted(LANES), random.randint(1, len(LANES)))
        pauses = {name: random.choice((0.5, 1.5, 4.0)) for name in lanes}
        self._say(
            f"{world.now():9.2f}  round {number}: "
            + ", ".join(f"{name} every {pause:g} s" for name, pause in pauses.items())
        )
        chronicle = Chronicle()
        before = world.arrivals()
        for publisher in world.publishers:
            publisher.resume()
        world.mending.clear()
        async with asyncio.TaskGroup() as group:
            for name, pause in pauses.items():
                lane_random = Random(f"{self._seed} round {number} {name}")
                group.create_task(run_lane(world, LANES[name], lane_random, pause, chronicle, self._say))
            await asyncio.sleep(seconds)
            world.mending.set()
        await asyncio.sleep(_PEACE)
        await asyncio.gather(*(publisher.pause() for publisher in world.publishers))
        await self._quiesce(world)
        self._check(world, number, chronicle)
        self._say(
            f"{world.now():9.2f}  round {number}: {world.arrivals() - before} messages arrived, "
            f"{len(chronicle.episodes)} faults, {'all is well' if self.verdict.good else 'SOMETHING IS WRONG'}"
        )
        if self.verdict.good:
            world.forget_logs()

    async def _prepare(self, world: World, random: Random) -> None:
        """Give the bridge other settings, in most rounds."""
        if not world.bridge.running or random.random() < 0.6:
            await world.stop_bridge()
            world.forget_addresses()
            outbox = self._folder / "outbox.db" if random.random() < 0.7 else None
            nat = random.random() < 0.3
            fallback = random.random() < 0.4
            tickets = self._folder / "tickets" if random.random() < 0.7 else None
            world.bridge.settings = replace(
                world.bridge.settings,
                remote=world.relay.address if nat else world.front.address,
                outbox=None if outbox is None else str(outbox),
                outbox_delay=random.choice((0.1, 0.5, 2.0)),
                fallback=(world.remote.host, world.remote.tls_port) if fallback else None,
                failover={
                    "patience": random.choice((0.0, 1.0)),
                    "attempts": 1,
                    "stable": 2.0,
                    "probe_interval": 0.3,
                    "hold_down": 1.0,
                    "hold_down_cap": 4.0,
                },
                presence=random.choice((None, _PRESENCE)),
                tickets=None if tickets is None else str(tickets),
                broker={
                    "window": random.choice((20, 100, 1000)),
                    "keepalive": random.choice((2, 5, 30)),
                    "ping_timeout": 2.0,
                    # Longer than a broker is frozen, or it would find dead connections (see broker_log.py).
                    "connack_timeout": 10.0,
                    "connect_timeout": 3.0,
                },
                quic={
                    "handshake_timeout": 2.0,
                    "ping_interval": 0.6,
                    "ping_timeout": 0.8,
                    "idle_timeout": 6.0,
                    "early_data": random.random() < 0.5,
                },
                backoff={"base": 0.05, "cap": 0.5, "stable": 5.0, "refused_base": 0.2, "refused_cap": 0.5},
            )
            settings = world.bridge.settings
            self._say(
                f"{world.now():9.2f}  bridge with window {settings.broker['window']}, keepalive "
                f"{settings.broker['keepalive']} s, "
                + ("no Outbox" if outbox is None else f"Outbox after {settings.outbox_delay:g} s")
                + (", behind a NAT" if nat else "")
                + (", TLS/TCP as the way round" if fallback else "")
                + (", tickets" if tickets is not None else "")
                + (" and early data" if tickets is not None and settings.quic["early_data"] else "")
                + (", presence" if settings.presence is not None else "")
            )
            await world.bridge.start()
        await world.wait_running()
        await world.probe()

    async def _quiesce(self, world: World) -> None:
        """Wait until everything has arrived and the bridge holds nothing, or nothing happens any more."""
        await world.wait_running()
        loop = asyncio.get_running_loop()
        moved, arrived = loop.time(), -1
        while loop.time() < moved + _STALL:
            if (now := world.arrivals()) != arrived:
                moved, arrived = loop.time(), now
            report = world.report
            idle = report is not None and not any(report.waiting) and not report.stored
            if idle and all(stream.complete for stream in world.streams.values()):
                break
            await asyncio.sleep(0.05)
        await asyncio.sleep(_SETTLE)
        world.arrivals()

    # --- the check ----------------------------------------------------------------------------------------------------

    def _check(self, world: World, number: int, chronicle: Chronicle) -> None:
        verdict = self.verdict
        found = [problem for stream in world.streams.values() for problem in stream.problems()]
        streams = world.streams.values()
        verdict.rounds += 1
        verdict.faults += len(chronicle.episodes)
        verdict.published = sum(stream.published for stream in streams)
        verdict.arrived = sum(stream.arrived for stream in streams)
        verdict.unasked = sum(stream.unasked for stream in streams)
        verdict.repeats = sum(stream.repeats for stream in streams)
        found = self._forgive(world, found)
        for problem in found[:_SHOWN]:
            self._complain(f"round {number}: {_describe(problem, chronicle)}")
        if len(found) > _SHOWN:
            self._complain(f"round {number}: and {len(found) - _SHOWN} more")
        for subscriber in world.subscribers:
            for topic in dict.fromkeys(subscriber.unknown):
                self._complain(f"round {number}: messages of a topic that nobody published: {topic}")
        self._check_bridge(world, number)

    def _forgive(self, world: World, found: list[Problem]) -> list[Problem]:
        """Leave out what a broker did itself, as its log says."""
        faults = sum((log.faults() for log in world.logs), BrokerFaults())
        if not faults:
            return found
        self._say(f"{world.now():9.2f}  mosquitto itself went wrong: {faults}")
        allowed = {COPIED: faults.repeated, UNORDERED: faults.overtaken}
        numbers = Counter[tuple[str, str]]()
        for problem in found:
            numbers[problem.what, problem.stream] += problem.last - problem.first + 1
        forgiven = {
            (what, stream): number
            for (what, stream), number in numbers.items()
            if what in allowed and number <= allowed[what][stream]
        }
        self.verdict.forgiven += sum(forgiven.values())
        return [item for item in found if (item.what, item.stream) not in forgiven]

    def _check_bridge(self, world: World, number: int) -> None:
        """Look at the quiet bridge: nothing held, nothing dropped, nothing leaked."""
        report = world.report
        trouble = world.bridge.trouble
        wrong = trouble[:_SHOWN_ERRORS]
        if len(trouble) > _SHOWN_ERRORS:
            wrong.append(f"and {len(trouble) - _SHOWN_ERRORS} more lines of errors in the log")
        if report is None or report.state != "running":
            wrong.append(f"the bridge does not run: {report}")
        else:
            if any(report.waiting) or report.stored:
                wrong.append(f"messages stay in the bridge: {report}")
            if set(report.dropped) - _ALLOWED_DROPS or report.fault is not None:
                wrong.append(f"dropped messages, or a fault of the Outbox: {report}")
            tasks, fds = self._quiet.setdefault(world.bridge.settings.outbox is not None, (report.tasks, report.fds))
            if world.bridge.settings.fallback is not None:
                tasks += _FALLBACK_TASKS
            if report.tasks > tasks or report.fds > fds + _MORE_FDS or report.threads > _MOST_THREADS:
                wrong.append(f"a leak: {tasks} tasks and {fds} files at first, now {report}")
            pid = world.bridge.pid
            if self._resident is None or self._resident[0] != pid:
                self._resident = pid, report.rss_kib
            elif report.rss_kib > self._resident[1] + _MORE_RSS_KIB:
                wrong.append(f"memory grows: {self._resident[1]} KiB at first, now {report}")
        for text in wrong:
            self._complain(f"round {number}: {text}")

    def _complain(self, text: str) -> None:
        self.verdict.problems.append(text)
        self._say(f"PROBLEM  {text}")


def _describe(problem: Problem, chronicle: Chronicle) -> str:
    """Say what is wrong, and what was going on when those messages were published."""
    numbers = f"{problem.first}" if problem.first == problem.last else f"{problem.first} to {problem.last}"
    around = "; ".join(
        f"{item.name} {item.detail} ({item.begin:.2f} .. {item.end or 0:.2f})"
        for item in chronicle.around(problem.begin, problem.end)
    )
    return (
        f"{problem.stream}: {problem.what}: {numbers}, published at {problem.begin:.2f} .. {problem.end:.2f} s, "
        f"around faults: {around or 'none'}"
    )
