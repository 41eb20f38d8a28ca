"""What a maintainer needs to help, without what is nobody else's business."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
import re
from typing import Any, Final

from homeassistant.components.diagnostics import REDACTED, async_redact_data
from homeassistant.const import (
    CONF_CLIENT_ID,
    CONF_EXCLUDE,
    CONF_HOST,
    CONF_PASSWORD,
    CONF_PORT,
    CONF_TARGET,
    CONF_USERNAME,
)
from homeassistant.core import HomeAssistant

from .bridge.config import BrokerConfig
from .bridge.errors import BridgeError
from .brokers import local_broker, remote_broker
from .const import CONF_CA, CONF_LOCAL, CONF_REMOTE, CONF_SERVER_NAME, CONF_TOPIC_FILTER, SUBENTRY_ROUTE
from .coordinator import QuicBridgeConfigEntry
from .route_data import is_enabled, route_from_data, route_to_data

_PRIVATE: Final = {
    CONF_HOST,
    CONF_USERNAME,
    CONF_PASSWORD,
    CONF_CLIENT_ID,
    CONF_CA,
    CONF_SERVER_NAME,
    "title",
    "address",
    "failed_filters",
}
"""Keys of the entry and of the status. A title is the remote host, unless the user made up another."""
_SHORTEST: Final = 3
"""Shorter private words are not looked for in texts: they would be found in everything."""

_ADDRESS: Final = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b|\[[0-9A-Fa-f:.]*:[^]\s]*\]")
"""IPv4 and, in brackets, IPv6: what the host's name was resolved to."""
_PLACE: Final = re.compile(r"[+#]|\{\d+\}|")
"""A level that is a wildcard, stands for one (in a target), or is empty."""


async def async_get_config_entry_diagnostics(hass: HomeAssistant, entry: QuicBridgeConfigEntry) -> dict[str, Any]:
    """Return the entry, its routes, the brokers as the bridge sees them, and the bridge's whole status."""
    remote = remote_broker(entry.data[CONF_REMOTE])
    brokers = [remote]
    local: dict[str, Any]
    try:
        broker = local_broker(hass, entry.data[CONF_LOCAL])
    except BridgeError as error:
        local = {"error": error.code.value}
    else:
        brokers.append(broker)
        local = _broker(broker)
    words = sorted({word for broker in brokers for word in _private_words(broker)}, key=len, reverse=True)
    status = asdict(entry.runtime_data.bridge.status)
    return {
        "entry": async_redact_data(
            {
                "title": entry.title,
                "version": entry.version,
                "minor_version": entry.minor_version,
                "data": dict(entry.data),
                "options": dict(entry.options),
            },
            _PRIVATE,
        ),
        "routes": [_route(subentry.data) for subentry in entry.get_subentries_of_type(SUBENTRY_ROUTE)],
        "local_broker": local,
        "remote_broker": _broker(remote),
        "status": _without(words, async_redact_data(status, _PRIVATE)),
    }


def _broker(broker: BrokerConfig) -> dict[str, Any]:
    """Describe a broker by what may matter for a fault and tells nothing about the user."""
    tls = broker.tls
    return {
        CONF_PORT: broker.port,
        "transport": broker.transport.value,
        "username": broker.username is not None,
        "password": broker.password is not None,
        "tls": tls
        and {
            "own_ca": tls.ca is not None,
            "own_server_name": tls.server_name is not None,
            "verify": tls.verify,
            "client_certificate": tls.certificate is not None,
        },
    }


def _private_words(broker: BrokerConfig) -> Iterator[str]:
    words = (broker.host, broker.username, broker.password, broker.client_id, broker.tls and broker.tls.server_name)
    return (word for word in words if word and len(word) >= _SHORTEST)


def _route(data: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a route without the names in its topics."""
    route = route_to_data(route_from_data("", data), enabled=is_enabled(data))
    return {
        **route,
        CONF_TOPIC_FILTER: _shape(route[CONF_TOPIC_FILTER]),
        CONF_TARGET: _shape(route[CONF_TARGET]),
        CONF_EXCLUDE: [_shape(topic_filter) for topic_filter in route[CONF_EXCLUDE]],
    }


def _shape(topic: str) -> str:
    """Keep the wildcards and number of levels of a filter or target, which is what routing goes by, and no name."""
    return "/".join(level if _PLACE.fullmatch(level) else "*" for level in topic.split("/"))


def _without(words: list[str], value: object) -> object:
    """Take private words and IP addresses out of texts, which may quote a host or what a broker has said."""
    if isinstance(value, Mapping):
        return {key: _without(words, item) for key, item in value.items()}
    if type(value) is str:
        for word in words:
            value = value.replace(word, REDACTED)
        value = _ADDRESS.sub(REDACTED, value)
    return value
