"""From what Home Assistant has stored to what the bridge wants: the brokers, and all of a bridge."""

from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
import secrets
from typing import Any, Final

from homeassistant.config_entries import ConfigEntry
from homeassistant.const import CONF_CLIENT_ID, CONF_HOST, CONF_PASSWORD, CONF_PORT, CONF_USERNAME
from homeassistant.core import HomeAssistant
from homeassistant.helpers.storage import STORAGE_DIR

from .bridge.config import (
    DEFAULT_TCP_PORT,
    BackoffConfig,
    BridgeConfig,
    BrokerConfig,
    Endpoint,
    FailoverConfig,
    OutboxConfig,
    PresenceConfig,
    TlsConfig,
    TransportKind,
)
from .bridge.errors import BridgeError, ErrorCode
from .bridge.routes import Route
from .bridge.status import Side
from .const import (
    CONF_ADDRESSES,
    CONF_CA,
    CONF_CERTIFICATE,
    CONF_FALLBACK,
    CONF_LOCAL,
    CONF_MODE,
    CONF_PINS,
    CONF_PRIVATE_KEY,
    CONF_PRIVATE_KEY_PASSWORD,
    CONF_REMOTE,
    CONF_SERVER_NAME,
    CONF_USE_TLS,
    CONF_VERIFY,
    DOMAIN,
    PAGE_CONNECTION,
    PAGE_EXPERT,
    PAGE_MESSAGES,
    PAGE_PRESENCE,
)
from .options import backoff, local_with_options, loop_guard, outbox_limits, presence, quic_logs, remote_with_options

MQTT_DOMAIN: Final = "mqtt"

# Keys and special values in the data of Home Assistant's own mqtt entry (homeassistant/components/mqtt/const.py).
# Not imported from there: that would load the whole mqtt integration also where it is not used.
_MQTT_BROKER: Final = "broker"
_MQTT_CERTIFICATE: Final = "certificate"
_MQTT_CLIENT_CERT: Final = "client_cert"
_MQTT_CLIENT_KEY: Final = "client_key"
_MQTT_TLS_INSECURE: Final = "tls_insecure"
_MQTT_TRANSPORT: Final = "transport"
_MQTT_TRANSPORT_TCP: Final = "tcp"
_MQTT_SYSTEM_CERTIFICATES: Final = "auto"


class LocalMode(StrEnum):
    """Where the local broker's address and credentials come from."""

    HOME_ASSISTANT = "home_assistant"
    """Home Assistant's own mqtt entry, read afresh for each connection."""
    CUSTOM = "custom"


def new_client_ids() -> dict[Side, str]:
    """Make up client identifiers that nobody else has; they then stay those of the bridge for ever.

    Both sides may be the same broker, where two clients must not share one.
    """
    client_id = f"quic-bridge-{secrets.token_hex(4)}"
    return {Side.LOCAL: f"{client_id}-local", Side.REMOTE: client_id}


def mqtt_entry(hass: HomeAssistant) -> ConfigEntry | None:
    """Return the entry of Home Assistant's own MQTT integration, if there is one in use."""
    entries = hass.config_entries.async_entries(MQTT_DOMAIN, include_ignore=False, include_disabled=False)
    return entries[0] if entries else None


def _home_assistant_broker(hass: HomeAssistant, client_id: str) -> BrokerConfig:
    """Return the broker that Home Assistant's own MQTT integration uses."""
    if (entry := mqtt_entry(hass)) is None:
        raise BridgeError(ErrorCode.LOCAL_ENTRY_MISSING, "Home Assistant's MQTT integration is not set up")
    data = entry.data
    if data.get(_MQTT_TRANSPORT, _MQTT_TRANSPORT_TCP) != _MQTT_TRANSPORT_TCP:
        raise BridgeError(
            ErrorCode.CONFIGURATION,
            "Home Assistant's MQTT integration reaches its broker over WebSockets, which the bridge cannot use;"
            " enter the broker's host and port as another broker",
        )
    tls = None
    if certificate := data.get(_MQTT_CERTIFICATE):
        tls = TlsConfig(
            ca=None if certificate == _MQTT_SYSTEM_CERTIFICATES else certificate,
            # As in paho, which that integration uses: the name is not compared, the chain is verified all the same.
            check_name=not data.get(_MQTT_TLS_INSECURE, False),
            certificate=data.get(_MQTT_CLIENT_CERT),
            private_key=data.get(_MQTT_CLIENT_KEY),
        )
    return BrokerConfig(
        host=data[_MQTT_BROKER],
        port=data.get(CONF_PORT, DEFAULT_TCP_PORT),
        client_id=client_id,
        username=data.get(CONF_USERNAME),
        password=data.get(CONF_PASSWORD),
        tls=tls,
    )


