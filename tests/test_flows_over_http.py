"""Flows as the frontend goes through them: every form has to be put into JSON."""

from typing import Any

from aiohttp.test_utils import TestClient
from homeassistant.core import HomeAssistant
from homeassistant.setup import async_setup_component
import pytest
from pytest_homeassistant_custom_component.typing import ClientSessionGenerator

from custom_components.quic_bridge.const import DOMAIN

from .ha_helpers import bridge_entry, local_data, remote_data, set_up, wait_for_state
from .support.mosquitto import Mosquitto
from .support.quic_front import Front

SUBENTRIES = "/api/config/config_entries/subentries/flow"


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
    path = "/api/repairs/issues/fix"
    form = await post(client, path, handler=DOMAIN, issue_id=f"refused_remote_{entry.entry_id}")
    end = await post(client, f"{path}/{form['flow_id']}")
    assert (end["type"], end["reason"]) == ("abort", "settings")
    kind, flow_id = end["next_flow"]
    assert kind == "config_flow"
    response = await client.get(f"/api/config/config_entries/flow/{flow_id}")
    settings = await response.json()
    assert settings["step_id"] == "remote"
    assert "tls.ca" in fields(settings)
