"""The numbers on Home Assistant's system page."""

from homeassistant.core import HomeAssistant
from homeassistant.setup import async_setup_component
from pytest_homeassistant_custom_component.common import get_system_health_info

from custom_components.quic_bridge.const import DOMAIN

from .ha_fixtures import load_texts
from .ha_helpers import bridge_entry, local_data, remote_data, set_up, wait_for_state, wait_running
from .support.certs import Certificates
from .support.client import Client
from .support.mosquitto import Mosquitto
from .support.quic_front import Front


async def test_system_health(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    assert await async_setup_component(hass, "system_health", {})
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    bridge_entry(local_data(None), remote_data(quic_front.port, None, client_id="unused")).add_to_hass(hass)
    await wait_running(hass, entry)
    info = await get_system_health_info(hass, DOMAIN)
    assert info == {"bridges": 2, "running": 1, "outbox_messages": 0, "messages_dropped": 0}
    assert set(info) == {key.rpartition(".")[2] for key in load_texts() if key.startswith("system_health.info.")}

    await quic_front.stop()
    await wait_for_state(hass, entry, "remote_connection", "off")
    async with Client(*local_broker.address) as home:
        await home.publish("up/lamp", b"kept", 1)
        await home.publish("up/lamp", b"lost", 0)
        await wait_for_state(hass, entry, "outbox_messages", "1")
        await wait_for_state(hass, entry, "messages_dropped", "1")
    info = await get_system_health_info(hass, DOMAIN)
    assert info == {"bridges": 2, "running": 0, "outbox_messages": 1, "messages_dropped": 1}
