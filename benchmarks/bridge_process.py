"""The bridge in a process of its own, told what to do line by line; the other benchmarks start it.

    python -m benchmarks.bridge_process '{"transport": "quic", "local": ["127.0.0.1", 1883], ...}'

Commands on standard input, each answered by one line of JSON: `start` (answered when both brokers are connected),
`stop`, `mark` (forget what was measured so far), `report` (a `Usage` since the mark), and the end of the input, which
ends the process.
"""

import asyncio
from collections.abc import Mapping
import cProfile
from dataclasses import asdict, dataclass
import json
import os
from pathlib import Path
import selectors
import sys
import time
from types import ModuleType
from typing import Final, override

REPOSITORY: Final = Path(__file__).parents[1]

# The package above bridge/ is the integration, which imports all of Home Assistant: 40 MB and two seconds that are not
# the bridge's. Its name alone is enough to import what lies below it.
_INTEGRATION = ModuleType("custom_components.quic_bridge")
_INTEGRATION.__path__ = [str(REPOSITORY / "custom_components" / "quic_bridge")]
sys.modules.setdefault(_INTEGRATION.__name__, _INTEGRATION)

from custom_components.quic_bridge.bridge.bridge import Bridge  # noqa: E402
from custom_components.quic_bridge.bridge.config import (  # noqa: E402
    BridgeConfig,
    BrokerConfig,
    TlsConfig,
    TransportKind,
)
from custom_components.quic_bridge.bridge.routes import Direction, Route  # noqa: E402
from custom_components.quic_bridge.bridge.status import BridgeState, BridgeStatus  # noqa: E402

_START_TIMEOUT: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the process is told on its command line, as JSON."""

    transport: str
    local: tuple[str, int]
    remote: tuple[str, int]
    topic_filter: str
    ca_file: str
    profile: str | None = None
    """File for a cProfile of what happens between `mark` and `report`; it makes everything slower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the process used since the mark."""

    cpu_s: float
    """User and kernel together: Linux tells the one from the other by samples, too few in a burst."""
    turns: int
    """Turns of the event loop."""
    stall_ms: float
    """Longest turn of the event loop: for so long nothing else in it could run."""
    stall_cpu_ms: float
    """The most CPU that one turn took: the stall without the waits for a free core."""
    rss_mib: float
    """Most memory resident at a time since the process began."""


class WatchedSelector(selectors.EpollSelector):
    """Times the event loop from the outside: from each return of `select` to the next call of it."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Forget the longest turn."""
        self.turns = 0
        self.longest = 0.0
        self.longest_cpu = 0.0
        self._woke = time.perf_counter()
        self._woke_cpu = time.thread_time()

    @override
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See selectors.BaseSelector."""
        self.turns += 1
        self.longest = max(self.longest, time.perf_counter() - self._woke)
        self.longest_cpu = max(self.longest_cpu, time.thread_time() - self._woke_cpu)
        ready = super().select(timeout)
        self._woke = time.perf_counter()
        self._woke_cpu = time.thread_time()
        return ready


class Runner:
    """One bridge and the commands for it."""

    def __init__(self, settings: Settings, selector: WatchedSelector) -> None:
        self._selector = selector
        self._started = time.process_time()
        self._profile = cProfile.Profile() if settings.profile else None
        self._profile_file = settings.profile
        self._running = asyncio.Event()
        quic = settings.transport == TransportKind.QUIC
        local = BrokerConfig(host=settings.local[0], port=settings.local[1], client_id="benchmark")
        remote = BrokerConfig(
            host=settings.remote[0],
            port=settings.remote[1],
            client_id="benchmark",
            transport=TransportKind.QUIC if quic else TransportKind.TCP,
            tls=TlsConfig(ca=Path(settings.ca_file).read_text()) if quic else None,
        )
        route = Route(id="benchmark", direction=Direction.TO_REMOTE, topic_filter=settings.topic_filter)
        self.bridge = Bridge(BridgeConfig(remote=remote, routes=(route,)), lambda: local, self._on_status)

    def _on_status(self, status: BridgeStatus) -> None:
        if status.state is BridgeState.RUNNING:
            self._running.set()
        else:
            self._running.clear()

    async def obey(self, command: str) -> Mapping[str, object]:
        """Carry out one command; raises TimeoutError when the brokers cannot be reached."""
        if command == "start":
            await self.bridge.start()
            async with asyncio.timeout(_START_TIMEOUT):
                await self._running.wait()
        elif command == "stop":
            await self.bridge.stop()
        elif command == "mark":
            self._started = time.process_time()
            self._selector.reset()
            if self._profile is not None:
                self._profile.enable()
        elif command == "report":
            usage = self._usage()
            if self._profile is not None and self._profile_file is not None:
                self._profile.disable()
                self._profile.dump_stats(self._profile_file)
            return asdict(usage)
        else:
            raise ValueError(command)
        return {}

    def _usage(self) -> Usage:
        return Usage(
            cpu_s=time.process_time() - self._started,
            turns=self._selector.turns,
            stall_ms=self._selector.longest * 1000,
            stall_cpu_ms=self._selector.longest_cpu * 1000,
            rss_mib=_peak_memory(),
        )


def _peak_memory() -> float:
    """Return MiB; Linux hands ru_maxrss of getrusage down from the process that started this one."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


async def _serve(settings: Settings, selector: WatchedSelector) -> None:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(0, "rb", closefd=False)
    )
    runner = Runner(settings, selector)
    try:
        while line := await reader.readline():
            print(json.dumps(await runner.obey(line.decode().strip())), flush=True)
    finally:
        await runner.bridge.stop()
        transport.close()


def main() -> None:
    """Run until the end of the standard input."""
    settings = Settings(**json.loads(sys.argv[1]))
    selector = WatchedSelector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(_serve(settings, selector))


if __name__ == "__main__":
    main()
