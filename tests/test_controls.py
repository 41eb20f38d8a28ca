"""The switch that pauses the bridge, and the button that reconnects it."""

import re
from types import MappingProxyType
from typing import Any

from homeassistant.config_entries import ConfigEntryState, ConfigSubentry
from homeassistant.const import STATE_OFF, STATE_ON, EntityCategory
from homeassistant.core import HomeAssistant
from homeassistant.exceptions import ServiceValidationError
from homeassistant.helpers import entity_registry as er
from homeassistant.helpers.issue_registry import async_get as async_get_issues
import pytest
from pytest_homeassistant_custom_component.common import MockConfigEntry

from custom_components.quic_bridge.const import DOMAIN

from .ha_helpers import (
    CLIENT_ID,
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
from .support.faults import refuse_filters
from .support.mosquitto import Mosquitto
from .support.processes import wait_until
from .support.quic_front import Front


@pytest.fixture
def entry(local_broker: Mosquitto, quic_front: Front, certs: Certificates) -> MockConfigEntry:
    """A bridge between the two brokers."""
    return bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))


async def switch(hass: HomeAssistant, entry: MockConfigEntry, to: str) -> None:
    """Turn the bridge on or off."""
    target = {"entity_id": entity_id(hass, entry, "enabled")}
    await hass.services.async_call("switch", f"turn_{to}", target, blocking=True)
    assert state(hass, entry, "enabled") == to


async def wait_for_log(broker: Mosquitto, pattern: str) -> None:
    """Wait until something is in a broker's log."""
    await wait_until(lambda: re.search(pattern, broker.log), what=pattern)


async def press(hass: HomeAssistant, entry: MockConfigEntry) -> None:
    """Press the reconnect button."""
    await hass.services.async_call("button", "press", {"entity_id": entity_id(hass, entry, "reconnect")}, blocking=True)


async def test_a_pause_loses_nothing(
    hass: HomeAssistant, entry: MockConfigEntry, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front
) -> None:
    """Not even over a restart of Home Assistant in the middle of it."""
    await set_up(hass, entry)
    await wait_running(hass, entry)
    assert state(hass, entry, "enabled") == STATE_ON
    await switch(hass, entry, "off")
    assert state(hass, entry, "status") == "stopped"
    assert state(hass, entry, "local_connection") == state(hass, entry, "remote_connection") == STATE_OFF
    await wait_until(lambda: quic_front.stats.disconnects and quic_front.stats.closes, what="DISCONNECT and close")
    await wait_until(lambda: f"Received DISCONNECT from {CLIENT_ID}-local" in local_broker.log, what="local DISCONNECT")

    async with Client(*local_broker.address) as home, Client(*remote_broker.address) as away:
        await home.subscribe("down/#", qos=1)
        await away.subscribe("up/#", qos=1)
        for number in range(5):
            await home.publish("up/lamp", b"%d" % number, 1)
            await away.publish("down/lamp", b"%d" % number, 2)

        assert await hass.config_entries.async_reload(entry.entry_id)
        assert (state(hass, entry, "enabled"), state(hass, entry, "status")) == (STATE_OFF, "stopped")
        assert len(quic_front.stats.connects) == 1

        await switch(hass, entry, "on")
        await wait_running(hass, entry)
        expected = [b"%d" % number for number in range(5)]
        await wait_until(lambda: away.payloads == expected and home.payloads == expected, what="what had waited")
    # Once more is none.
    await switch(hass, entry, "on")
    assert state(hass, entry, "status") == "running"
    assert len(quic_front.stats.connects) == 2


async def test_changes_while_paused_count_afterwards(
    hass: HomeAssistant, entry: MockConfigEntry, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front
) -> None:
    await set_up(hass, entry)
    await switch(hass, entry, "off")
    hass.config_entries.async_add_subentry(
        entry,
        ConfigSubentry(
            data=MappingProxyType(route_data("to_remote", "new")), subentry_type="route", title="", unique_id=None
        ),
    )
    await hass.async_block_till_done()
    hass.config_entries.async_update_entry(entry, title="Another name")
    await hass.async_block_till_done()
    assert (entry.state, state(hass, entry, "status")) == (ConfigEntryState.LOADED, "stopped")
    await switch(hass, entry, "on")
    await wait_running(hass, entry)
    async with Client(*local_broker.address) as home, Client(*remote_broker.address) as away:
        await away.subscribe("new", qos=1)
        await home.publish("new", b"", 1)
        await away.wait_for(1)


