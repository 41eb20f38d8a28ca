"""The way out of an issue: the settings of the broker that it is about."""

from homeassistant.components.repairs import FlowType, RepairsFlow, RepairsFlowResult
from homeassistant.config_entries import SOURCE_RECONFIGURE
from homeassistant.core import HomeAssistant
import probatio

from .const import DOMAIN


class SettingsRepairFlow(RepairsFlow):
    """Says what to do, and opens the settings. The issue goes when the broker lets the bridge in, not before."""

    def __init__(self, entry_id: str, side: str) -> None:
        """Make the flow for the settings of one broker."""
        self._entry_id = entry_id
        self._side = side

    async def async_step_init(self, _: dict[str, str] | None = None) -> RepairsFlowResult:
        """Begin."""
        return await self.async_step_confirm()

    async def async_step_confirm(self, user_input: dict[str, str] | None = None) -> RepairsFlowResult:
        """Explain; then go on to the settings, which are tried before they are saved."""
        if user_input is None:
            return self.async_show_form(step_id="confirm", data_schema=probatio.Schema({}))
        flows = self.hass.config_entries.flow
        settings = await flows.async_init(DOMAIN, context={"source": SOURCE_RECONFIGURE, "entry_id": self._entry_id})
        settings = await flows.async_configure(settings["flow_id"], {"next_step_id": self._side})
        return self.async_abort(reason="settings", next_flow=(FlowType.CONFIG_FLOW, settings["flow_id"]))


async def async_create_fix_flow(
    _hass: HomeAssistant, _issue_id: str, data: dict[str, str | int | float | None] | None
) -> RepairsFlow:
    """Return the flow for an issue that can be fixed."""
    about = data or {}  # every issue of ours that can be fixed has both
    return SettingsRepairFlow(str(about["entry_id"]), str(about["side"]))
