"""What another version, or a hand, has stored and nobody here can follow: said clearly, and nothing else suffers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from homeassistant.config_entries import ConfigEntryState
from homeassistant.const import STATE_OFF, STATE_ON
from homeassistant.core import HomeAssistant
from homeassistant.data_entry_flow import FlowResultType
from homeassistant.helpers.issue_registry import async_get as async_get_issues
import pytest
from pytest_homeassistant_custom_component.common import MockConfigEntry
from pytest_homeassistant_custom_component.components.diagnostics import get_diagnostics_for_config_entry
from pytest_homeassistant_custom_component.typing import ClientSessionGenerator

from custom_components.quic_bridge.bridge.routes import Route
from custom_components.quic_bridge.brokers import bridge_config
from custom_components.quic_bridge.const import DOMAIN
from custom_components.quic_bridge.route_data import RouteError, route_from_data

from .ha_flows import finish, reach_remote, remote_input
from .ha_helpers import (
    bridge_entry,
    entity_id,
    local_data,
    remote_data,
    route_data,
    set_up,
    state,
    wait_for_state,
    wait_running,
)
from .support.certs import Certificates
from .support.client import Client
from .support.mosquitto import Mosquitto
from .support.processes import free_port, wait_until
from .support.quic_front import Front
from .test_config_flow_changes import reconfigure
from .test_route_flow import change, choose as choose_route, fill as fill_route, route_input

UNREADABLE = route_data("to_remote", "bedroom/#", priority="urgent")


@pytest.mark.parametrize(
    "stored",
    [
        {"version": 1, "minor_version": 1, "data": {"local": ["#/none", 7], "remote": "all"}},
        {"version": 1, "minor_version": 1, "data": ["up/#"]},
        {"version": 99, "minor_version": 1, "data": {}},
    ],
)
async def test_subscriptions_that_cannot_be_read(
    hass: HomeAssistant,
    local_broker: Mosquitto,
    quic_front: Front,
    certs: Certificates,
    hass_storage: dict[str, Any],
    stored: dict[str, Any],
) -> None:
    """They are asked for anyhow."""
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    key = f"{DOMAIN}.{entry.entry_id}.subscriptions"
    hass_storage[key] = {"key": key, **stored}
    await set_up(hass, entry)
    await wait_running(hass, entry)
    assert await hass.config_entries.async_unload(entry.entry_id)
    if stored["version"] == 1:
        assert hass_storage[key]["data"]["remote"] == ["down/#"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"topic_filter": "a/#"}, "no direction"),
        ({"direction": "both"}, "no topic_filter"),
        (route_data("sideways", "a/#"), "direction: sideways"),
        (route_data("both", "a/#/b"), "filter_hash"),
        (route_data("both", ""), "filter_empty"),
        (route_data("both", "a/#", target="b/{2}"), "target_capture"),
        (route_data("both", "a/#", max_qos=7), "max_qos: 7"),
        (route_data("both", "a/#", max_age="long"), "max_age: long"),
        (route_data("both", "a/#", exclude=None), "exclude: None"),
        (UNREADABLE, "priority: urgent"),
    ],
)
def test_routes_that_are_none(data: Mapping[str, Any], reason: str) -> None:
    with pytest.raises(RouteError) as caught:
        route_from_data("id", data)
    assert str(caught.value) == reason


def test_what_a_later_version_adds_to_a_route_does_no_harm() -> None:
    route = route_from_data("id", {"direction": "both", "topic_filter": "a/#", "colour": "red"})
    assert isinstance(route, Route)


async def test_an_unreadable_route_stops_no_other(
    hass: HomeAssistant,
    local_broker: Mosquitto,
    remote_broker: Mosquitto,
    quic_front: Front,
    certs: Certificates,
    hass_client: ClientSessionGenerator,
) -> None:
    routes = [UNREADABLE, route_data("to_remote", "up/#"), route_data("sideways", "x", enabled=False)]
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem), routes)
    await set_up(hass, entry)
    await wait_running(hass, entry)
    async with Client(*local_broker.address) as home, Client(*remote_broker.address) as away:
        await away.subscribe("+/lamp", qos=1)
        await home.publish("bedroom/lamp", b"secret", qos=1)
        await home.publish("up/lamp", b"on", qos=1)
        await away.wait_for(1)
        assert away.payloads == [b"on"]

    issue_id = f"routes_unreadable_{entry.entry_id}"
    issue = async_get_issues(hass).async_get_issue(DOMAIN, issue_id)
    assert issue is not None
    assert issue.translation_placeholders == {"name": "127.0.0.1", "routes": "- `bedroom/#`: `priority: urgent`"}
    assert state(hass, entry, "route_problems") == STATE_ON
    problems = hass.states.get(entity_id(hass, entry, "route_problems"))
    assert problems is not None
    assert problems.attributes["unreadable"] == {"bedroom/#": "priority: urgent"}
    found = await get_diagnostics_for_config_entry(hass, hass_client, entry)
    assert "bedroom" not in str(found)

    # The form has what can be read; with the rest filled in it is a route like any other.
    route = next(iter(entry.subentries.values()))
    result = await change(hass, entry, route)
    result = await fill_route(hass, result, {"enabled": True, **route_input("to_remote", "bedroom/#")})
    assert (await choose_route(hass, result, "save"))["type"] is FlowResultType.ABORT
    await wait_for_state(hass, entry, "route_problems", STATE_OFF)
    assert async_get_issues(hass).async_get_issue(DOMAIN, issue_id) is None


async def test_a_route_that_is_removed_while_it_is_edited(hass: HomeAssistant) -> None:
    entry = bridge_entry(local_data(None), remote_data(14567, None))
    entry.add_to_hass(hass)
    for when in ("form", "preview"):
        route = next(iter(entry.subentries.values()))
        result = await change(hass, entry, route)
        user_input = {"enabled": True, **route_input("to_remote", "new/#")}
        if when == "preview":
            result = await fill_route(hass, result, user_input)
        hass.config_entries.async_remove_subentry(entry, route.subentry_id)
        result = (
            await choose_route(hass, result, "save")
            if when == "preview"
            else await fill_route(hass, result, user_input)
        )
        assert (result["type"], result["reason"]) == (FlowResultType.ABORT, "route_removed")


def broken(local_broker: Mosquitto, port: int, **changes: Mapping[str, object] | None) -> MockConfigEntry:
    """Make an entry that lacks, or has, something: `remote_host` is the host in the mapping of the remote broker."""
    entry = bridge_entry(local_data(local_broker), remote_data(port, None))
    data: dict[str, Any] = {key: dict(value) for key, value in entry.data.items()}
    for side, change_ in changes.items():
        if side == "options":
            continue
        data[side] = None if change_ is None else {**data[side], **change_}
        data = {
            name: {key: value for key, value in broker.items() if value is not ...}
            for name, broker in data.items()
            if broker is not None
        }
    return MockConfigEntry(
        domain=DOMAIN, title="broken", data=data, options=changes.get("options") or {}, version=1, minor_version=1
    )


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"remote": None}, "no remote"),
        ({"local": None}, "no local"),
        ({"remote": {"host": ...}}, "no host"),
        ({"local": {"mode": "telepathy"}}, "'telepathy' is not a valid LocalMode"),
        ({"options": {"messages": {"loop_guard": "maybe"}}}, "'maybe' is not a valid GuardMode"),
        ({"options": {"messages": {"outbox_days": "many"}}}, "could not convert string to float: 'many'"),
    ],
)
async def test_an_unreadable_entry_says_so_and_harms_no_other(
    hass: HomeAssistant,
    local_broker: Mosquitto,
    quic_front: Front,
    certs: Certificates,
    hass_client: ClientSessionGenerator,
    changes: Mapping[str, Mapping[str, object] | None],
    detail: str,
) -> None:
    entry = broken(local_broker, quic_front.port, **changes)
    entry.add_to_hass(hass)
    assert not await hass.config_entries.async_setup(entry.entry_id)
    assert entry.state is ConfigEntryState.SETUP_ERROR
    assert entry.error_reason_translation_key == "entry_unreadable"
    assert entry.error_reason_translation_placeholders == {"detail": detail}
    found = await get_diagnostics_for_config_entry(hass, hass_client, entry)
    assert found["entry"]["state"] == "setup_error"
    # Another can be set up ...
    result = await reach_remote(hass, local_broker)
    result = await hass.config_entries.flow.async_configure(
        result["flow_id"], remote_input(quic_front.port, certs.ca_pem, client_id="another")
    )
    await finish(hass, result)
    # ... and this one be removed, with all that it left.
    file = Path(hass.config.path(".storage", DOMAIN, f"{entry.entry_id}.db"))
    file.touch()  # noqa: ASYNC240 # a moment, in a test
    await hass.config_entries.async_remove(entry.entry_id)
    assert not file.exists()  # noqa: ASYNC240 # a moment, in a test


async def test_reconfiguring_mends_an_unreadable_entry(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    entry = broken(local_broker, quic_front.port, remote=None)
    entry.add_to_hass(hass)
    assert not await hass.config_entries.async_setup(entry.entry_id)
    result = await reconfigure(hass, entry, "remote")
    result = await hass.config_entries.flow.async_configure(
        result["flow_id"], remote_input(quic_front.port, certs.ca_pem)
    )
    assert result["reason"] == "reconfigure_successful"
    await wait_until(lambda: entry.state is ConfigEntryState.LOADED)
    await wait_running(hass, entry)


def test_numbers_of_another_version_are_kept_within_bounds(hass: HomeAssistant) -> None:
    entry = MockConfigEntry(
        domain=DOMAIN,
        data={"local": local_data(None), "remote": remote_data(14567, None)},
        options={"connection": {"profile": "custom", "receive_window": 0, "keepalive": 1e9, "send_window": 70_000}},
    )
    remote = bridge_config(hass, entry).remote
    assert (remote.receive_maximum, remote.keepalive, remote.window) == (1, 600, 65_535)


async def test_diagnostics_of_an_entry_that_is_not_in_use(
    hass: HomeAssistant, socket_enabled: None, hass_client: ClientSessionGenerator
) -> None:
    entry = bridge_entry(local_data(None), remote_data(free_port(), None, password="my-secret"))
    await set_up(hass, entry)
    await hass.config_entries.async_unload(entry.entry_id)
    found = await get_diagnostics_for_config_entry(hass, hass_client, entry)
    assert found["entry"]["state"] == "not_loaded"
    assert [route["direction"] for route in found["routes"]] == ["to_remote", "to_local"]
    assert "my-secret" not in str(found)
