"""What all entities of the bridge have in common."""

from homeassistant.helpers.device_registry import DeviceEntryType, DeviceInfo
from homeassistant.helpers.entity import EntityDescription
from homeassistant.helpers.update_coordinator import CoordinatorEntity
from homeassistant.loader import async_get_loaded_integration

from .const import DOMAIN
from .coordinator import QuicBridgeCoordinator


class QuicBridgeEntity(CoordinatorEntity[QuicBridgeCoordinator]):
    """An entity of the one service device that stands for a bridge."""

    _attr_has_entity_name = True

    def __init__(self, coordinator: QuicBridgeCoordinator, description: EntityDescription) -> None:
        """Attach the entity to the bridge's device."""
        super().__init__(coordinator)
        entry_id = coordinator.config_entry.entry_id
        self.entity_description = description
        self._attr_unique_id = f"{entry_id}_{description.key}"
        coordinator.unique_ids.add(self._attr_unique_id)
        self._attr_device_info = DeviceInfo(
            identifiers={(DOMAIN, entry_id)},
            entry_type=DeviceEntryType.SERVICE,
            name=coordinator.config_entry.title,
            model="MQTT-over-QUIC bridge",
            sw_version=str(async_get_loaded_integration(coordinator.hass, DOMAIN).version),
        )
