"""Routes as they are stored, in config subentries, and as they are shown."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from homeassistant.config_entries import ConfigEntry, ConfigSubentry
from homeassistant.const import CONF_ENABLED, CONF_EXCLUDE, CONF_TARGET

from .bridge.routes import (
    Direction,
    Priority,
    Qos0Policy,
    RetainedAtConnect,
    RetainMode,
    Route,
    Router,
    hidden_ways,
    loop_of,
)
from .const import (
    CONF_DIRECTION,
    CONF_MAX_AGE,
    CONF_MAX_QOS,
    CONF_OWN_STREAM,
    CONF_PRIORITY,
    CONF_QOS_0,
    CONF_RETAIN,
    CONF_RETAINED,
    CONF_TOPIC_FILTER,
    SUBENTRY_ROUTE,
)

# --- stored -----------------------------------------------------------------------------------------------------------


class RouteError(ValueError):
    """What is stored for a route is none that this version knows; the text says what, in the words of the storage."""


def _qos(value: str | float) -> int:
    if (qos := int(value)) not in {0, 1, 2}:
        raise ValueError(value)
    return qos


_KINDS: Final[dict[str, Callable[[Any], object]]] = {
    CONF_DIRECTION: Direction,
    CONF_TOPIC_FILTER: str,
    CONF_TARGET: str,
    CONF_EXCLUDE: lambda filters: tuple(str(topic_filter) for topic_filter in filters),
    CONF_MAX_QOS: _qos,
    CONF_RETAIN: RetainMode,
    CONF_RETAINED: RetainedAtConnect,
    CONF_QOS_0: Qos0Policy,
    CONF_MAX_AGE: lambda age: None if age is None else float(age),
    CONF_PRIORITY: Priority,
    CONF_OWN_STREAM: bool,
}
"""What the values of a subentry's data become; the keys are the names of the route's attributes."""
_REQUIRED: Final = {CONF_DIRECTION, CONF_TOPIC_FILTER}


def route_from_data(route_id: str, data: Mapping[str, Any]) -> Route:
    """Return the route that a subentry's data describe.

    Routes of version 0.1.0 have a direction and a topic filter only: what is missing has its default. Raises RouteError
    for what a later version, or a hand, has stored and nobody can follow here.
    """
    values: dict[str, Any] = {}
    for key, kind in _KINDS.items():
        try:
            if key in data or key in _REQUIRED:
                values[key] = kind(data[key])
        except KeyError as error:
            raise RouteError(f"no {key}") from error
        except (TypeError, ValueError) as error:
            raise RouteError(f"{key}: {data[key]}") from error
    route = Route(id=route_id, **values)
    if (problem := route.problem()) is not None:
        raise RouteError(problem)
    return route


def route_to_data(route: Route, *, enabled: bool = True) -> dict[str, Any]:
    """Return what is stored for a route."""
    return {
        CONF_DIRECTION: route.direction.value,
        CONF_TOPIC_FILTER: route.topic_filter,
        CONF_TARGET: route.target,
        CONF_EXCLUDE: list(route.exclude),
        CONF_MAX_QOS: route.max_qos,
        CONF_RETAIN: route.retain.value,
        CONF_RETAINED: route.retained.value,
        CONF_QOS_0: route.qos_0.value,
        CONF_MAX_AGE: route.max_age,
        CONF_PRIORITY: route.priority.value,
        CONF_OWN_STREAM: route.own_stream,
        CONF_ENABLED: enabled,
    }


def is_enabled(data: Mapping[str, Any]) -> bool:
    """Tell whether a route is in use."""
    return bool(data.get(CONF_ENABLED, True))


def routes_in_use(entry: ConfigEntry) -> tuple[tuple[Route, ...], dict[str, str]]:
    """Return the routes of an entry that are to be in use, in their order.

    Beside them the titles of those that cannot be read, with what is wrong with each.
    """
    routes: list[Route] = []
    unreadable: dict[str, str] = {}
    for subentry in entry.get_subentries_of_type(SUBENTRY_ROUTE):
        if not is_enabled(subentry.data):
            continue
        try:
            routes.append(route_from_data(subentry.subentry_id, subentry.data))
        except RouteError as error:
            unreadable[subentry.title] = str(error)
    return tuple(routes), unreadable


def readable_routes(entry: ConfigEntry) -> Iterator[tuple[ConfigSubentry, Route]]:
    """Return all routes of an entry with what they are stored in, also those not in use, in their order."""
    for subentry in entry.get_subentries_of_type(SUBENTRY_ROUTE):
        try:
            route = route_from_data(subentry.subentry_id, subentry.data)
        except RouteError:
            continue  # see routes_in_use
        yield subentry, route


# --- shown ------------------------------------------------------------------------------------------------------------

_ARROWS: Final = {Direction.TO_REMOTE: "→", Direction.TO_LOCAL: "←", Direction.BOTH: "↔"}
_PAUSED: Final = "⏸"
_EXCLUDED: Final = "✗"

_EXAMPLES: Final = ("lamp", "kitchen", "state", "sensor", "switch")
"""What wildcards stand for in previews."""


def route_title(route: Route, *, enabled: bool = True) -> str:
    """Name a route in the user interface, in any language: local topics on the left, remote ones on the right."""
    arrow = _ARROWS[route.direction]
    if not route.target:
        title = f"{arrow} {route.topic_filter}"
    elif route.direction is Direction.TO_LOCAL:
        title = f"{route.target} {arrow} {route.topic_filter}"
    else:
        title = f"{route.topic_filter} {arrow} {route.target}"
    return title if enabled else f"{_PAUSED} {title}"


def preview(routes: Sequence[Route]) -> str:
    """Show by an example what routes do, as Markdown: `local` → `remote`, and what is left out."""
    return "\n".join(line for route in routes for line in _preview_lines(route))


def _preview_lines(route: Route) -> Iterator[str]:
    there = Direction.TO_LOCAL if route.direction is Direction.TO_LOCAL else Direction.TO_REMOTE
    source, result = _example(route, there) or (route.topic_filter, route.target or route.topic_filter)
    left, right = (result, source) if there is Direction.TO_LOCAL else (source, result)
    yield f"- {code(left)} {_ARROWS[route.direction]} {code(right)}"
    for topic_filter in route.exclude:
        yield f"- {_EXCLUDED} {code(topic_filter)}"


def _example(route: Route, direction: Direction) -> tuple[str, str] | None:
    """Return a topic that the route takes, and its new name."""
    router = Router([route], direction)
    for first in range(len(_EXAMPLES)):
        words = iter((*_EXAMPLES[first:], *_EXAMPLES[:first]))
        topic = "/".join(
            next(words, "etc") if level in {"+", "#"} else level for level in route.topic_filter.split("/")
        )
        plan = router.find(topic.encode())
        if plan.route is not None:
            return topic, topic if plan.topic is None else plan.topic.decode()
    return None


def code(text: str) -> str:
    """Quote a topic for Markdown, to which + and # would mean something."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def left_out(number: int, shown: int) -> list[str]:
    """Return the line, if it takes one, that ends a list in Markdown of `number` things, `shown` of which it has."""
    return [f"- … (+{number - shown})"] if number > shown else []