async def test_a_route_that_is_removed_while_the_bridge_does_not_run(
    hass: HomeAssistant,
    entry: MockConfigEntry,
    local_broker: Mosquitto,
    remote_broker: Mosquitto,
    hass_storage: dict[str, Any],
) -> None:
    """The brokers keep the session with its subscription, which ends when the bridge is back: also after a reload."""
    await set_up(hass, entry)
    await wait_running(hass, entry)
    for topic in ("up/#", "down/#"):
        await switch(hass, entry, "off")
        route = next(route for route in entry.subentries.values() if route.data["topic_filter"] == topic)
        hass.config_entries.async_remove_subentry(entry, route.subentry_id)
        if topic == "down/#":
            assert await hass.config_entries.async_reload(entry.entry_id)
        await hass.async_block_till_done()
        await switch(hass, entry, "on")
        await wait_running(hass, entry)
        broker, client_id = (local_broker, f"{CLIENT_ID}-local") if topic == "up/#" else (remote_broker, CLIENT_ID)
        await wait_for_log(broker, rf"Received UNSUBSCRIBE from {client_id}\n.*\t{topic}\n")
    assert (key := f"{DOMAIN}.{entry.entry_id}.subscriptions") in hass_storage
    await hass.config_entries.async_remove(entry.entry_id)
    assert key not in hass_storage


async def test_what_is_subscribed_is_written_when_it_changes(
    hass: HomeAssistant, entry: MockConfigEntry, hass_storage: dict[str, Any]
) -> None:
    """... and not at each stop: people's SD cards wear out."""
    await set_up(hass, entry)
    await wait_running(hass, entry)
    assert await hass.config_entries.async_unload(entry.entry_id)
    key = f"{DOMAIN}.{entry.entry_id}.subscriptions"
    assert hass_storage[key]["data"]["remote"] == ["down/#"]
    written = hass_storage[key] = {**hass_storage[key]}
    assert await hass.config_entries.async_setup(entry.entry_id)
    await wait_running(hass, entry)
    assert await hass.config_entries.async_reload(entry.entry_id)
    await wait_running(hass, entry)
    assert await hass.config_entries.async_unload(entry.entry_id)
    assert hass_storage[key] is written


async def test_issues_rest_while_paused(hass: HomeAssistant, entry: MockConfigEntry, quic_front: Front) -> None:
    quic_front.add_rule(*refuse_filters({"down/#": 0x87}))
    await set_up(hass, entry)
    await wait_running(hass, entry)
    issues = async_get_issues(hass)
    issue_id = f"subscriptions_refused_remote_{entry.entry_id}"
    assert issues.async_get_issue(DOMAIN, issue_id) is not None
    await switch(hass, entry, "off")
    assert issues.async_get_issue(DOMAIN, issue_id) is None
    await switch(hass, entry, "on")
    await wait_running(hass, entry)
    assert issues.async_get_issue(DOMAIN, issue_id) is not None


async def test_reconnect(
    hass: HomeAssistant, entry: MockConfigEntry, local_broker: Mosquitto, quic_front: Front
) -> None:
    await set_up(hass, entry)
    await wait_running(hass, entry)
    await press(hass, entry)
    await wait_for_state(hass, entry, "remote_reconnects", "1")
    await wait_for_state(hass, entry, "local_reconnects", "1")
    await wait_running(hass, entry)
    assert len(quic_front.stats.connects) == 2

    await switch(hass, entry, "off")
    with pytest.raises(ServiceValidationError) as raised:
        await press(hass, entry)
    assert raised.value.translation_key == "bridge_paused"
    assert str(raised.value) == "The bridge 127.0.0.1 is paused. Switch it on first"


async def test_registered(hass: HomeAssistant, entry: MockConfigEntry) -> None:
    await set_up(hass, entry)
    registry = er.async_get(hass)
    for key, name, category in (
        ("enabled", "Bridge enabled", None),
        ("reconnect", "Reconnect", EntityCategory.CONFIG),
        ("events", "Events", None),
    ):
        registered = registry.async_get(entity_id(hass, entry, key))
        assert registered is not None
        assert (registered.original_name, registered.entity_category) == (name, category)
