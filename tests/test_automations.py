"""docs/automations.md: the blueprints, as automations with a real bridge, and the dashboard."""

from collections.abc import AsyncIterator
import json
from pathlib import Path
import re
import shutil
from typing import Any

from homeassistant.components.automation import automations_with_blueprint
from homeassistant.components.persistent_notification import (
    Notification,
    UpdateType,
    async_register_callback as async_register_notifications,
)
from homeassistant.core import Event, HomeAssistant
from homeassistant.helpers import entity_registry as er
from homeassistant.setup import async_setup_component
from homeassistant.util.yaml import load_yaml_dict
import pytest
from pytest_homeassistant_custom_component.common import MockConfigEntry

from .ha_helpers import bridge_entry, entity_id, local_data, remote_data, set_up, state, wait_for_state, wait_running
from .support.certs import Certificates
from .support.client import Client
from .support.mosquitto import Mosquitto
from .support.processes import wait_until
from .support.quic_front import Front

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "blueprints" / "automation" / "quic_bridge"
BLUEPRINTS = sorted(path.name for path in FOLDER.iterdir())


@pytest.fixture
async def entry(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> MockConfigEntry:
    """A bridge between the two brokers, at work."""
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)
    return entry


@pytest.fixture
async def notifications(hass: HomeAssistant) -> AsyncIterator[list[str]]:
    """Messages of notifications, those that replace others included."""
    messages: list[str] = []
    assert await async_setup_component(hass, "persistent_notification", {})

    def note(kind: UpdateType, changed: dict[str, Notification]) -> None:
        if kind in {UpdateType.ADDED, UpdateType.UPDATED}:
            messages.extend(notification["message"] for notification in changed.values())

    stop = async_register_notifications(hass, note)
    yield messages
    stop()


async def automate(hass: HomeAssistant, blueprint: str, **values: object) -> None:
    """Import a blueprint and make an automation of it."""
    shutil.copytree(FOLDER, hass.config.path("blueprints", "automation", FOLDER.name))
    path = f"{FOLDER.name}/{blueprint}"
    automation = {"id": "a", "alias": "A", "use_blueprint": {"path": path, "input": values}}
    assert await async_setup_component(hass, "automation", {"automation": automation})
    assert automations_with_blueprint(hass, path) == ["automation.a"]
    made = hass.states.get("automation.a")
    assert made is not None
    assert made.state == "on"


async def press_reconnect(hass: HomeAssistant, entry: MockConfigEntry) -> None:
    """Make the bridge notice at once that the remote broker is away."""
    target = {"entity_id": entity_id(hass, entry, "reconnect")}
    await hass.services.async_call("button", "press", target, blocking=True)


def running(automation: str, hass: HomeAssistant) -> bool:
    """Whether an automation is in the middle of its actions."""
    found = hass.states.get(automation)
    return found is not None and bool(found.attributes["current"])


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_head(name: str) -> None:
    """What an import looks at, and where the documentation says it is to be had."""
    blueprint: dict[str, Any] = load_yaml_dict(str(FOLDER / name))["blueprint"]
    place = f"https://github.com/quic-bridge/ha-quic-bridge/blob/main/blueprints/automation/quic_bridge/{name}"
    assert blueprint["source_url"] == place
    assert blueprint["homeassistant"]["min_version"] == json.loads((ROOT / "hacs.json").read_text())["homeassistant"]
    for value in blueprint["input"].values():
        assert value["name"]
        assert value["selector"]
    document = (ROOT / "docs" / "automations.md").read_text()
    assert f"## {blueprint['name']}\n" in document
    assert f"https://my.home-assistant.io/redirect/blueprint_import/?blueprint_url={place}" in document


async def test_down_and_back(
    hass: HomeAssistant,
    entry: MockConfigEntry,
    local_broker: Mosquitto,
    quic_front: Front,
    notifications: list[str],
) -> None:
    """Both are told: why it is down, how long it was, and how much had waited."""
    connection = entity_id(hass, entry, "remote_connection")
    await automate(hass, "bridge_down.yaml", connection=connection, down_for={"seconds": 1})
    await quic_front.stop()
    async with Client(*local_broker.address) as home:
        for number in range(3):
            await home.publish("up/lamp", b"%d" % number, 1)
    await wait_until(lambda: notifications, what="a notification")
    assert "127.0.0.1 Remote connection has been down since" in notifications[0]
    error = hass.states.get(entity_id(hass, entry, "remote_last_error"))
    assert error is not None
    assert f": {error.attributes['message']}. " in notifications[0]

    await wait_for_state(hass, entry, "outbox_messages", "3")
    await quic_front.start()
    await wait_until(lambda: len(notifications) == 2, what="a second notification")
    assert "127.0.0.1 Remote connection is back after " in notifications[1]
    assert " seconds. 3 messages had waited" in notifications[1]