# --- doubtful ---------------------------------------------------------------------------------------------------------


class Doubt(StrEnum):
    """What may be wrong with a route among others, although it is valid."""

    HIDDEN = "hidden"
    """It never gets a message, as another route takes them all."""
    HIDDEN_ONE_WAY = "hidden_one_way"
    """Of its two directions it carries messages in one only, as another route takes those of the other."""
    LOOP = "loop"
    """Another route may carry its messages back to where they came from."""
    HIDES = "hides"
    """Because of it another route never gets a message."""


@dataclass(frozen=True, slots=True)
class RouteWarning:
    """One doubt about a route, and the other route that is the cause or the victim."""

    doubt: Doubt
    route: Route
    other: Route


def warnings(routes: Sequence[Route], drafts: Sequence[Route]) -> list[RouteWarning]:
    """Return what may be wrong with the `drafts` among all `routes` (which contain them, in their order)."""
    found: list[RouteWarning] = []
    hidden = hidden_ways(routes)
    for draft in drafts:
        taken = hidden.get(draft.id)
        if taken is not None and taken.wholly:
            found.append(RouteWarning(Doubt.HIDDEN, draft, taken.by))
            continue  # it carries nothing, so it neither loops nor hides
        if taken is not None:
            found.append(RouteWarning(Doubt.HIDDEN_ONE_WAY, draft, taken.by))
        if (other := loop_of(routes, draft)) is not None:
            found.append(RouteWarning(Doubt.LOOP, draft, other))
        for other in routes:
            if other.id in hidden and hidden[other.id].wholly and hidden[other.id].by.id == draft.id:
                found.append(RouteWarning(Doubt.HIDES, draft, other))
                break
    return found
