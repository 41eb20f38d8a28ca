"""Flows as the frontend goes through them: every form has to be put into JSON."""

import asyncio
from typing import Any

from aiohttp.test_utils import TestClient
from homeassistant.config_entries import ConfigEntryDisabler, ConfigSubentryDataWithId
from homeassistant.core import HomeAssistant
from homeassistant.setup import async_setup_component
import pytest
from pytest_homeassistant_custom_component.common import MockConfigEntry
from pytest_homeassistant_custom_component.typing import ClientSessionGenerator

from custom_components.quic_bridge.bridge.routes import Direction
from custom_components.quic_bridge.const import DOMAIN

from .ha_flows import remote_input
from .ha_helpers import bridge_entry, local_data, remote_data, route_data, set_up, wait_for_state
from .support.mosquitto import Mosquitto
from .support.processes import wait_until
from .support.quic_front import Front

CONFIG = "/api/config/config_entries/flow"
OPTIONS = "/api/config/config_entries/options/flow"
SUBENTRIES = "/api/config/config_entries/subentries/flow"
REPAIRS = "/api/repairs/issues/fix"


async def post(client: TestClient[Any, Any], path: str, **data: object) -> dict[str, Any]:
    """Send one step."""
    response = await client.post(path, json=data)
    assert response.status == 200, await response.text()
    answer: dict[str, Any] = await response.json()
    return answer


def fields(form: dict[str, Any]) -> list[str]:
    """Return the names of a form's fields, those in sections with them."""
    found = []
    for item in form["data_schema"]:
        found.append(item["name"])
        found += [f"{item['name']}.{inner['name']}" for inner in item.get("schema", ())]
    return found


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("everything", ["direction", "prefix", "site"]),
        ("discovery", ["direction", "site", "prefix"]),
        ("zigbee2mqtt", ["prefix", "site", "commands"]),
        ("tasmota", ["site", "commands"]),
        (
            "custom",
            [
                "direction",
                "topic_filter",
                "target",
                "selection",
                "selection.exclude",
                "selection.max_qos",
                "retained_messages",
                "retained_messages.retain",
                "retained_messages.retained",
                "outage",
                "outage.qos_0",
                "outage.priority",
                "outage.max_age",
                "transport",
                "transport.own_stream",
            ],
        ),
    ],
)
async def test_add_a_route(
    hass: HomeAssistant, hass_client: ClientSessionGenerator, preset: str, expected: list[str]
) -> None:
    for component in (DOMAIN, "config"):
        assert await async_setup_component(hass, component, {})
    entry = bridge_entry(local_data(None), remote_data(14567, None))
    entry.add_to_hass(hass)
    client = await hass_client()
    menu = await post(client, SUBENTRIES, handler=[entry.entry_id, "route"])
    form = await post(client, f"{SUBENTRIES}/{menu['flow_id']}", next_step_id=preset)
    assert fields(form) == expected


async def test_change_a_route(hass: HomeAssistant, hass_client: ClientSessionGenerator) -> None:
    for component in (DOMAIN, "config"):
        assert await async_setup_component(hass, component, {})
    entry = bridge_entry(local_data(None), remote_data(14567, None))
    entry.add_to_hass(hass)
    client = await hass_client()
    route = next(iter(entry.subentries))
    form = await post(client, SUBENTRIES, handler=[entry.entry_id, "route"], subentry_id=route)
    assert fields(form)[:3] == ["enabled", "direction", "topic_filter"]
    typed = {
        "enabled": True,
        "direction": "both",
        "topic_filter": "up/#",
        "target": "over/{1}",
        "selection": {"max_qos": "1"},
        "retained_messages": {"retain": "never", "retained": "never"},
        "outage": {"qos_0": "queue", "priority": "low", "max_age": {"hours": 0, "minutes": 5, "seconds": 0}},
        "transport": {"own_stream": True},
    }
    menu = await post(client, f"{SUBENTRIES}/{form['flow_id']}", **typed)
    assert menu["description_placeholders"]["preview"] == "- `up/lamp` ↔ `over/lamp`"
    form = await post(client, f"{SUBENTRIES}/{menu['flow_id']}", next_step_id="back")
    assert "outage.max_age" in fields(form)
    menu = await post(client, f"{SUBENTRIES}/{form['flow_id']}", **typed)
    end = await post(client, f"{SUBENTRIES}/{menu['flow_id']}", next_step_id="save")
    assert end["reason"] == "reconfigure_successful"
    assert entry.subentries[route].data["max_age"] == 300.0


async def test_from_an_issue_to_the_settings(
    hass: HomeAssistant, hass_client: ClientSessionGenerator, local_broker: Mosquitto, quic_front: Front
) -> None:
    for component in ("config", "repairs"):
        assert await async_setup_component(hass, component, {})
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, None))
    await set_up(hass, entry)
    client = await hass_client()
    await wait_for_state(hass, entry, "status", "refused")
    form = await post(client, REPAIRS, handler=DOMAIN, issue_id=f"refused_remote_{entry.entry_id}")
    end = await post(client, f"{REPAIRS}/{form['flow_id']}")
    assert (end["type"], end["reason"]) == ("abort", "settings")
    kind, flow_id = end["next_flow"]
    assert kind == "config_flow"
    response = await client.get(f"{CONFIG}/{flow_id}")
    settings = await response.json()
    assert settings["step_id"] == "remote"
    assert "tls.ca" in fields(settings)


