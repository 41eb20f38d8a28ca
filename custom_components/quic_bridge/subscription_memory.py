"""What a bridge is subscribed to at its brokers, kept on disk.

The brokers keep our sessions while the bridge is paused, switched off, or Home Assistant is down. A route that is
removed meanwhile would leave its subscription there: the broker would go on sending what no route takes. mosquitto's
bridge unsubscribes for the same reason (bridge_attempt_unsubscribe).
"""

import logging
from typing import Final

from homeassistant.config_entries import ConfigEntry
from homeassistant.core import HomeAssistant, callback
from homeassistant.exceptions import HomeAssistantError
from homeassistant.helpers.storage import Store

from .bridge.bridge import Bridge
from .bridge.status import Side
from .bridge.topics import validate_filter
from .const import DOMAIN

_LOGGER = logging.getLogger(__name__)

_VERSION: Final = 1
_DELAY: Final = 1.0
"""Seconds until a change is written; routes take as long to get to the disk."""

type _Stored = dict[str, list[str]]


class SubscriptionMemory:
    """The topic filters by side, as they were last known to be subscribed."""

    def __init__(self, hass: HomeAssistant, entry: ConfigEntry) -> None:
        """Prepare; nothing is read yet."""
        self._store = Store[_Stored](hass, _VERSION, f"{DOMAIN}.{entry.entry_id}.subscriptions")
        self._name = entry.title
        self._known: _Stored = {}
        self._written = True
        """Whether the file has what is known."""

    async def async_load(self) -> None:
        """Read what was subscribed when the bridge ran last. What cannot be read is of no great importance."""
        try:
            stored: object = await self._store.async_load()
        except HomeAssistantError as error:
            _LOGGER.warning("What %s was subscribed to could not be read: %s", self._name, error)
            return
        if isinstance(stored, dict):
            self._known = {side.value: _valid_filters(stored.get(side.value)) for side in Side}

    @callback
    def async_remind(self, bridge: Bridge) -> None:
        """Tell a bridge that has not been started yet what it may be subscribed to."""
        for side in Side:
            bridge.remember_subscriptions(side, self._known.get(side, ()))

    @callback
    def async_follow(self, bridge: Bridge) -> None:
        """Keep what a bridge is subscribed to now."""
        if (now := {side.value: bridge.subscribed(side) for side in Side}) != self._known:
            self._known = now
            self._written = False
            self._store.async_delay_save(self._to_write, _DELAY)

    async def async_save(self) -> None:
        """Write at once what is to be written, if there is anything."""
        if not self._written:
            await self._store.async_save(self._to_write())

    @callback
    def _to_write(self) -> _Stored:
        self._written = True
        return self._known

    async def async_remove(self) -> None:
        """Forget everything."""
        await self._store.async_remove()


def _valid_filters(stored: object) -> list[str]:
    """Return the topic filters in what was read; a hand may have changed it."""
    names = stored if isinstance(stored, list) else []
    return [name for name in names if isinstance(name, str) and validate_filter(name) is None]
