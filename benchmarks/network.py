"""What bad networks cost: the bridge over QUIC and over TLS, and mosquitto's own bridge over TLS, over the same lines.

    python -m benchmarks.network [--quick] [--runs N] [--line NAME] [--front FRONT] [--json] [--plot FOLDER]

Needs root and a Linux that lets it make network namespaces (see benchmarks/line.py); elsewhere it says so and does
nothing. What each figure means is said in docs/benchmarks.md.
"""

import argparse
import asyncio
from collections.abc import Iterable
import contextlib
from dataclasses import asdict, dataclass, field
from enum import StrEnum
import json
from pathlib import Path
import sys
import tempfile
from typing import Final, override

from custom_components.quic_bridge.bridge.config import BrokerConfig
from custom_components.quic_bridge.const import CONF_PROFILE
from custom_components.quic_bridge.options import Profile, backoff, with_connection
from tests.interop.foreign_front import ForeignFront, Stack
from tests.support.bridge_process import BridgeProcess, BridgeSettings
from tests.support.certs import Certificates
from tests.support.client import Client
from tests.support.front_process import FrontProcess
from tests.support.mosquitto import Mosquitto, MosquittoOptions
from tests.support.set_up import SetUp

from . import common
from .common import TOPIC, TOPIC_FILTER
from .line import AWAY_ADDRESS, Line, why_not
from .plot import Chart

_CONNECT_RATE: Final = 50.0
"""Messages a second while waiting for the first to arrive: their distance is how exactly that is known."""
_CUT: Final = 10.0
"""Seconds for which nothing passes."""
_CONNECT_PATIENCE: Final = 120.0
"""Seconds in which the first message has to arrive."""
_RETURN_PATIENCE: Final = 60.0
"""Seconds after a cut in which all has to be as before."""
_GRACE: Final = 30.0
"""Seconds over a perfect line for what has not arrived; what then is missing is lost."""
_TUNED: Final = ("keepalive", "connack_timeout", "connect_timeout", "window", "receive_maximum")
"""What a profile sets of BrokerConfig."""
_SETTLE: Final = 1.0
_POLL: Final = 0.02
_READY_TIMEOUT: Final = 20.0


class Way(StrEnum):
    """What carries the messages from the local to the remote broker."""

    QUIC = "quic_bridge, QUIC"
    TLS = "quic_bridge, TLS"
    MOSQUITTO = "mosquitto's bridge, TLS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """A line, the same in both directions."""

    loss: float
    """Share of packets lost, each on its own."""
    rtt: float
    """Seconds there and back."""
    rate: float = 20.0
    """Messages a second."""
    profile: Profile = Profile.NORMAL
    """What our bridge is told of the line, as in its options."""

    @override
    def __str__(self) -> str:
        rtt = f"{self.rtt:g} s" if self.rtt >= 1 else f"{self.rtt * 1000:g} ms"
        return f"{self.loss:.0%}, {rtt}" + ("" if self.rate == 20 else f", {self.rate:g}/s")


LINES: Final = {
    "good": Conditions(loss=0.0, rtt=0.02),
    "fair": Conditions(loss=0.01, rtt=0.05),
    "mobile": Conditions(loss=0.05, rtt=0.1),
    "bad": Conditions(loss=0.1, rtt=0.2),
    "hopeless": Conditions(loss=0.4, rtt=2.0, profile=Profile.SATELLITE),
    "hopeless-calm": Conditions(loss=0.4, rtt=2.0, rate=1.0, profile=Profile.SATELLITE),
}
_QUICK: Final = ("good", "fair")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run over one line. Times in seconds; None: it did not come to that."""

    connect_s: tuple[float | None, ...]
    """From the first packet of an attempt to the first message at the other end, each time with a new bridge."""
    p50_s: float | None = None
    """Latencies are of what arrived before the line was made good; None: that was too little."""
    p99_s: float | None = None
    per_minute: float | None = None
    """Messages that arrived within the time in which they were published, a minute of it."""
    back_s: tuple[float | None, ...] = ()
    """From the end of a cut to the first message."""
    caught_up_s: tuple[float | None, ...] = ()
    """From the end of a cut until all is there that was published before it."""
    sent: int = 0
    lost: int = 0
    duplicates: int = 0
    out_of_order: int = 0


