"""The ways out of issues: what one click mends, and what it opens."""

from contextlib import suppress
from pathlib import Path
import sqlite3
from typing import Any

from homeassistant.components.repairs import FlowType, repairs_flow_manager
from homeassistant.core import HomeAssistant
from homeassistant.data_entry_flow import FlowResultType
from homeassistant.helpers.issue_registry import IssueEntry, async_get as async_get_issues, async_ignore_issue
from homeassistant.setup import async_setup_component
import pytest
from pytest_homeassistant_custom_component.common import MockConfigEntry

from custom_components.quic_bridge.bridge.guard import PATH_PROPERTY
from custom_components.quic_bridge.const import DOMAIN

from .ha_helpers import (
    CLIENT_ID,
    bridge_entry,
    entity_id,
    local_data,
    mqtt_entry,
    remote_data,
    route_data,
    set_up,
    state,
    wait_for_state,
    wait_running,
)
from .support.certs import Certificates
from .support.client import Client
from .support.faults import refuse_filters
from .support.mosquitto import Mosquitto
from .support.packets import Properties, Property, encode_disconnect
from .support.processes import wait_until
from .support.quic_front import Front
from .support.scripted_broker import ScriptedBroker

HIDDEN = [route_data("to_remote", "up/#"), route_data("to_remote", "up/lamp"), route_data("to_local", "down/#")]


@pytest.fixture
def entry(local_broker: Mosquitto, quic_front: Front, certs: Certificates) -> MockConfigEntry:
    """A bridge between the two brokers."""
    return bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))


def issue(hass: HomeAssistant, entry: MockConfigEntry, name: str) -> IssueEntry | None:
    """Return an issue of an entry."""
    return async_get_issues(hass).async_get_issue(DOMAIN, f"{name}_{entry.entry_id}")


async def fix(hass: HomeAssistant, entry: MockConfigEntry, name: str, choice: str | None = None) -> dict[str, Any]:
    """Go through the fix flow of an issue as a person does: read, choose or submit."""
    assert await async_setup_component(hass, "repairs", {})
    await wait_until(lambda: issue(hass, entry, name), what=f"the issue {name}")
    manager = repairs_flow_manager(hass)
    assert manager is not None
    result = await manager.async_init(DOMAIN, context={"issue_id": f"{name}_{entry.entry_id}"})
    assert result["step_id"] == "confirm"
    assert (result["type"] is FlowResultType.MENU) is (choice is not None)
    result = await manager.async_configure(result["flow_id"], {} if choice is None else {"next_step_id": choice})
    await hass.async_block_till_done()
    return dict(result)


def filters(entry: MockConfigEntry) -> dict[str, bool]:
    """Return the routes by their filters, and whether they are in use."""
    return {route.data["topic_filter"]: route.data["enabled"] for route in entry.subentries.values()}


@pytest.mark.parametrize(
    ("choice", "left"),
    [("disable", {"up/#": True, "up/lamp": False, "down/#": True}), ("remove", {"up/#": True, "down/#": True})],
)
async def test_hidden_routes(
    hass: HomeAssistant,
    local_broker: Mosquitto,
    quic_front: Front,
    certs: Certificates,
    choice: str,
    left: dict[str, bool],
) -> None:
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem), HIDDEN)
    await set_up(hass, entry)
    await wait_running(hass, entry)
    found = issue(hass, entry, "routes_hidden")
    assert found is not None
    assert found.translation_placeholders == {"name": "127.0.0.1", "routes": "- `→ up/lamp`: `→ up/#`"}
    result = await fix(hass, entry, "routes_hidden", choice)
    assert result["type"] is FlowResultType.CREATE_ENTRY
    assert filters(entry) == left
    assert [route.title for route in entry.subentries.values() if route.title.startswith("⏸")] == (
        ["⏸ → up/lamp"] if choice == "disable" else []
    )
    assert issue(hass, entry, "routes_hidden") is None
    assert state(hass, entry, "route_problems") == "off"
    assert len(quic_front.stats.connects) == 1


async def test_refused_routes(hass: HomeAssistant, entry: MockConfigEntry, quic_front: Front) -> None:
    rules = refuse_filters({"down/#": 0x87})
    quic_front.add_rule(*rules)
    await set_up(hass, entry)
    await wait_running(hass, entry)
    name = "subscriptions_refused_remote"
    result = await fix(hass, entry, name, "again")
    assert (result["type"], result["reason"]) == (FlowResultType.ABORT, "still_refused")
    assert issue(hass, entry, name) is not None
    quic_front.remove_rule(*rules)
    result = await fix(hass, entry, name, "again")
    assert result["type"] is FlowResultType.CREATE_ENTRY
    assert issue(hass, entry, name) is None
    assert state(hass, entry, "route_problems") == "off"
    assert len(quic_front.stats.connects) == 1


