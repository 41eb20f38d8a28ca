"""Whether each broker is connected."""

from dataclasses import dataclass
from typing import override

from homeassistant.components.binary_sensor import (  # type: ignore[attr-defined] # public, yet not marked so
    BinarySensorDeviceClass,
    BinarySensorEntity,
    BinarySensorEntityDescription,
)
from homeassistant.core import HomeAssistant
from homeassistant.helpers.entity_platform import AddConfigEntryEntitiesCallback

from .bridge.status import LinkState, Side
from .coordinator import QuicBridgeConfigEntry
from .entity import QuicBridgeEntity, link_status

PARALLEL_UPDATES = 0


@dataclass(frozen=True, kw_only=True)
class ConnectionDescription(BinarySensorEntityDescription):
    """Describes the connection to one broker."""

    side: Side


CONNECTIONS = tuple(
    ConnectionDescription(
        key=f"{side}_connection",
        translation_key=f"{side}_connection",
        device_class=BinarySensorDeviceClass.CONNECTIVITY,
        side=side,
    )
    for side in Side
)


async def async_setup_entry(
    _hass: HomeAssistant, entry: QuicBridgeConfigEntry, async_add_entities: AddConfigEntryEntitiesCallback
) -> None:
    """Add the binary sensors of a bridge."""
    async_add_entities(ConnectionSensor(entry.runtime_data, description) for description in CONNECTIONS)


class ConnectionSensor(QuicBridgeEntity, BinarySensorEntity):
    """On while the broker has accepted us; available also while it has not, as that is what it tells."""

    entity_description: ConnectionDescription

    @property
    @override
    def is_on(self) -> bool:
        """Whether the broker is connected."""
        return link_status(self.coordinator.data, self.entity_description.side).state is LinkState.CONNECTED