async def test_a_short_outage_is_not_told(
    hass: HomeAssistant, entry: MockConfigEntry, quic_front: Front, notifications: list[str]
) -> None:
    connection = entity_id(hass, entry, "remote_connection")
    await automate(hass, "bridge_down.yaml", connection=connection, down_for={"hours": 1})
    await quic_front.stop()
    await press_reconnect(hass, entry)
    await wait_for_state(hass, entry, "remote_connection", "off")
    await quic_front.start()
    await wait_for_state(hass, entry, "remote_connection", "on")
    await hass.async_block_till_done()
    assert notifications == []


async def test_a_pause_is_not_told(hass: HomeAssistant, entry: MockConfigEntry, notifications: list[str]) -> None:
    connection = entity_id(hass, entry, "remote_connection")
    await automate(hass, "bridge_down.yaml", connection=connection, down_for={"seconds": 0})
    for to, expected in (("off", "off"), ("on", "on")):
        target = {"entity_id": entity_id(hass, entry, "enabled")}
        await hass.services.async_call("switch", f"turn_{to}", target, blocking=True)
        await wait_for_state(hass, entry, "remote_connection", expected)
        await hass.async_block_till_done()
    assert notifications == []


async def test_the_modem_is_restarted(hass: HomeAssistant, entry: MockConfigEntry, quic_front: Front) -> None:
    """Again when the first time did not help, and no more when it did."""
    switched: list[str] = []

    async def note(event: Event) -> None:
        switched.append(event.data["to"])
        if switched == ["off", "on", "off", "on"]:
            await quic_front.start()

    hass.bus.async_listen("modem", note)
    turn = {f"turn_{to}": {"event": "modem", "event_data": {"to": to}} for to in ("on", "off")}
    assert await async_setup_component(hass, "template", {"template": {"switch": {"name": "Modem", **turn}}})
    await automate(
        hass,
        "restart_modem.yaml",
        status=entity_id(hass, entry, "status"),
        modem="switch.modem",
        down_for={"seconds": 1},
        off_for={"milliseconds": 100},
        patience={"seconds": 5},
        tries=5,
    )
    await quic_front.stop()
    await press_reconnect(hass, entry)
    await wait_until(lambda: len(switched) == 4, what="two restarts")
    await wait_running(hass, entry)
    await wait_until(lambda: not running("automation.a", hass), what="the end of the automation")
    assert switched == ["off", "on", "off", "on"]


async def test_the_bridge_is_paused_on_a_metered_connection(hass: HomeAssistant, entry: MockConfigEntry) -> None:
    """And goes on afterwards; also when that changed while Home Assistant did not run."""
    assert await async_setup_component(hass, "input_boolean", {"input_boolean": {"mobile_data": None}})
    await automate(
        hass,
        "pause_on_metered_connection.yaml",
        metered="input_boolean.mobile_data",
        bridge=entity_id(hass, entry, "enabled"),
        settled_for={"seconds": 0},
    )
    target = {"entity_id": "input_boolean.mobile_data"}
    await hass.services.async_call("input_boolean", "turn_on", target, blocking=True)
    await wait_for_state(hass, entry, "status", "stopped")
    assert state(hass, entry, "enabled") == "off"
    await hass.services.async_call("input_boolean", "turn_off", target, blocking=True)
    await wait_running(hass, entry)
    assert state(hass, entry, "enabled") == "on"


async def test_dashboard(hass: HomeAssistant) -> None:
    """What it shows is there without switching any entity on; how it looks, see tests/browser."""
    entry = bridge_entry(local_data(None), remote_data(14567, None, host="broker.example.org"))
    await set_up(hass, entry)
    dashboard = json.dumps(load_yaml_dict(str(ROOT / "docs" / "dashboard.yaml")))
    shown = set(re.findall(r"\w+\.broker_example_org_\w+", dashboard))
    assert shown
    enabled = {
        entity.entity_id
        for entity in er.async_entries_for_config_entry(er.async_get(hass), entry.entry_id)
        if entity.disabled_by is None
    }
    assert shown <= enabled
