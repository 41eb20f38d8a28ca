"""The ways out of issues: a click where that mends it, else the settings in question."""

from typing import Final, override

from homeassistant.components.repairs import FlowType, RepairsFlow, RepairsFlowResult
from homeassistant.config_entries import SOURCE_RECONFIGURE, ConfigEntryState
from homeassistant.const import CONF_CLIENT_ID, CONF_ENABLED
from homeassistant.core import HomeAssistant
from homeassistant.data_entry_flow import AbortFlow
import probatio

from .bridge.outbox import Outbox, OutboxError
from .bridge.routes import Direction, Route
from .bridge.status import Side
from .brokers import new_client_ids, outbox_path
from .const import CONF_OUTBOX_MESSAGES, CONF_OUTBOX_SIZE, DOMAIN, PAGE_MESSAGES
from .coordinator import QuicBridgeConfigEntry, QuicBridgeCoordinator
from .form_error import abort_if_removed
from .issues import Fix
from .options import MESSAGE_OPTIONS, number
from .route_data import route_from_data, route_title, route_to_data
from .route_problems import Problem


class BridgeRepairFlow(RepairsFlow):
    """Explains, lets a person choose where there is a choice, and then mends or opens the settings.

    An issue that settings may mend goes when the bridge runs well again, not when the settings were opened.
    """

    choices: tuple[str, ...] = ()
    """Steps to choose from; without any there is one button."""

    def __init__(self, entry: QuicBridgeConfigEntry, side: Side | None) -> None:
        """Make the flow for a bridge, or for one of its brokers."""
        self._entry_id = entry.entry_id
        self._side = side

    @property
    def _entry(self) -> QuicBridgeConfigEntry:
        """The bridge's entry; the flow ends if that was removed meanwhile."""
        with abort_if_removed():
            return self.hass.config_entries.async_get_known_entry(self._entry_id)

    @property
    def _coordinator(self) -> QuicBridgeCoordinator:
        """Who knows how the bridge is doing; the flow ends if it does not run any more."""
        if self._entry.state is not ConfigEntryState.LOADED:
            raise AbortFlow("not_loaded")
        return self._entry.runtime_data

    async def async_step_init(self, _: dict[str, str] | None = None) -> RepairsFlowResult:
        """Begin."""
        return await self.async_step_confirm()

    async def async_step_confirm(self, user_input: dict[str, str] | None = None) -> RepairsFlowResult:
        """Explain."""
        if self.choices:
            return self.async_show_menu(step_id="confirm", menu_options=list(self.choices))
        if user_input is None:
            return self.async_show_form(step_id="confirm", data_schema=probatio.Schema({}))
        return await self.async_mend()

    async def async_mend(self) -> RepairsFlowResult:
        """Do what the button is for; for flows without choices."""
        raise NotImplementedError

    async def async_step_settings(self, _: dict[str, str] | None = None) -> RepairsFlowResult:
        """Open the settings of the broker, which are tried before they are saved."""
        flows = self.hass.config_entries.flow
        settings = await flows.async_init(
            DOMAIN, context={"source": SOURCE_RECONFIGURE, "entry_id": self._entry.entry_id}
        )
        settings = await flows.async_configure(settings["flow_id"], {"next_step_id": self._side})
        return self.async_abort(reason="settings", next_flow=(FlowType.CONFIG_FLOW, settings["flow_id"]))

    async def async_step_options(self, _: dict[str, str] | None = None) -> RepairsFlowResult:
        """Open the options about messages."""
        flows = self.hass.config_entries.options
        options = await flows.async_init(self._entry.entry_id)
        options = await flows.async_configure(options["flow_id"], {"next_step_id": PAGE_MESSAGES})
        return self.async_abort(reason="options", next_flow=(FlowType.OPTIONS_FLOW, options["flow_id"]))

    def _mended(self) -> RepairsFlowResult:
        return self.async_create_entry(data={})


class SettingsRepairFlow(BridgeRepairFlow):
    """Leads to the settings of the broker."""

    @override
    async def async_mend(self) -> RepairsFlowResult:
        return await self.async_step_settings()


class OptionsRepairFlow(BridgeRepairFlow):
    """Leads to the options about messages."""

    @override
    async def async_mend(self) -> RepairsFlowResult:
        return await self.async_step_options()


class ClientIdRepairFlow(BridgeRepairFlow):
    """Gives the bridge another client identifier at one broker."""

    def __init__(self, entry: QuicBridgeConfigEntry, side: Side) -> None:
        """Make the flow; the form of the local broker has no client identifier to change."""
        super().__init__(entry, side)
        self._client_side = side
        self.choices = ("new_client_id", "settings") if side is Side.REMOTE else ("new_client_id",)

    async def async_step_new_client_id(self, _: dict[str, str] | None = None) -> RepairsFlowResult:
        """Make up a new one."""
        key = self._client_side.value
        broker = {**self._entry.data[key], CONF_CLIENT_ID: new_client_ids()[self._client_side]}
        self.hass.config_entries.async_update_entry(self._entry, data={**self._entry.data, key: broker})
        return self._mended()


