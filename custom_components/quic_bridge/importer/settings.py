"""The settings of another bridge that are among the options of this one."""

from collections.abc import Mapping
from math import ceil
from typing import Any, Final

from ..bridge.config import BrokerConfig, timer_conflict
from ..const import (
    CONF_BACKOFF_CAP,
    CONF_HANDSHAKE_TIMEOUT,
    CONF_IDLE_TIMEOUT,
    CONF_PING_TIMEOUT,
    CONF_PROFILE,
    PAGE_CONNECTION,
    PAGE_MESSAGES,
)
from ..options import CONNECTION_OPTIONS, MESSAGE_OPTIONS, Profile, backoff, with_connection
from .model import Note, Reason

_NUMBERS: Final = {PAGE_CONNECTION: CONNECTION_OPTIONS, PAGE_MESSAGES: MESSAGE_OPTIONS}
_YIELDING: Final = {
    "ping_over_idle_timeout": CONF_IDLE_TIMEOUT,
    "keepalive_over_idle_timeout": CONF_IDLE_TIMEOUT,
    "rtt_over_handshake_timeout": CONF_HANDSHAKE_TIMEOUT,
    "rtt_over_ping_timeout": CONF_PING_TIMEOUT,
    "backoff_base_over_cap": CONF_BACKOFF_CAP,
}
"""Which timer is raised where two do not go together: the longer wait never ends a connection that is well."""


class Settings:
    """Collects options, and what is to be said of them."""

    def __init__(self) -> None:
        self._pages: dict[str, dict[str, Any]] = {}
        self._origins: dict[str, str] = {}
        """What the file says of an option, by its key."""
        self.notes: list[Note] = []

    def number(self, page: str, key: str, value: float, what: str) -> None:
        """Take a number, in the unit of the option; one that cannot be set gives way to the nearest that can."""
        option = _NUMBERS[page][key]
        stored = min(max(value, option.minimum), option.maximum)
        if option.step == 1:
            stored = ceil(stored)
        self.value(page, key, stored, what)
        if stored != value:
            self._adjusted(key)

    def value(self, page: str, key: str, value: object, what: str) -> None:
        """Take anything else, which must be valid."""
        self._pages.setdefault(page, {})[key] = value
        self._origins[key] = what

    def pages(self) -> Mapping[str, Mapping[str, Any]]:
        """Return what is to be stored, the timers such that they go together."""
        if (connection := self._pages.get(PAGE_CONNECTION)) is not None:
            connection[CONF_PROFILE] = Profile.CUSTOM.value
            self._reconcile(connection)
        return self._pages

    def _reconcile(self, values: dict[str, Any]) -> None:
        broker = BrokerConfig(host="", port=0, client_id="")
        while (conflict := timer_conflict(with_connection(broker, values), backoff(values))) is not None:
            key = _YIELDING[conflict.rule]
            values[key] = ceil(conflict.low)
            if key in self._origins:
                self._adjusted(key)

    def _adjusted(self, key: str) -> None:
        self.notes.append(Note(self._origins[key], Reason.ADJUSTED))
