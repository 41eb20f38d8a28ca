"""What happens to the connections and to messages, as events to hang automations on."""

from enum import StrEnum
from typing import Final, override

from homeassistant.components.event import EventEntity, EventEntityDescription
from homeassistant.const import ATTR_DEVICE_ID, ATTR_ENTITY_ID, ATTR_NAME
from homeassistant.core import HomeAssistant, callback
from homeassistant.helpers.entity_platform import AddConfigEntryEntitiesCallback

from .bridge.errors import ErrorCode
from .bridge.status import DirectionStatus, DropReason, EndpointStatus, LinkState, LinkStatus, Side
from .const import DOMAIN
from .coordinator import QuicBridgeConfigEntry, QuicBridgeCoordinator
from .entity import QuicBridgeEntity

PARALLEL_UPDATES = 0

DROPPED_INTERVAL: Final = 60.0
"""Seconds between two events about messages that were dropped for the same reason; an outage can drop many."""

EVENT_QUIC_BRIDGE: Final = f"{DOMAIN}_event"
"""On Home Assistant's bus, for the logbook (see logbook.py)."""
ATTR_EVENT_TYPE: Final = "event_type"
ATTR_SIDE: Final = "side"
ATTR_REASON: Final = "reason"
ATTR_COUNT: Final = "count"

PAUSED: Final = "paused"
"""Reason of a disconnection that was wanted; no ErrorCode has this value."""
ANSWERS_AGAIN: Final = "answers_again"
"""Reason of a return to the preferred endpoint; no ErrorCode has this value."""


class BridgeEvent(StrEnum):
    """What can happen."""

    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    REFUSED = "refused"
    """A broker refuses us for a reason that a person must see to; once for each such reason."""
    FALLBACK = "fallback"
    """The broker is reached by another endpoint, as the preferred one cannot be used."""
    RETURNED = "returned"
    """... by the preferred one again."""
    DROPPED = "dropped"


EVENTS: Final = EventEntityDescription(
    key="events", translation_key="events", event_types=[event.value for event in BridgeEvent]
)


async def async_setup_entry(
    _hass: HomeAssistant, entry: QuicBridgeConfigEntry, async_add_entities: AddConfigEntryEntitiesCallback
) -> None:
    """Add the event entity of a bridge."""
    async_add_entities([BridgeEvents(entry.runtime_data, EVENTS)])


class BridgeEvents(QuicBridgeEntity, EventEntity):
    """Tells one status from the next."""

    def __init__(self, coordinator: QuicBridgeCoordinator, description: EventEntityDescription) -> None:
        """Begin with the present status."""
        super().__init__(coordinator, description)
        self._links = {side: coordinator.data.link(side) for side in Side}
        self._refused: dict[Side, ErrorCode] = {}
        self._endpoints: dict[Side, str] = {
            side: link.endpoint.address
            for side, link in self._links.items()
            if link.endpoint is not None and link.state is LinkState.CONNECTED
        }
        """Where each broker that has several endpoints was connected last."""
        self._told: dict[tuple[Side, DropReason], tuple[int, float]] = {}
        """How many dropped messages were told of, and when (the loop's clock)."""

    @callback
    @override
    def _handle_coordinator_update(self) -> None:
        status = self.coordinator.data
        for side in Side:
            before, self._links[side] = self._links[side], status.link(side)
            self._compare(side, before, self._links[side])
        self._count(Side.REMOTE, status.outbound)
        self._count(Side.LOCAL, status.inbound)

    def _compare(self, side: Side, before: LinkStatus, now: LinkStatus) -> None:
        if now.state is LinkState.CONNECTED and before.state is not LinkState.CONNECTED:
            self._refused.pop(side, None)
            self._fire(BridgeEvent.CONNECTED, side)
            if now.endpoint is not None:
                self._compare_endpoints(side, now.endpoint)
        elif before.state is LinkState.CONNECTED and now.state is not LinkState.CONNECTED:
            if now.state is LinkState.STOPPED or now.error is None:
                self._fire(BridgeEvent.DISCONNECTED, side, reason=PAUSED)
            else:
                self._fire(BridgeEvent.DISCONNECTED, side, reason=now.error.code.value, text=now.error.text)
        if now.state is LinkState.REFUSED and now.error is not None and self._refused.get(side) is not now.error.code:
            self._refused[side] = now.error.code
            self._fire(BridgeEvent.REFUSED, side, reason=now.error.code.value, text=now.error.text)

    def _compare_endpoints(self, side: Side, now: EndpointStatus) -> None:
        before = self._endpoints.get(side)
        self._endpoints[side] = now.address
        if now.address == before:
            return
        if now.diverted is not None:
            error = now.diverted
            self._fire(BridgeEvent.FALLBACK, side, reason=error.code.value, text=error.text, address=now.address)
        elif before is not None:
            self._fire(BridgeEvent.RETURNED, side, reason=ANSWERS_AGAIN, address=now.address)

    def _count(self, side: Side, direction: DirectionStatus) -> None:
        """Tell of dropped messages that were for the broker of `side`."""
        now = self.hass.loop.time()
        for reason, count in direction.dropped.items():
            told, told_at = self._told.get((side, reason), (0, -DROPPED_INTERVAL))
            if count < told:
                told = 0  # a bridge counts from its start
            if count > told and now - told_at >= DROPPED_INTERVAL:
                self._told[side, reason] = count, now
                self._fire(BridgeEvent.DROPPED, side, reason=reason.value, count=count - told)

    def _fire(self, event: BridgeEvent, side: Side, **details: str | int) -> None:
        attributes = {ATTR_SIDE: side.value, **details}
        self._trigger_event(event.value, attributes)
        self.async_write_ha_state()
        self.hass.bus.async_fire(
            EVENT_QUIC_BRIDGE,
            {
                ATTR_DEVICE_ID: self.device_entry.id if self.device_entry else None,
                ATTR_ENTITY_ID: self.entity_id,
                ATTR_NAME: self.coordinator.config_entry.title,
                ATTR_EVENT_TYPE: event.value,
                **attributes,
            },
        )