class RoutesRepairFlow(BridgeRepairFlow):
    """Does something about the routes that carry nothing."""

    problem: Problem

    async def async_step_disable(self, _: dict[str, str] | None = None) -> RepairsFlowResult:
        """Keep the routes, but use no more of them than works."""
        for subentry_id in self._routes(self._side):
            subentry = self._entry.subentries[subentry_id]
            route = self._what_works(route_from_data(subentry_id, subentry.data))
            enabled = route is not None
            data = route_to_data(route) if route is not None else {**subentry.data, CONF_ENABLED: False}
            title = route_title(route_from_data(subentry_id, data), enabled=enabled)
            self.hass.config_entries.async_update_subentry(self._entry, subentry, title=title, data=data)
        return self._mended()

    def _what_works(self, _route: Route) -> Route | None:
        """Return what remains of a route without the direction in question; None: nothing."""
        return None

    def _routes(self, side: Side | None) -> set[str]:
        """Return the subentries of the routes that carry nothing, for a broker's sake or for none's, as of now."""
        return {
            found.route.id
            for found in self._coordinator.route_problems
            if found.problem is self.problem and found.side is side
        }


class HiddenRoutesRepairFlow(RoutesRepairFlow):
    """Removes routes that another hides, or puts them out of use."""

    choices = ("disable", "remove")
    problem = Problem.HIDDEN

    async def async_step_remove(self, _: dict[str, str] | None = None) -> RepairsFlowResult:
        """Remove the routes."""
        for subentry_id in self._routes(self._side):
            self.hass.config_entries.async_remove_subentry(self._entry, subentry_id)
        return self._mended()


class RefusedRoutesRepairFlow(RoutesRepairFlow):
    """Asks the broker for the topics again, or puts what it refuses out of use."""

    choices = ("again", "disable")
    problem = Problem.REFUSED

    async def async_step_again(self, _: dict[str, str] | None = None) -> RepairsFlowResult:
        """Ask again, without a new connection."""
        await self._coordinator.async_apply_routes()
        return self._mended() if not self._routes(self._side) else self.async_abort(reason="still_refused")

    @override
    def _what_works(self, route: Route) -> Route | None:
        """Return the other direction of a route both ways: its messages come from the other broker."""
        other, direction = (
            (Side.REMOTE, Direction.TO_LOCAL) if self._side is Side.LOCAL else (Side.LOCAL, Direction.TO_REMOTE)
        )
        return None if route.id in self._routes(other) else route.one_way(direction)


class OutboxBoundsRepairFlow(BridgeRepairFlow):
    """Lets the Outbox keep more."""

    choices = ("double", "options")

    async def async_step_double(self, _: dict[str, str] | None = None) -> RepairsFlowResult:
        """Double its bounds, as far as they may go."""
        page = dict(self._entry.options.get(PAGE_MESSAGES, {}))
        for key in (CONF_OUTBOX_MESSAGES, CONF_OUTBOX_SIZE):
            page[key] = min(2 * number(page, key, MESSAGE_OPTIONS), MESSAGE_OPTIONS[key].maximum)
        self.hass.config_entries.async_update_entry(self._entry, options={**self._entry.options, PAGE_MESSAGES: page})
        return self._mended()


class OutboxFileRepairFlow(BridgeRepairFlow):
    """Moves an Outbox file that cannot be used out of the way, so that there is a new one."""

    @override
    async def async_mend(self) -> RepairsFlowResult:
        entries = self.hass.config_entries
        await entries.async_unload(self._entry.entry_id)
        try:
            await Outbox(outbox_path(self.hass, self._entry)).set_aside()
        except OutboxError as error:
            return self.async_abort(reason="not_moved", description_placeholders={"detail": error.text})
        finally:
            await entries.async_setup(self._entry.entry_id)
        return self._mended()


_FLOWS: Final = {
    Fix.SETTINGS: SettingsRepairFlow,
    Fix.OPTIONS: OptionsRepairFlow,
    Fix.HIDDEN_ROUTES: HiddenRoutesRepairFlow,
    Fix.REFUSED_ROUTES: RefusedRoutesRepairFlow,
    Fix.OUTBOX_BOUNDS: OutboxBoundsRepairFlow,
    Fix.OUTBOX_FILE: OutboxFileRepairFlow,
}


async def async_create_fix_flow(
    hass: HomeAssistant, _issue_id: str, data: dict[str, str | int | float | None] | None
) -> RepairsFlow:
    """Return the flow for an issue that can be fixed."""
    about = data or {}  # every issue of ours that can be fixed has all of it
    entry: QuicBridgeConfigEntry = hass.config_entries.async_get_known_entry(str(about["entry_id"]))
    fix, side = Fix(str(about["fix"])), Side(str(about["side"])) if about["side"] else None
    if fix is Fix.CLIENT_ID and side is not None:
        return ClientIdRepairFlow(entry, side)
    return _FLOWS[fix](entry, side)
