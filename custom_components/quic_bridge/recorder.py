"""What Home Assistant's statistics have to know of the bridge."""

from typing import Final

from homeassistant.const import Platform
from homeassistant.core import HomeAssistant, callback
from homeassistant.helpers import entity_registry as er

from .const import DOMAIN

_UNITS: Final = dict.fromkeys((None, "messages", "reconnects"), "")
"""Counters have no unit; in version 0.1.0 they had these, which say the same."""


@callback
def async_custom_equivalent_units(hass: HomeAssistant) -> dict[str, dict[str | None, str]]:
    """Return the units that are equivalent for an entity, so that its statistics go on where it had another."""
    return {
        entity.entity_id: _UNITS
        for entity in er.async_get(hass).entities.values()
        if (entity.platform, entity.domain) == (DOMAIN, Platform.SENSOR)
    }
