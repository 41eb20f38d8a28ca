"""Rounds of traffic and faults, and the check after each."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

from .faults import RELOADS
from .judge import Judge, Verdict, set_bounds
from .lanes import LANES, Chronicle, run_lane
from .scenario import Bound, Scenario, choose
from .world import World

_PEACE: Final = 0.5
"""Seconds of traffic without a fault at the end of a round."""
_STALL: Final = 15.0
"""Seconds without any arrival after which what is missing counts as lost."""
_QUIET: Final = 2.0
"""Seconds without any arrival after which nothing more is on its way that might as well have fallen over a bound."""
_SETTLE: Final = 0.6
"""Seconds for copies that come late, and for a report of the quiet bridge."""


class Soak:
    """A run: the same seed makes the same decisions, though not at the same instants."""

    def __init__(
        self, folder: Path, seed: int, say: Callable[[str], None], *, rate: float = 200.0, steady: bool = False
    ) -> None:
        """Prepare in an empty folder; `say` takes lines of progress, `rate` is messages a second in all.

        `steady`: the bridge's process and its settings stay the same, so that what it leaks would add up.
        """
        self._folder = folder
        self._seed = seed
        self._say = say
        self._rate = rate
        self._steady = steady
        self._scenario: Scenario | None = None
        self.verdict = Verdict()

    async def run(self, seconds: float, round_seconds: float = 30.0, first: int = 0) -> Verdict:
        """Run rounds until `seconds` have passed or something is wrong; `first` is the number of the first round."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        async with World(self._folder, f"{self._seed}", self._rate) as world:
            judge = Judge(world, self.verdict, self._say)
            number = first
            while self.verdict.good and (number == first or loop.time() + round_seconds <= deadline):
                try:
                    await self._round(world, judge, number, round_seconds)
                except (TimeoutError, RuntimeError) as error:
                    judge.complain(f"round {number}: {error}")
                number += 1
            await world.stop_bridge()
            for complaint in world.complaints:
                judge.complain(complaint)
        return self.verdict

    async def _round(self, world: World, judge: Judge, number: int, seconds: float) -> None:
        random = Random(f"{self._seed} round {number}")
        scenario = await self._prepare(world, random)
        names = [name for name in sorted(LANES) if not (self._steady and name == "bridge")]
        lanes = random.sample(names, random.randint(1, len(names)))
        pauses = {name: random.choice((0.5, 1.5, 4.0)) for name in lanes}
        self._say(
            f"{world.now():9.2f}  round {number}: "
            + ", ".join(f"{name} every {pause:g} s" for name, pause in pauses.items())
        )
        chronicle = Chronicle()
        before = world.arrivals()
        world.resume(both_ways=not scenario.local_3_1_1)
        world.mending.clear()
        async with asyncio.TaskGroup() as group:
            for name, pause in pauses.items():
                lane_random = Random(f"{self._seed} round {number} {name}")
                faults = RELOADS if name == "bridge" and scenario.bound is Bound.DROPS else LANES[name]
                group.create_task(run_lane(world, faults, lane_random, pause, chronicle, self._say))
            await asyncio.sleep(seconds)
            world.mending.set()
        await asyncio.sleep(_PEACE)
        await world.pause()
        await world.wait_running()
        await world.probe_routes()
        await self._quiesce(world)
        judge.check(number, chronicle, scenario)
        report = world.report
        self._say(
            f"{world.now():9.2f}  round {number}: {world.arrivals() - before} messages arrived, "
            f"{len(chronicle.episodes)} faults, {'all is well' if self.verdict.good else 'SOMETHING IS WRONG'}; "
            + ("" if report is None else f"{report.rss_kib} KiB, {report.fds} files, {report.threads} threads, ")
            + ("" if report is None else f"{report.tasks} tasks")
        )
        if self.verdict.good:
            world.forget_logs()

    async def _prepare(self, world: World, random: Random) -> Scenario:
        """Give the bridge other settings, in most rounds."""
        another = not self._steady and random.random() < 0.6
        if self._scenario is None or not world.bridge.running or another:
            await world.stop_bridge()
            world.forget_addresses()
            self._scenario = choose(world, random)
            self._say(f"{world.now():9.2f}  bridge with {self._scenario.text}")
            world.limit_remote(to_3_1_1=self._scenario.remote_3_1_1)
            world.bridge.settings = self._scenario.settings
            await world.bridge.start()
        set_bounds(world, self._scenario)
        await world.wait_running()
        await world.probe()
        return self._scenario

    async def _quiesce(self, world: World) -> None:
        """Wait until everything has arrived and the bridge holds nothing, or nothing happens any more."""
        loop = asyncio.get_running_loop()
        moved, arrived = loop.time(), -1
        while (still := loop.time() - moved) < _STALL:
            if (now := world.arrivals()) != arrived:
                moved, arrived = loop.time(), now
            report = world.report
            idle = report is not None and not any(report.waiting) and not report.stored and report.fault is None
            if idle and still > _QUIET and all(stream.complete for stream in world.streams.values()):
                break
            await asyncio.sleep(0.05)
        await asyncio.sleep(_SETTLE)
        world.arrivals()
