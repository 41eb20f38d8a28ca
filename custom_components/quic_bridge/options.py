"""What a bridge's options mean: from what is stored to what the core wants, and the defaults for what is not stored.

`entry.options` has one mapping for each page of the options flow. A key that is not there has its default, so that a
better default of a later version reaches everybody who has not chosen otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from .bridge.config import BackoffConfig, BrokerConfig, PresenceConfig, QuicLogConfig
from .bridge.guard import GuardMode, LoopGuard
from .bridge.outbox_model import OutboxLimits
from .bridge.topics import valid_topic
from .const import (
    CONF_ANNOUNCE,
    CONF_BACKOFF_BASE,
    CONF_BACKOFF_CAP,
    CONF_BACKOFF_STABLE,
    CONF_CONGESTION_CONTROL,
    CONF_CONNACK_TIMEOUT,
    CONF_EARLY_DATA,
    CONF_FLOW_WINDOW,
    CONF_HANDSHAKE_TIMEOUT,
    CONF_IDLE_TIMEOUT,
    CONF_INITIAL_RTT,
    CONF_KEEPALIVE,
    CONF_KEY_LOG,
    CONF_LOOP_GUARD,
    CONF_MAX_DATAGRAM_SIZE,
    CONF_MAX_PAYLOAD,
    CONF_MOST_BRIDGES,
    CONF_OUTBOX_DAYS,
    CONF_OUTBOX_MESSAGES,
    CONF_OUTBOX_SIZE,
    CONF_PAYLOAD_OFFLINE,
    CONF_PAYLOAD_ONLINE,
    CONF_PING_INTERVAL,
    CONF_PING_TIMEOUT,
    CONF_PROFILE,
    CONF_QLOG,
    CONF_RECEIVE_WINDOW,
    CONF_SEND_WINDOW,
    CONF_SESSION_EXPIRY,
    CONF_STATUS_TOPIC,
    PAGE_CONNECTION,
    PAGE_EXPERT,
    PAGE_MESSAGES,
)

_KIB: Final = 1024
_MIB: Final = 1024 * _KIB
_HOUR: Final = 3600
_DAY: Final = 24 * _HOUR
_BROKER: Final = BrokerConfig(host="", port=0, client_id="")
_BACKOFF: Final = BackoffConfig()
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


class Profile(StrEnum):
    """A kind of network, for which all timers and windows are set together."""

    NORMAL = "normal"
    MOBILE = "mobile"
    SATELLITE = "satellite"
    CUSTOM = "custom"
    """Each for itself."""


CONGESTION_CONTROLS: Final = ("reno", "cubic")

MESSAGE_OPTIONS: Final = {
    # MQTT's own limit of a packet is 256 MiB.
    CONF_MAX_PAYLOAD: NumberOption(default=_BROKER.max_payload / _MIB, minimum=0.1, maximum=255, step=0.1, unit="MiB"),
    CONF_MOST_BRIDGES: NumberOption(default=_GUARD.limit, minimum=1, maximum=32, unit="bridges"),
    CONF_OUTBOX_MESSAGES: NumberOption(default=_OUTBOX.messages, minimum=100, maximum=1_000_000, unit="messages"),
    CONF_OUTBOX_SIZE: NumberOption(default=_OUTBOX.bytes / _MIB, minimum=1, maximum=10_240, unit="MiB"),
    CONF_OUTBOX_DAYS: NumberOption(default=_OUTBOX.age / _DAY, minimum=1, maximum=365, unit="days"),
}
CONNECTION_OPTIONS: Final = {
    CONF_KEEPALIVE: NumberOption(default=_BROKER.keepalive, minimum=5, maximum=600, unit="s"),
    CONF_PING_INTERVAL: NumberOption(default=_BROKER.quic.ping_interval, minimum=1, maximum=300, unit="s"),
    CONF_PING_TIMEOUT: NumberOption(default=_BROKER.quic.ping_timeout, minimum=1, maximum=120, unit="s"),
    CONF_IDLE_TIMEOUT: NumberOption(default=_BROKER.quic.idle_timeout, minimum=5, maximum=600, unit="s"),
    CONF_HANDSHAKE_TIMEOUT: NumberOption(default=_BROKER.quic.handshake_timeout, minimum=1, maximum=120, unit="s"),
    CONF_CONNACK_TIMEOUT: NumberOption(default=_BROKER.connack_timeout, minimum=1, maximum=120, unit="s"),
    CONF_INITIAL_RTT: NumberOption(default=_BROKER.quic.initial_rtt * 1000, minimum=10, maximum=5000, unit="ms"),
    # RFC 9000 section 14: every path takes 1200 bytes. 1452 is what Ethernet leaves of a packet over IPv6.
    CONF_MAX_DATAGRAM_SIZE: NumberOption(
        default=_BROKER.quic.max_datagram_size, minimum=1200, maximum=1452, unit="bytes"
    ),
    CONF_BACKOFF_BASE: NumberOption(default=_BACKOFF.base, minimum=0.1, maximum=60, step=0.1, unit="s"),
    CONF_BACKOFF_CAP: NumberOption(default=_BACKOFF.cap, minimum=1, maximum=_HOUR, unit="s"),
    CONF_BACKOFF_STABLE: NumberOption(default=_BACKOFF.stable, minimum=1, maximum=_HOUR, unit="s"),
    # Never shorter than the longest pause between two attempts: the broker would forget us meanwhile.
    CONF_SESSION_EXPIRY: NumberOption(
        default=_BROKER.session_expiry / _HOUR, minimum=1, maximum=365 * 24, unit="hours"
    ),
    CONF_SEND_WINDOW: NumberOption(default=_BROKER.window, minimum=1, maximum=65_535, unit="messages"),
    CONF_RECEIVE_WINDOW: NumberOption(default=_BROKER.receive_maximum, minimum=1, maximum=65_535, unit="messages"),
    CONF_FLOW_WINDOW: NumberOption(default=_BROKER.quic.flow_window / _KIB, minimum=64, maximum=16 * _KIB, unit="KiB"),
}
PROFILES: Final[Mapping[Profile, Mapping[str, Any]]] = {
    Profile.NORMAL: {},
    Profile.MOBILE: {
        CONF_KEEPALIVE: 60,
        CONF_PING_INTERVAL: 20,
        CONF_PING_TIMEOUT: 15,
        CONF_IDLE_TIMEOUT: 60,
        CONF_HANDSHAKE_TIMEOUT: 20,
        CONF_CONNACK_TIMEOUT: 15,
        CONF_INITIAL_RTT: 200,
        CONF_CONGESTION_CONTROL: "cubic",
        CONF_BACKOFF_BASE: 1,
        CONF_BACKOFF_CAP: 60,
        CONF_BACKOFF_STABLE: 30,
        CONF_FLOW_WINDOW: 512,
    },
    Profile.SATELLITE: {
        CONF_KEEPALIVE: 60,
        CONF_PING_INTERVAL: 20,
        CONF_PING_TIMEOUT: 20,
        CONF_IDLE_TIMEOUT: 90,
        CONF_HANDSHAKE_TIMEOUT: 30,
        CONF_CONNACK_TIMEOUT: 20,
        CONF_INITIAL_RTT: 1000,
        CONF_CONGESTION_CONTROL: "cubic",
        CONF_BACKOFF_BASE: 2,
        CONF_BACKOFF_CAP: 120,
        CONF_BACKOFF_STABLE: 60,
        CONF_SEND_WINDOW: 4000,
        CONF_FLOW_WINDOW: 2048,
    },
}
"""What each profile sets otherwise than the defaults; docs/settings.md says why."""


def number(values: Mapping[str, Any], key: str, options: Mapping[str, NumberOption]) -> float:
    """Return a number of one page's values, or its default; a number that is out of bounds here stands for the bound.

    Another version may have had other bounds. Raises ValueError for what is no number.
    """
    option = options[key]
    return min(max(float(values.get(key, option.default)), option.minimum), option.maximum)


# --- the page `messages` ----------------------------------------------------------------------------------------------


def outbox_limits(values: Mapping[str, Any]) -> OutboxLimits:
    """Return the bounds of the Outbox for the values of the page."""
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
    """Return the largest payload in bytes for the values of the page."""
    return int(number(values, CONF_MAX_PAYLOAD, MESSAGE_OPTIONS) * _MIB)


# --- the page `connection` --------------------------------------------------------------------------------------------


def chosen(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the page sets otherwise than the defaults: its profile's values, or with `custom` those typed."""
    return PROFILES.get(values.get(CONF_PROFILE, Profile.NORMAL), values)


