"""What a bridge's options mean: from what is stored to what the core wants, and the defaults for what is not stored.

`entry.options` has one mapping for each page of the options flow. A key that is not there has its default, so that a
better default of a later version reaches everybody who has not chosen otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from .bridge.config import BrokerConfig
from .bridge.guard import GuardMode, LoopGuard
from .bridge.outbox_model import OutboxLimits
from .const import (
    CONF_LOOP_GUARD,
    CONF_MAX_PAYLOAD,
    CONF_MOST_BRIDGES,
    CONF_OUTBOX_DAYS,
    CONF_OUTBOX_MESSAGES,
    CONF_OUTBOX_SIZE,
    PAGE_MESSAGES,
)

_MIB: Final = 1024 * 1024
_DAY: Final = 24 * 3600
_BROKER: Final = BrokerConfig(host="", port=0, client_id="")
_GUARD: Final = LoopGuard()
_OUTBOX: Final = OutboxLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberOption:
    """A number that can be set, in the unit that people see and that is stored."""

    default: float
    minimum: float
    maximum: float
    unit: str
    step: float = 1


MESSAGE_OPTIONS: Final = {
    # MQTT's own limit of a packet is 256 MiB.
    CONF_MAX_PAYLOAD: NumberOption(default=_BROKER.max_payload / _MIB, minimum=0.1, maximum=255, step=0.1, unit="MiB"),
    CONF_MOST_BRIDGES: NumberOption(default=_GUARD.limit, minimum=1, maximum=32, unit="bridges"),
    CONF_OUTBOX_MESSAGES: NumberOption(default=_OUTBOX.messages, minimum=100, maximum=1_000_000, unit="messages"),
    CONF_OUTBOX_SIZE: NumberOption(default=_OUTBOX.bytes / _MIB, minimum=1, maximum=10_240, unit="MiB"),
    CONF_OUTBOX_DAYS: NumberOption(default=_OUTBOX.age / _DAY, minimum=1, maximum=365, unit="days"),
}


def number(values: Mapping[str, Any], key: str, options: Mapping[str, NumberOption]) -> float:
    """Return a number of one page's values, or its default."""
    return float(values.get(key, options[key].default))


def outbox_limits(values: Mapping[str, Any]) -> OutboxLimits:
    """Return the bounds of the Outbox for the values of the page `messages`."""
    return OutboxLimits(
        messages=int(number(values, CONF_OUTBOX_MESSAGES, MESSAGE_OPTIONS)),
        bytes=int(number(values, CONF_OUTBOX_SIZE, MESSAGE_OPTIONS) * _MIB),
        age=number(values, CONF_OUTBOX_DAYS, MESSAGE_OPTIONS) * _DAY,
    )


def loop_guard(values: Mapping[str, Any]) -> LoopGuard:
    """Return the guard against loops for the values of the page `messages`."""
    return LoopGuard(
        mode=GuardMode(values.get(CONF_LOOP_GUARD, _GUARD.mode)),
        limit=int(number(values, CONF_MOST_BRIDGES, MESSAGE_OPTIONS)),
    )


def max_payload(values: Mapping[str, Any]) -> int:
    """Return the largest payload in bytes for the values of the page `messages`."""
    return int(number(values, CONF_MAX_PAYLOAD, MESSAGE_OPTIONS) * _MIB)


def with_options(broker: BrokerConfig, options: Mapping[str, Any]) -> BrokerConfig:
    """Return a broker as the bridge with these options is to use it."""
    return replace(broker, max_payload=max_payload(options.get(PAGE_MESSAGES, {})))