async def test_refused_routes_can_be_switched_off(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    quic_front.add_rule(*refuse_filters({"down/#": 0x87}))
    routes = [route_data("to_local", "down/#"), route_data("to_remote", "up/#")]
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem), routes)
    await set_up(hass, entry)
    await wait_running(hass, entry)
    await fix(hass, entry, "subscriptions_refused_remote", "disable")
    assert filters(entry) == {"down/#": False, "up/#": True}
    assert issue(hass, entry, "subscriptions_refused_remote") is None


async def test_the_direction_that_works_is_left(
    hass: HomeAssistant, socket_enabled: None, quic_front: Front, certs: Certificates
) -> None:
    """Of a route both ways only what is refused is switched off."""
    quic_front.add_rule(*refuse_filters({"site/7/#": 0x87, "both/#": 0x87}))
    routes = [
        route_data("both", "home/#", target="site/7/{1}", exclude=["home/secret"]),
        route_data("both", "cloud/#", target="site/8/{1}", exclude=["+/secret"], own_stream=True),
        route_data("both", "both/#"),
    ]
    async with ScriptedBroker() as broker:
        entry = bridge_entry(local_data(None), remote_data(quic_front.port, certs.ca_pem), routes)
        mqtt_entry(broker).add_to_hass(hass)
        await set_up(hass, entry)
        connection = await broker.accept()
        connection.refused |= {"cloud/#", "both/#"}
        await connection.handshake()
        await wait_running(hass, entry)
        await fix(hass, entry, "subscriptions_refused_remote", "disable")
        await fix(hass, entry, "subscriptions_refused_local", "disable")
        home, cloud, both = entry.subentries.values()
        assert (home.title, home.data) == ("home/# → site/7/{1}", {**routes[0], "direction": "to_remote"})
        assert cloud.title == "cloud/{1} ← site/8/#"
        assert cloud.data == {
            **routes[1],
            "direction": "to_local",
            "topic_filter": "site/8/#",
            "target": "cloud/{1}",
            "exclude": ["site/8/secret"],
            "own_stream": False,
        }
        assert (both.title, both.data) == ("⏸ ↔ both/#", {**routes[2], "enabled": False})
        assert state(hass, entry, "route_problems") == "off"
        assert await hass.config_entries.async_unload(entry.entry_id)


async def test_client_identifier_in_use(hass: HomeAssistant, entry: MockConfigEntry, quic_front: Front) -> None:
    await set_up(hass, entry)
    await wait_running(hass, entry)
    quic_front.connection.kick(0x8E)
    result = await fix(hass, entry, "taken_over_remote", "settings")
    kind, flow_id = result["next_flow"]
    assert kind is FlowType.CONFIG_FLOW
    settings = await hass.config_entries.flow.async_configure(flow_id)
    assert settings["step_id"] == "remote"
    hass.config_entries.flow.async_abort(flow_id)

    await fix(hass, entry, "taken_over_remote", "new_client_id")
    client_id = entry.data["remote"]["client_id"]
    assert client_id not in {CLIENT_ID, entry.data["local"]["client_id"]}
    await wait_running(hass, entry)
    assert quic_front.stats.connects[-1].client_id == client_id
    assert issue(hass, entry, "taken_over_remote") is None


async def test_client_identifier_in_use_at_home_assistants_broker(
    hass: HomeAssistant, socket_enabled: None, quic_front: Front, certs: Certificates
) -> None:
    """Its form has no such field, so this is the only way out."""
    async with ScriptedBroker() as broker:
        mqtt_entry(broker).add_to_hass(hass)
        entry = bridge_entry(local_data(None), remote_data(quic_front.port, certs.ca_pem))
        await set_up(hass, entry)
        connection = await broker.session()
        await wait_running(hass, entry)
        connection.send(encode_disconnect(0x8E))
        await fix(hass, entry, "taken_over_local", "new_client_id")
        client_id = entry.data["local"]["client_id"]
        assert client_id.endswith("-local")
        while connection.connect.client_id != client_id:
            with suppress(EOFError):  # an attempt of before the change
                connection = await broker.accept()
        assert await hass.config_entries.async_unload(entry.entry_id)


