"""Runs one bridge until SIGTERM (a clean stop): `python -m tests.support.bridge_program SETTINGS`.

On standard input, lines of a number and routes as in the settings, which the bridge follows from then on. On standard
output, a word and JSON: `report` (a BridgeReport), `routes` (the number, when they are followed) and, last, `left` (a
BridgeLeft). On standard error the log. See `bridge_process.py`.
"""

from . import without_home_assistant  # noqa: F401, I001 # before the bridge

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
import json
import logging
import os
from pathlib import Path
import signal
import sys
import threading

from custom_components.quic_bridge.bridge.bridge import Bridge
from custom_components.quic_bridge.bridge.config import (
    BackoffConfig,
    BridgeConfig,
    BrokerConfig,
    Endpoint,
    FailoverConfig,
    OutboxConfig,
    PresenceConfig,
    QuicConfig,
    TlsConfig,
    TransportKind,
)
from custom_components.quic_bridge.bridge.outbox_model import OutboxLimits, OutboxPolicy
from custom_components.quic_bridge.bridge.routes import (
    Direction,
    Priority,
    Qos0Policy,
    RetainedAtConnect,
    RetainMode,
    Route,
)
from custom_components.quic_bridge.bridge.status import BridgeStatus

from .bridge_process import BridgeLeft, BridgeReport, BridgeSettings, RouteSetting, parse_settings


def _broker(address: tuple[str, int], settings: BridgeSettings, **others: object) -> BrokerConfig:
    return BrokerConfig(host=address[0], port=address[1], client_id="bridge", **settings.broker, **others)  # type: ignore[arg-type] # numbers


_KINDS: Mapping[str, Callable[[str], object]] = {
    "qos_0": Qos0Policy,
    "priority": Priority,
    "retain": RetainMode,
    "retained": RetainedAtConnect,
}


def make_routes(settings: Sequence[RouteSetting]) -> tuple[Route, ...]:
    """Make the routes that settings describe."""
    return tuple(_make_route(str(number), *setting) for number, setting in enumerate(settings))


def _make_route(number: str, direction: str, topic_filter: str, options: Mapping[str, object] | None = None) -> Route:
    values = {name: _KINDS[name](str(value)) if name in _KINDS else value for name, value in (options or {}).items()}
    return Route(**{"id": number, "direction": Direction(direction), "topic_filter": topic_filter} | values)  # type: ignore[arg-type] # as told


def make_bridge(settings: BridgeSettings) -> Bridge:
    """Make the bridge that the settings describe; call it in the event loop."""
    quic = settings.transport == TransportKind.QUIC
    remote = _broker(
        settings.remote,
        settings,
        transport=TransportKind(settings.transport),
        tls=TlsConfig(ca=Path(settings.ca_file).read_text()) if quic or settings.tls else None,
        quic=QuicConfig(**settings.quic),  # type: ignore[arg-type] # numbers
    )
    outbox = None
    if settings.outbox is not None:
        limits = {
            name: OutboxPolicy(str(value)) if name == "policy" else value
            for name, value in settings.outbox_limits.items()
        }
        outbox = OutboxConfig(
            path=Path(settings.outbox),
            delay=settings.outbox_delay,
            limits=OutboxLimits(**limits),  # type: ignore[arg-type] # as told
        )
    config = BridgeConfig(
        remote=remote,
        routes=make_routes(settings.routes),
        backoff=BackoffConfig(**settings.backoff),
        failover=FailoverConfig(
            fallback=None
            if settings.fallback is None
            else Endpoint(host=settings.fallback[0], port=settings.fallback[1]),
            **settings.failover,  # type: ignore[arg-type] # numbers
        ),
        tickets=None if settings.tickets is None else Path(settings.tickets),
        outbox=outbox,
        presence=None if settings.presence is None else PresenceConfig(**settings.presence),  # type: ignore[arg-type] # as told
    )
    local = _broker(settings.local, settings)
    return Bridge(config, lambda: local, _report)


def open_files() -> dict[str, str]:
    """Return the process's file descriptors and what they are."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[entry.name] = str(entry.readlink())
        except FileNotFoundError:
            continue  # that of the listing itself
    return found


def _timers() -> list[str]:
    loop = asyncio.get_running_loop()
    return [repr(handle) for handle in loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def _say(kind: str, values: BridgeReport | BridgeLeft) -> None:
    print(kind, json.dumps(asdict(values)), flush=True)


def _report(status: BridgeStatus) -> None:
    dropped: dict[str, int] = {}
    for direction in (status.outbound, status.inbound):
        for reason, number in direction.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + number
    report = BridgeReport(
        state=status.state,
        local=status.local.state,
        remote=status.remote.state,
        local_error=status.local.error.text if status.local.error is not None else None,
        remote_error=status.remote.error.text if status.remote.error is not None else None,
        reconnects=(status.local.reconnects, status.remote.reconnects),
        waiting=(status.outbound.waiting, status.inbound.waiting),
        dropped=dropped,
        stored=(status.outbox and status.outbox.messages) or 0,
        fault=status.outbox.fault if status.outbox is not None else None,
        tasks=len(asyncio.all_tasks()),
        fds=len(open_files()),
        threads=threading.active_count(),
        rss_kib=_resident(),
    )
    _say("report", report)


class _Commands:
    """Follows the routes that come on standard input, one change after the other."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._text = b""
        self._turn = asyncio.Lock()
        self._tasks = set[asyncio.Task[None]]()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(0, self._read)

    def _read(self) -> None:
        data = os.read(0, 65_536)
        if not data:
            self._loop.remove_reader(0)
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            task = self._loop.create_task(self._follow(*line.decode().split(" ", 1)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _follow(self, number: str, routes: str) -> None:
        async with self._turn:
            await self._bridge.apply_routes(make_routes(json.loads(routes)))
        print("routes", number, flush=True)

    async def close(self) -> None:
        """Take no more, and wait for what is under way."""
        self._loop.remove_reader(0)
        await asyncio.gather(*self._tasks)


async def _serve(settings: BridgeSettings) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: print("exception", context, flush=True))
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    before = open_files()
    timers = len(_timers())
    bridge = make_bridge(settings)
    await bridge.start()
    commands = _Commands(bridge)
    while not ended.is_set():
        _report(bridge.status)
        try:
            async with asyncio.timeout(settings.report_interval):
                await ended.wait()
        except TimeoutError:
            pass
    began = loop.time()
    await bridge.stop()
    seconds = loop.time() - began
    await commands.close()
    _report(bridge.status)
    await asyncio.sleep(0)  # sockets that asyncio closes in the next turn
    _say(
        "left",
        BridgeLeft(
            seconds=seconds,
            tasks=tuple(repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()),
            timers=tuple(_timers()[timers:]),
            fds=tuple(what for number, what in open_files().items() if before.get(number) != what),
        ),
    )


def main() -> None:
    """Run until SIGTERM."""
    logging.basicConfig(
        level=logging.DEBUG, format="%(levelname)s %(asctime)s %(name)s: %(message)s", stream=sys.stderr
    )
    asyncio.run(_serve(parse_settings(sys.argv[1])))


if __name__ == "__main__":
    main()