def backoff(values: Mapping[str, Any]) -> BackoffConfig:
    """Return the waiting times between attempts for the values of the page."""
    values = chosen(values)
    return BackoffConfig(
        base=number(values, CONF_BACKOFF_BASE, CONNECTION_OPTIONS),
        cap=number(values, CONF_BACKOFF_CAP, CONNECTION_OPTIONS),
        stable=number(values, CONF_BACKOFF_STABLE, CONNECTION_OPTIONS),
    )


def with_connection(broker: BrokerConfig, values: Mapping[str, Any]) -> BrokerConfig:
    """Return the remote broker with the timers and windows for the values of the page."""
    values = chosen(values)

    def option(key: str) -> float:
        return number(values, key, CONNECTION_OPTIONS)

    return replace(
        broker,
        keepalive=int(option(CONF_KEEPALIVE)),
        connack_timeout=option(CONF_CONNACK_TIMEOUT),
        connect_timeout=option(CONF_HANDSHAKE_TIMEOUT),
        session_expiry=int(option(CONF_SESSION_EXPIRY) * _HOUR),
        window=int(option(CONF_SEND_WINDOW)),
        receive_maximum=int(option(CONF_RECEIVE_WINDOW)),
        quic=replace(
            broker.quic,
            handshake_timeout=option(CONF_HANDSHAKE_TIMEOUT),
            ping_interval=option(CONF_PING_INTERVAL),
            ping_timeout=option(CONF_PING_TIMEOUT),
            idle_timeout=option(CONF_IDLE_TIMEOUT),
            initial_rtt=option(CONF_INITIAL_RTT) / 1000,
            congestion_control=values.get(CONF_CONGESTION_CONTROL, broker.quic.congestion_control),
            max_datagram_size=int(option(CONF_MAX_DATAGRAM_SIZE)),
            flow_window=int(option(CONF_FLOW_WINDOW)) * _KIB,
        ),
    )


