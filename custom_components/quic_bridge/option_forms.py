"""The pages of the options flow: their fields, what an empty field stands for, and which values go together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from homeassistant.data_entry_flow import section
from homeassistant.helpers.selector import (
    BooleanSelector,
    NumberSelector,
    NumberSelectorConfig,
    NumberSelectorMode,
    SelectSelector,
    SelectSelectorConfig,
    SelectSelectorMode,
    TextSelector,
)
import probatio

from .bridge.config import BrokerConfig, timer_conflict
from .bridge.guard import GuardMode
from .const import (
    CONF_ANNOUNCE,
    CONF_BACKOFF_BASE,
    CONF_CONGESTION_CONTROL,
    CONF_CONNACK_TIMEOUT,
    CONF_EARLY_DATA,
    CONF_HANDSHAKE_TIMEOUT,
    CONF_IDLE_TIMEOUT,
    CONF_KEEPALIVE,
    CONF_KEY_LOG,
    CONF_LOOP_GUARD,
    CONF_MAX_PAYLOAD,
    CONF_MOST_BRIDGES,
    CONF_OUTBOX_DAYS,
    CONF_OUTBOX_MESSAGES,
    CONF_OUTBOX_SIZE,
    CONF_PAYLOAD_OFFLINE,
    CONF_PAYLOAD_ONLINE,
    CONF_PING_TIMEOUT,
    CONF_PROFILE,
    CONF_QLOG,
    CONF_STATUS_TOPIC,
    PAGE_CONNECTION,
    PAGE_EXPERT,
    PAGE_MESSAGES,
    PAGE_PRESENCE,
    SECTION_OUTBOX,
)
from .form_error import FormError
from .options import (
    CLIENT_ID_VARIABLE,
    CONGESTION_CONTROLS,
    CONNECTION_OPTIONS,
    LONGEST_PRESENCE_TEXT,
    MESSAGE_OPTIONS,
    PRESENCE_DEFAULTS,
    NumberOption,
    Profile,
    backoff,
    max_payload,
    outbox_limits,
    presence_text,
    status_topic,
    valid_status_topic,
    with_connection,
)

_CONFLICT_FIELDS: Final = {
    "ping_over_idle_timeout": CONF_IDLE_TIMEOUT,
    "keepalive_over_idle_timeout": CONF_KEEPALIVE,
    "rtt_over_handshake_timeout": CONF_HANDSHAKE_TIMEOUT,
    "rtt_over_ping_timeout": CONF_PING_TIMEOUT,
    "connack_timeout_short": CONF_CONNACK_TIMEOUT,
    "backoff_base_over_cap": CONF_BACKOFF_BASE,
}
"""Where a conflict of timers is shown, by its rule, which is the key of its text as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One form of the options flow. Its values are stored as one mapping, whatever the sections of the form."""

    stored_as: str
    """Key in entry.options."""
    schema: probatio.Schema
    numbers: Mapping[str, NumberOption] = field(default_factory=dict)
    """The numbers among its fields, whose defaults its texts name."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """What else its texts name."""
    implied: Mapping[str, Any] = field(default_factory=dict)
    """Values that are stored with those of its fields."""
    check: Callable[[Mapping[str, Any]], None] = lambda _values: None
    """Raises FormError for values that do not go together."""

    @property
    def placeholders(self) -> dict[str, str]:
        """Each number's default, by its key, for the texts, and what else they name."""
        return {key: f"{option.default:.10g}" for key, option in self.numbers.items()} | dict(self.texts)

    def values(self, user_input: Mapping[str, Any]) -> dict[str, Any]:
        """Return what was typed, without sections; raises FormError, shown where the form can show it."""
        values = dict(self.implied)
        for name, content in user_input.items():
            values |= content if isinstance(content, Mapping) else {name: content}
        try:
            self.check(values)
        except FormError as error:
            raise FormError(self._place(error.field), error.key, error.placeholders) from error
        return values

    def form(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values as the form has them, in their sections."""
        return {
            name: {key: values[key] for key in fields if key in values} if fields is not None else values[name]
            for name, fields in self._layout()
            if fields is not None or name in values
        }

    def _layout(self) -> Iterator[tuple[str, list[str] | None]]:
        for marker, content in self.schema.schema.items():
            yield str(marker), [str(key) for key in content.schema.schema] if isinstance(content, section) else None

    def _place(self, key: str) -> str:
        """The frontend shows no errors inside a section, so they come before it."""
        return next((name for name, fields in self._layout() if fields is not None and key in fields), key)


def number_fields(options: Mapping[str, NumberOption], *keys: str) -> dict[probatio.Marker, object]:
    """Return fields for numbers; an empty one means the default."""
    return {
        probatio.Optional(key): NumberSelector(
            NumberSelectorConfig(
                min=options[key].minimum,
                max=options[key].maximum,
                step=options[key].step,
                unit_of_measurement=options[key].unit,
                mode=NumberSelectorMode.BOX,
                translation_key="unit",
            )
        )
        for key in keys
    }


def _select(options: Sequence[str], translation_key: str) -> SelectSelector:
    return SelectSelector(
        SelectSelectorConfig(options=list(options), translation_key=translation_key, mode=SelectSelectorMode.LIST)
    )


def _check_messages(values: Mapping[str, Any]) -> None:
    if max_payload(values) > outbox_limits(values).bytes:
        raise FormError(CONF_OUTBOX_SIZE, "outbox_smaller_than_message")


def _check_connection(values: Mapping[str, Any]) -> None:
    broker = with_connection(BrokerConfig(host="", port=0, client_id=""), values)
    if (conflict := timer_conflict(broker, backoff(values))) is not None:
        raise FormError(
            _CONFLICT_FIELDS[conflict.rule],
            conflict.rule,
            {"low": f"{conflict.low:g}", "high": f"{conflict.high:g}"},
        )


def _check_presence(values: Mapping[str, Any]) -> None:
    if not valid_status_topic(status_topic(values, "client")):
        raise FormError(CONF_STATUS_TOPIC, "status_topic_invalid")
    online, offline = (presence_text(values, key) for key in (CONF_PAYLOAD_ONLINE, CONF_PAYLOAD_OFFLINE))
    for key, text in ((CONF_PAYLOAD_ONLINE, online), (CONF_PAYLOAD_OFFLINE, offline)):
        if len(text) > LONGEST_PRESENCE_TEXT:
            raise FormError(key, "payload_too_long")
    if online == offline:
        raise FormError(CONF_PAYLOAD_OFFLINE, "payloads_equal")


PAGES: Final = {
    PAGE_CONNECTION: Page(
        stored_as=PAGE_CONNECTION,
        schema=probatio.Schema(
            {probatio.Required(CONF_PROFILE, default=Profile.NORMAL.value): _select(list(Profile), "profile")}
        ),
    ),
    Profile.CUSTOM.value: Page(
        stored_as=PAGE_CONNECTION,
        schema=probatio.Schema(
            {
                **number_fields(CONNECTION_OPTIONS, *CONNECTION_OPTIONS),
                probatio.Required(CONF_CONGESTION_CONTROL, default=CONGESTION_CONTROLS[0]): _select(
                    CONGESTION_CONTROLS, "congestion_control"
                ),
            }
        ),
        numbers=CONNECTION_OPTIONS,
        implied={CONF_PROFILE: Profile.CUSTOM.value},
        check=_check_connection,
    ),
    PAGE_PRESENCE: Page(
        stored_as=PAGE_PRESENCE,
        schema=probatio.Schema(
            {
                probatio.Required(CONF_ANNOUNCE, default=True): BooleanSelector(),
                **{probatio.Optional(key): TextSelector() for key in PRESENCE_DEFAULTS},
            }
        ),
        texts={**PRESENCE_DEFAULTS, "variable": CLIENT_ID_VARIABLE},
        check=_check_presence,
    ),
    PAGE_EXPERT: Page(
        stored_as=PAGE_EXPERT,
        schema=probatio.Schema(
            {
                probatio.Required(key, default=False): BooleanSelector()
                for key in (CONF_EARLY_DATA, CONF_QLOG, CONF_KEY_LOG)
            }
        ),
    ),
    PAGE_MESSAGES: Page(
        stored_as=PAGE_MESSAGES,
        schema=probatio.Schema(
            {
                **number_fields(MESSAGE_OPTIONS, CONF_MAX_PAYLOAD),
                probatio.Optional(CONF_LOOP_GUARD): SelectSelector(
                    SelectSelectorConfig(
                        options=[mode.value for mode in GuardMode],
                        translation_key="loop_guard",
                        mode=SelectSelectorMode.DROPDOWN,
                    )
                ),
                **number_fields(MESSAGE_OPTIONS, CONF_MOST_BRIDGES),
                probatio.Required(SECTION_OUTBOX): section(
                    probatio.Schema(
                        number_fields(MESSAGE_OPTIONS, CONF_OUTBOX_MESSAGES, CONF_OUTBOX_SIZE, CONF_OUTBOX_DAYS)
                    ),
                    {"collapsed": False},
                ),
            }
        ),
        numbers=MESSAGE_OPTIONS,
        check=_check_messages,
    ),
}
"""The pages by their steps."""
