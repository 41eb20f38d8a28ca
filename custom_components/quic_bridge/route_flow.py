"""Routes in the user interface: presets, all that a route can do, and a look at it before it is stored."""

from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any, Final, override

from homeassistant.config_entries import (
    SOURCE_RECONFIGURE,
    ConfigEntry,
    ConfigSubentry,
    ConfigSubentryFlow,
    SubentryFlowResult,
    UnknownSubEntry,
)
from homeassistant.const import CONF_ENABLED, CONF_TARGET
from homeassistant.core import callback
from homeassistant.data_entry_flow import AbortFlow
import probatio

from .bridge.routes import Route
from .const import CONF_TOPIC_FILTER, SUBENTRY_ROUTE
from .form_error import FormError, abort_if_removed
from .route_data import (
    RouteError,
    RouteWarning,
    code,
    is_enabled,
    preview,
    readable_routes,
    route_from_data,
    route_title,
    route_to_data,
    warnings,
)
from .route_forms import (
    PRESETS,
    ROUTE_SCHEMA,
    STORED_ROUTE_SCHEMA,
    preset_routes,
    refuse_copies,
    route_from_form,
    route_to_form,
)

_CAPTURES: Final = {"first": "{1}", "second": "{2}"}
"""Braces for texts, in which they would begin a placeholder."""


