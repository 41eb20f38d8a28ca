"""One line for each bridge on Home Assistant's system page."""

from homeassistant.components.system_health import SystemHealthRegistration
from homeassistant.core import HomeAssistant, callback

from .bridge.status import BridgeState
from .const import DOMAIN
from .coordinator import QuicBridgeConfigEntry


@callback
def async_register(_hass: HomeAssistant, register: SystemHealthRegistration) -> None:
    """Register what is shown."""
    register.async_register_info(_async_info)


async def _async_info(hass: HomeAssistant) -> dict[str, int]:
    """Count bridges, those that run, and the messages that wait for their remote brokers."""
    entries: list[QuicBridgeConfigEntry] = hass.config_entries.async_loaded_entries(DOMAIN)
    statuses = [entry.runtime_data.bridge.status for entry in entries]
    return {
        "bridges": len(hass.config_entries.async_entries(DOMAIN)),
        "running": sum(status.state is BridgeState.RUNNING for status in statuses),
        "outbox_messages": sum((status.outbox and status.outbox.messages) or 0 for status in statuses),
        "messages_dropped": sum(
            sum(direction.dropped.values()) for status in statuses for direction in (status.outbound, status.inbound)
        ),
    }
