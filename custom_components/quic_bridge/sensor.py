"""State, counters and figures of a bridge."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, override

from homeassistant.components.sensor import (
    SensorDeviceClass,
    SensorEntity,
    SensorEntityDescription,
    SensorStateClass,
)
from homeassistant.const import EntityCategory, UnitOfInformation, UnitOfRatio, UnitOfTime
from homeassistant.core import HomeAssistant, callback
from homeassistant.helpers.entity_platform import AddConfigEntryEntitiesCallback
from homeassistant.helpers.typing import StateType

from .bridge.config import TransportKind
from .bridge.errors import ErrorCode
from .bridge.status import (
    BridgeState,
    BridgeStatus,
    CertificateStatus,
    DirectionStatus,
    LinkState,
    Side,
    TransportStatus,
)
from .coordinator import QuicBridgeConfigEntry
from .entity import QuicBridgeEntity

PARALLEL_UPDATES = 0

NO_ERROR: Final = "none"
"""State of a last error before there was any; no ErrorCode has this value."""


class Handshake(StrEnum):
    """How the remote's connection was made."""

    FULL = "full"
    """With certificates."""
    RESUMED = "resumed"
    """By a ticket of the connection before."""
    EARLY_DATA = "early_data"
    """... and the login went with the first packets."""


@dataclass(frozen=True, kw_only=True)
class BridgeSensorDescription(SensorEntityDescription):
    """Describes a sensor by what it takes from the status."""

    value_fn: Callable[[BridgeStatus], StateType | datetime]
    attributes_fn: Callable[[BridgeStatus], dict[str, Any]] | None = None


def _dropped(status: BridgeStatus) -> dict[str, int]:
    """Count the dropped messages of both directions by reason."""
    dropped: dict[str, int] = {}
    for direction in (status.outbound, status.inbound):
        for reason, count in direction.dropped.items():
            dropped[reason.value] = dropped.get(reason.value, 0) + count
    return dropped


def _error_code(side: Side) -> Callable[[BridgeStatus], str]:
    def error_code(status: BridgeStatus) -> str:
        error = status.link(side).error
        return NO_ERROR if error is None else error.code.value

    return error_code


def _error_details(side: Side) -> Callable[[BridgeStatus], dict[str, Any]]:
    def error_details(status: BridgeStatus) -> dict[str, Any]:
        error = status.link(side).error
        return {} if error is None else {"message": error.text, "time": error.at}

    return error_details


def _connected_since(side: Side) -> Callable[[BridgeStatus], datetime | None]:
    def connected_since(status: BridgeStatus) -> datetime | None:
        link = status.link(side)
        return link.connected_at if link.state is LinkState.CONNECTED else None

    return connected_since


def _valid_until(certificate: CertificateStatus | None) -> datetime | None:
    return None if certificate is None else certificate.valid_until


def _round_trip(status: BridgeStatus) -> float | None:
    return status.remote.details.rtt_ms if status.remote.state is LinkState.CONNECTED else None


def _transport(status: BridgeStatus) -> str | None:
    return status.remote.transport if status.remote.state is LinkState.CONNECTED else None


def _endpoint(status: BridgeStatus) -> dict[str, Any]:
    """Tell which of several endpoints the remote broker is connected at."""
    endpoint = status.remote.endpoint
    if endpoint is None or status.remote.state is not LinkState.CONNECTED:
        return {}
    details = {"preferred": endpoint.preferred, "address": endpoint.address, "since": endpoint.since}
    return details if endpoint.diverted is None else {**details, "message": endpoint.diverted.text}


def _connected(status: BridgeStatus) -> TransportStatus:
    """Return the figures of the remote's connection, none of an earlier one."""
    return status.remote.details if status.remote.state is LinkState.CONNECTED else TransportStatus()


def _handshake(status: BridgeStatus) -> str | None:
    details = _connected(status)
    if details.handshake_ms is None:
        return None
    if not details.resumed:
        return Handshake.FULL.value
    return (Handshake.EARLY_DATA if details.early_data else Handshake.RESUMED).value


def _handshake_details(status: BridgeStatus) -> dict[str, Any]:
    details = _connected(status)
    found = {"version": details.version, "cipher": details.cipher, "early_data_accepted": details.early_data}
    return {key: value for key, value in found.items() if value is not None}


def _migration_details(status: BridgeStatus) -> dict[str, Any]:
    gap = _connected(status).migration_ms
    return {} if gap is None else {"last_gap": round(gap, 1)}


