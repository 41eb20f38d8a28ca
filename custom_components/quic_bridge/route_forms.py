"""The forms for routes: their fields, the presets, and the way from what was typed to routes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final

from homeassistant.const import CONF_ENABLED, CONF_EXCLUDE, CONF_PREFIX, CONF_TARGET
from homeassistant.data_entry_flow import section
from homeassistant.helpers.selector import (
    BooleanSelector,
    DurationSelector,
    DurationSelectorConfig,
    SelectSelector,
    SelectSelectorConfig,
    SelectSelectorMode,
    TextSelector,
    TextSelectorConfig,
)
import probatio

from .bridge.routes import Direction, Priority, Qos0Policy, RetainedAtConnect, RetainMode, Route
from .bridge.topics import covers, validate_filter
from .const import (
    CONF_COMMANDS,
    CONF_DIRECTION,
    CONF_MAX_AGE,
    CONF_MAX_QOS,
    CONF_OWN_STREAM,
    CONF_PRIORITY,
    CONF_QOS_0,
    CONF_RETAIN,
    CONF_RETAINED,
    CONF_SITE,
    CONF_TOPIC_FILTER,
    SECTION_OUTAGE,
    SECTION_RETAINED,
    SECTION_SELECTION,
    SECTION_TRANSPORT,
)
from .form_error import FormError

_TEXT = TextSelector()


def _select(
    options: Sequence[str], translation_key: str, mode: SelectSelectorMode = SelectSelectorMode.DROPDOWN
) -> SelectSelector:
    return SelectSelector(SelectSelectorConfig(options=list(options), translation_key=translation_key, mode=mode))


def _values(kind: type[StrEnum]) -> list[str]:
    return [member.value for member in kind]


def _section(fields: dict[probatio.Marker, object]) -> section:
    return section(probatio.Schema(fields), {"collapsed": True})


_DIRECTION: Final = _select(_values(Direction), "direction", SelectSelectorMode.LIST)

ROUTE_SCHEMA: Final = probatio.Schema(
    {
        probatio.Required(CONF_DIRECTION, default=Direction.TO_REMOTE.value): _DIRECTION,
        probatio.Required(CONF_TOPIC_FILTER): _TEXT,
        probatio.Optional(CONF_TARGET): _TEXT,
        probatio.Required(SECTION_SELECTION): _section(
            {
                probatio.Optional(CONF_EXCLUDE): TextSelector(TextSelectorConfig(multiple=True)),
                probatio.Required(CONF_MAX_QOS, default="2"): _select(("0", "1", "2"), "max_qos"),
            }
        ),
        probatio.Required(SECTION_RETAINED): _section(
            {
                probatio.Required(CONF_RETAIN, default=RetainMode.AS_PUBLISHED.value): _select(
                    _values(RetainMode), "retain"
                ),
                probatio.Required(CONF_RETAINED, default=RetainedAtConnect.ONCE.value): _select(
                    _values(RetainedAtConnect), "retained"
                ),
            }
        ),
        probatio.Required(SECTION_OUTAGE): _section(
            {
                probatio.Required(CONF_QOS_0, default=Qos0Policy.DROP.value): _select(_values(Qos0Policy), "qos_0"),
                probatio.Required(CONF_PRIORITY, default=Priority.NORMAL.value): _select(_values(Priority), "priority"),
                probatio.Optional(CONF_MAX_AGE): DurationSelector(DurationSelectorConfig(enable_day=True)),
            }
        ),
        probatio.Required(SECTION_TRANSPORT): _section(
            {probatio.Required(CONF_OWN_STREAM, default=False): BooleanSelector()}
        ),
    }
)
STORED_ROUTE_SCHEMA: Final = probatio.Schema(
    {probatio.Required(CONF_ENABLED, default=True): BooleanSelector(), **ROUTE_SCHEMA.schema}
)

_ERROR_FIELDS: Final = {
    "exclude_invalid": SECTION_SELECTION,
    "exclude_all": SECTION_SELECTION,
    "target_invalid": CONF_TARGET,
    "target_reserved": CONF_TARGET,
    "target_wildcard": CONF_TARGET,
    "target_capture": CONF_TARGET,
    "target_one_way": CONF_TARGET,
    "own_stream_to_local": SECTION_TRANSPORT,
}
"""Where an error is shown; all others are about the topic filter."""


def route_from_form(route_id: str, user_input: Mapping[str, Any]) -> Route:
    """Return the route that was typed; FormError if it is not valid."""
    selection, retained, outage = (user_input[name] for name in (SECTION_SELECTION, SECTION_RETAINED, SECTION_OUTAGE))
    age = timedelta(**outage.get(CONF_MAX_AGE, {})).total_seconds()
    route = Route(
        id=route_id,
        direction=Direction(user_input[CONF_DIRECTION]),
        topic_filter=user_input[CONF_TOPIC_FILTER].strip(),
        target=user_input.get(CONF_TARGET, "").strip(),
        exclude=tuple(text.strip() for text in selection.get(CONF_EXCLUDE, ()) if text.strip()),
        max_qos=int(selection[CONF_MAX_QOS]),
        retain=RetainMode(retained[CONF_RETAIN]),
        retained=RetainedAtConnect(retained[CONF_RETAINED]),
        qos_0=Qos0Policy(outage[CONF_QOS_0]),
        max_age=age or None,
        priority=Priority(outage[CONF_PRIORITY]),
        own_stream=user_input[SECTION_TRANSPORT][CONF_OWN_STREAM],
    )
    if (problem := _problem(route)) is not None:
        raise FormError(_ERROR_FIELDS.get(problem, CONF_TOPIC_FILTER), problem, _error_placeholders(route))
    return route


def _problem(route: Route) -> str | None:
    if (problem := route.problem()) is not None:
        return problem
    return "exclude_all" if any(covers(exclude, route.topic_filter) for exclude in route.exclude) else None


def _error_placeholders(route: Route) -> dict[str, str]:
    return {
        "topic": route.topic_filter,
        "target": route.target,
        "exclude": next((text for text in route.exclude if validate_filter(text) is not None), ""),
        "wildcards": str(sum(level in {"+", "#"} for level in route.topic_filter.split("/"))),
    }


def route_to_form(route: Route, *, enabled: bool) -> dict[str, Any]:
    """Return what the form shows of a stored route."""
    outage: dict[str, Any] = {CONF_QOS_0: route.qos_0.value, CONF_PRIORITY: route.priority.value}
    if route.max_age is not None:
        age = timedelta(seconds=route.max_age)
        minutes, seconds = divmod(age.seconds, 60)
        outage[CONF_MAX_AGE] = {
            "days": age.days,
            "hours": minutes // 60,
            "minutes": minutes % 60,
            "seconds": seconds,
        }
    return {
        CONF_ENABLED: enabled,
        CONF_DIRECTION: route.direction.value,
        CONF_TOPIC_FILTER: route.topic_filter,
        **({CONF_TARGET: route.target} if route.target else {}),
        SECTION_SELECTION: {CONF_EXCLUDE: list(route.exclude), CONF_MAX_QOS: str(route.max_qos)},
        SECTION_RETAINED: {CONF_RETAIN: route.retain.value, CONF_RETAINED: route.retained.value},
        SECTION_OUTAGE: outage,
        SECTION_TRANSPORT: {CONF_OWN_STREAM: route.own_stream},
    }


def refuse_copies(drafts: Sequence[Route], others: Sequence[Route], field: str) -> None:
    """Raise FormError, shown at `field`, if one of the `others` takes the same topics to the same place as a draft."""
    for draft in drafts:
        for other in others:
            ways = {other.direction, draft.direction}
            same = (other.topic_filter, other.target, other.exclude) == (
                draft.topic_filter,
                draft.target,
                draft.exclude,
            )
            if same and (len(ways) == 1 or Direction.BOTH in ways):
                raise FormError(field, "route_exists", {"topic": draft.topic_filter})


# --- presets ----------------------------------------------------------------------------------------------------------

DISCOVERY_PREFIX: Final = "homeassistant"
"""Home Assistant's default (homeassistant/components/mqtt/const.py)."""
_ZIGBEE2MQTT: Final = "zigbee2mqtt"


