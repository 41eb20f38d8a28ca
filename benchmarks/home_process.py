"""Home Assistant with one bridge of many routes, in a process of its own, told what to do line by line.

    python -m benchmarks.home_process '{"folder": "/tmp/home", "local_port": 1883, ...}'

It is a Home Assistant without its web server, in which the integration is set up as always. Commands on standard input
are names of `Home`'s methods; each is answered by one line of JSON: the `Cost` of the action, from the call until what
it changed at the brokers is done. The end of the input ends the process.
"""

import asyncio
from collections.abc import Mapping
import contextlib
from dataclasses import asdict, dataclass
import gc
import json
import os
from pathlib import Path
import sys
import time
from typing import Any, Final

# Before Home Assistant's harness puts its own package of that name first.
import custom_components.quic_bridge  # noqa: F401 # isort: skip

from homeassistant.components.repairs import repairs_flow_manager
from homeassistant.core import HomeAssistant
from homeassistant.data_entry_flow import FlowResultType
from homeassistant.helpers.issue_registry import async_get as async_get_issues
from homeassistant.loader import DATA_CUSTOM_COMPONENTS
from homeassistant.setup import async_setup_component
from pytest_homeassistant_custom_component.common import async_test_home_assistant

from custom_components.quic_bridge.bridge.status import BridgeState, BridgeStatus
from custom_components.quic_bridge.const import DOMAIN
from custom_components.quic_bridge.diagnostics import async_get_config_entry_diagnostics
from tests.ha_helpers import bridge_entry, local_data, remote_data
from tests.large_home import routes_of_a_home
from tests.support.mosquitto import Mosquitto
from tests.support.processes import wait_until

from .bridge_process import WatchedSelector

_LIMIT: Final = 60.0
"""Seconds for one command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeSettings:
    """What the process is told on its command line, as JSON."""

    folder: str
    local_port: int
    remote_port: int
    ca_file: str
    routes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one action cost."""

    ms: float
    """Until it was done."""
    cpu_ms: float
    """CPU of the process meanwhile, all threads."""
    stall_ms: float
    """Longest turn of the event loop: for so long nothing else in it could run."""
    stall_cpu_ms: float
    """The most CPU that one turn took: the stall without the waits for a free core."""
    rss_mib: float
    """Memory resident at its end."""