def _direction_sensors(
    way: str, direction: Callable[[BridgeStatus], DirectionStatus]
) -> tuple[BridgeSensorDescription, ...]:
    """Return the sensors that each direction has."""
    return (
        BridgeSensorDescription(
            key=f"messages_{way}",
            translation_key=f"messages_{way}",
            state_class=SensorStateClass.TOTAL_INCREASING,
            value_fn=lambda status: direction(status).forwarded,
        ),
        BridgeSensorDescription(
            key=f"message_rate_{way}",
            translation_key=f"message_rate_{way}",
            state_class=SensorStateClass.MEASUREMENT,
            suggested_display_precision=0,
            entity_category=EntityCategory.DIAGNOSTIC,
            entity_registry_enabled_default=False,
            value_fn=lambda status: round(direction(status).rate, 1),
        ),
        BridgeSensorDescription(
            key=f"data_{way}",
            translation_key=f"data_{way}",
            device_class=SensorDeviceClass.DATA_SIZE,
            state_class=SensorStateClass.TOTAL_INCREASING,
            native_unit_of_measurement=UnitOfInformation.BYTES,
            suggested_unit_of_measurement=UnitOfInformation.MEGABYTES,
            suggested_display_precision=1,
            entity_category=EntityCategory.DIAGNOSTIC,
            entity_registry_enabled_default=False,
            value_fn=lambda status: direction(status).bytes,
        ),
    )


BRIDGE_SENSORS: Final = (
    BridgeSensorDescription(
        key="status",
        translation_key="status",
        device_class=SensorDeviceClass.ENUM,
        options=[state.value for state in BridgeState],
        value_fn=lambda status: status.state.value,
    ),
    *_direction_sensors("sent", lambda status: status.outbound),
    *_direction_sensors("received", lambda status: status.inbound),
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
        key="remote_transport",
        translation_key="remote_transport",
        device_class=SensorDeviceClass.ENUM,
        options=[kind.value for kind in TransportKind],
        entity_category=EntityCategory.DIAGNOSTIC,
        value_fn=_transport,
        attributes_fn=_endpoint,
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
    BridgeSensorDescription(
        key="remote_packet_loss",
        translation_key="remote_packet_loss",
        state_class=SensorStateClass.MEASUREMENT,
        native_unit_of_measurement=UnitOfRatio.PERCENTAGE,
        suggested_display_precision=1,
        entity_category=EntityCategory.DIAGNOSTIC,
        entity_registry_enabled_default=False,
        value_fn=lambda status: status.remote.packet_loss,
    ),
    BridgeSensorDescription(
        key="remote_handshake_time",
        translation_key="remote_handshake_time",
        device_class=SensorDeviceClass.DURATION,
        state_class=SensorStateClass.MEASUREMENT,
        native_unit_of_measurement=UnitOfTime.MILLISECONDS,
        suggested_display_precision=0,
        entity_category=EntityCategory.DIAGNOSTIC,
        entity_registry_enabled_default=False,
        value_fn=lambda status: _connected(status).handshake_ms,
    ),
    BridgeSensorDescription(
        key="remote_handshake",
        translation_key="remote_handshake",
        device_class=SensorDeviceClass.ENUM,
        options=[kind.value for kind in Handshake],
        entity_category=EntityCategory.DIAGNOSTIC,
        entity_registry_enabled_default=False,
        value_fn=_handshake,
        attributes_fn=_handshake_details,
    ),
    BridgeSensorDescription(
        key="remote_address_changes",
        translation_key="remote_address_changes",
        state_class=SensorStateClass.TOTAL_INCREASING,
        entity_category=EntityCategory.DIAGNOSTIC,
        entity_registry_enabled_default=False,
        value_fn=lambda status: status.remote.details.migrations,
        attributes_fn=_migration_details,
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
            value_fn=lambda status: status.link(side).reconnects,
        ),
        BridgeSensorDescription(
            key=f"{side}_connected_since",
            translation_key=f"{side}_connected_since",
            device_class=SensorDeviceClass.UPTIME,
            entity_category=EntityCategory.DIAGNOSTIC,
            value_fn=_connected_since(side),
        ),
        BridgeSensorDescription(
            key=f"{side}_certificate_expires",
            translation_key=f"{side}_certificate_expires",
            device_class=SensorDeviceClass.TIMESTAMP,
            entity_category=EntityCategory.DIAGNOSTIC,
            entity_registry_enabled_default=side is Side.REMOTE,
            value_fn=lambda status: _valid_until(status.link(side).certificate),
        ),
        BridgeSensorDescription(
            key=f"{side}_client_certificate_expires",
            translation_key=f"{side}_client_certificate_expires",
            device_class=SensorDeviceClass.TIMESTAMP,
            entity_category=EntityCategory.DIAGNOSTIC,
            entity_registry_enabled_default=False,
            value_fn=lambda status: _valid_until(status.link(side).client_certificate),
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
        self._attr_native_value = description.value_fn(status)
        if description.attributes_fn is not None:
            self._attr_extra_state_attributes = description.attributes_fn(status)