@dataclass(frozen=True, slots=True)
class Preset:
    """A short form for routes that many people want; `field` is where errors of the routes are shown."""

    schema: probatio.Schema
    field: str
    make: Callable[[Mapping[str, Any]], list[Route]]


def _site(user_input: Mapping[str, Any]) -> str:
    """Return what goes before the names on the remote broker, with its slash; FormError."""
    text: str = user_input.get(CONF_SITE, "").strip().removesuffix("/#").rstrip("/")
    return f"{text}/" if _plain(text, CONF_SITE, "site_invalid") else ""


def _prefix(user_input: Mapping[str, Any]) -> str:
    """Return the topic under which all is to cross; FormError."""
    text: str = user_input[CONF_PREFIX].strip().removesuffix("/#").rstrip("/")
    if not _plain(text, CONF_PREFIX, "prefix_invalid"):
        raise FormError(CONF_PREFIX, "filter_empty")
    return text


def _plain(text: str, field: str, key: str) -> str:
    if any(character in text for character in "+#{}\0"):
        raise FormError(field, key, {"topic": text})
    return text


def _under(prefix: str, site: str, direction: Direction, *, exclude: Sequence[str] = ()) -> Route:
    """Return a route for all under a local prefix, which on the remote broker is below `site`.

    `exclude` are topics below the prefix.
    """
    here, there = prefix, f"{site}{prefix}"
    source, target = (there, here) if direction is Direction.TO_LOCAL else (here, there)
    return Route(
        id="",
        direction=direction,
        topic_filter=f"{source}/#",
        target=f"{target}/{{1}}" if site else "",
        exclude=tuple(f"{source}/{topic}" for topic in exclude),
    )


