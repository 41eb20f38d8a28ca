"""Where a broker is: what is typed as its host, further addresses, and the fallback for networks without UDP."""

from collections.abc import Mapping
import ipaddress
from typing import Any, Final

from homeassistant.const import CONF_HOST, CONF_PORT
from homeassistant.helpers.selector import (
    BooleanSelector,
    NumberSelector,
    NumberSelectorConfig,
    NumberSelectorMode,
    TextSelector,
    TextSelectorConfig,
)
import probatio

from .bridge.config import DEFAULT_TLS_PORT
from .bridge.link_local import interfaces, is_link_local
from .const import (
    CONF_ADDRESSES,
    CONF_FALLBACK,
    CONF_FALLBACK_HOST,
    CONF_FALLBACK_PORT,
    CONF_USE_FALLBACK,
    SECTION_FALLBACK,
)
from .form_error import FormError

_MAX_PORT: Final = 65535

PORT: Final = NumberSelector(NumberSelectorConfig(min=1, max=_MAX_PORT, step=1, mode=NumberSelectorMode.BOX))
FALLBACK_FIELDS: Final = {
    probatio.Required(CONF_USE_FALLBACK, default=False): BooleanSelector(),
    probatio.Optional(CONF_FALLBACK_HOST): TextSelector(),
    probatio.Required(CONF_FALLBACK_PORT, default=DEFAULT_TLS_PORT): PORT,
    probatio.Optional(CONF_ADDRESSES): TextSelector(TextSelectorConfig(multiple=True)),
}


def clean_host(text: str) -> str:
    """Return a host name or address as it is to be dialled; FormError if it is neither.

    People paste URLs, host:port and [IPv6]; only the last can be meant in one way only.
    """
    if (host := _host(text)) is None:
        raise FormError(CONF_HOST, "invalid_host")
    _require_zone(CONF_HOST, host)
    return host


def endpoint_data(user_input: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is stored of the remote broker's other endpoints from its form; raises FormError."""
    fields = user_input[SECTION_FALLBACK]
    port = int(user_input[CONF_PORT])
    addresses = [(clean_host(user_input[CONF_HOST]), port)]
    for text in fields.get(CONF_ADDRESSES, ()):
        if text.strip() and (address := _address(text.strip(), port)) not in addresses:
            addresses.append(address)
    fallback: dict[str, Any] | None = None
    if fields[CONF_USE_FALLBACK]:
        typed = fields.get(CONF_FALLBACK_HOST, "").strip()
        fallback = {CONF_HOST: _other_host(typed) if typed else None, CONF_PORT: int(fields[CONF_FALLBACK_PORT])}
    return {
        CONF_ADDRESSES: [{CONF_HOST: host, CONF_PORT: port} for host, port in addresses[1:]],
        CONF_FALLBACK: fallback,
    }


def endpoint_form(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the form shows of the remote broker's other endpoints.

    An address that was not typed yet may have None for its port: it will be that of the broker.
    """
    fields: dict[str, Any] = {CONF_USE_FALLBACK: False}
    if (fallback := stored.get(CONF_FALLBACK)) is not None:
        fields = {CONF_USE_FALLBACK: True, CONF_FALLBACK_PORT: fallback[CONF_PORT]}
        if fallback[CONF_HOST] is not None:
            fields[CONF_FALLBACK_HOST] = fallback[CONF_HOST]
    if addresses := stored.get(CONF_ADDRESSES):
        fields[CONF_ADDRESSES] = [_shown(address[CONF_HOST], address[CONF_PORT]) for address in addresses]
    return {SECTION_FALLBACK: fields}


def _host(text: str) -> str | None:
    host, percent, zone = text.strip().partition("%")
    host = host.lower() + percent + zone  # names of interfaces go by case
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            return None
    elif not host or any(character.isspace() or character in "/\\@?#[]%,;" for character in host):
        return None
    return host


def _other_host(text: str) -> str:
    if (host := _host(text)) is None:
        raise FormError(SECTION_FALLBACK, "invalid_address", {"address": text})
    _require_zone(SECTION_FALLBACK, host)
    return host


def _require_zone(field: str, host: str) -> None:
    """Raise FormError for an address that is the same on every link, without saying which link is meant."""
    if is_link_local(host) and "%" not in host:
        raise FormError(field, "zone_missing", {"address": host, "interfaces": interfaces()})


def _address(text: str, default_port: int) -> tuple[str, int]:
    """Return host and port of `host`, `host:port`, `IPv6`, `[IPv6]` or `[IPv6]:port`; raises FormError."""
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]") or (":" in host and not host.endswith("]")):
        return _other_host(text), default_port
    if not (port.isascii() and port.isdecimal() and 0 < int(port) <= _MAX_PORT):
        raise FormError(SECTION_FALLBACK, "invalid_address", {"address": text})
    return _other_host(host), int(port)


def _shown(host: str, port: int | None) -> str:
    shown = f"[{host}]" if ":" in host else host
    return shown if port is None else f"{shown}:{port}"
