"""Pause the bridge without losing messages."""

from typing import Any, override

from homeassistant.components.switch import SwitchEntity, SwitchEntityDescription
from homeassistant.core import HomeAssistant
from homeassistant.helpers.entity_platform import AddConfigEntryEntitiesCallback

from .coordinator import QuicBridgeConfigEntry
from .entity import QuicBridgeEntity

PARALLEL_UPDATES = 1

ENABLED = SwitchEntityDescription(key="enabled", translation_key="enabled")


async def async_setup_entry(
    _hass: HomeAssistant, entry: QuicBridgeConfigEntry, async_add_entities: AddConfigEntryEntitiesCallback
) -> None:
    """Add the switch of a bridge."""
    async_add_entities([EnabledSwitch(entry.runtime_data, ENABLED)])


class EnabledSwitch(QuicBridgeEntity, SwitchEntity):
    """Off: both brokers are left, and keep what comes in for the bridge until it is on again."""

    @property
    @override
    def is_on(self) -> bool:
        """Whether the bridge is to run."""
        return not self.coordinator.paused

    @override
    async def async_turn_on(self, **kwargs: Any) -> None:
        """Let the bridge connect again."""
        await self.coordinator.async_set_paused(False)

    @override
    async def async_turn_off(self, **kwargs: Any) -> None:
        """Log out of both brokers."""
        await self.coordinator.async_set_paused(True)