# --- the page `presence` ----------------------------------------------------------------------------------------------

CLIENT_ID_VARIABLE: Final = "{client_id}"
PRESENCE_DEFAULTS: Final = {
    CONF_STATUS_TOPIC: f"quic_bridge/{CLIENT_ID_VARIABLE}/state",
    CONF_PAYLOAD_ONLINE: "online",
    CONF_PAYLOAD_OFFLINE: "offline",
}
LONGEST_PRESENCE_TEXT: Final = 1000
"""Characters of a status topic or its messages."""
_NOT_IN_TOPICS: Final = str.maketrans("+#/\0", "____")


def status_topic(values: Mapping[str, Any], client_id: str) -> str:
    """Return the status topic of a client for the values of the page `presence`."""
    text = presence_text(values, CONF_STATUS_TOPIC)
    return text.replace(CLIENT_ID_VARIABLE, client_id.translate(_NOT_IN_TOPICS))


def valid_status_topic(topic: str) -> bool:
    """Tell whether a topic may be a status topic: not one of those under $, which are the broker's own."""
    return not topic.startswith("$") and len(topic) <= LONGEST_PRESENCE_TEXT and valid_topic(topic.encode())


def presence_text(values: Mapping[str, Any], key: str) -> str:
    """Return a text of the page `presence`, or its default."""
    return str(values.get(key, "")).strip() or PRESENCE_DEFAULTS[key]


def presence(values: Mapping[str, Any], local_client_id: str, remote_client_id: str) -> PresenceConfig | None:
    """Return the status topics for the values of the page `presence`; None: they are switched off."""
    if not values.get(CONF_ANNOUNCE, True):
        return None
    return PresenceConfig(
        local_topic=status_topic(values, local_client_id),
        remote_topic=status_topic(values, remote_client_id),
        online=presence_text(values, CONF_PAYLOAD_ONLINE),
        offline=presence_text(values, CONF_PAYLOAD_OFFLINE),
    )


# --- the page `expert` ------------------------------------------------------------------------------------------------


def quic_logs(values: Mapping[str, Any], folder: Path) -> QuicLogConfig | None:
    """Return which logs of QUIC the values of the page want in a folder; None: none."""
    config = QuicLogConfig(folder=folder, qlog=values.get(CONF_QLOG, False), key_log=values.get(CONF_KEY_LOG, False))
    return config if config.qlog or config.key_log else None


# --- both brokers -----------------------------------------------------------------------------------------------------


def local_with_options(broker: BrokerConfig, options: Mapping[str, Any]) -> BrokerConfig:
    """Return the local broker as the bridge with these options is to use it."""
    # It is not told the limit: messages that are too large are counted here rather than dropped there without a word,
    # and their bytes cost nothing at home.
    return replace(broker, max_payload=max_payload(options.get(PAGE_MESSAGES, {})), announce_limit=False)


def remote_with_options(broker: BrokerConfig, options: Mapping[str, Any]) -> BrokerConfig:
    """Return the remote broker as the bridge with these options is to use it."""
    broker = with_connection(broker, options.get(PAGE_CONNECTION, {}))
    return replace(
        broker,
        max_payload=max_payload(options.get(PAGE_MESSAGES, {})),
        quic=replace(broker.quic, early_data=options.get(PAGE_EXPERT, {}).get(CONF_EARLY_DATA, False)),
    )
