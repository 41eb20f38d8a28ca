"""What docs/settings.md says is what the code does."""

from collections.abc import Iterator
from pathlib import Path
import re

from homeassistant.data_entry_flow import section
from homeassistant.helpers.selector import NumberSelector
import probatio
import pytest

from custom_components.quic_bridge.bridge.config import BackoffConfig, BrokerConfig, QuicConfig, timer_conflict
from custom_components.quic_bridge.bridge.guard import LoopGuard
from custom_components.quic_bridge.flow_forms import LOCAL_CUSTOM_SCHEMA, REMOTE_SCHEMA
from custom_components.quic_bridge.option_forms import PAGES
from custom_components.quic_bridge.options import (
    CONGESTION_CONTROLS,
    CONNECTION_OPTIONS,
    MESSAGE_OPTIONS,
    PRESENCE_DEFAULTS,
    PROFILES,
    NumberOption,
    Profile,
    backoff,
    with_connection,
)

from .ha_fixtures import load_texts

DOCUMENT = (Path(__file__).parents[1] / "docs" / "settings.md").read_text()
OPTIONS = {**CONNECTION_OPTIONS, **MESSAGE_OPTIONS}
BROKER = BrokerConfig(host="broker", port=14567, client_id="bridge")


def rows(columns: int) -> Iterator[list[str]]:
    """Return the rows of tables with so many columns, one of which is a key."""
    for line in DOCUMENT.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == columns and any(re.fullmatch(r"`\w+`", cell) for cell in cells[:2]):
            yield [cell.strip("`") for cell in cells]


def fields(schema: probatio.Schema) -> dict[str, object]:
    """Return the fields of a form, those in its sections included."""
    found: dict[str, object] = {}
    for key, field in schema.schema.items():
        found |= (
            {str(name): inner for name, inner in field.schema.schema.items()}
            if isinstance(field, section)
            else {str(key): field}
        )
    return found


@pytest.mark.parametrize("key", OPTIONS)
def test_documented_defaults_are_those_of_the_code(key: str) -> None:
    option: NumberOption = OPTIONS[key]
    documented = {row[1]: row[2:5] for row in rows(6)}
    default = f"{option.default:.10g} {option.unit}"
    assert documented[key] == [default, f"{option.minimum:.10g}", f"{option.maximum:.10g}"]


def test_every_option_is_documented_and_nothing_else() -> None:
    found = {key for page in PAGES.values() for key in fields(page.schema)}
    assert {row[1] for row in rows(6)} == found - {"profile"}
    defaults = {row[1]: row[2] for row in rows(6)}
    assert defaults["congestion_control"] == CONGESTION_CONTROLS[0] == QuicConfig().congestion_control
    assert defaults["loop_guard"] == LoopGuard().mode
    assert {key: defaults[key] for key in PRESENCE_DEFAULTS} == PRESENCE_DEFAULTS


def test_every_field_of_a_broker_is_documented() -> None:
    documented = {
        key
        for line in DOCUMENT.splitlines()
        if len(cells := line.split("|")[1:-1]) == 4
        for key in re.findall(r"`(\w+)`", cells[1])
    }
    assert documented == {key for schema in (LOCAL_CUSTOM_SCHEMA, REMOTE_SCHEMA) for key in fields(schema)}


def test_documented_profiles_are_those_of_the_code() -> None:
    documented = {row[0]: row[1:] for row in rows(3)}
    keys = {key for values in PROFILES.values() for key in values}
    assert documented == {
        key: [str(PROFILES[profile].get(key, "")) for profile in (Profile.MOBILE, Profile.SATELLITE)] for key in keys
    }


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_fit(profile: Profile) -> None:
    """Within the ranges of the form, without conflict, and made for their networks."""
    for key, value in PROFILES[profile].items():
        if key in CONNECTION_OPTIONS:
            assert CONNECTION_OPTIONS[key].minimum <= value <= CONNECTION_OPTIONS[key].maximum
    values = {"profile": profile.value}
    broker = with_connection(BROKER, values)
    assert timer_conflict(broker, backoff(values)) is None
    # Address translation forgets UDP after 30 s (RFC 4787 asks for two minutes; carriers do as they like).
    assert broker.quic.ping_interval < 25
    assert broker.session_expiry > backoff(values).cap


def test_the_defaults_are_those_of_the_core() -> None:
    assert with_connection(BROKER, {}) == BROKER
    assert backoff({}) == BackoffConfig()


def test_every_number_has_its_unit_and_its_default_in_the_form() -> None:
    """No number leaves it to the reader whether it is seconds or milliseconds."""
    texts = load_texts()
    for step, page in PAGES.items():
        described = {
            key.rsplit(".", 1)[1]: text
            for key, text in texts.items()
            if key.startswith(f"options.step.{step}.") and ".data_description." in key
        }
        numbers = {key: field for key, field in fields(page.schema).items() if isinstance(field, NumberSelector)}
        assert set(numbers) == set(page.numbers)
        for key, selector in numbers.items():
            unit = selector.config["unit_of_measurement"]
            assert unit == page.numbers[key].unit
            assert f"{{{key}}} {unit}" in described[key]
            assert float(page.placeholders[key]) == page.numbers[key].default
