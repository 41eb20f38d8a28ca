"""The bridge as a process of its own, for kill -9: how it is told what to do, and what it says."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
import json
from pathlib import Path
import sys
from typing import Any, override

from .front_process import REPOSITORY
from .processes import Service, wait_until
from .udp import Address

type RouteSetting = tuple[str, str] | tuple[str, str, Mapping[str, object]]
"""Direction (`to_remote`, `to_local`, `both`), topic filter, and what else a Route has; its `id`, if it is to keep it
while others come and go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeSettings:
    """Everything about the bridge, as JSON can carry it. What is left out has the bridge's own default."""

    local: Address
    remote: Address
    ca_file: str
    routes: Sequence[RouteSetting]
    transport: str = "quic"
    tls: bool = False
    """Encrypt TCP to the remote, too; QUIC always is."""
    broker: Mapping[str, float] = field(default_factory=dict)
    """Numbers of BrokerConfig (keepalive, window, ...), for both sides."""
    quic: Mapping[str, float | str] = field(default_factory=dict)
    """Fields of QuicConfig."""
    backoff: Mapping[str, float] = field(default_factory=dict)
    """Numbers of BackoffConfig."""
    fallback: Address | None = None
    """TLS/TCP listener of the remote; None: QUIC alone."""
    failover: Mapping[str, float] = field(default_factory=dict)
    """Numbers of FailoverConfig."""
    tickets: str | None = None
    """File of the session tickets; None: full handshakes only."""
    outbox: str | None = None
    """File of the Outbox; None: without."""
    outbox_delay: float = 2.0
    outbox_limits: Mapping[str, float | str] = field(default_factory=dict)
    """Fields of OutboxLimits."""
    presence: Mapping[str, str | int] | None = None
    """PresenceConfig; None: without."""
    report_interval: float = 0.2
    """Seconds between two reports; changes of state are reported at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeReport:
    """What the process says of its bridge and of itself."""

    state: str
    local: str
    remote: str
    local_error: str | None
    remote_error: str | None
    reconnects: tuple[int, int]
    """Of the local and the remote side."""
    waiting: tuple[int, int]
    """Messages in memory, outbound and inbound."""
    dropped: Mapping[str, int]
    """By reason, both directions together."""
    stored: int
    """Messages in the Outbox."""
    fault: str | None
    """What keeps the Outbox from working."""
    tasks: int
    fds: int
    threads: int
    rss_kib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeLeft:
    """What there was more after the bridge's stop than before its start."""

    seconds: float
    """How long the stop took."""
    tasks: tuple[str, ...]
    timers: tuple[str, ...]
    fds: tuple[str, ...]


class BridgeProcess(Service):
    """`python -m tests.support.bridge_program`. `settings` may be changed between a stop and the next start."""

    takes_commands = True

    def __init__(self, folder: Path, settings: BridgeSettings, *, name: str = "bridge") -> None:
        super().__init__(name, folder / f"{name}.log")
        self.settings = settings
        self.report: BridgeReport | None = None
        """The latest; None: there was none since the last start."""
        self.left: BridgeLeft | None = None
        """What the last clean stop left behind; None: there was none since the last start."""
        self.trouble: list[str] = []
        """What was logged as an error, and exceptions that nobody caught."""
        self._dropped = Counter[str]()
        self._routes_given = self._routes_taken = 0
        self._read_to = 0
        self._started = False

    @override
    async def start(self) -> None:
        """Start it and wait until the bridge runs, connected or not; raises RuntimeError when it does not."""
        self.read()
        self._dropped = self.dropped
        self.report = self.left = None
        self._started = False
        given = self._routes_given
        await self.spawn(
            [sys.executable, "-m", "tests.support.bridge_program", json.dumps(asdict(self.settings))], REPOSITORY
        )
        self._routes_taken = given
        if given != self._routes_given:
            self._give_routes()
        try:
            await wait_until(lambda: not self.running or self.read(), what="start of the bridge")
        except BaseException:
            await self.stop()
            raise
        if not self._started:
            raise RuntimeError(f"{self.name} did not start:\n{self.log}")

    async def change_routes(self, routes: Sequence[RouteSetting], timeout: float) -> None:  # noqa: ASYNC109
        """Have it follow other routes, now or from the next start; returns when it does. Raises TimeoutError."""
        self.settings = replace(self.settings, routes=routes)
        self._routes_given += 1
        given = self._routes_given
        if self.running:
            self._give_routes()

        def followed() -> bool:
            self.read()
            return self._routes_taken >= given

        await wait_until(followed, timeout, "change of routes")

    def _give_routes(self) -> None:
        self.command(f"{self._routes_given} {json.dumps(self.settings.routes)}")

    @property
    def dropped(self) -> Counter[str]:
        """Messages that were dropped, by reason, over all starts; a kill takes the last report's interval with it."""
        return self._dropped + Counter(self.report.dropped if self.report is not None else {})

    def read(self) -> bool:
        """Take what it has said since the last call; tell whether it has started."""
        try:
            with self.log_file.open("rb") as log:
                log.seek(self._read_to)
                data = log.read()
        except FileNotFoundError:
            return False
        whole = data[: data.rfind(b"\n") + 1]
        self._read_to += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            self._take(line)
        return self._started

    def _take(self, line: str) -> None:
        kind, _, rest = line.partition(" ")
        if kind == "report":
            self._started = True
            self.report = BridgeReport(**_tuples(json.loads(rest)))
        elif kind == "routes":
            self._routes_taken = max(self._routes_taken, int(rest))
        elif kind == "left":
            self.left = BridgeLeft(**_tuples(json.loads(rest)))
        elif kind in {"ERROR", "CRITICAL", "Traceback", "exception"}:
            self.trouble.append(line)

    def forget_log(self) -> None:
        """Empty the log file: of days nobody needs every line."""
        self.read()
        self.log_file.write_bytes(b"")
        self._read_to = 0


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Undo what JSON does to tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def parse_settings(text: str) -> BridgeSettings:
    """Read what `BridgeProcess` passes on the command line."""
    return BridgeSettings(**_tuples(json.loads(text)))
