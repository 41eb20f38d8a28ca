"""The options in the user interface: a menu with one form per page. What is saved makes the bridge start afresh."""

from typing import Any

from homeassistant.config_entries import ConfigFlowResult, OptionsFlow

from .const import PAGE_MESSAGES
from .flow_forms import FormError
from .option_forms import PAGES


class QuicBridgeOptionsFlow(OptionsFlow):
    """Changes one page of options. A field that is left empty stands for its default, also a later version's."""

    async def async_step_init(self, _: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Choose a page."""
        return self.async_show_menu(step_id="init", menu_options=list(PAGES))

    async def async_step_messages(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Ask for the bounds of messages."""
        return self._page(PAGE_MESSAGES, user_input)

    def _page(self, name: str, user_input: dict[str, Any] | None) -> ConfigFlowResult:
        """Show a page until what was typed goes together, then store it."""
        page = PAGES[name]
        options = self.config_entry.options
        error: FormError | None = None
        if user_input is not None:
            try:
                values = page.values(user_input)
            except FormError as failure:
                error = failure
            else:
                others = {key: value for key, value in options.items() if key != name}
                return self.async_create_entry(data={**others, name: values} if values else others)
        shown = user_input if user_input is not None else page.form(options.get(name, {}))
        return self.async_show_form(
            step_id=name,
            data_schema=self.add_suggested_values_to_schema(page.schema, shown),
            errors={error.field: error.key} if error else None,
            description_placeholders={**page.placeholders, **(error.placeholders if error else {})},
        )
