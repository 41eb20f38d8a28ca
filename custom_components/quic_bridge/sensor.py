"""State, counters and figures of a bridge."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, override

from homeassistant.components.sensor import (
    SensorDeviceClass,
    SensorEntity,
    SensorEntityDescription,
    SensorStateClass,
)
from homeassistant.const import EntityCategory, UnitOfTime
from homeassistant.core import HomeAssistant, callback
from homeassistant.helpers.entity_platform import AddConfigEntryEntitiesCallback
from homeassistant.helpers.typing import StateType

from .bridge.errors import ErrorCode
from .bridge.status import BridgeState, BridgeStatus, LinkState, Side
from .coordinator import QuicBridgeConfigEntry
from .entity import QuicBridgeEntity, link_status

PARALLEL_UPDATES = 0

NO_ERROR: Final = "none"
"""State of a last error before there was any; no ErrorCode has this value."""


@dataclass(frozen=True, kw_only=True)
class BridgeSensorDescription(SensorEntityDescription):
    """Describes a sensor by what it takes from the status."""

    value_fn: Callable[[BridgeStatus], StateType | datetime]
    attributes_fn: Callable[[BridgeStatus], dict[str, Any]] | None = None
    keeps_value: bool = False
    """Whether the last value stays while the status has none."""


def _dropped(status: BridgeStatus) -> dict[str, int]:
    """Count the dropped messages of both directions by reason."""
    dropped: dict[str, int] = {}
    for direction in (status.outbound, status.inbound):
        for reason, count in direction.dropped.items():
            dropped[reason.value] = dropped.get(reason.value, 0) + count
    return dropped


def _error_code(side: Side) -> Callable[[BridgeStatus], str]:
    def error_code(status: BridgeStatus) -> str:
        error = link_status(status, side).error
        return NO_ERROR if error is None else error.code.value

    return error_code


def _error_details(side: Side) -> Callable[[BridgeStatus], dict[str, Any]]:
    def error_details(status: BridgeStatus) -> dict[str, Any]:
        error = link_status(status, side).error
        return {} if error is None else {"message": error.text, "time": error.at}

    return error_details


def _round_trip(status: BridgeStatus) -> float | None:
    return status.remote.details.rtt_ms if status.remote.state is LinkState.CONNECTED else None


BRIDGE_SENSORS: Final = (
    BridgeSensorDescription(
        key="status",
        translation_key="status",
        device_class=SensorDeviceClass.ENUM,
        options=[state.value for state in BridgeState],
        value_fn=lambda status: status.state.value,
    ),
    BridgeSensorDescription(
        key="messages_sent",
        translation_key="messages_sent",
        state_class=SensorStateClass.TOTAL_INCREASING,
        value_fn=lambda status: status.outbound.forwarded,
    ),
    BridgeSensorDescription(
        key="messages_received",
        translation_key="messages_received",
        state_class=SensorStateClass.TOTAL_INCREASING,
        value_fn=lambda status: status.inbound.forwarded,
    ),
    BridgeSensorDescription(
        key="messages_waiting",
        translation_key="messages_waiting",
        state_class=SensorStateClass.MEASUREMENT,
        entity_category=EntityCategory.DIAGNOSTIC,
        value_fn=lambda status: status.outbound.waiting + status.inbound.waiting,
    ),
    BridgeSensorDescription(
        key="outbox_messages",
        translation_key="outbox_messages",
        state_class=SensorStateClass.MEASUREMENT,
        entity_category=EntityCategory.DIAGNOSTIC,
        value_fn=lambda status: status.outbox.messages if status.outbox else None,
    ),
    BridgeSensorDescription(
        key="outbox_oldest",
        translation_key="outbox_oldest",
        device_class=SensorDeviceClass.TIMESTAMP,
        entity_category=EntityCategory.DIAGNOSTIC,
        entity_registry_enabled_default=False,
        value_fn=lambda status: status.outbox.oldest if status.outbox else None,
    ),
    BridgeSensorDescription(
        key="messages_dropped",
        translation_key="messages_dropped",
        state_class=SensorStateClass.TOTAL_INCREASING,
        entity_category=EntityCategory.DIAGNOSTIC,
        value_fn=lambda status: sum(_dropped(status).values()),
        attributes_fn=_dropped,
    ),
    BridgeSensorDescription(
        key="subscriptions_refused",
        translation_key="subscriptions_refused",
        state_class=SensorStateClass.MEASUREMENT,
        entity_category=EntityCategory.DIAGNOSTIC,
        value_fn=lambda status: sum(len(link.failed_filters) for link in (status.local, status.remote)),
        attributes_fn=lambda status: {side.value: link_status(status, side).failed_filters for side in Side},
    ),
    BridgeSensorDescription(
        key="remote_round_trip_time",
        translation_key="remote_round_trip_time",
        device_class=SensorDeviceClass.DURATION,
        state_class=SensorStateClass.MEASUREMENT,
        native_unit_of_measurement=UnitOfTime.MILLISECONDS,
        suggested_display_precision=1,
        entity_category=EntityCategory.DIAGNOSTIC,
        entity_registry_enabled_default=False,
        value_fn=_round_trip,
    ),
)


def _link_sensors(side: Side) -> tuple[BridgeSensorDescription, ...]:
    """Return the sensors that each side has."""
    return (
        BridgeSensorDescription(
            key=f"{side}_reconnects",
            translation_key=f"{side}_reconnects",
            state_class=SensorStateClass.TOTAL_INCREASING,
            entity_category=EntityCategory.DIAGNOSTIC,
            value_fn=lambda status: link_status(status, side).reconnects,
        ),
        BridgeSensorDescription(
            key=f"{side}_last_connected",
            translation_key=f"{side}_last_connected",
            device_class=SensorDeviceClass.TIMESTAMP,
            entity_category=EntityCategory.DIAGNOSTIC,
            value_fn=lambda status: link_status(status, side).connected_at,
            keeps_value=True,
        ),
        BridgeSensorDescription(
            key=f"{side}_last_error",
            translation_key=f"{side}_last_error",
            device_class=SensorDeviceClass.ENUM,
            options=[NO_ERROR, *(code.value for code in ErrorCode)],
            entity_category=EntityCategory.DIAGNOSTIC,
            value_fn=_error_code(side),
            attributes_fn=_error_details(side),
        ),
    )


SENSORS: Final = (*BRIDGE_SENSORS, *_link_sensors(Side.REMOTE), *_link_sensors(Side.LOCAL))


async def async_setup_entry(
    _hass: HomeAssistant, entry: QuicBridgeConfigEntry, async_add_entities: AddConfigEntryEntitiesCallback
) -> None:
    """Add the sensors of a bridge."""
    async_add_entities(BridgeSensor(entry.runtime_data, description) for description in SENSORS)


class BridgeSensor(QuicBridgeEntity, SensorEntity):
    """One value of the bridge's status."""

    entity_description: BridgeSensorDescription
    # Lists of topics, which may be long.
    _unrecorded_attributes = frozenset({Side.LOCAL.value, Side.REMOTE.value})

    @override
    async def async_added_to_hass(self) -> None:
        """Take the values that are there already."""
        await super().async_added_to_hass()
        self._take_values()

    @callback
    @override
    def _handle_coordinator_update(self) -> None:
        self._take_values()
        super()._handle_coordinator_update()

    def _take_values(self) -> None:
        description, status = self.entity_description, self.coordinator.data
        value = description.value_fn(status)
        if value is not None or not description.keeps_value:
            self._attr_native_value = value
        if description.attributes_fn is not None:
            self._attr_extra_state_attributes = description.attributes_fn(status)
