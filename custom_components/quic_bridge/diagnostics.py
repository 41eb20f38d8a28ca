"""What a maintainer needs to help, without what is nobody else's business."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
import re
from typing import Any, Final

from homeassistant.components.diagnostics import REDACTED, async_redact_data
from homeassistant.config_entries import ConfigEntryState
from homeassistant.const import CONF_EXCLUDE, CONF_PORT, CONF_TARGET
from homeassistant.core import HomeAssistant
from homeassistant.helpers.issue_registry import async_get as async_get_issues

from .bridge.config import BrokerConfig
from .bridge.errors import BridgeError
from .brokers import local_broker, remote_endpoints
from .const import (
    CONF_CONGESTION_CONTROL,
    CONF_LOCAL,
    CONF_LOOP_GUARD,
    CONF_MODE,
    CONF_PROFILE,
    CONF_REMOTE,
    CONF_TOPIC_FILTER,
    DOMAIN,
    SUBENTRY_ROUTE,
)
from .coordinator import QuicBridgeConfigEntry
from .route_data import RouteError, is_enabled, route_from_data, route_to_data

_PLAIN: Final = {CONF_MODE, CONF_PROFILE, CONF_CONGESTION_CONTROL, CONF_LOOP_GUARD}
"""Keys of stored texts that are choices from a list. All other texts are the user's: only whether there is one is told.

So a setting that is added later is private until somebody says otherwise.
"""
_NAMES: Final = {"address", "subject", "issuer", "names", "fingerprint", "pin"}
"""Keys in the status: where a broker is, and whose a certificate is. Its dates are told."""
_SHORTEST: Final = 3
"""Shorter private words are not looked for in texts: they would be found in everything."""

_ADDRESS: Final = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b|\[[0-9A-Fa-f:.]*:[^]\s]*\]")
"""IPv4 and, in brackets, IPv6: what the host's name was resolved to."""
_PLACE: Final = re.compile(r"[+#]|\{\d+\}|")
"""A level that is a wildcard, stands for one (in a target), or is empty."""


async def async_get_config_entry_diagnostics(hass: HomeAssistant, entry: QuicBridgeConfigEntry) -> dict[str, Any]:
    """Return the entry, its routes, the brokers as the bridge sees them, the bridge's status and how it came to it.

    Of an entry that is not loaded there is only what is stored.
    """
    stored = {
        "entry": {
            "version": entry.version,
            "minor_version": entry.minor_version,
            "state": entry.state.value,
            "data": _stored(entry.data),
            "options": _stored(entry.options),
        },
        "routes": [_route(subentry.data) for subentry in entry.get_subentries_of_type(SUBENTRY_ROUTE)],
    }
    if entry.state is not ConfigEntryState.LOADED:
        return stored
    coordinator = entry.runtime_data
    remote, *others = remote_endpoints(entry.data[CONF_REMOTE])
    private = {*_texts(entry.data), *_private_words(remote)}
    local: dict[str, Any]
    try:
        broker = local_broker(hass, entry.data[CONF_LOCAL])
    except BridgeError as error:
        local = {"error": error.code.value}
    else:
        private.update(_private_words(broker))
        local = _broker(broker)
    words = sorted((word for word in private if len(word) >= _SHORTEST), key=len, reverse=True)
    status = async_redact_data(asdict(coordinator.bridge.status), _NAMES)
    for side in (CONF_LOCAL, CONF_REMOTE):
        refused = status[side]["failed_filters"]
        status[side]["failed_filters"] = [[_shape(name), reason] for name, reason in refused.items()]
    return {
        **stored,
        "paused": coordinator.paused,
        "route_problems": [[found.problem, _shape(found.route.topic_filter)] for found in coordinator.route_problems],
        "local_broker": local,
        "remote_broker": _broker(remote),
        "other_endpoints": [{CONF_PORT: other.port, "transport": other.transport.value} for other in others],
        "status": _without(words, status),
        "history": [_without(words, asdict(change)) for change in coordinator.history.changes],
        "issues": sorted(
            issue.translation_key or issue.issue_id
            for issue in async_get_issues(hass).issues.values()
            if issue.domain == DOMAIN and issue.active and issue.issue_id.endswith(entry.entry_id)
        ),
    }


def _stored(value: object, key: str = "") -> object:
    """Return what is stored, without the texts that are the user's."""
    if isinstance(value, Mapping):
        return {name: _stored(item, name) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_stored(item, key) for item in value]
    return REDACTED if isinstance(value, str) and value and key not in _PLAIN else value


def _texts(value: object, key: str = "") -> Iterator[str]:
    """Return the texts that `_stored` leaves out."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts(item, name)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item, key)
    elif isinstance(value, str) and key not in _PLAIN:
        yield value


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
            "pins": len(tls.pins),
            "client_certificate": tls.certificate is not None,
        },
    }


def _private_words(broker: BrokerConfig) -> Iterator[str]:
    words = (broker.host, broker.username, broker.password, broker.client_id, broker.tls and broker.tls.server_name)
    return (word for word in words if word)


def _route(data: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a route without the names in its topics."""
    try:
        route = route_to_data(route_from_data("", data), enabled=is_enabled(data))
    except RouteError:
        return {"unreadable": _stored(data)}
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
    if isinstance(value, list):
        return [_without(words, item) for item in value]
    if type(value) is str:
        for word in words:
            value = value.replace(word, REDACTED)
        value = _ADDRESS.sub(REDACTED, value)
    return value
