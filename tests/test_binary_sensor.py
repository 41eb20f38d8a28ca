"""The connections to both brokers, as Home Assistant sees them."""

from homeassistant.const import ATTR_DEVICE_CLASS, ATTR_FRIENDLY_NAME, STATE_OFF, STATE_ON
from homeassistant.core import HomeAssistant
from homeassistant.helpers import device_registry as dr, entity_registry as er

from custom_components.quic_bridge.const import DOMAIN

from .ha_helpers import bridge_entry, entity_id, local_data, remote_data, set_up, state, wait_for_state, wait_running
from .support.certs import Certificates
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
