"""What the demo relies on to judge a Home Assistant it cannot look into."""

from pathlib import Path

import pytest

from .hass import CHECKOUT, HomeAssistant
from .hass_api import FlowError, Json, fill_form

TIME = "2026-11-23 05:33:05.106"
TRACEBACK = f"""\
Traceback (most recent call last):
  File "{CHECKOUT}/custom_components/quic_bridge/coordinator.py", line 1, in async_start
ValueError: 1
"""


@pytest.mark.parametrize(
    "text",
    [
        f"{TIME} ERROR (MainThread) [custom_components.quic_bridge.coordinator] Something\n",
        f"{TIME} ERROR (MainThread) [homeassistant.components.sensor] Error while setting up quic_bridge platform\n",
        f"{TIME} ERROR (MainThread) [homeassistant] Error doing job: Task exception was never retrieved\n{TRACEBACK}",
        (
            f"{TIME} WARNING (MainThread) [homeassistant.util.loop] Detected blocking call to open in the event loop"
            " by custom integration 'quic_bridge'\n"
        ),
        f"{TIME} WARNING (MainThread) [custom_components.quic_bridge] Odd\n{TRACEBACK}",
        TRACEBACK,
    ],
)
def test_complaint(tmp_path: Path, text: str) -> None:
    """Errors, tracebacks and blocking calls of the integration are found, with all their lines."""
    hass = HomeAssistant(tmp_path)
    hass.log_file.write_text(f"{TIME} INFO (MainThread) [x] before\n{text}{TIME} INFO (MainThread) [x] after\n")
    if text is TRACEBACK:
        hass.log_file.write_text(text)
    assert hass.complaints() == [text.removesuffix("\n")]


@pytest.mark.parametrize(
    "text",
    [
        f"{TIME} INFO (MainThread) [custom_components.quic_bridge.bridge.link] The remote connection was lost\n",
        (
            f"{TIME} WARNING (SyncWorker_0) [homeassistant.loader] We found a custom integration quic_bridge which has"
            " not been tested by Home Assistant\n"
        ),
        (
            f"{TIME} ERROR (MainThread) [homeassistant.setup] Setup failed for 'assist_pipeline'\n"
            f'Traceback (most recent call last):\n  File "{CHECKOUT}/.venv/lib/x.py"\nModuleNotFoundError\n'
        ),
    ],
)
def test_no_complaint(tmp_path: Path, text: str) -> None:
    """What others do, and what is no fault, is not held against the integration."""
    hass = HomeAssistant(tmp_path)
    hass.log_file.write_text(text)
    assert hass.complaints() == []


def test_old_log(tmp_path: Path) -> None:
    """A kept folder's log of an earlier run is not read."""
    (tmp_path / "hass.log").write_text(f"{TIME} ERROR (MainThread) [custom_components.quic_bridge] Something\n")
    assert HomeAssistant(tmp_path).records() == []


FORM: list[Json] = [
    {"name": "host", "required": True, "selector": {"text": {}}},
    {"name": "port", "required": True, "default": 1883, "selector": {"number": {}}},
    {"name": "user", "optional": True, "selector": {"text": {}}},
    {
        "name": "tls",
        "type": "expandable",
        "schema": [
            {
                "name": "mode",
                "required": True,
                "selector": {"select": {"options": [{"value": "off"}, {"value": "on"}]}},
            },
            {"name": "verify", "required": True, "selector": {"boolean": {}}},
            {"name": "id", "required": True, "description": {"suggested_value": "x"}, "selector": {"text": {}}},
        ],
    },
]


def test_form() -> None:
    """A form is sent with what the frontend shows in it and with the answers, sections included."""
    assert fill_form(FORM, {"host": "h", "verify": True}) == {
        "host": "h",
        "port": 1883,
        "tls": {"mode": "off", "verify": True, "id": "x"},
    }


def test_form_incomplete() -> None:
    """A required field without answer is named."""
    with pytest.raises(FlowError, match="host"):
        fill_form(FORM, {})
