"""The steps that bring a bridge over from another bridge's configuration file."""

from collections.abc import Mapping
from typing import Any, Final

from homeassistant.components.file_upload import process_uploaded_file
from homeassistant.config_entries import ConfigFlow, ConfigFlowResult
from homeassistant.const import CONF_CLIENT_ID, CONF_HOST, CONF_PASSWORD, CONF_PORT, CONF_USERNAME
from homeassistant.core import HomeAssistant
from homeassistant.helpers.selector import (
    FileSelector,
    FileSelectorConfig,
    SelectOptionDict,
    SelectSelector,
    SelectSelectorConfig,
    SelectSelectorMode,
    TextSelector,
    TextSelectorConfig,
)
import probatio

from .bridge.config import DEFAULT_QUIC_PORT
from .const import CONF_ADDRESSES, CONF_BRIDGE, CONF_CONFIG_FILE, CONF_CONFIG_TEXT, CONF_FALLBACK, CONF_PAUSED
from .form_error import FormError
from .import_review import async_review
from .importer import MAX_SIZE, read_bridges
from .importer.model import FileError, FileProblem, ImportedBridge

IMPORT_SCHEMA: Final = probatio.Schema(
    {
        probatio.Optional(CONF_CONFIG_FILE): FileSelector(FileSelectorConfig(accept=".conf,.txt,.hocon,.json")),
        probatio.Optional(CONF_CONFIG_TEXT): TextSelector(TextSelectorConfig(multiline=True)),
    }
)


class ImportFlow(ConfigFlow):
    """Reads a file, lets people choose one of its bridges, and shows what becomes of it before anything is tried.

    The flow goes on with its ordinary steps, whose forms then have what the file says.
    """

    def __init__(self) -> None:
        """Begin without a file."""
        super().__init__()
        self._found: list[ImportedBridge] = []
        self._imported: ImportedBridge | None = None

    async def async_step_import_file(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Ask for the file."""
        error: FormError | None = None
        if user_input is not None:
            try:
                self._found = await _async_read(self.hass, user_input)
            except FormError as failure:
                error = failure
                user_input.pop(CONF_CONFIG_FILE, None)  # an uploaded file is there only once
            else:
                if len(self._found) > 1:
                    return await self.async_step_import_bridge()
                self._imported = self._found[0]
                return await self.async_step_import_review()
        return self.async_show_form(
            step_id="import_file",
            data_schema=self.add_suggested_values_to_schema(IMPORT_SCHEMA, user_input),
            errors={error.field: error.key} if error else None,
            description_placeholders=error.placeholders if error else None,
            last_step=False,
        )

    async def async_step_import_bridge(self, user_input: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Ask which of the file's bridges is meant."""
        if user_input is not None:
            self._imported = self._found[int(user_input[CONF_BRIDGE])]
            return await self.async_step_import_review()
        options = [
            SelectOptionDict(value=str(number), label=f"{bridge.name} ({bridge.endpoints.main})")
            for number, bridge in enumerate(self._found)
        ]
        selector = SelectSelector(SelectSelectorConfig(options=options, mode=SelectSelectorMode.LIST))
        return self.async_show_form(
            step_id="import_bridge",
            data_schema=probatio.Schema({probatio.Required(CONF_BRIDGE, default="0"): selector}),
            last_step=False,
        )

    async def async_step_import_review(self, _: dict[str, Any] | None = None) -> ConfigFlowResult:
        """Show what is carried over, and what is not, each with its reason."""
        bridge = self._imported
        assert bridge is not None  # noqa: S101 - the steps before have set it
        return self.async_show_menu(
            step_id="import_review",
            menu_options=["local", "import_file"],
            description_placeholders=await async_review(self.hass, bridge),
        )


async def _async_read(hass: HomeAssistant, user_input: Mapping[str, Any]) -> list[ImportedBridge]:
    """Return the bridges of the file that was uploaded, or of the text that was pasted; FormError."""
    upload: str | None = user_input.get(CONF_CONFIG_FILE)
    field = CONF_CONFIG_TEXT if upload is None else CONF_CONFIG_FILE

    def read() -> list[ImportedBridge]:
        content: bytes = user_input.get(CONF_CONFIG_TEXT, "").encode()
        if upload is not None:
            with process_uploaded_file(hass, upload) as path, path.open("rb") as file:
                content = file.read(MAX_SIZE + 1)
        return read_bridges(content)

    try:
        return await hass.async_add_executor_job(read)
    except FileError as error:
        raise FormError(field, error.problem.value, {"detail": error.detail}) from error
    except ValueError as error:
        raise FormError(field, FileProblem.UNREADABLE.value, {"detail": str(error)}) from error


def imported_remote(bridge: ImportedBridge) -> dict[str, Any]:
    """Return what is known of the remote broker, as it is stored; further addresses may lack a port."""
    main, fallback = bridge.endpoints.main, bridge.endpoints.fallback
    return {
        CONF_HOST: main.host,
        CONF_PORT: (main.port if bridge.quic else None) or DEFAULT_QUIC_PORT,
        CONF_USERNAME: bridge.username,
        CONF_PASSWORD: bridge.password,
        CONF_ADDRESSES: [{CONF_HOST: other.host, CONF_PORT: other.port} for other in bridge.endpoints.further],
        CONF_FALLBACK: fallback
        and {CONF_HOST: None if fallback.host == main.host else fallback.host, CONF_PORT: fallback.port},
        **({CONF_CLIENT_ID: bridge.client_id} if bridge.client_id else {}),
    }


def imported_options(bridge: ImportedBridge) -> dict[str, Any]:
    """Return the options of the entry, as they are stored."""
    return {**bridge.options, **({} if bridge.enabled else {CONF_PAUSED: True})}


def imported_local(bridge: ImportedBridge) -> dict[str, Any]:
    """Return what is known of the local broker, as it is stored."""
    return {CONF_USERNAME: bridge.local_username, CONF_PASSWORD: bridge.local_password}


def is_complete(bridge: ImportedBridge) -> bool:
    """Tell whether the file says all that it takes to reach the remote broker over QUIC."""
    return bridge.quic and not bridge.wants_files and (bridge.username is None or bridge.password is not None)