def _everything(user_input: Mapping[str, Any]) -> list[Route]:
    return [_under(_prefix(user_input), _site(user_input), Direction(user_input[CONF_DIRECTION]))]


def _discovery(user_input: Mapping[str, Any]) -> list[Route]:
    # Without a name for the site two homes would overwrite each other's devices. The status topic is each home's own:
    # "online" makes all devices of a home announce themselves.
    if not (site := _site(user_input)):
        raise FormError(CONF_SITE, "site_empty")
    return [_under(_prefix(user_input), site, Direction(user_input[CONF_DIRECTION]), exclude=["status"])]


def _zigbee2mqtt(user_input: Mapping[str, Any]) -> list[Route]:
    direction = Direction.BOTH if user_input[CONF_COMMANDS] else Direction.TO_REMOTE
    return [_under(_prefix(user_input), _site(user_input), direction, exclude=["bridge/logging"])]


def _tasmota(user_input: Mapping[str, Any]) -> list[Route]:
    site = _site(user_input)
    routes = [_under(prefix, site, Direction.TO_REMOTE) for prefix in ("tele", "stat", "tasmota/discovery")]
    if user_input[CONF_COMMANDS]:
        routes.append(_under("cmnd", site, Direction.TO_LOCAL))
    return routes


_COMMANDS: Final = {probatio.Required(CONF_COMMANDS, default=True): BooleanSelector()}

PRESETS: Final = {
    "everything": Preset(
        probatio.Schema(
            {
                probatio.Required(CONF_DIRECTION, default=Direction.TO_REMOTE.value): _DIRECTION,
                probatio.Required(CONF_PREFIX): _TEXT,
                probatio.Optional(CONF_SITE): _TEXT,
            }
        ),
        CONF_PREFIX,
        _everything,
    ),
    "discovery": Preset(
        probatio.Schema(
            {
                probatio.Required(CONF_DIRECTION, default=Direction.BOTH.value): _DIRECTION,
                probatio.Required(CONF_SITE): _TEXT,
                probatio.Required(CONF_PREFIX, default=DISCOVERY_PREFIX): _TEXT,
            }
        ),
        CONF_PREFIX,
        _discovery,
    ),
    "zigbee2mqtt": Preset(
        probatio.Schema(
            {
                probatio.Required(CONF_PREFIX, default=_ZIGBEE2MQTT): _TEXT,
                probatio.Optional(CONF_SITE): _TEXT,
                **_COMMANDS,
            }
        ),
        CONF_PREFIX,
        _zigbee2mqtt,
    ),
    "tasmota": Preset(probatio.Schema({probatio.Optional(CONF_SITE): _TEXT, **_COMMANDS}), CONF_SITE, _tasmota),
}


def preset_routes(preset: Preset, user_input: Mapping[str, Any]) -> list[Route]:
    """Return the routes of a preset, with identifiers that tell them apart; FormError."""
    routes = [replace(route, id=f"new {number}") for number, route in enumerate(preset.make(user_input))]
    for route in routes:
        # What was typed is part of filters and targets: it may still be too long, or begin with $SYS or $share.
        if (problem := route.problem()) is not None:
            raise FormError(preset.field, problem, _error_placeholders(route))
    return routes
