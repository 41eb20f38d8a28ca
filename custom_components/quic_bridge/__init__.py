"""MQTT-over-QUIC bridge: links Home Assistant's MQTT broker to a remote one."""

import asyncio
from collections.abc import Callable
import logging
from typing import Final

from homeassistant.const import Platform
from homeassistant.core import HomeAssistant, callback
from homeassistant.exceptions import ConfigEntryError
from homeassistant.helpers import config_validation as cv, entity_registry as er
from homeassistant.helpers.typing import ConfigType

from .bridge.bridge import remove_files
from .bridge.check import forget_session
from .bridge.config import BrokerConfig
from .bridge.errors import BridgeError
from .bridge.outbox import Outbox, OutboxError
from .bridge.status import Side
from .brokers import (
    entry_presence,
    local_broker,
    outbox_path,
    quic_log_folder,
    remote_endpoints,
    tickets_path,
    unreadable,
)
from .const import CONF_LOCAL, CONF_REMOTE, DOMAIN
from .coordinator import QuicBridgeConfigEntry, QuicBridgeCoordinator
from .issues import async_forget_issues
from .services import async_setup_services
from .subscription_memory import SubscriptionMemory

_LOGGER = logging.getLogger(__name__)

FAREWELL_TIMEOUT: Final = 4.0
"""Seconds for a broker to take note that the bridge was removed; a person waits for the removal meanwhile."""
FAREWELL_PATIENCE: Final = 10.0
"""Seconds for all the addresses of a broker."""

_SESSION_KEPT: Final = "The %s broker still keeps the session of the bridge that was removed: %r"

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
    return unloaded


async def async_remove_entry(hass: HomeAssistant, entry: QuicBridgeConfigEntry) -> None:
    """Have both brokers forget the bridge, and delete the messages that still waited for the remote."""
    async_forget_issues(hass, entry)
    if unreadable(hass, entry) is None:
        await _async_say_goodbye(hass, entry)
    try:
        await Outbox(outbox_path(hass, entry)).remove()
    except OutboxError as error:
        _LOGGER.warning("The file with the messages that waited could not be deleted: %s", error)
    await SubscriptionMemory(hass, entry).async_remove()
    try:
        await remove_files(tickets_path(hass, entry), quic_log_folder(hass, entry))
    except OSError as error:
        _LOGGER.warning("The session tickets or QUIC logs could not be deleted: %s", error)


async def _async_say_goodbye(hass: HomeAssistant, entry: QuicBridgeConfigEntry) -> None:
    presence = entry_presence(entry)
    local_topic, remote_topic = (presence.local_topic, presence.remote_topic) if presence is not None else (None, None)
    await asyncio.gather(
        _async_forget(Side.LOCAL, lambda: [local_broker(hass, entry.data[CONF_LOCAL])], local_topic),
        _async_forget(Side.REMOTE, lambda: remote_endpoints(entry.data[CONF_REMOTE]), remote_topic),
    )


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
        entry.runtime_data.bridge.retire_presence(entry_presence(entry))
        await hass.config_entries.async_reload(entry.entry_id)
    else:
        await entry.runtime_data.async_apply_routes()


async def _async_forget(side: Side, endpoints: Callable[[], list[BrokerConfig]], status_topic: str | None) -> None:
    """Let a broker drop its session, which it would fill for a week; if it is away, it does that in the end."""
    try:
        brokers = endpoints()
    except BridgeError as error:
        _LOGGER.debug(_SESSION_KEPT, side, error)
        return
    deadline = asyncio.get_running_loop().time() + FAREWELL_PATIENCE
    for broker in brokers:
        try:
            async with asyncio.timeout_at(deadline), asyncio.timeout(FAREWELL_TIMEOUT):
                await forget_session(broker, status_topic)
        except (BridgeError, TimeoutError) as error:
            _LOGGER.debug(_SESSION_KEPT, side, error)
        else:
            return
