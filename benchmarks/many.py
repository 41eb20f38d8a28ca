"""A home with many routes and topics: what it costs Home Assistant's event loop, and the brokers.

    python -m benchmarks.many [--routes N] [--topics N] [--refused N] [--json]

One Home Assistant in a process of its own (benchmarks/home_process.py), its bridge between a local mosquitto and a
remote one behind a QUIC front, which, like the clients at both brokers, is in this process. Set up, look at the forms,
change routes one by one, let a message of each topic cross, be refused many topics. About half a minute.
"""

import asyncio
from collections.abc import Sequence
import contextlib
from dataclasses import asdict, dataclass
import json
from pathlib import Path
import sys
import tempfile
import time
from typing import Final

from tests.ha_helpers import CLIENT_ID
from tests.large_home import publish_all, there, topics_of_a_home
from tests.support.certs import Certificates
from tests.support.client import Client
from tests.support.faults import refuse_filters
from tests.support.mosquitto import Mosquitto, MosquittoOptions
from tests.support.quic_front import Front

from .common import CommandProcess, describe, figure, parser, progress, run, surroundings, table
from .home_process import HomeSettings

_LIMIT: Final = 300.0
_ARRIVAL: Final = 60.0
"""Seconds for the last message to arrive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One action."""

    action: str
    cost: dict[str, float]
    packets: int = 0
    """SUBSCRIBE and UNSUBSCRIBE at both brokers."""
    messages: int = 0
    """Messages that crossed."""


class Stage(contextlib.AsyncExitStack):
    """Both brokers, the front, a client at each broker, and Home Assistant."""

    def __init__(self, routes: int) -> None:
        super().__init__()
        self._routes = routes
        self.lines: list[Line] = []

    async def set_up(self) -> None:
        """Start everything but the bridge."""
        folder = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="quic-bridge-benchmark-")))
        options = MosquittoOptions(max_inflight_messages=1000, max_queued_messages=0)
        self.local = await self.enter_async_context(Mosquitto(folder, options, name="local"))
        self.remote = await self.enter_async_context(Mosquitto(folder, options, name="remote"))
        certificates = Certificates(folder)
        server = certificates.server
        self.front = await self.enter_async_context(Front(self.remote.address, server.cert_file, server.key_file))
        config = folder / "config"
        config.mkdir()
        (config / "configuration.yaml").touch()
        settings = HomeSettings(
            folder=str(config),
            local_port=self.local.port,
            remote_port=self.front.port,
            ca_file=str(certificates.ca_file),
            routes=self._routes,
        )
        self.home = await self.enter_async_context(
            CommandProcess("benchmarks.home_process", settings, folder / "home.log")
        )
        self.here = await self.enter_async_context(Client(*self.local.address))
        self.there = await self.enter_async_context(Client(*self.remote.address))

    async def act(self, command: str, action: str) -> None:
        """Have Home Assistant do something."""
        progress(action)
        before = self._packets()
        cost = await self.home.command(command)
        self.lines.append(Line(action=action, cost=cost, packets=self._packets() - before))

    def _packets(self) -> int:
        """How many SUBSCRIBE and UNSUBSCRIBE the bridge has sent so far."""
        return sum(
            broker.log.count(f"Received {kind} from {CLIENT_ID}")
            for broker in (self.local, self.remote)
            for kind in ("SUBSCRIBE", "UNSUBSCRIBE")
        )

    async def cross(self, topics: int, action: str) -> None:
        """Let one message of each topic cross, QoS 1 and 2, six in ten to the remote, the others back."""
        progress(action)
        out, back = topics_of_a_home(self._routes, topics)
        arrived = len(self.here.messages) + topics, len(self.there.messages) + topics  # their own ones, too
        await self.home.command("mark")
        began = time.perf_counter()
        await asyncio.gather(publish_all(self.here, list(out)), publish_all(self.there, list(back)))
        await self.here.wait_for(arrived[0], _ARRIVAL)
        await self.there.wait_for(arrived[1], _ARRIVAL)
        seconds = time.perf_counter() - began
        cost = await self.home.command("report") | {"ms": seconds * 1e3}
        self.lines.append(Line(action=action, cost=cost, messages=len(out) + len(back)))


async def measure(routes: int, topics: int, refused: int) -> list[Line]:
    """Go through a day of a large home."""
    async with Stage(routes) as stage:
        await stage.set_up()
        await stage.act("load", "load the integration")
        await stage.act("nothing", "nothing, for 1 s")
        await stage.act("set_up", "set up")
        await stage.act("status", "push the status")
        await stage.act("add_form", "form: add a route")
        await stage.act("save", "add it")
        await stage.act("change_form", "form: change a route")
        await stage.act("save", "change it")
        await stage.act("disable_form", "form: switch a route off")
        await stage.act("save", "switch it off")
        for command in ("add_form", "save"):
            await stage.home.command(command)
        await stage.act("remove", "remove a route")
        await stage.here.subscribe("+/+/state/+", qos=2)
        await stage.there.subscribe("+/+/+/state/+", qos=2)
        for action in ("a message of each topic", "... and again"):
            await stage.cross(topics, action)
        stage.here.messages.clear()
        await stage.act("diagnostics", "diagnostics")
        await stage.act("get_status", "action get_status")
        await stage.act("reconnect", "reconnect both sides")
        names = [f"{there(index)}/#" for index in range(routes) if index % 10 >= 6][:refused]
        stage.front.add_rule(*refuse_filters(dict.fromkeys(names, 0x87)))
        await stage.act("reconnect", f"reconnect, {len(names)} topics refused")
        await stage.act("status", "push the status")
        await stage.act("diagnostics", "diagnostics")
        await stage.act("disable_refused", f"switch {len(names)} routes off")
        await stage.act("unload", "unload")
        return stage.lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    options_parser = parser(__doc__, runs=1)
    options_parser.add_argument("--routes", type=int, default=500)
    options_parser.add_argument("--topics", type=int, default=10_000)
    options_parser.add_argument("--refused", type=int, default=200)
    options = options_parser.parse_args(arguments)
    around = surroundings()
    lines = run(measure(options.routes, options.topics, options.refused), _LIMIT)
    if options.json:
        json.dump({"benchmark": "many", **around, "lines": [asdict(line) for line in lines]}, sys.stdout, indent=2)
        return
    print(describe(around))
    head = ("", "ms", "CPU ms", "stall ms", "stall, CPU ms", "packets", "messages", "RSS MiB")
    rows = [
        (
            line.action,
            *(figure(line.cost[name], 1) for name in ("ms", "cpu_ms", "stall_ms", "stall_cpu_ms")),
            str(line.packets),
            str(line.messages),
            figure(line.cost["rss_mib"]),
        )
        for line in lines
    ]
    print(table(head, rows))


if __name__ == "__main__":
    main()