@dataclass
class Ledger:
    """Numbered messages: when each was published, when it first arrived, and in which order all came."""

    published: list[float] = field(default_factory=list)
    arrived: dict[int, float] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    _read: int = 0

    def take(self, subscriber: Client) -> None:
        """Enter what has arrived since the last call."""
        for message in subscriber.messages[self._read :]:
            number = int.from_bytes(message.payload[:8])
            self.order.append(number)
            self.arrived.setdefault(number, message.time)
        self._read = len(subscriber.messages)

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Return those of these numbers that have not arrived."""
        return [number for number in numbers if number not in self.arrived]

    def latency(self, numbers: range, share: float, until: float) -> float | None:
        """Return what this share of the messages needed at most, if so many of them came until then."""
        never = float("inf")
        times = (self.arrived.get(number, never) for number in numbers)
        latencies = sorted(
            (time if time < until else never) - self.published[number]
            for number, time in zip(numbers, times, strict=True)
        )
        found = latencies[int(len(latencies) * share)]
        return None if found == never else found

    def first_after(self, time: float, first: int = 0) -> float | None:
        """When the first new message after that time arrived, of those numbered from `first` on."""
        return min(
            (arrived for number, arrived in self.arrived.items() if arrived >= time and number >= first), default=None
        )


class Scene(SetUp):
    """Two brokers and a line between them; the bridge and the local broker are made anew for each connect."""

    def __init__(self, way: Way, profile: Profile, front: str, size: int) -> None:
        super().__init__()
        self.way = way
        self.ledger = Ledger()
        self.line = Line()
        self._profile = profile
        self._front = front
        self._size = size
        self._local = contextlib.AsyncExitStack()
        self._publisher: Client | None = None

    @override
    async def _set_up(self) -> None:
        self._folder = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="quic-bridge-benchmark-")))
        await self.enter_async_context(self.line)
        self._certificates = Certificates(self._folder)
        certificate = self._certificates.authority.issue("line", names=(AWAY_ADDRESS,))
        options = MosquittoOptions(max_queued_messages=0, tls=certificate, extra=["log_type none", "log_type error"])
        self._remote = Mosquitto(self._folder, options, name="remote")
        self._remote.host = AWAY_ADDRESS
        self._address = AWAY_ADDRESS, 0
        async with self.line.away.entered():
            await self.enter_async_context(self._remote)
            self._address = AWAY_ADDRESS, self._remote.tls_port
            if self.way is Way.QUIC:
                front: ForeignFront | FrontProcess
                if self._front == "python":
                    front = FrontProcess(self._folder, self._remote.address, certificate)
                    front.host = AWAY_ADDRESS
                else:
                    stack = Stack(self._front)
                    front = ForeignFront(stack, self._folder, self._remote.address, certificate, host=AWAY_ADDRESS)
                await self.enter_async_context(front)
                self._address = front.address
            self.subscriber = await self.enter_async_context(Client(self._remote.host, self._remote.port))
        await self.subscriber.subscribe(TOPIC_FILTER, qos=2)
        self.push_async_callback(self.end_local)

    async def start_local(self) -> None:
        """Start a local broker without a past, and a bridge."""
        extra = ["log_type none", "log_type error"]
        if self.way is Way.MOSQUITTO:
            extra += [
                "connection benchmark",
                f"address {self._address[0]}:{self._address[1]}",
                f"bridge_cafile {self._certificates.ca_file}",
                "bridge_protocol_version mqttv50",
                "cleansession false",
                "notifications false",
                f"topic {TOPIC_FILTER} out 2",
            ]
        local = Mosquitto(self._folder, MosquittoOptions(max_queued_messages=0, extra=extra), name="local")
        async with self.line.home.entered():
            await self._local.enter_async_context(local)
            if self.way is not Way.MOSQUITTO:
                broker = BrokerConfig(host="", port=0, client_id="")
                told = {CONF_PROFILE: self._profile}
                tuned = with_connection(broker, told)
                settings = BridgeSettings(
                    local=local.address,
                    remote=self._address,
                    ca_file=str(self._certificates.ca_file),
                    routes=(("to_remote", TOPIC_FILTER),),
                    transport="quic" if self.way is Way.QUIC else "tcp",
                    tls=True,
                    broker={name: getattr(tuned, name) for name in _TUNED},
                    quic=asdict(tuned.quic),
                    backoff=asdict(backoff(told)),
                    outbox=str(self._folder / "outbox.db"),
                )
                await self._local.enter_async_context(BridgeProcess(self._folder, settings))
            self._publisher = await self._local.enter_async_context(Client(local.host, local.port))

    async def end_local(self) -> None:
        """Stop the bridge and its broker, and forget what they had."""
        await self._local.aclose()
        for file in self._folder.glob("outbox.db*"):
            file.unlink()

    async def publish(self, rate: float, until: asyncio.Event) -> range:
        """Publish on a clock until told to end; returns the numbers."""
        publisher, ledger = self._publisher, self.ledger
        if publisher is None:
            raise RuntimeError("there is no local broker")
        loop = asyncio.get_running_loop()
        first, began = len(ledger.published), loop.time()
        while not until.is_set():
            number = len(ledger.published)
            ledger.published.append(loop.time())
            await publisher.publish(TOPIC, number.to_bytes(8).ljust(self._size, b"."), 1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(began + (number + 1 - first) / rate):
                    await until.wait()
        return range(first, len(ledger.published))

    async def seen(self, numbers: range, patience: float) -> bool:
        """Wait until all of these have arrived; tell whether they have."""
        deadline = asyncio.get_running_loop().time() + patience
        self.ledger.take(self.subscriber)
        missing = self.ledger.missing(numbers)
        while missing and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_POLL)
            self.ledger.take(self.subscriber)
            missing = self.ledger.missing(missing)
        return not missing


async def _connect(scene: Scene) -> float | None:
    """Start a bridge; returns how long its first message took, from its first packet on."""
    loop = asyncio.get_running_loop()
    await scene.line.mark()
    await scene.start_local()
    before, ended = loop.time(), asyncio.Event()
    first_number = len(scene.ledger.published)
    async with asyncio.TaskGroup() as group:
        group.create_task(scene.publish(_CONNECT_RATE, ended))
        arrived: float | None = None
        while arrived is None and loop.time() < before + _CONNECT_PATIENCE:
            await asyncio.sleep(_POLL)
            scene.ledger.take(scene.subscriber)
            arrived = scene.ledger.first_after(before, first_number)
        ended.set()
    first = await scene.line.first_packet()
    return None if arrived is None or first is None else arrived - first


async def _traffic(scene: Scene, rate: float, seconds: float) -> tuple[range, float]:
    """Publish for a while; returns what, and how much of it arrived meanwhile, a minute."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    began = loop.time()
    loop.call_later(seconds, ended.set)
    numbers = await scene.publish(rate, ended)
    scene.ledger.take(scene.subscriber)
    there = sum(scene.ledger.arrived.get(number, loop.time()) < began + seconds for number in numbers)
    return numbers, there * 60 / seconds


