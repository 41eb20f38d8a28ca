"""MQTT-over-QUIC bridge: links Home Assistant's MQTT broker to a remote one."""

import logging

from homeassistant.const import Platform
from homeassistant.core import HomeAssistant, callback
from homeassistant.exceptions import ConfigEntryError
from homeassistant.helpers import config_validation as cv, entity_registry as er
from homeassistant.helpers.typing import ConfigType

from .bridge.bridge import remove_files
from .bridge.outbox import Outbox, OutboxError
from .brokers import (
    entry_presence,
    outbox_path,
    quic_log_folder,
    tickets_path,
    unreadable,
)
from .const import DOMAIN
from .coordinator import QuicBridgeConfigEntry, QuicBridgeCoordinator
from .farewell import async_end_former, async_part, async_remember_shared, async_say_goodbye
from .issues import async_forget_issues
from .services import async_setup_services
from .subscription_memory import SubscriptionMemory

_LOGGER = logging.getLogger(__name__)

PLATFORMS = [Platform.BINARY_SENSOR, Platform.BUTTON, Platform.EVENT, Platform.SENSOR, Platform.SWITCH]


CONFIG_SCHEMA = cv.config_entry_only_config_schema(DOMAIN)


async def async_setup(hass: HomeAssistant, _config: ConfigType) -> bool:
    """Set up what all bridges share: the actions."""
    async_setup_services(hass)
    return True


async def async_setup_entry(hass: HomeAssistant, entry: QuicBridgeConfigEntry) -> bool:
    """Set up the bridge of a config entry. It is set up whether or not the brokers can be reached now."""
    if (detail := unreadable(hass, entry)) is not None:
        raise ConfigEntryError(
            translation_domain=DOMAIN, translation_key="entry_unreadable", translation_placeholders={"detail": detail}
        )
    coordinator = QuicBridgeCoordinator(hass, entry)
    entry.runtime_data = coordinator
    # From now on, as the bridge has what is stored at this moment.
    entry.async_on_unload(entry.add_update_listener(_async_entry_updated))
    # The entities first, so that they see what the bridge tells from its start on.
    await hass.config_entries.async_forward_entry_setups(entry, PLATFORMS)
    _remove_stale_entities(hass, entry)
    await coordinator.async_start()
    return True


async def async_unload_entry(hass: HomeAssistant, entry: QuicBridgeConfigEntry) -> bool:
    """Stop the bridge of a config entry; both brokers are told that it leaves."""
    unloaded = await hass.config_entries.async_unload_platforms(entry, PLATFORMS)
    if unloaded:
        await entry.runtime_data.async_shutdown()
        async_remember_shared(hass, entry)
    return unloaded


async def async_remove_entry(hass: HomeAssistant, entry: QuicBridgeConfigEntry) -> None:
    """Have both brokers forget the bridge, and delete the messages that still waited for the remote."""
    async_forget_issues(hass, entry)
    if unreadable(hass, entry) is None:
        await async_say_goodbye(hass, entry)
    try:
        await Outbox(outbox_path(hass, entry)).remove()
    except OutboxError as error:
        _LOGGER.warning("The file with the messages that waited could not be deleted: %s", error)
    await SubscriptionMemory(hass, entry).async_remove()
    try:
        await remove_files(tickets_path(hass, entry), quic_log_folder(hass, entry))
    except OSError as error:
        _LOGGER.warning("The session tickets or QUIC logs could not be deleted: %s", error)


@callback
def _remove_stale_entities(hass: HomeAssistant, entry: QuicBridgeConfigEntry) -> None:
    """Remove what another version had and this one has not, before or after: it would be unavailable for ever.

    Home Assistant remembers what a person had made of such an entity, in case it comes back.
    """
    registry = er.async_get(hass)
    for entity in er.async_entries_for_config_entry(registry, entry.entry_id):
        if entity.unique_id not in entry.runtime_data.unique_ids:
            registry.async_remove(entity.entity_id)


async def _async_entry_updated(hass: HomeAssistant, entry: QuicBridgeConfigEntry) -> None:
    """Follow changed routes as the bridge runs; anything else that has changed starts it afresh."""
    if entry.runtime_data.settings_changed:
        former = await async_part(hass, entry)
        entry.runtime_data.bridge.retire_presence(entry_presence(entry))
        if await hass.config_entries.async_reload(entry.entry_id):
            async_end_former(hass, entry, former)
    else:
        await entry.runtime_data.async_apply_routes()
