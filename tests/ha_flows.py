"""Going through the forms of the config flow."""

from typing import Any

from homeassistant.config_entries import SOURCE_USER, ConfigFlowResult, SubentryFlowResult
from homeassistant.core import HomeAssistant
from homeassistant.data_entry_flow import FlowResultType
from pytest_homeassistant_custom_component.common import MockConfigEntry, get_schema_suggested_value

from custom_components.quic_bridge.const import DOMAIN

from .ha_helpers import CLIENT_ID, wait_running
from .support.mosquitto import Mosquitto

type Input = dict[str, Any]

TOPICS: Input = {"send": ["up/#"], "receive": ["down/#"]}


def local_input(broker: Mosquitto, *, tls: Input | None = None, **fields: object) -> Input:
    """What is typed for a local broker."""
    return {
        "host": broker.host,
        "port": broker.port,
        "tls": {"use_tls": tls is not None, "verify": True, **(tls or {})},
        **fields,
    }


def remote_input(
    port: int, ca: str | None, *, client_id: str = CLIENT_ID, fallback: Input | None = None, **fields: object
) -> Input:
    """What is typed for the remote broker."""
    return {
        "host": "127.0.0.1",
        "port": port,
        "tls": {"verify": True} if ca is None else {"ca": ca, "verify": True},
        "fallback": {"use_fallback": False, "fallback_port": 8883, **(fallback or {})},
        "advanced": {"client_id": client_id},
        **fields,
    }


async def begin(hass: HomeAssistant) -> ConfigFlowResult:
    """Start setting up."""
    return await choose(hass, await menu(hass), "local")


async def menu(hass: HomeAssistant) -> ConfigFlowResult:
    """Show the first menu."""
    result = await hass.config_entries.flow.async_init(DOMAIN, context={"source": SOURCE_USER})
    assert (result["type"], result["step_id"]) == (FlowResultType.MENU, "user")
    return result


async def choose(hass: HomeAssistant, result: ConfigFlowResult, step: str) -> ConfigFlowResult:
    """Choose from a menu."""
    return await hass.config_entries.flow.async_configure(result["flow_id"], {"next_step_id": step})


async def fill(hass: HomeAssistant, result: ConfigFlowResult, user_input: Input) -> ConfigFlowResult:
    """Fill in the form that is shown."""
    return await hass.config_entries.flow.async_configure(result["flow_id"], user_input)


async def reach_remote(hass: HomeAssistant, local: Mosquitto) -> ConfigFlowResult:
    """Get over the local broker."""
    result = await fill(hass, await begin(hass), local_input(local))
    assert result["step_id"] == "remote"
    return result


async def finish(hass: HomeAssistant, result: ConfigFlowResult) -> MockConfigEntry:
    """From the form of topics to a bridge that runs."""
    assert result["step_id"] == "topics", result
    result = await fill(hass, result, TOPICS)
    assert result["type"] is FlowResultType.CREATE_ENTRY
    entry: MockConfigEntry = result["result"]
    await wait_running(hass, entry)
    return entry


def suggested(result: ConfigFlowResult | SubentryFlowResult, *path: str) -> object:
    """Return what the form suggests for a field."""
    schema = result["data_schema"]
    for name in path[:-1]:
        assert schema is not None
        schema = schema.schema[name].schema
    assert schema is not None
    return get_schema_suggested_value(schema.schema, path[-1])