class Home:
    """A Home Assistant with its bridge; the methods without an underscore are the commands."""

    def __init__(self, hass: HomeAssistant, settings: HomeSettings) -> None:
        self._hass = hass
        local = Mosquitto(Path(settings.folder), port=settings.local_port)
        self._entry = bridge_entry(
            local_data(local),
            remote_data(settings.remote_port, Path(settings.ca_file).read_text()),
            routes_of_a_home(settings.routes),
        )
        self.began = 0.0
        """When the measurement began; the clock of `perf_counter`."""
        self.cpu = 0.0
        """CPU of the process until then, in seconds."""

    async def load(self) -> None:
        """Load the integration and what it needs, which happens once, however many bridges there are."""
        assert await async_setup_component(self._hass, "repairs", {})
        assert await async_setup_component(self._hass, DOMAIN, {})
        for platform in ("binary_sensor", "button", "event", "sensor", "switch"):
            assert await async_setup_component(self._hass, platform, {})
        # How long it takes to go through all that Home Assistant has loaded is not the bridge's doing.
        gc.collect()
        gc.freeze()

    async def mark(self) -> None:
        """Begin to measure ..."""

    async def report(self) -> None:
        """... until now."""

    async def nothing(self) -> None:
        """For comparison: what the rest of Home Assistant, and the bridge at rest, do meanwhile."""
        await asyncio.sleep(1)

    async def set_up(self) -> None:
        """Set the bridge up, and wait until it has subscribed everything."""
        self._entry.add_to_hass(self._hass)
        await self._hass.config_entries.async_setup(self._entry.entry_id)
        await self._running()

    async def status(self) -> None:
        """Push the status once, as happens every five seconds."""
        self._entry.runtime_data.bridge._changed()  # noqa: SLF001 - there is no asking for it

    async def add_form(self) -> None:
        """Fill in the form for a new route, and look at what it will do."""
        result = await self._flow({"source": "user"})
        result = await self._choose(result, "custom")
        self._shown = await self._fill(result, {"direction": "both", "topic_filter": "new/#"})

    async def change_form(self) -> None:
        """Fill in the form of a route, and look at what it will do."""
        subentry_id = list(self._entry.subentries)[-1]
        result = await self._flow({"source": "reconfigure", "subentry_id": subentry_id})
        typed = {"enabled": True, "direction": "both", "topic_filter": "newer/#"}
        self._shown = await self._fill(result, typed)

    async def disable_form(self) -> None:
        """Switch a route off in its form, and look at what it will do."""
        subentry_id = list(self._entry.subentries)[-1]
        result = await self._flow({"source": "reconfigure", "subentry_id": subentry_id})
        typed = {"enabled": False, "direction": "both", "topic_filter": "newer/#"}
        self._shown = await self._fill(result, typed)

    async def save(self) -> None:
        """Save what is shown, and wait until the subscriptions are so."""
        result = await self._choose(self._shown, "save")
        assert result["type"] in {FlowResultType.CREATE_ENTRY, FlowResultType.ABORT}, result
        await self._hass.async_block_till_done()

    async def remove(self) -> None:
        """Remove a route, and wait until it is no longer subscribed."""
        self._hass.config_entries.async_remove_subentry(self._entry, list(self._entry.subentries)[-1])
        await self._hass.async_block_till_done()

    async def diagnostics(self) -> None:
        """Make the diagnostics that can be downloaded."""
        await async_get_config_entry_diagnostics(self._hass, self._entry)

    async def get_status(self) -> None:
        """Call the action."""
        await self._hass.services.async_call(DOMAIN, "get_status", blocking=True, return_response=True)

    async def reconnect(self) -> None:
        """Connect both sides anew, and wait until everything is subscribed again."""
        reconnects = self._reconnects
        self._entry.runtime_data.bridge.reconnect()
        await wait_until(lambda: self._reconnects == reconnects + 2, _LIMIT, "reconnects")
        await self._running()

    async def disable_refused(self) -> None:
        """Switch off the routes that the remote broker refuses, by the button of their issue."""
        issue_id = f"subscriptions_refused_remote_{self._entry.entry_id}"
        assert async_get_issues(self._hass).async_get_issue(DOMAIN, issue_id) is not None
        manager = repairs_flow_manager(self._hass)
        assert manager is not None
        result = await manager.async_init(DOMAIN, context={"issue_id": issue_id})
        await manager.async_configure(result["flow_id"], {"next_step_id": "disable"})
        await self._hass.async_block_till_done()

    async def unload(self) -> None:
        """Log out of both brokers."""
        await self._hass.config_entries.async_unload(self._entry.entry_id)

    # --- what the commands share --------------------------------------------------------------------------------------

    @property
    def _reconnects(self) -> int:
        status: BridgeStatus = self._entry.runtime_data.bridge.status
        return status.local.reconnects + status.remote.reconnects

    async def _running(self) -> None:
        bridge = self._entry.runtime_data.bridge
        await wait_until(lambda: bridge.status.state is BridgeState.RUNNING, _LIMIT, "both connections")

    async def _flow(self, context: dict[str, str]) -> Mapping[str, Any]:
        flows = self._hass.config_entries.subentries
        return await flows.async_init((self._entry.entry_id, "route"), context=context)  # type: ignore[arg-type]

    async def _choose(self, result: Mapping[str, Any], step: str) -> Mapping[str, Any]:
        return await self._hass.config_entries.subentries.async_configure(result["flow_id"], {"next_step_id": step})

    async def _fill(self, result: Mapping[str, Any], typed: dict[str, Any]) -> Mapping[str, Any]:
        sections: dict[str, Any] = {"selection": {}, "retained_messages": {}, "outage": {}, "transport": {}}
        result = await self._hass.config_entries.subentries.async_configure(result["flow_id"], {**typed, **sections})
        assert result["step_id"] == "confirm", result
        return result


async def _serve(settings: HomeSettings, selector: WatchedSelector) -> None:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(0, "rb", closefd=False)
    )
    async with async_test_home_assistant(config_dir=settings.folder) as hass:
        hass.data.pop(DATA_CUSTOM_COMPONENTS)
        home = Home(hass, settings)
        try:
            while line := await reader.readline():
                print(json.dumps(asdict(await _measure(home, line.decode().strip(), selector))), flush=True)
        finally:
            await home.unload()
            await hass.async_stop(force=True)
            transport.close()


async def _measure(home: Home, command: str, selector: WatchedSelector) -> Cost:
    await asyncio.sleep(0)
    if command != "report":
        selector.reset()
        home.began, home.cpu = time.perf_counter(), time.process_time()
    await getattr(home, command)()
    ms, cpu_ms = (time.perf_counter() - home.began) * 1e3, (time.process_time() - home.cpu) * 1e3
    await asyncio.sleep(0)
    return Cost(
        ms=ms,
        cpu_ms=cpu_ms,
        stall_ms=selector.longest * 1e3,
        stall_cpu_ms=selector.longest_cpu * 1e3,
        rss_mib=_memory(),
    )


def _memory() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmRSS")


def main() -> None:
    """Run until the end of the standard input."""
    settings = HomeSettings(**json.loads(sys.argv[1]))
    selector = WatchedSelector()
    with (
        contextlib.suppress(KeyboardInterrupt),
        asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner,
    ):
        runner.run(_serve(settings, selector))


if __name__ == "__main__":
    main()
