"""Which topics go where. Knows nothing of connections."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MAX_TOPIC_BYTES: Final = 65_535


class Direction(StrEnum):
    """Which way a route carries messages."""

    TO_REMOTE = "to_remote"
    TO_LOCAL = "to_local"
    BOTH = "both"


class Qos0Policy(StrEnum):
    """What becomes of QoS 0 messages while the target is away."""

    DROP = "drop"
    LATEST = "latest"
    """Keep the newest message of each topic: what a dashboard wants."""
    QUEUE = "queue"
    """Keep all, within bounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One rule: messages that match `topic_filter` cross in `direction`, under the same topic."""

    id: str
    """Stable name of the route (the config subentry's id)."""
    direction: Direction
    topic_filter: str
    max_qos: int = 2
    qos_0: Qos0Policy = Qos0Policy.DROP

    def goes(self, direction: Direction) -> bool:
        """Whether the route carries messages this way (`direction` is one of the two ways, not BOTH)."""
        return self.direction in {direction, Direction.BOTH}


def validate_filter(topic_filter: str) -> str | None:
    """Say what is wrong with a topic filter (MQTT 5, 4.7), as a translation key; None: nothing."""
    if not topic_filter:
        return "filter_empty"
    if "\0" in topic_filter or len(topic_filter.encode(errors="replace")) > MAX_TOPIC_BYTES:
        return "filter_invalid"
    levels = topic_filter.split("/")
    if any("#" in level and level != "#" for level in levels) or "#" in levels[:-1]:
        return "filter_hash"
    if any("+" in level and level != "+" for level in levels):
        return "filter_plus"
    if levels[0] == "$share":
        return "filter_shared"
    return None


def valid_topic(topic: bytes) -> bool:
    """Whether a topic may stand in a PUBLISH: UTF-8, no wildcard, no NUL, not empty."""
    if not topic or b"+" in topic or b"#" in topic or b"\0" in topic:
        return False
    try:
        topic.decode()
    except UnicodeDecodeError:
        return False
    return True


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a topic falls under a filter (MQTT 5, 4.7: `#` also matches the parent, wildcards never a leading $)."""
    if topic[:1] == "$" and topic_filter[:1] in {"+", "#"}:
        return False
    filter_levels = topic_filter.split("/")
    topic_levels = topic.split("/")
    for position, level in enumerate(filter_levels):
        if level == "#":
            return True
        if position >= len(topic_levels) or level not in {"+", topic_levels[position]}:
            return False
    return len(filter_levels) == len(topic_levels)


def covers(wider: str, narrower: str) -> bool:
    """Whether every topic under the filter `narrower` also falls under `wider`."""
    if narrower[:1] == "$" and wider[:1] in {"+", "#"}:
        return False
    wide, narrow = wider.split("/"), narrower.split("/")
    for position, level in enumerate(wide):
        if level == "#":
            return True
        if position >= len(narrow) or narrow[position] == "#":
            return False
        if level != "+" and level != narrow[position]:
            return False
    return len(wide) == len(narrow)


def subscriptions(routes: tuple[Route, ...], direction: Direction) -> dict[str, int]:
    """Filters to subscribe at the source of `direction`, each with its highest QoS.

    A filter covered by another is left out, as a broker may deliver a message once for each filter it matches
    (MQTT 5, 3.3.4), and one message in must be one message out.
    """
    wanted: dict[str, int] = {}
    for route in routes:
        if route.goes(direction):
            wanted[route.topic_filter] = max(route.max_qos, wanted.get(route.topic_filter, 0))
    kept = {
        topic_filter
        for topic_filter in wanted
        if not any(other != topic_filter and covers(other, topic_filter) for other in wanted)
    }
    return {
        topic_filter: max(qos for other, qos in wanted.items() if covers(topic_filter, other))
        for topic_filter in wanted
        if topic_filter in kept
    }


class Router:
    """Finds the first route of a direction that matches a topic. Remembers topics it has seen, up to a bound."""

    MAX_CACHED: Final = 10_000

    def __init__(self, routes: tuple[Route, ...], direction: Direction) -> None:
        """Take the routes of `direction`, in their order."""
        self._routes = tuple(route for route in routes if route.goes(direction))
        self._cache: dict[bytes, Route | None] = {}

    def find(self, topic: bytes) -> Route | None:
        """Return the route for a topic; None where no route matches or the topic is invalid."""
        try:
            return self._cache[topic]
        except KeyError:
            pass
        route = None
        if valid_topic(topic):
            text = topic.decode()
            route = next((route for route in self._routes if matches(route.topic_filter, text)), None)
        if len(self._cache) >= self.MAX_CACHED:
            self._cache.clear()
        self._cache[topic] = route
        return route
