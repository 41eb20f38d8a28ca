"""The options in the user interface: a menu with one form per page. What is saved makes the bridge start afresh."""

from collections.abc import Callable, Mapping
from typing import Any, Final, override

from homeassistant.config_entries import ConfigEntry, ConfigFlowResult, OptionsFlow

from .brokers import quic_log_folder, status_places
from .const import (
    CONF_PROFILE,
    CONF_STATUS_TOPIC,
    DOMAIN,
    PAGE_CONNECTION,
    PAGE_EXPERT,
    PAGE_MESSAGES,
    PAGE_PRESENCE,
)
from .form_error import FormError, abort_if_removed
from .option_forms import PAGES
from .options import Profile, chosen

_MENU: Final = [PAGE_CONNECTION, PAGE_MESSAGES, PAGE_PRESENCE, PAGE_EXPERT]


class QuicBridgeOptionsFlow(OptionsFlow):
    """Changes one page of options. A field that is left empty stands for its default, also a later version's."""

    @property
    @override
    def config_entry(self) -> ConfigEntry:
        """Return the entry whose options these are; the flow ends if it was removed meanwhile."""
        with abort_if_removed():
            return super().config_entry

    async def async_step_init(self, _: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Choose a page."""
        return self.async_show_menu(step_id="init", menu_options=_MENU)

    async def async_step_connection(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Choose a profile; `custom` opens all that it sets."""
        if user_input is not None and user_input[CONF_PROFILE] == Profile.CUSTOM:
            return await self.async_step_custom()
        return self._page(PAGE_CONNECTION, user_input, self._stored(PAGE_CONNECTION))

    async def async_step_custom(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Ask for each timer and window, beginning with those of the profile that was in use."""
        return self._page(Profile.CUSTOM, user_input, chosen(self._stored(PAGE_CONNECTION)))

    async def async_step_messages(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Ask for the bounds of messages."""
        return self._page(PAGE_MESSAGES, user_input, self._stored(PAGE_MESSAGES))

    async def async_step_presence(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Ask for the status topic."""
        return self._page(PAGE_PRESENCE, user_input, self._stored(PAGE_PRESENCE), check=self._refuse_topic_in_use)

    async def async_step_expert(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Ask for what needs some knowledge of QUIC."""
        folder = str(quic_log_folder(self.hass, self.config_entry))
        return self._page(PAGE_EXPERT, user_input, self._stored(PAGE_EXPERT), {"folder": folder})

    def _refuse_topic_in_use(self, values: Mapping[str, Any]) -> None:
        """Raise FormError if another bridge has the same status topic at the same broker: neither could be believed."""
        places = status_places(self.hass, self.config_entry, values)
        for other in self.hass.config_entries.async_entries(DOMAIN, include_ignore=False):
            others = status_places(self.hass, other, other.options.get(PAGE_PRESENCE, {}))
            if other is not self.config_entry and places & others:
                raise FormError(CONF_STATUS_TOPIC, "status_topic_in_use", {"bridge": other.title})

    def _stored(self, page: str) -> Mapping[str, Any]:
        values: Mapping[str, Any] = self.config_entry.options.get(page, {})
        return values

    def _page(
        self,
        step: str,
        user_input: dict[str, Any] | None,
        values: Mapping[str, Any],
        texts: Mapping[str, str] | None = None,
        check: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> ConfigFlowResult:
        """Show a page, with `values` to begin with, until what was typed goes together; then store it.

        `check` may raise FormError for values that do not go together with what the page does not know.
        """
        page = PAGES[step]
        error: FormError | None = None
        if user_input is not None:
            try:
                values = page.values(user_input)
                if check is not None:
                    check(values)
            except FormError as failure:
                error = failure
            else:
                others = {key: value for key, value in self.config_entry.options.items() if key != page.stored_as}
                return self.async_create_entry(data={**others, page.stored_as: values} if values else others)
        return self.async_show_form(
            step_id=step,
            data_schema=self.add_suggested_values_to_schema(
                page.schema, page.form(values) if user_input is None else user_input
            ),
            errors={error.field: error.key} if error else None,
            description_placeholders={**page.placeholders, **(texts or {}), **(error.placeholders if error else {})},
        )