def local_broker(hass: HomeAssistant, local: Mapping[str, Any]) -> BrokerConfig:
    """Return the local broker for `local`, the mapping stored in the entry.

    Raises BridgeError when Home Assistant's own broker is wanted and its entry is missing (LOCAL_ENTRY_MISSING)
    or cannot be used (CONFIGURATION).
    """
    if LocalMode(local[CONF_MODE]) is LocalMode.HOME_ASSISTANT:
        return _home_assistant_broker(hass, local[CONF_CLIENT_ID])
    return BrokerConfig(
        host=local[CONF_HOST],
        port=local[CONF_PORT],
        client_id=local[CONF_CLIENT_ID],
        username=local[CONF_USERNAME],
        password=local[CONF_PASSWORD],
        tls=_tls(local) if local[CONF_USE_TLS] else None,
    )


def remote_broker(remote: Mapping[str, Any]) -> BrokerConfig:
    """Return the remote broker for `remote`, the mapping stored in the entry."""
    return BrokerConfig(
        host=remote[CONF_HOST],
        port=remote[CONF_PORT],
        client_id=remote[CONF_CLIENT_ID],
        transport=TransportKind.QUIC,
        username=remote[CONF_USERNAME],
        password=remote[CONF_PASSWORD],
        tls=_tls(remote),
    )


def remote_failover(remote: Mapping[str, Any]) -> FailoverConfig:
    """Return the further endpoints of the remote broker for `remote`, the mapping stored in the entry."""
    fallback = remote.get(CONF_FALLBACK)
    return FailoverConfig(
        further=tuple(
            Endpoint(host=address[CONF_HOST], port=address[CONF_PORT]) for address in remote.get(CONF_ADDRESSES, ())
        ),
        fallback=fallback and Endpoint(host=fallback[CONF_HOST] or remote[CONF_HOST], port=fallback[CONF_PORT]),
    )


def remote_endpoints(remote: Mapping[str, Any]) -> list[BrokerConfig]:
    """Return the remote broker at each of its endpoints, in order of preference."""
    return remote_failover(remote).endpoints(remote_broker(remote))


def entry_local_broker(hass: HomeAssistant, entry: ConfigEntry) -> BrokerConfig:
    """Return the local broker of an entry as its bridge uses it. Raises BridgeError as `local_broker` does."""
    return local_with_options(local_broker(hass, entry.data[CONF_LOCAL]), entry.options)


def entry_brokers(hass: HomeAssistant, entry: ConfigEntry) -> dict[Side, list[BrokerConfig]]:
    """Return both brokers of an entry at each endpoint, as its bridge uses them; no local one if it is not known."""
    local: list[BrokerConfig] = []
    with suppress(BridgeError):
        local.append(entry_local_broker(hass, entry))
    remote = [remote_with_options(endpoint, entry.options) for endpoint in remote_endpoints(entry.data[CONF_REMOTE])]
    return {Side.LOCAL: local, Side.REMOTE: remote}


def _tls(broker: Mapping[str, Any]) -> TlsConfig:
    return TlsConfig(
        ca=_source(broker[CONF_CA]),
        server_name=broker[CONF_SERVER_NAME],
        verify=broker[CONF_VERIFY],
        pins=tuple(broker.get(CONF_PINS, ())),
        certificate=_source(broker.get(CONF_CERTIFICATE)),
        private_key=_source(broker.get(CONF_PRIVATE_KEY)),
        private_key_password=broker.get(CONF_PRIVATE_KEY_PASSWORD),
    )