# --- a bridge that is removed while a form about it is open -----------------------------------------------------------

PREFIX = {"direction": "to_remote", "prefix": "home"}
CHANGED = {
    "enabled": True,
    "direction": "to_remote",
    "topic_filter": "up/#",
    "selection": {"max_qos": "1"},
    "retained_messages": {"retain": "never", "retained": "never"},
    "outage": {"qos_0": "queue", "priority": "low"},
    "transport": {"own_stream": False},
}


async def serve(hass: HomeAssistant) -> None:
    """Have Home Assistant serve all kinds of flows."""
    for component in (DOMAIN, "config", "repairs"):
        assert await async_setup_component(hass, component, {})


@pytest.mark.parametrize(
    ("path", "begin", "steps"),
    [
        (CONFIG, {"handler": DOMAIN, "entry_id": "gone"}, [{"next_step_id": "remote"}, remote_input(14567, None)]),
        (OPTIONS, {"handler": "gone"}, [{"next_step_id": "messages"}, {"outbox": {}}]),
        (SUBENTRIES, {"handler": ["gone", "route"]}, [{"next_step_id": "everything"}, PREFIX]),
        (
            SUBENTRIES,
            {"handler": ["gone", "route"]},
            [{"next_step_id": "everything"}, PREFIX, {"next_step_id": "save"}],
        ),
        (SUBENTRIES, {"handler": ["gone", "route"], "subentry_id": "route"}, [CHANGED]),
        (SUBENTRIES, {"handler": ["gone", "route"], "subentry_id": "route"}, [CHANGED, {"next_step_id": "save"}]),
    ],
)
async def test_the_bridge_is_removed_meanwhile(
    hass: HomeAssistant,
    hass_client: ClientSessionGenerator,
    path: str,
    begin: dict[str, Any],
    steps: list[dict[str, Any]],
) -> None:
    """Before the last of the steps."""
    route = ConfigSubentryDataWithId(
        subentry_id="route", subentry_type="route", title="", unique_id=None, data=route_data("to_remote", "up/#")
    )
    entry = MockConfigEntry(
        domain=DOMAIN,
        entry_id="gone",
        data={"local": local_data(None), "remote": remote_data(14567, None)},
        subentries_data=[route],
    )
    await serve(hass)
    entry.add_to_hass(hass)
    client = await hass_client()
    flow = await post(client, path, **begin)
    for step in steps[:-1]:
        flow = await post(client, f"{path}/{flow['flow_id']}", **step)
    await hass.config_entries.async_remove("gone")
    end = await post(client, f"{path}/{flow['flow_id']}", **steps[-1])
    assert (end["type"], end["reason"]) == ("abort", "entry_removed")


async def test_a_bridge_that_was_removed_cannot_be_changed(
    hass: HomeAssistant, hass_client: ClientSessionGenerator
) -> None:
    """From a page that still shows it."""
    await serve(hass)
    end = await post(await hass_client(), CONFIG, handler=DOMAIN, entry_id="gone")
    assert (end["type"], end["reason"]) == ("abort", "entry_removed")


async def test_the_bridge_is_removed_while_credentials_are_asked_for(
    hass: HomeAssistant, hass_client: ClientSessionGenerator, quic_front: Front
) -> None:
    """While its brokers are told; the form goes only after that."""
    quic_front.freeze()
    entry = bridge_entry(local_data(None), remote_data(quic_front.port, None))
    await serve(hass)
    entry.add_to_hass(hass)
    client = await hass_client()
    flow = await entry.start_reauth_flow(hass)
    removal = asyncio.create_task(hass.config_entries.async_remove(entry.entry_id))
    await wait_until(lambda: hass.config_entries.async_get_entry(entry.entry_id) is None, what="the removal")
    end = await post(client, f"{CONFIG}/{flow['flow_id']}", password="secret", advanced={"client_id": "another"})
    assert (end["type"], end["reason"]) == ("abort", "entry_removed")
    quic_front.thaw()
    await removal


@pytest.mark.parametrize(("removed", "reason"), [(True, "entry_removed"), (False, "not_loaded")])
async def test_the_bridge_of_an_issue_does_not_run_any_more(
    hass: HomeAssistant, hass_client: ClientSessionGenerator, removed: bool, reason: str
) -> None:
    entry = bridge_entry(local_data(None), remote_data(14567, None), {"up/#": Direction.BOTH, "up/a": Direction.BOTH})
    await serve(hass)
    await set_up(hass, entry)
    client = await hass_client()
    menu = await post(client, REPAIRS, handler=DOMAIN, issue_id=f"routes_hidden_{entry.entry_id}")
    if removed:
        await hass.config_entries.async_remove(entry.entry_id)
    else:
        await hass.config_entries.async_set_disabled_by(entry.entry_id, ConfigEntryDisabler.USER)
    end = await post(client, f"{REPAIRS}/{menu['flow_id']}", next_step_id="disable")
    assert (end["type"], end["reason"]) == ("abort", reason)
