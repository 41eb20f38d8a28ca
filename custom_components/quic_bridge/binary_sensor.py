"""Whether each broker is connected, and whether all routes carry messages."""

from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, override

from homeassistant.components.binary_sensor import (  # type: ignore[attr-defined] # public, yet not marked so
    BinarySensorDeviceClass,
    BinarySensorEntity,
    BinarySensorEntityDescription,
)
from homeassistant.const import EntityCategory
from homeassistant.core import HomeAssistant
from homeassistant.helpers.entity_platform import AddConfigEntryEntitiesCallback

from .bridge.status import LinkState, Side
from .coordinator import QuicBridgeConfigEntry
from .entity import QuicBridgeEntity
from .route_data import route_title
from .route_problems import Problem

PARALLEL_UPDATES = 0

UNREADABLE: Final = "unreadable"
"""Attribute with the routes that are left out because of what is stored for them."""
MAX_LISTED: Final = 50
"""Routes named in the attributes, which may be thousands."""


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
ROUTE_PROBLEMS = BinarySensorEntityDescription(
    key="route_problems",
    translation_key="route_problems",
    device_class=BinarySensorDeviceClass.PROBLEM,
    entity_category=EntityCategory.DIAGNOSTIC,
)


async def async_setup_entry(
    _hass: HomeAssistant, entry: QuicBridgeConfigEntry, async_add_entities: AddConfigEntryEntitiesCallback
) -> None:
    """Add the binary sensors of a bridge."""
    coordinator = entry.runtime_data
    async_add_entities(
        [
            *(ConnectionSensor(coordinator, description) for description in CONNECTIONS),
            RouteProblems(coordinator, ROUTE_PROBLEMS),
        ]
    )


class ConnectionSensor(QuicBridgeEntity, BinarySensorEntity):
    """On while the broker has accepted us; available also while it has not, as that is what it tells."""

    entity_description: ConnectionDescription

    @property
    @override
    def is_on(self) -> bool | None:
        """Whether the broker is connected; None: it is not known yet, as no attempt has come to an end.

        Not "off" then: that would be a connection that was lost and is back at each start of Home Assistant.
        """
        link = self.coordinator.data.link(self.entity_description.side)
        if link.state is LinkState.CONNECTED:
            return True
        starting = link.state is LinkState.CONNECTING or (
            link.state is LinkState.STOPPED and not self.coordinator.paused
        )
        return None if starting and link.error is None else False


class RouteProblems(QuicBridgeEntity, BinarySensorEntity):
    """On while some route carries nothing."""

    # Lists of topics, which may be long.
    _unrecorded_attributes = frozenset({*Problem, UNREADABLE})

    @property
    @override
    def is_on(self) -> bool:
        """Whether there is a problem with a route."""
        return bool(self.coordinator.route_problems or self.coordinator.unreadable_routes)

    @property
    @override
    def extra_state_attributes(self) -> dict[str, Any]:
        """The routes, by what is wrong with them, each with the reason."""
        found: dict[str, dict[str, str]] = {problem.value: {} for problem in Problem}
        for item in self.coordinator.route_problems[:MAX_LISTED]:
            reason = item.reason if item.other is None else route_title(item.other)
            found[item.problem][route_title(item.route)] = reason or ""
        found[UNREADABLE] = dict(islice(self.coordinator.unreadable_routes.items(), MAX_LISTED))
        return found
