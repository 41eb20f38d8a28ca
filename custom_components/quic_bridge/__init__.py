"""MQTT-over-QUIC bridge: links Home Assistant's MQTT broker to a remote one."""

import logging

from homeassistant.const import Platform
from homeassistant.core import HomeAssistant

from .bridge.outbox import Outbox, OutboxError
from .brokers import outbox_path
from .coordinator import QuicBridgeConfigEntry, QuicBridgeCoordinator

_LOGGER = logging.getLogger(__name__)

PLATFORMS = [Platform.BINARY_SENSOR, Platform.SENSOR]


async def async_setup_entry(hass: HomeAssistant, entry: QuicBridgeConfigEntry) -> bool:
    """Set up the bridge of a config entry. It is set up whether or not the brokers can be reached now."""
    coordinator = QuicBridgeCoordinator(hass, entry)
    entry.runtime_data = coordinator
    # The entities first, so that they see what the bridge tells from its start on.
    await hass.config_entries.async_forward_entry_setups(entry, PLATFORMS)
    entry.async_on_unload(entry.add_update_listener(_async_entry_updated))
    await coordinator.async_start()
    return True


async def async_unload_entry(hass: HomeAssistant, entry: QuicBridgeConfigEntry) -> bool:
    """Stop the bridge of a config entry; both brokers are told that it leaves."""
    unloaded = await hass.config_entries.async_unload_platforms(entry, PLATFORMS)
    if unloaded:
        await entry.runtime_data.async_shutdown()
    return unloaded


async def async_remove_entry(hass: HomeAssistant, entry: QuicBridgeConfigEntry) -> None:
    """Delete the messages that still waited for the remote."""
    try:
        await Outbox(outbox_path(hass, entry)).remove()
    except OutboxError as error:
        _LOGGER.warning("The file with the messages that waited could not be deleted: %s", error)


async def _async_entry_updated(hass: HomeAssistant, entry: QuicBridgeConfigEntry) -> None:
    """Start the bridge afresh with changed settings or routes."""
    await hass.config_entries.async_reload(entry.entry_id)
