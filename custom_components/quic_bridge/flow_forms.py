"""The forms of the config flow: their fields, and the way from what was typed to what is stored."""

from collections.abc import Mapping
from typing import Any, Final

from homeassistant.const import CONF_CLIENT_ID, CONF_HOST, CONF_PASSWORD, CONF_PORT, CONF_USERNAME
from homeassistant.core import HomeAssistant
from homeassistant.data_entry_flow import section
from homeassistant.helpers.selector import (
    BooleanSelector,
    SelectSelector,
    SelectSelectorConfig,
    SelectSelectorMode,
    TextSelector,
    TextSelectorConfig,
    TextSelectorType,
)
import probatio

from .bridge.config import DEFAULT_QUIC_PORT, DEFAULT_TCP_PORT
from .bridge.errors import ErrorCode
from .bridge.routes import Direction, Route
from .brokers import LocalMode
from .const import (
    CONF_MODE,
    CONF_RECEIVE,
    CONF_SEND,
    CONF_USE_TLS,
    SECTION_ADVANCED,
    SECTION_FALLBACK,
    SECTION_TLS,
)
from .endpoint_forms import FALLBACK_FIELDS, PORT, clean_host
from .form_error import FormError
from .tls_forms import TLS_FIELDS, async_tls_data, tls_form

_TEXT = TextSelector()
_TOPICS = TextSelector(TextSelectorConfig(multiple=True))

_CREDENTIALS: Final = {
    probatio.Optional(CONF_USERNAME): TextSelector(TextSelectorConfig(autocomplete="username")),
    probatio.Optional(CONF_PASSWORD): TextSelector(
        TextSelectorConfig(type=TextSelectorType.PASSWORD, autocomplete="current-password")
    ),
}
_ADVANCED: Final = {
    probatio.Required(SECTION_ADVANCED): section(
        probatio.Schema({probatio.Required(CONF_CLIENT_ID): _TEXT}), {"collapsed": True}
    ),
}

LOCAL_SCHEMA: Final = probatio.Schema(
    {
        probatio.Required(CONF_MODE, default=LocalMode.HOME_ASSISTANT.value): SelectSelector(
            SelectSelectorConfig(
                options=[mode.value for mode in LocalMode], translation_key="local_mode", mode=SelectSelectorMode.LIST
            )
        )
    }
)
LOCAL_CUSTOM_SCHEMA: Final = probatio.Schema(
    {
        probatio.Required(CONF_HOST): _TEXT,
        probatio.Required(CONF_PORT, default=DEFAULT_TCP_PORT): PORT,
        **_CREDENTIALS,
        probatio.Required(SECTION_TLS): section(
            probatio.Schema({probatio.Required(CONF_USE_TLS, default=False): BooleanSelector(), **TLS_FIELDS}),
            {"collapsed": True},
        ),
    }
)
REMOTE_SCHEMA: Final = probatio.Schema(
    {
        probatio.Required(CONF_HOST): _TEXT,
        probatio.Required(CONF_PORT, default=DEFAULT_QUIC_PORT): PORT,
        **_CREDENTIALS,
        probatio.Required(SECTION_TLS): section(probatio.Schema(TLS_FIELDS), {"collapsed": True}),
        probatio.Required(SECTION_FALLBACK): section(probatio.Schema(FALLBACK_FIELDS), {"collapsed": True}),
        **_ADVANCED,
    }
)
REAUTH_SCHEMA: Final = probatio.Schema({**_CREDENTIALS, **_ADVANCED})
TOPICS_SCHEMA: Final = probatio.Schema(
    {probatio.Optional(CONF_SEND): _TOPICS, probatio.Optional(CONF_RECEIVE): _TOPICS}
)

