"""What becomes of another bridge's configuration file, in words, before anything is set up."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from homeassistant.core import HomeAssistant
from homeassistant.helpers.translation import async_get_translations

from .const import CONF_PROFILE, DOMAIN
from .importer.model import ImportedBridge, Note
from .options import CONNECTION_OPTIONS, MESSAGE_OPTIONS
from .route_data import code, left_out, preview

MAX_SHOWN: Final = 30
"""Addresses, routes, and things not carried over, that are listed one by one."""
_NONE: Final = "–"  # noqa: RUF001
_REASONS: Final = "import_reason"
"""Where the texts of the reasons are, among the translations of selectors."""

type _Texts = Mapping[str, str]


async def async_review(hass: HomeAssistant, bridge: ImportedBridge) -> dict[str, str]:
    """Return the placeholders of the review, in the language of this Home Assistant, as Markdown."""
    selectors = await async_get_translations(hass, hass.config.language, "selector", [DOMAIN])
    pages = await async_get_translations(hass, hass.config.language, "options", [DOMAIN])
    further, fallback = bridge.endpoints.further, bridge.endpoints.fallback
    return {
        "bridge": code(bridge.name),
        "server": code(str(bridge.endpoints.main)),
        "client_id": code(bridge.client_id) if bridge.client_id else _NONE,
        "addresses": ", ".join(code(str(address)) for address in further[:MAX_SHOWN]) or _NONE,
        "fallback": code(str(fallback)) if fallback else _NONE,
        "routes": _shorten(preview(bridge.routes[:MAX_SHOWN]).splitlines(), len(bridge.routes)),
        "options": _shorten(_options(bridge.options, pages, selectors)),
        "notes": _shorten(_notes(bridge.notes, selectors)),
    }


def _options(options: Mapping[str, Mapping[str, Any]], pages: _Texts, selectors: _Texts) -> Iterator[str]:
    """Name the options as their forms do."""
    for page in options.values():
        for key, value in page.items():
            if key != CONF_PROFILE:
                yield f"- {_label(key, pages)}: {_value(key, value, selectors)}"


def _label(key: str, pages: _Texts) -> str:
    name = next((name for name in pages if name.endswith(f".data.{key}")), key)
    section = pages.get(f"{name.rpartition('.data.')[0]}.name")
    label = pages.get(name, key)
    return label if section is None else f"{section}, {label}"


def _value(key: str, value: object, selectors: _Texts) -> str:
    if isinstance(value, bool):
        return "✓" if value else "✗"
    if (option := (CONNECTION_OPTIONS | MESSAGE_OPTIONS).get(key)) is None:
        return code(str(value))
    unit = selectors.get(f"component.{DOMAIN}.selector.unit.unit_of_measurement.{option.unit}", option.unit)
    return f"{value:g} {unit}"


def _notes(notes: Sequence[Note], selectors: _Texts) -> Iterator[str]:
    """List what is not carried over by its reason."""
    for reason in dict.fromkeys(note.why for note in notes):
        yield "- " + selectors.get(f"component.{DOMAIN}.selector.{_REASONS}.options.{reason}", reason.value)
        what = [note.what for note in notes if note.why is reason]
        yield from _shorten([f"  - {code(item)}" for item in what[:MAX_SHOWN]], len(what)).splitlines()


def _shorten(lines: Iterable[str], number: int = 0) -> str:
    """Join the lines; `number` is how many there would be without a limit."""
    return "\n".join([*lines, *left_out(number, MAX_SHOWN)]) or _NONE
