"""The pages of the options flow: their fields, what an empty field stands for, and which values go together."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from homeassistant.data_entry_flow import section
from homeassistant.helpers.selector import (
    NumberSelector,
    NumberSelectorConfig,
    NumberSelectorMode,
    SelectSelector,
    SelectSelectorConfig,
    SelectSelectorMode,
)
import probatio

from .bridge.guard import GuardMode
from .const import (
    CONF_LOOP_GUARD,
    CONF_MAX_PAYLOAD,
    CONF_MOST_BRIDGES,
    CONF_OUTBOX_DAYS,
    CONF_OUTBOX_MESSAGES,
    CONF_OUTBOX_SIZE,
    PAGE_MESSAGES,
    SECTION_OUTBOX,
)
from .flow_forms import FormError
from .options import MESSAGE_OPTIONS, NumberOption, max_payload, outbox_limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One form of the options flow. Its values are stored as one mapping, whatever the sections of the form."""

    schema: probatio.Schema
    numbers: Mapping[str, NumberOption]
    """The numbers among its fields, whose defaults its texts name."""
    check: Callable[[Mapping[str, Any]], None] = lambda _values: None
    """Raises FormError for values that do not go together."""

    @property
    def placeholders(self) -> dict[str, str]:
        """Each number's default, by its key, for the texts."""
        return {key: f"{option.default:g}" for key, option in self.numbers.items()}

    def values(self, user_input: Mapping[str, Any]) -> dict[str, Any]:
        """Return what was typed, without sections; raises FormError, shown where the form can show it."""
        values = {
            key: value
            for name, content in user_input.items()
            for key, value in (content if isinstance(content, Mapping) else {name: content}).items()
        }
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
        for marker, field in self.schema.schema.items():
            yield str(marker), [str(key) for key in field.schema.schema] if isinstance(field, section) else None

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


def _check_messages(values: Mapping[str, Any]) -> None:
    if max_payload(values) > outbox_limits(values).bytes:
        raise FormError(CONF_OUTBOX_SIZE, "outbox_smaller_than_message")


PAGES: Final = {
    PAGE_MESSAGES: Page(
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