class RouteSubentryFlow(ConfigSubentryFlow):
    """Adds routes, or changes one; shows what they will do, and what may be wrong, before they are stored."""

    def __init__(self) -> None:
        """Begin without a route."""
        self._drafts: list[Route] = []
        self._enabled = True
        self._warnings: list[RouteWarning] = []
        self._typed: dict[str, Any] | None = None
        self._form_step: Callable[[], Coroutine[Any, Any, SubentryFlowResult]] = self.async_step_user

    # --- forms --------------------------------------------------------------------------------------------------------

    async def async_step_user(self, _: dict[str, Any] | None = None) -> SubentryFlowResult:
        """Choose a preset, or none."""
        return self.async_show_menu(step_id="user", menu_options=[*PRESETS, "custom"])

    async def async_step_everything(self, user_input: dict[str, Any] | None = None) -> SubentryFlowResult:
        """Ask for a prefix under which everything is to cross."""
        return await self._async_preset("everything", self.async_step_everything, user_input)

    async def async_step_discovery(self, user_input: dict[str, Any] | None = None) -> SubentryFlowResult:
        """Ask for what Home Assistant's discovery is to be kept apart by."""
        return await self._async_preset("discovery", self.async_step_discovery, user_input)

    async def async_step_zigbee2mqtt(self, user_input: dict[str, Any] | None = None) -> SubentryFlowResult:
        """Ask for what is special in this Zigbee2MQTT."""
        return await self._async_preset("zigbee2mqtt", self.async_step_zigbee2mqtt, user_input)

    async def async_step_tasmota(self, user_input: dict[str, Any] | None = None) -> SubentryFlowResult:
        """Ask what the devices may do."""
        return await self._async_preset("tasmota", self.async_step_tasmota, user_input)

    async def async_step_custom(self, user_input: dict[str, Any] | None = None) -> SubentryFlowResult:
        """Ask for all that a route can do."""
        self._form_step = self.async_step_custom
        return await self._async_fill(
            "custom", ROUTE_SCHEMA, CONF_TOPIC_FILTER, lambda typed: [route_from_form("new", typed)], user_input
        )

    async def async_step_reconfigure(self, user_input: dict[str, Any] | None = None) -> SubentryFlowResult:
        """Change a route."""
        self._form_step = self.async_step_reconfigure
        subentry = self._subentry()
        if user_input is not None:
            self._enabled = user_input[CONF_ENABLED]
        elif self._typed is None:
            self._typed = _stored_form(subentry)
        return await self._async_fill(
            "reconfigure",
            STORED_ROUTE_SCHEMA,
            CONF_TOPIC_FILTER,
            lambda typed: [route_from_form(subentry.subentry_id, typed)],
            user_input,
        )

    async def _async_preset(
        self,
        name: str,
        step: Callable[[], Coroutine[Any, Any, SubentryFlowResult]],
        user_input: dict[str, Any] | None,
    ) -> SubentryFlowResult:
        self._form_step = step
        preset = PRESETS[name]
        return await self._async_fill(
            name, preset.schema, preset.field, lambda typed: preset_routes(preset, typed), user_input
        )

    async def _async_fill(
        self,
        step_id: str,
        schema: probatio.Schema,
        copy_field: str,
        make: Callable[[Mapping[str, Any]], list[Route]],
        user_input: dict[str, Any] | None,
    ) -> SubentryFlowResult:
        """Show a form until what was typed makes valid routes, then show what these do."""
        error: FormError | None = None
        if user_input is not None:
            self._typed = user_input
            try:
                drafts = make(user_input)
                refuse_copies(drafts, self._others(), copy_field)
            except FormError as failure:
                error = failure
            else:
                return await self._async_show(drafts)
        return self.async_show_form(
            step_id=step_id,
            data_schema=self.add_suggested_values_to_schema(schema, self._typed),
            errors={error.field: error.key} if error else None,
            description_placeholders={**_CAPTURES, **(error.placeholders if error else {})},
            last_step=False,
        )

    def _others(self) -> list[Route]:
        """Return the stored routes, but for the one that is changed; also those that are not in use."""
        changed = self._subentry() if self.source == SOURCE_RECONFIGURE else None
        return [route for subentry, route in readable_routes(self._get_entry()) if subentry is not changed]

    def _subentry(self) -> ConfigSubentry:
        """Return what is stored of the route that is changed; the flow ends if that was removed meanwhile."""
        try:
            with abort_if_removed():
                return self._get_reconfigure_subentry()
        except UnknownSubEntry as error:
            raise AbortFlow("route_removed") from error

    @callback
    @override
    def _get_entry(self) -> ConfigEntry:
        with abort_if_removed():
            return super()._get_entry()

    # --- a look at what they do ---------------------------------------------------------------------------------------

    async def _async_show(self, drafts: list[Route]) -> SubentryFlowResult:
        """Show what routes will do, with everything that may be wrong with them, one after the other."""
        self._drafts = drafts
        self._warnings = []
        if self._enabled:
            new = {draft.id: draft for draft in drafts}
            routes = [
                new.pop(subentry.subentry_id, route)
                for subentry, route in readable_routes(self._get_entry())
                if is_enabled(subentry.data) or subentry.subentry_id in new
            ]
            # Routes are compared with each other: a moment, if there are thousands.
            self._warnings = await self.hass.async_add_executor_job(warnings, [*routes, *new.values()], drafts)
        return self._confirm()

    def _confirm(self) -> SubentryFlowResult:
        placeholders = {"preview": preview(self._drafts)}
        step_id = "confirm"
        if self._warnings:
            warning = self._warnings[0]
            step_id = f"confirm_{warning.doubt}"
            placeholders |= {"route": code(route_title(warning.route)), "other": code(route_title(warning.other))}
        return self.async_show_menu(
            step_id=step_id, menu_options=["save", "back"], description_placeholders=placeholders
        )

    async def async_step_confirm(self, _: dict[str, Any] | None = None) -> SubentryFlowResult:
        """Show it once more, in a page that was reloaded."""
        return self._confirm()

    async_step_confirm_hidden = async_step_confirm
    async_step_confirm_hidden_one_way = async_step_confirm
    async_step_confirm_loop = async_step_confirm
    async_step_confirm_hides = async_step_confirm

    async def async_step_back(self, _: dict[str, Any] | None = None) -> SubentryFlowResult:
        """Go back to the form, which still has what was typed."""
        return await self._form_step()

    async def async_step_save(self, _: dict[str, Any] | None = None) -> SubentryFlowResult:
        """Go on to the next warning or, if there is none left, store the routes."""
        if self._warnings:
            self._warnings.pop(0)
        if self._warnings:
            return self._confirm()
        entry = self._get_entry()
        *more, last = self._drafts
        for route in more:
            self.hass.config_entries.async_add_subentry(
                entry,
                ConfigSubentry(
                    data=MappingProxyType(route_to_data(route)),
                    subentry_type=SUBENTRY_ROUTE,
                    title=route_title(route),
                    unique_id=None,
                ),
            )
        title, data = route_title(last, enabled=self._enabled), route_to_data(last, enabled=self._enabled)
        if self.source == SOURCE_RECONFIGURE:
            return self.async_update_and_abort(entry, self._subentry(), title=title, data=data)
        return self.async_create_entry(title=title, data=data)


def _stored_form(subentry: ConfigSubentry) -> dict[str, Any]:
    """Return what the form shows of a stored route; of one that cannot be read, the topics."""
    try:
        route = route_from_data(subentry.subentry_id, subentry.data)
    except RouteError:
        topics = {key: subentry.data.get(key) for key in (CONF_TOPIC_FILTER, CONF_TARGET)}
        return {key: str(text) for key, text in topics.items() if text}
    return route_to_form(route, enabled=is_enabled(subentry.data))
