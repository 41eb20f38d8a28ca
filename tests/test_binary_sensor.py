"""The connections to both brokers and problems with routes, as Home Assistant sees them."""

from homeassistant.const import ATTR_DEVICE_CLASS, ATTR_FRIENDLY_NAME, STATE_OFF, STATE_ON, STATE_UNKNOWN
from homeassistant.core import Event, EventStateChangedData, HomeAssistant, callback
from homeassistant.helpers import device_registry as dr, entity_registry as er

from custom_components.quic_bridge.const import DOMAIN

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
from .support.faults import refuse_filters
from .support.mosquitto import Mosquitto
from .support.quic_front import Front


async def test_connections_follow_the_brokers(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)
    assert state(hass, entry, "local_connection") == STATE_ON
    assert state(hass, entry, "remote_connection") == STATE_ON

    await quic_front.stop()
    await wait_for_state(hass, entry, "remote_connection", STATE_OFF)
    assert state(hass, entry, "local_connection") == STATE_ON
    await local_broker.stop()
    await wait_for_state(hass, entry, "local_connection", STATE_OFF)

    await quic_front.start()
    await wait_for_state(hass, entry, "remote_connection", STATE_ON)
    assert state(hass, entry, "local_connection") == STATE_OFF
    await local_broker.start()
    await wait_for_state(hass, entry, "local_connection", STATE_ON)


async def test_a_start_is_no_loss(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """Until an attempt has come to an end nobody knows: "off" would set off alarms at each start."""
    seen: list[tuple[str, str]] = []

    @callback
    def note(event: Event[EventStateChangedData]) -> None:
        new = event.data["new_state"]
        if new is not None and new.entity_id.endswith("_connection"):
            side = new.entity_id.removesuffix("_connection").rpartition("_")[2]
            if (side, new.state) not in seen:
                seen.append((side, new.state))

    hass.bus.async_listen("state_changed", note)
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)
    for side in ("local", "remote"):
        assert [value for name, value in seen if name == side] == [STATE_UNKNOWN, STATE_ON]
    # When the first attempt has failed it is known, and stays so during the next ones.
    seen.clear()
    await quic_front.stop()
    assert await hass.config_entries.async_unload(entry.entry_id)
    seen.clear()
    await hass.config_entries.async_setup(entry.entry_id)
    await wait_for_state(hass, entry, "remote_connection", STATE_OFF)
    await quic_front.start()
    await wait_for_state(hass, entry, "remote_connection", STATE_ON)
    assert [value for name, value in seen if name == "remote"] == [STATE_UNKNOWN, STATE_OFF, STATE_ON]


async def test_route_problems(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """Each route that carries nothing, with the reason."""

    def problems() -> dict[str, dict[str, str]]:
        found = hass.states.get(entity_id(hass, entry, "route_problems"))
        assert found is not None
        return {name: found.attributes[name] for name in ("refused", "hidden")}

    rule = refuse_filters({"down/#": 0x87})
    quic_front.add_rule(*rule)
    routes = [
        route_data("to_local", "down/#"),
        route_data("to_local", "down/lamp"),
        route_data("to_remote", "up/#"),
        route_data("both", "fine/#"),
    ]
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem), routes)
    await set_up(hass, entry)
    await wait_running(hass, entry)
    await wait_for_state(hass, entry, "route_problems", STATE_ON)
    words = "not authorized (0x87)"
    assert problems() == {"refused": {"← down/#": words}, "hidden": {"← down/lamp": "← down/#"}}
    # Known also while the broker is away; of a bridge that is paused only what its settings tell.
    await quic_front.stop()
    await wait_for_state(hass, entry, "remote_connection", STATE_OFF)
    assert "← down/#" in problems()["refused"]
    switch = {"entity_id": entity_id(hass, entry, "enabled")}
    await hass.services.async_call("switch", "turn_off", switch, blocking=True)
    assert problems() == {"refused": {}, "hidden": {"← down/lamp": "← down/#"}}
    # A change of routes counts at once, also then.
    lamp = next(route for route in entry.subentries.values() if route.data["topic_filter"] == "down/lamp")
    hass.config_entries.async_update_subentry(entry, lamp, data={**lamp.data, "enabled": False})
    await hass.async_block_till_done()
    assert state(hass, entry, "route_problems") == STATE_OFF


async def test_entities_and_device(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    registry = er.async_get(hass)
    device = dr.async_get(hass).async_get_device_by_identifier((DOMAIN, entry.entry_id), entry.entry_id)
    assert device is not None
    assert (device.name, device.entry_type) == ("127.0.0.1", dr.DeviceEntryType.SERVICE)
    assert device.sw_version == "0.1.0"
    for key, name in (("local_connection", "Local connection"), ("remote_connection", "Remote connection")):
        registered = registry.async_get(entity_id(hass, entry, key))
        found = hass.states.get(entity_id(hass, entry, key))
        assert registered is not None
        assert found is not None
        assert registered.entity_category is None
        assert registered.device_id == device.id
        assert found.attributes == {ATTR_DEVICE_CLASS: "connectivity", ATTR_FRIENDLY_NAME: f"127.0.0.1 {name}"}