def is_file(text: str) -> bool:
    """Tell whether what is stored of a certificate or key is the path of its file; PEM text has no slash in front."""
    return text.startswith("/")


def _source(text: str | None) -> str | Path | None:
    return Path(text) if text is not None and is_file(text) else text


def outbox_path(hass: HomeAssistant, entry: ConfigEntry) -> Path:
    """Return the file that keeps an entry's messages while the remote is away."""
    return Path(hass.config.path(STORAGE_DIR, DOMAIN, f"{entry.entry_id}.db"))


def tickets_path(hass: HomeAssistant, entry: ConfigEntry) -> Path:
    """Return the file that keeps an entry's session tickets."""
    return Path(hass.config.path(STORAGE_DIR, DOMAIN, f"{entry.entry_id}.tickets"))


def quic_log_folder(hass: HomeAssistant, entry: ConfigEntry) -> Path:
    """Return the folder for an entry's logs of QUIC, where people find it."""
    return Path(hass.config.path(DOMAIN, entry.entry_id))


def entry_presence(entry: ConfigEntry) -> PresenceConfig | None:
    """Return the status topics of an entry's bridge, if it has any."""
    return presence(
        entry.options.get(PAGE_PRESENCE, {}),
        entry.data[CONF_LOCAL][CONF_CLIENT_ID],
        entry.data[CONF_REMOTE][CONF_CLIENT_ID],
    )


def status_places(hass: HomeAssistant, entry: ConfigEntry, values: Mapping[str, Any]) -> set[tuple[str, int, str]]:
    """Return host, port and topic of an entry's status topics, for the values of the page `presence`."""
    local, remote = entry.data[CONF_LOCAL], entry.data[CONF_REMOTE]
    topics = presence(values, local[CONF_CLIENT_ID], remote[CONF_CLIENT_ID])
    if topics is None:
        return set()
    places = {(remote[CONF_HOST], remote[CONF_PORT], topics.remote_topic)}
    with suppress(BridgeError):
        broker = local_broker(hass, local)
        places.add((broker.host, broker.port, topics.local_topic))
    return places


def bridge_config(hass: HomeAssistant, entry: ConfigEntry, routes: tuple[Route, ...] = ()) -> BridgeConfig:
    """Return the bridge's configuration: what is stored in the entry, and `routes` (see `routes_in_use`)."""
    return BridgeConfig(
        presence=entry_presence(entry),
        guard=loop_guard(entry.options.get(PAGE_MESSAGES, {})),
        outbox=OutboxConfig(path=outbox_path(hass, entry), limits=outbox_limits(entry.options.get(PAGE_MESSAGES, {}))),
        remote=remote_with_options(remote_broker(entry.data[CONF_REMOTE]), entry.options),
        backoff=backoff(entry.options.get(PAGE_CONNECTION, {})),
        local_backoff=BackoffConfig(),
        failover=remote_failover(entry.data[CONF_REMOTE]),
        routes=routes,
        tickets=tickets_path(hass, entry),
        quic_logs=quic_logs(entry.options.get(PAGE_EXPERT, {}), quic_log_folder(hass, entry)),
    )


def unreadable(hass: HomeAssistant, entry: ConfigEntry) -> str | None:
    """Say why nothing can be made of what is stored in an entry, by a later version or by hand; None: it can."""
    try:
        bridge_config(hass, entry)
        local_broker(hass, entry.data[CONF_LOCAL])
    except BridgeError:
        return None  # that is for the bridge to say, when it wants to connect
    except KeyError as error:
        return f"no {error.args[0]}"
    except (AttributeError, TypeError, ValueError) as error:
        return str(error)
    return None


def uses_home_assistant_broker(entry: ConfigEntry) -> bool:
    """Tell whether the entry's local broker is Home Assistant's own."""
    return bool(entry.data[CONF_LOCAL][CONF_MODE] == LocalMode.HOME_ASSISTANT)
