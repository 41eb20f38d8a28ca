"""What the tests in Home Assistant's harness share: entries of ours and of the mqtt integration, and waiting."""

from collections.abc import Sequence
from typing import Any

from homeassistant.config_entries import ConfigEntryState, ConfigSubentryData
from homeassistant.core import HomeAssistant
from homeassistant.helpers import entity_registry as er
from pytest_homeassistant_custom_component.common import MockConfigEntry

from custom_components.quic_bridge.bridge.routes import Direction
from custom_components.quic_bridge.bridge.status import BridgeState
from custom_components.quic_bridge.const import DOMAIN

from .support.mosquitto import Mosquitto
from .support.processes import wait_until
from .support.scripted_broker import ScriptedBroker

CLIENT_ID = "quic-bridge-0a1b2c3d"

type Routes = dict[str, Direction]
"""Topic filter to direction."""

ROUTES: Routes = {"up/#": Direction.TO_REMOTE, "down/#": Direction.TO_LOCAL}


def mqtt_entry(broker: Mosquitto | ScriptedBroker, **data: object) -> MockConfigEntry:
    """Make an entry as Home Assistant's mqtt integration has it; `data` adds to it or replaces parts."""
    return MockConfigEntry(
        domain="mqtt",
        title="MQTT",
        version=2,
        data={"broker": broker.host, "port": broker.port, "protocol": "5", **data},
    )


def local_data(broker: Mosquitto | None, **data: object) -> dict[str, Any]:
    """What the entry has of the local broker; None: Home Assistant's own."""
    if broker is None:
        return {"mode": "home_assistant", "client_id": f"{CLIENT_ID}-local"}
    return {
        "mode": "custom",
        "host": broker.host,
        "port": broker.port,
        "username": None,
        "password": None,
        "use_tls": False,
        "ca": None,
        "server_name": None,
        "verify": True,
        "client_id": f"{CLIENT_ID}-local",
        **data,
    }


def remote_data(port: int, ca: str | None, **data: object) -> dict[str, Any]:
    """What the entry has of the remote broker, on loopback."""
    return {
        "host": "127.0.0.1",
        "port": port,
        "username": None,
        "password": None,
        "ca": ca,
        "server_name": None,
        "verify": True,
        "client_id": CLIENT_ID,
        "addresses": [],
        "fallback": None,
        **data,
    }


def route_data(direction: str, topic_filter: str, **data: object) -> dict[str, Any]:
    """What is stored for a route."""
    return {
        "direction": direction,
        "topic_filter": topic_filter,
        "target": "",
        "exclude": [],
        "max_qos": 2,
        "retain": "as_published",
        "retained": "once",
        "qos_0": "drop",
        "max_age": None,
        "priority": "normal",
        "own_stream": False,
        "enabled": True,
        **data,
    }


def bridge_entry(
    local: dict[str, Any],
    remote: dict[str, Any],
    routes: Routes | Sequence[dict[str, Any]] | None = None,
    *,
    title: str | None = None,
    entry_id: str | None = None,
) -> MockConfigEntry:
    """Make an entry of ours as the config flow of version 0.1.0 did; `routes` may also be the data of whole routes."""
    if routes is None:
        routes = ROUTES
    if isinstance(routes, dict):
        routes = [
            {"direction": direction.value, "topic_filter": topic_filter} for topic_filter, direction in routes.items()
        ]
    return MockConfigEntry(
        domain=DOMAIN,
        title=title or remote["host"],
        entry_id=entry_id,
        data={"local": local, "remote": remote},
        subentries_data=[
            ConfigSubentryData(subentry_type="route", title=route["topic_filter"], unique_id=None, data=route)
            for route in routes
        ],
    )


async def set_up(hass: HomeAssistant, entry: MockConfigEntry) -> None:
    """Add an entry and set it up."""
    entry.add_to_hass(hass)
    assert await hass.config_entries.async_setup(entry.entry_id)
    assert entry.state is ConfigEntryState.LOADED


def entity_id(hass: HomeAssistant, entry: MockConfigEntry, key: str) -> str:
    """Find an entity of ours by its key."""
    found = [
        entity.entity_id
        for entity in er.async_entries_for_config_entry(er.async_get(hass), entry.entry_id)
        if entity.unique_id == f"{entry.entry_id}_{key}"
    ]
    assert len(found) == 1, f"{key}: {found}"
    return found[0]


def state(hass: HomeAssistant, entry: MockConfigEntry, key: str) -> str:
    """Return the state of an entity of ours."""
    found = hass.states.get(entity_id(hass, entry, key))
    assert found is not None
    return found.state


async def wait_for_state(hass: HomeAssistant, entry: MockConfigEntry, key: str, value: str) -> None:
    """Wait until an entity of ours says so."""
    await wait_until(lambda: state(hass, entry, key) == value, what=f"{key} {value}")


async def wait_running(hass: HomeAssistant, entry: MockConfigEntry) -> None:
    """Wait until the bridge has connected both brokers."""
    await wait_for_state(hass, entry, "status", BridgeState.RUNNING.value)
