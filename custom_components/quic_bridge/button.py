"""Connect anew at once."""

from typing import override

from homeassistant.components.button import ButtonEntity, ButtonEntityDescription
from homeassistant.const import EntityCategory
from homeassistant.core import HomeAssistant
from homeassistant.helpers.entity_platform import AddConfigEntryEntitiesCallback

from .coordinator import QuicBridgeConfigEntry
from .entity import QuicBridgeEntity

PARALLEL_UPDATES = 1

RECONNECT = ButtonEntityDescription(key="reconnect", translation_key="reconnect", entity_category=EntityCategory.CONFIG)


async def async_setup_entry(
    _hass: HomeAssistant, entry: QuicBridgeConfigEntry, async_add_entities: AddConfigEntryEntitiesCallback
) -> None:
    """Add the button of a bridge."""
    async_add_entities([ReconnectButton(entry.runtime_data, RECONNECT)])


class ReconnectButton(QuicBridgeEntity, ButtonEntity):
    """Ends both connections, or the wait for the next attempt."""

    @override
    async def async_press(self) -> None:
        """Reconnect both brokers; ServiceValidationError while the bridge is paused."""
        self.coordinator.async_reconnect()
