"""What is used of Home Assistant's test harness, which comes without type hints."""

from pytest_homeassistant_custom_component.common import (  # type: ignore[import-untyped]
    MockConfigEntry,
    get_schema_suggested_value,
)
from pytest_homeassistant_custom_component.components.diagnostics import (  # type: ignore[import-untyped]
    get_diagnostics_for_config_entry,
)
from pytest_homeassistant_custom_component.typing import ClientSessionGenerator  # type: ignore[import-untyped]

__all__ = [
    "ClientSessionGenerator",
    "MockConfigEntry",
    "get_diagnostics_for_config_entry",
    "get_schema_suggested_value",
]
