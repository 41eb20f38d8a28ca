"""Sentences about a bridge in Home Assistant's logbook, in its language."""

from collections.abc import Callable
from typing import Final

from homeassistant.components.logbook.const import LOGBOOK_ENTRY_ENTITY_ID, LOGBOOK_ENTRY_MESSAGE, LOGBOOK_ENTRY_NAME
from homeassistant.const import ATTR_ENTITY_ID, ATTR_NAME
from homeassistant.core import Event, HomeAssistant, callback
from homeassistant.helpers.translation import async_get_cached_translations

from .const import DOMAIN
from .event import ATTR_COUNT, ATTR_EVENT_TYPE, ATTR_REASON, ATTR_SIDE, EVENT_QUIC_BRIDGE, PAUSED

_SENTENCES: Final = f"component.{DOMAIN}.common."
_REASONS: Final = f"component.{DOMAIN}.entity.event.events.state_attributes.{ATTR_REASON}.state."


@callback
def async_describe_events(
    hass: HomeAssistant, async_describe_event: Callable[[str, str, Callable[[Event], dict[str, str]]], None]
) -> None:
    """Tell the logbook how to describe what a bridge tells of itself."""

    @callback
    def describe(event: Event) -> dict[str, str]:
        data = event.data
        sentences = async_get_cached_translations(hass, hass.config.language, "common", DOMAIN)
        reasons = async_get_cached_translations(hass, hass.config.language, "entity", DOMAIN)
        reason = data.get(ATTR_REASON, "")
        what = PAUSED if reason == PAUSED else data[ATTR_EVENT_TYPE]
        sentence = sentences.get(f"{_SENTENCES}logbook_{what}_{data[ATTR_SIDE]}", what)
        return {
            LOGBOOK_ENTRY_NAME: data[ATTR_NAME],
            LOGBOOK_ENTRY_MESSAGE: sentence.format(
                reason=reasons.get(f"{_REASONS}{reason}", reason), count=data.get(ATTR_COUNT, "")
            ),
            LOGBOOK_ENTRY_ENTITY_ID: data[ATTR_ENTITY_ID],
        }

    async_describe_event(DOMAIN, EVENT_QUIC_BRIDGE, describe)
