"""Actions: connect anew, publish, tell the status, try both brokers."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime
from enum import StrEnum
import time
from typing import Final

from homeassistant.const import ATTR_CONFIG_ENTRY_ID
from homeassistant.core import HomeAssistant, ServiceCall, ServiceResponse, SupportsResponse, callback
from homeassistant.helpers import config_validation as cv, service
from homeassistant.util.json import JsonObjectType, JsonValueType
import probatio

from .bridge.check import check_broker
from .bridge.config import BrokerConfig
from .bridge.errors import BridgeError
from .bridge.status import Side
from .brokers import entry_brokers, local_broker
from .const import CONF_LOCAL, DOMAIN
from .coordinator import QuicBridgeConfigEntry
from .publish_action import PUBLISH_FIELDS, async_publish

ATTR_SIDE: Final = "side"


class Action(StrEnum):
    """Names of the actions."""

    RECONNECT = "reconnect"
    PUBLISH = "publish"
    GET_STATUS = "get_status"
    TEST_CONNECTION = "test_connection"


_BRIDGE: Final = {probatio.Optional(ATTR_CONFIG_ENTRY_ID): cv.string}
_BRIDGE_SCHEMA: Final = probatio.Schema(_BRIDGE)
_PUBLISH_SCHEMA: Final = probatio.Schema({**_BRIDGE, **PUBLISH_FIELDS})
_RECONNECT_SCHEMA: Final = probatio.Schema({**_BRIDGE, probatio.Optional(ATTR_SIDE): probatio.Coerce(Side)})


@callback
def async_setup_services(hass: HomeAssistant) -> None:
    """Register the actions; they are there whether or not a bridge is set up."""
    hass.services.async_register(DOMAIN, Action.RECONNECT, _async_reconnect, _RECONNECT_SCHEMA)
    # As Home Assistant's own mqtt.publish: who may publish may open doors.
    service.async_register_admin_service(
        hass, DOMAIN, Action.PUBLISH, _async_publish, _PUBLISH_SCHEMA, SupportsResponse.OPTIONAL
    )
    hass.services.async_register(
        DOMAIN, Action.GET_STATUS, _async_get_status, _BRIDGE_SCHEMA, supports_response=SupportsResponse.ONLY
    )
    hass.services.async_register(
        DOMAIN, Action.TEST_CONNECTION, _async_test_connection, _BRIDGE_SCHEMA, supports_response=SupportsResponse.ONLY
    )


@callback
def _entry(call: ServiceCall) -> QuicBridgeConfigEntry:
    """Return the bridge that is meant, which need not be said if there is only one; ServiceValidationError."""
    entry: QuicBridgeConfigEntry = service.async_get_config_entry(
        call.hass, DOMAIN, call.data.get(ATTR_CONFIG_ENTRY_ID)
    )
    return entry


async def _async_reconnect(call: ServiceCall) -> None:
    """Connect one side, or both, anew at once."""
    _entry(call).runtime_data.async_reconnect(call.data.get(ATTR_SIDE))


async def _async_publish(call: ServiceCall) -> ServiceResponse:
    """Publish a message to the remote broker."""
    return await async_publish(_entry(call), call)


async def _async_get_status(call: ServiceCall) -> ServiceResponse:
    """Return all that the bridge knows of itself."""
    coordinator = _entry(call).runtime_data
    status: JsonObjectType = {"paused": coordinator.paused}
    for key, value in asdict(coordinator.bridge.status).items():
        status[key] = _plain(value)
    return status


def _plain(value: object) -> JsonValueType:
    """Return a value of the status as templates and scripts can use it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return str(value)


async def _async_test_connection(call: ServiceCall) -> ServiceResponse:
    """Log in at both brokers and out again, beside the connections that the bridge has, which are left alone."""
    entry = _entry(call)
    endpoints = entry_brokers(call.hass, entry)[Side.REMOTE]
    local, remote, *others = await asyncio.gather(
        _async_test(lambda: local_broker(call.hass, entry.data[CONF_LOCAL])),
        *(_async_test(_given(broker)) for broker in endpoints),
    )
    for broker, result in zip(endpoints[1:], others, strict=True):
        result |= {"host": broker.host, "port": broker.port, "transport": broker.transport.value}
    return {Side.LOCAL.value: local, Side.REMOTE.value: remote, "other_endpoints": list[JsonValueType](others)}


def _given(broker: BrokerConfig) -> Callable[[], BrokerConfig]:
    return lambda: broker


async def _async_test(broker: Callable[[], BrokerConfig]) -> JsonObjectType:
    """Try one broker, and tell what was seen of it."""
    began = time.perf_counter()
    result: JsonObjectType
    try:
        check = await check_broker(broker())
    except BridgeError as error:
        result = {"ok": False, "error": error.code.value, "text": error.text}
    else:
        details, limits = check.details, check.limits
        result = {
            "ok": True,
            "address": details.address,
            "protocol": check.protocol,
            "encryption": details.version,
            "handshake_ms": details.handshake_ms,
            "login_ms": _milliseconds(check.login),
            "round_trip_ms": details.rtt_ms,
            "ping_ms": _milliseconds(check.ping),
            "allows": {
                "receive_maximum": limits.receive_maximum,
                "maximum_packet_size": limits.max_packet,
                "maximum_qos": limits.max_qos,
                "retain": limits.retain,
                "wildcard_subscriptions": limits.wildcards,
                "shared_subscriptions": limits.shared_subscriptions,
                "subscription_identifiers": limits.subscription_identifiers,
                "topic_alias_maximum": limits.topic_alias_maximum,
                "server_keep_alive": limits.server_keep_alive,
                "session_expiry_interval": limits.session_expiry,
            },
        }
    return {**result, "duration_ms": _milliseconds(time.perf_counter() - began)}


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