async def _cut(scene: Scene, rate: float) -> tuple[float | None, float | None]:
    """Cut the line under traffic; returns how long after that the first message and all of them were there."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(scene.publish(rate, ended))
        await asyncio.sleep(_SETTLE)
        first = len(scene.ledger.published)
        await scene.line.cut()
        await asyncio.sleep(_CUT)
        await scene.line.mend()
        mended = loop.time()
        there = await scene.seen(range(first, len(scene.ledger.published)), _RETURN_PATIENCE)
        caught_up = loop.time() - mended
        await asyncio.sleep(_SETTLE)
        ended.set()
    back = scene.ledger.first_after(mended)
    return None if back is None else back - mended, caught_up if there else None


async def measure(way: Way, conditions: Conditions, arguments: argparse.Namespace) -> Measured:
    """Measure one run over one line."""
    async with Scene(way, conditions.profile, arguments.front, arguments.size) as scene:
        await scene.line.shape(conditions.loss, conditions.rtt)
        connects = [await _connect(scene)]
        while len(connects) < arguments.connects and connects[-1] is not None:
            await scene.end_local()
            connects.append(await _connect(scene))
        if connects[-1] is None:
            return Measured(connect_s=tuple(connects))
        # What was published while it connected shall not stand in the way.
        await scene.seen(range(max(scene.ledger.arrived), len(scene.ledger.published)), _RETURN_PATIENCE)
        traffic, per_minute = await _traffic(scene, conditions.rate, arguments.seconds)
        await scene.seen(traffic, _RETURN_PATIENCE)
        cuts = [await _cut(scene, conditions.rate) for _ in range(arguments.cuts)]
        made_good = asyncio.get_running_loop().time()
        await scene.line.shape(0.0, LINES["good"].rtt)
        numbers = range(traffic.start, len(scene.ledger.published))
        await scene.seen(numbers, _GRACE)
        await asyncio.sleep(_SETTLE)
        ledger = scene.ledger
        ledger.take(scene.subscriber)
        order = [number for number in ledger.order if number in numbers]
        tally = common.tally([number.to_bytes(8) for number in order], len(numbers))
        return Measured(
            connect_s=tuple(connects),
            p50_s=ledger.latency(traffic, 0.5, made_good),
            p99_s=ledger.latency(traffic, 0.99, made_good),
            per_minute=per_minute,
            back_s=tuple(back for back, _ in cuts),
            caught_up_s=tuple(caught_up for _, caught_up in cuts),
            sent=len(numbers),
            lost=len(ledger.missing(numbers)),
            duplicates=tally.duplicates,
            out_of_order=tally.out_of_order,
        )


type Results = dict[Conditions, dict[Way, list[Measured]]]


async def run_all(lines: dict[str, Conditions], arguments: argparse.Namespace) -> Results:
    """Measure all ways side by side, one line after the other, as often as wanted."""
    results: Results = {conditions: {way: [] for way in Way} for conditions in lines.values()}
    for number in range(arguments.runs):
        for conditions in lines.values():
            common.progress(f"run {number + 1} of {arguments.runs}: {conditions}")
            async with asyncio.TaskGroup() as group:
                tasks = {way: group.create_task(measure(way, conditions, arguments)) for way in Way}
            for way, task in tasks.items():
                results[conditions][way].append(task.result())
    return results


# --- what is shown --------------------------------------------------------------------------------------------------


def _times(runs: list[Measured], pick: str) -> list[float | None]:
    """Return one of the times of all runs, of which a run may have several."""
    times: list[float | None] = []
    for run in runs:
        value: float | tuple[float | None, ...] | None = getattr(run, pick)
        times.extend(value if isinstance(value, tuple) else (value,))
    return times


def _seconds(value: float | None) -> str:
    return common.figure(value, 2 if value is not None and value < 10 else 1)


def _worst(times: list[float | None]) -> str:
    if not times:
        return "-"
    return "never" if None in times else _seconds(max(time for time in times if time is not None))


def show(results: Results) -> str:
    """Set the table: medians of the times, the worst of what must not happen."""
    head = (
        "loss, RTT", "", "connect s", "worst", "p50 s", "p99 s", "a minute", "back s", "worst",
        "caught up s", "lost", "out of order", "duplicates",
    )  # fmt: skip
    rows = []
    for conditions, ways in results.items():
        for way, runs in ways.items():
            connects, backs = _times(runs, "connect_s"), _times(runs, "back_s")
            came = [run for run in runs if run.sent]
            rows.append(
                (
                    str(conditions),
                    str(way),
                    _seconds(common.median(connects)),
                    _worst(connects),
                    _seconds(common.median([run.p50_s for run in runs])),
                    _seconds(common.median([run.p99_s for run in runs])),
                    common.figure(common.median([run.per_minute for run in runs])),
                    _seconds(common.median(backs)),
                    _worst(backs),
                    _seconds(common.median(_times(runs, "caught_up_s"))),
                    str(max(run.lost for run in came)) if came else "-",
                    str(max(run.out_of_order for run in came)) if came else "-",
                    str(max(run.duplicates for run in came)) if came else "-",
                )
            )
    return common.table(head, rows)


def charts(results: Results) -> dict[str, Chart]:
    """Draw what can be seen at a glance; by the name of the file."""

    def chart(title: str, unit: str, pick: str) -> Chart:
        return Chart(
            title=title,
            unit=unit,
            groups=[str(conditions) for conditions in results],
            series={
                str(way): [common.median(_times(results[conditions][way], pick)) for conditions in results]
                for way in Way
            },
        )

    return {
        "connect": chart("First packet to first message", "s", "connect_s"),
        "p50": chart("Latency of a message, median", "s", "p50_s"),
        "p99": chart("Latency of a message, 99th percentile", "s", "p99_s"),
        "back": chart("First message after a cut of 10 s", "s", "back_s"),
        "caught-up": chart("All of a cut of 10 s delivered", "s", "caught_up_s"),
    }


def _front_at_hand() -> str:
    return next((stack.value for stack in (Stack.QUIC_GO, Stack.QUICHE) if stack.missing is None), "python")


def main() -> int:
    """Measure and print."""
    parser = common.parser(__doc__, runs=3)
    parser.add_argument("--quick", action="store_true", help="one short run over the two best lines: about a minute")
    parser.add_argument("--line", choices=[*LINES], action="append", help="this line only; may be given again")
    parser.add_argument("--seconds", type=float, default=60.0, help="traffic for latency and throughput (60)")
    parser.add_argument("--connects", type=int, default=3, help="connects in each run (3)")
    parser.add_argument("--cuts", type=int, default=2, help="cuts of 10 s in each run (2)")
    parser.add_argument(
        "--front",
        choices=[*Stack, "python"],
        default=_front_at_hand(),
        help="QUIC server in front of the remote broker: the first of these that is prepared",
    )
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw charts (SVG) there")
    arguments = parser.parse_args()
    if (reason := why_not()) is not None:
        print(f"skipped: {reason}", file=sys.stderr)
        return 0
    if arguments.quick:
        arguments.runs = arguments.connects = arguments.cuts = 1
        arguments.seconds = min(arguments.seconds, 15.0)
    chosen = arguments.line or (_QUICK if arguments.quick else LINES)
    lines = {name: conditions for name, conditions in LINES.items() if name in chosen}
    around = {**common.surroundings(), "front": str(arguments.front)}
    once = (
        arguments.connects * (_CONNECT_PATIENCE + _READY_TIMEOUT)
        + arguments.seconds
        + (2 + 2 * arguments.cuts) * _RETURN_PATIENCE
    )
    results = common.run(run_all(lines, arguments), arguments.runs * len(lines) * once)
    if arguments.plot is not None:
        arguments.plot.mkdir(parents=True, exist_ok=True)
        for name, chart in charts(results).items():
            (arguments.plot / f"network-{name}.svg").write_text(chart.svg())
    if arguments.json:
        result = {
            "benchmark": "network",
            "size": arguments.size,
            "seconds": arguments.seconds,
            "surroundings": around,
            "lines": [
                {**asdict(conditions), "way": way, "runs": [asdict(run) for run in runs]}
                for conditions, ways in results.items()
                for way, runs in ways.items()
            ],
        }
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        print(
            f"20 messages a second (or as told) of {arguments.size} bytes with QoS 1, {arguments.runs} run(s); "
            f"{common.describe(around)}\n"
        )
        print(show(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