_FIELDS: Final = {
    ErrorCode.NAME_NOT_FOUND: CONF_HOST,
    ErrorCode.UNREACHABLE: CONF_HOST,
    ErrorCode.NO_ANSWER: CONF_HOST,
    ErrorCode.REFUSED: CONF_PORT,
    ErrorCode.NOT_MQTT_QUIC: CONF_PORT,
    ErrorCode.CERTIFICATE_UNTRUSTED: SECTION_TLS,
    ErrorCode.CERTIFICATE_NAME: SECTION_TLS,
    ErrorCode.CERTIFICATE_EXPIRED: SECTION_TLS,
    ErrorCode.CERTIFICATE_PIN: SECTION_TLS,
    ErrorCode.CLIENT_CERTIFICATE_REQUIRED: SECTION_TLS,
    ErrorCode.CLIENT_CERTIFICATE_REFUSED: SECTION_TLS,
    ErrorCode.CLIENT_CERTIFICATE_INVALID: SECTION_TLS,
    ErrorCode.TLS_FAILED: SECTION_TLS,
    ErrorCode.BAD_CREDENTIALS: CONF_PASSWORD,
    ErrorCode.NOT_AUTHORIZED: CONF_USERNAME,
    ErrorCode.CLIENT_ID_REFUSED: SECTION_ADVANCED,
}
"""The field or section at whose head an error is shown, in forms that have it."""


def error_field(code: ErrorCode, schema: probatio.Schema) -> str:
    """Return where in the form of `schema` an error belongs."""
    field = _FIELDS.get(code)
    return field if field is not None and field in schema.schema else "base"


async def async_broker_data(
    hass: HomeAssistant, user_input: dict[str, Any], previous: Mapping[str, Any] | None, secrets: dict[str, str]
) -> dict[str, Any]:
    """Return what is stored for a broker from its form, whose TLS section is amended (see `async_tls_data`).

    `previous` is what is stored so far, when the broker is changed. Raises FormError.
    """
    return {
        CONF_HOST: clean_host(user_input[CONF_HOST]),
        CONF_PORT: int(user_input[CONF_PORT]),
        **credentials(user_input, previous),
        **await async_tls_data(hass, user_input[SECTION_TLS], secrets),
    }


def credentials(user_input: Mapping[str, Any], previous: Mapping[str, Any] | None) -> dict[str, str | None]:
    """Return username and password; a password that is left empty stays as it was as long as the username does."""
    username = user_input.get(CONF_USERNAME) or None
    password = user_input.get(CONF_PASSWORD) or None
    if password is None and previous is not None and username == previous.get(CONF_USERNAME):
        password = previous.get(CONF_PASSWORD)
    return {CONF_USERNAME: username, CONF_PASSWORD: password}


def broker_form(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a broker's form shows of what is stored: everything but what is secret."""
    optional = {
        CONF_HOST: stored.get(CONF_HOST),
        CONF_PORT: stored.get(CONF_PORT),
        CONF_USERNAME: stored.get(CONF_USERNAME),
    }
    return {
        **{key: value for key, value in optional.items() if value is not None},
        SECTION_TLS: tls_form(stored),
        SECTION_ADVANCED: {CONF_CLIENT_ID: stored[CONF_CLIENT_ID]},
    }


def first_routes(user_input: Mapping[str, Any]) -> list[Route]:
    """Return the routes of the two lists of topics; raises FormError."""
    routes: dict[str, Route] = {}
    for field, direction in ((CONF_SEND, Direction.TO_REMOTE), (CONF_RECEIVE, Direction.TO_LOCAL)):
        for text in user_input.get(field, ()):
            if not (topic_filter := text.strip()):
                continue
            known = routes.get(topic_filter)
            way = direction if known is None or known.direction is direction else Direction.BOTH
            routes[topic_filter] = route = Route(id="", direction=way, topic_filter=topic_filter)
            if (problem := route.problem()) is not None:
                raise FormError(field, problem, {"topic": topic_filter})
    if not routes:
        raise FormError("base", "no_topics")
    return list(routes.values())
