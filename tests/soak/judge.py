"""What a run came to: the books, the brokers' logs and the bridge itself, looked at after each round."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ..support.bridge_process import BridgeReport
from .broker_log import BrokerFaults
from .lanes import Chronicle
from .ledger import COPIED, UNORDERED, Problem
from .routes import KEPT, UP
from .scenario import Bound, Scenario
from .world import World

_SHOWN: Final = 20
_SHOWN_ERRORS: Final = 4
_ALLOWED_DROPS: Final = frozenset(
    {
        "disconnected",
        "replaced",
        "expired",  # on routes with a maximum age
        "no_route",  # of routes that were taken away
    }
)
_FALLS: Final = ("expired", "outbox_full")
_MORE_FDS: Final = 2
_FALLBACK_TASKS: Final = 2
"""Of a bridge on its way round: one waits for the session's end, one looks for something better."""
_MORE_RSS_KIB: Final = 192 * 1024
"""What may be under way both ways is up to 128 MiB (`_MAX_QUEUED_BYTES`), and large messages leave gaps behind."""
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
    fallen: int = 0
    """Messages that did not arrive because of a bound, each of which the bridge has counted."""
    unproven: int = 0
    """The same in rounds in which the bridge was killed, and its counters with it."""
    forgiven: int = 0
    """Messages that a broker itself sent twice, or in the wrong order."""
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing was lost, and nothing else was wrong."""
        return not self.problems


class Judge:
    """Fills in the verdict."""

    def __init__(self, world: World, verdict: Verdict, say: Callable[[str], None]) -> None:
        self._world = world
        self._verdict = verdict
        self._say = say
        self._quiet: dict[bool, tuple[int, int]] = {}
        self._resident: tuple[int, int] | None = None
        self._fallen = self._uncertain = 0
        self._dropped = Counter[str]()

    def complain(self, text: str) -> None:
        """Note that something is wrong."""
        self._verdict.problems.append(text)
        self._say(f"PROBLEM  {text}")

    def check(self, number: int, chronicle: Chronicle, scenario: Scenario) -> None:
        """Look at everything, now that all is quiet."""
        world, verdict = self._world, self._verdict
        streams = world.streams.values()
        found = [problem for stream in streams for problem in stream.problems()]
        found += [problem for mirror in world.mirrors for problem in mirror.problems()]
        verdict.rounds += 1
        verdict.faults += len(chronicle.episodes)
        verdict.published = sum(stream.published for stream in streams)
        verdict.arrived = sum(stream.arrived for stream in streams)
        verdict.unasked = sum(stream.unasked for stream in streams)
        verdict.repeats = sum(stream.repeats for stream in streams)
        if any(episode.name.startswith("bridge ") for episode in chronicle.episodes):
            # It ended before it could delete what it had sent, be it for a full disk.
            found = [item for item in found if item.what != COPIED or not item.stream.startswith(KEPT)]
        found = self._forgive(found)
        for problem in found[:_SHOWN]:
            self.complain(f"round {number}: {_describe(problem, chronicle)}")
        if len(found) > _SHOWN:
            self.complain(f"round {number}: and {len(found) - _SHOWN} more")
        for subscriber in world.subscribers:
            for topic in dict.fromkeys(subscriber.unknown):
                self.complain(f"round {number}: messages of a topic that nobody published: {topic}")
        for text in (*self._check_fallen(chronicle, scenario), *self._check_bridge(scenario), *self._check_places()):
            self.complain(f"round {number}: {text}")

    def _forgive(self, found: list[Problem]) -> list[Problem]:
        """Leave out what a broker did itself, as its log says."""
        faults = sum((log.faults() for log in self._world.logs), BrokerFaults())
        if faults:
            wrong = f"{faults.repeated} twice, {faults.overtaken} late"
            self._say(f"{self._world.now():9.2f}  mosquitto itself went wrong: {wrong}")
        # What the bridge has dropped and its source begins once more comes after later ones.
        begun = faults.again + faults.repeated
        dropped = {
            name: number
            for name, number in begun.items()
            if (stream := self._world.streams.get(name)) is not None and stream.may_fall
        }
        allowed = {COPIED: faults.repeated, UNORDERED: faults.overtaken + Counter(dropped)}
        numbers = Counter[tuple[str, str]]()
        for problem in found:
            numbers[problem.what, problem.stream] += problem.last - problem.first + 1
        forgiven = {
            (what, stream): number
            for (what, stream), number in numbers.items()
            if what in allowed and number <= sum(allowed[what][name] for name in self._world.names(stream))
        }
        self._verdict.forgiven += sum(forgiven.values())
        return [item for item in found if (item.what, item.stream) not in forgiven]

    def _check_fallen(self, chronicle: Chronicle, scenario: Scenario) -> list[str]:
        """Compare what did not arrive because of a bound with what the bridge has counted."""
        world, verdict = self._world, self._verdict
        streams = world.streams.values()
        fallen, uncertain = sum(item.fallen for item in streams), sum(item.uncertain for item in streams)
        dropped = world.bridge.dropped
        missing, doubtful = fallen - self._fallen, uncertain - self._uncertain
        counted = sum(dropped[reason] - self._dropped[reason] for reason in _FALLS)
        self._fallen, self._uncertain, self._dropped = fallen, uncertain, dropped
        if any(episode.name == "bridge killed" for episode in chronicle.episodes):
            verdict.unproven += missing
            return []
        verdict.fallen += missing
        if missing or counted:
            self._say(f"{world.now():9.2f}  {missing} messages fell over a bound, the bridge counted {counted}")
        # One that was under way when its connection ended may have arrived and then fall all the same.
        most = missing + doubtful + int(scenario.settings.broker["window"]) * (1 + len(chronicle.episodes))
        if scenario.bound is Bound.DROPS:
            most += sum(item.unasked for item in streams)
        if not missing <= counted <= most:
            return [f"{missing} messages fell over a bound ({doubtful} doubtful), but {counted} were counted"]
        return []

    def _check_bridge(self, scenario: Scenario) -> list[str]:
        """Look at the quiet bridge: nothing held, nothing dropped, nothing leaked."""
        report, trouble = self._world.report, self._world.bridge.trouble
        wrong = trouble[:_SHOWN_ERRORS]
        if len(trouble) > _SHOWN_ERRORS:
            wrong.append(f"and {len(trouble) - _SHOWN_ERRORS} more lines of errors in the log")
        if report is None or report.state != "running":
            return [*wrong, f"the bridge does not run: {report}"]
        if any(report.waiting) or report.stored:
            wrong.append(f"messages stay in the bridge: {report}")
        allowed = _ALLOWED_DROPS | {"outbox_full"} if scenario.bound is Bound.DROPS else _ALLOWED_DROPS
        if set(report.dropped) - allowed or report.fault is not None:
            wrong.append(f"dropped messages, or a fault of the Outbox: {report}")
        return wrong + self._check_leaks(report)

    def _check_places(self) -> list[str]:
        """Look for QoS 2 messages that the bridge has left unreleased at a broker, for ever."""
        return [
            f"{log.name} keeps places for QoS 2 messages of the bridge: {sorted(log.held)}"
            for log in self._world.logs
            if log.held
        ]

    def _check_leaks(self, report: BridgeReport) -> list[str]:
        wrong = []
        settings = self._world.bridge.settings
        tasks, fds = self._quiet.setdefault(settings.outbox is not None, (report.tasks, report.fds))
        if settings.fallback is not None:
            tasks += _FALLBACK_TASKS
        if report.tasks > tasks or report.fds > fds + _MORE_FDS or report.threads > _MOST_THREADS:
            wrong.append(f"a leak: {tasks} tasks and {fds} files at first, now {report}")
        pid = self._world.bridge.pid
        if self._resident is None or self._resident[0] != pid:
            self._resident = pid, report.rss_kib
        elif report.rss_kib > self._resident[1] + _MORE_RSS_KIB:
            wrong.append(f"memory grows: {self._resident[1]} KiB at first, now {report}")
        return wrong


def set_bounds(world: World, scenario: Scenario) -> None:
    """Tell the books which messages may fall."""
    for group, stream in world.grouped_streams:
        stream.may_fall = group.may_fall or (scenario.bound is Bound.DROPS and group.direction == UP)


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