async def test_outbox_that_was_too_small(
    hass: HomeAssistant, entry: MockConfigEntry, local_broker: Mosquitto, quic_front: Front
) -> None:
    await set_up(hass, entry)
    options = {"messages": {"outbox_messages": 100, "max_payload": 2}}
    hass.config_entries.async_update_entry(entry, options=options)
    await hass.async_block_till_done()
    await wait_running(hass, entry)
    await quic_front.stop()
    async with Client(*local_broker.address) as home:
        await home.burst("up/lamp", (b"%d" % number for number in range(120)), 1)
        await wait_for_state(hass, entry, "messages_dropped", "20")
    result = await fix(hass, entry, "outbox_overflow", "options")
    kind, flow_id = result["next_flow"]
    assert kind is FlowType.OPTIONS_FLOW
    form = await hass.config_entries.options.async_configure(flow_id)
    assert (form["type"], form["step_id"]) == (FlowResultType.FORM, "messages")
    hass.config_entries.options.async_abort(flow_id)

    await fix(hass, entry, "outbox_overflow", "double")
    assert entry.options == {"messages": {"outbox_messages": 200, "outbox_size": 512, "max_payload": 2}}
    assert issue(hass, entry, "outbox_overflow") is None
    await wait_for_state(hass, entry, "outbox_messages", "100")


async def test_messages_that_came_too_far(
    hass: HomeAssistant, entry: MockConfigEntry, local_broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shown while such messages come, as they may be missed at the end of a chain."""
    monkeypatch.setattr("custom_components.quic_bridge.issues.SHOWN_AFTER", 3.0)
    await set_up(hass, entry)
    await wait_running(hass, entry)
    async with Client(*local_broker.address) as home:
        properties: Properties = {Property.USER_PROPERTY: [(PATH_PROPERTY, "ud")]}
        await home.publish("up/lamp", b"on", 1, properties=properties)
        result = await fix(hass, entry, "loop")
        kind, flow_id = result["next_flow"]
        assert kind is FlowType.OPTIONS_FLOW
        hass.config_entries.options.async_abort(flow_id)
        await wait_until(lambda: issue(hass, entry, "loop") is None, what="the end of the issue")
        # One that is ignored is not shown anew each time.
        await home.publish("up/lamp", b"on", 1, properties=properties)
        await wait_until(lambda: issue(hass, entry, "loop"), what="the issue")
        async_ignore_issue(hass, DOMAIN, f"loop_{entry.entry_id}", ignore=True)
        assert await hass.config_entries.async_reload(entry.entry_id)
        await wait_running(hass, entry)
        await home.publish("up/lamp", b"on", 1, properties=properties)
        await wait_for_state(hass, entry, "messages_dropped", "1")
        found = issue(hass, entry, "loop")
        assert found is not None
        assert found.dismissed_version is not None
    assert await hass.config_entries.async_remove(entry.entry_id)
    assert not [name for domain, name in async_get_issues(hass).issues if domain == DOMAIN]


async def test_outbox_of_a_later_version(
    hass: HomeAssistant, entry: MockConfigEntry, local_broker: Mosquitto, quic_front: Front
) -> None:
    await set_up(hass, entry)
    await wait_running(hass, entry)
    assert await hass.config_entries.async_unload(entry.entry_id)
    path = Path(hass.config.path(".storage", DOMAIN, f"{entry.entry_id}.db"))
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    assert await hass.config_entries.async_setup(entry.entry_id)
    await wait_running(hass, entry)
    found = issue(hass, entry, "outbox")
    assert found is not None
    assert found.translation_key == "outbox_too_new"

    # It cannot be moved when it is gone meanwhile.
    path.rename(path.with_suffix(".away"))  # noqa: ASYNC240 # a moment, in a test
    result = await fix(hass, entry, "outbox")
    assert (result["type"], result["reason"]) == (FlowResultType.ABORT, "not_moved")
    assert await hass.config_entries.async_unload(entry.entry_id)
    path.with_suffix(".away").replace(path)
    assert await hass.config_entries.async_setup(entry.entry_id)

    result = await fix(hass, entry, "outbox")
    assert result["type"] is FlowResultType.CREATE_ENTRY
    assert issue(hass, entry, "outbox") is None
    assert len(list(path.parent.glob("*.corrupt-*"))) == 1
    await quic_front.stop()
    await wait_for_state(hass, entry, "remote_connection", "off")
    async with Client(*local_broker.address) as home:
        await home.publish("up/lamp", b"kept", 1)
        await wait_for_state(hass, entry, "outbox_messages", "1")
    assert entity_id(hass, entry, "outbox_messages")
