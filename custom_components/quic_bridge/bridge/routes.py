"""Which topics go where, under which name, and how. Knows nothing of connections."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
import hashlib
import itertools
import random
from typing import Final

from .overlaps import groups, overlapping
from .topic_tree import TopicTree
from .topics import Rewrite, covers, matches, overlap, valid_topic, validate_filter


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


class Priority(StrEnum):
    """Which messages go out first when the target is back."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class RetainMode(StrEnum):
    """What becomes of the retain flag."""

    AS_PUBLISHED = "as_published"
    NEVER = "never"
    ALWAYS = "always"


class RetainedAtConnect(StrEnum):
    """When the source's retained messages are sent (MQTT 5, 3.8.3.1, Retain Handling)."""

    ONCE = "once"
    """When the subscription is new, so not again at each reconnect."""
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One rule: messages whose topic matches `topic_filter` cross, under `target`.

    With direction TO_LOCAL the filter is for topics of the remote broker, else for those of the local broker. BOTH is
    the route there and the way back: what is `target` there is the source here.
    """

    id: str
    """Stable name of the route (the config subentry's id)."""
    direction: Direction
    topic_filter: str
    target: str = ""
    """New name; {1}, {2}, ... stand for the filter's wildcards in their order. Empty: the same name."""
    exclude: tuple[str, ...] = ()
    """Filters of topics that do not cross, in the names that `topic_filter` is about."""
    max_qos: int = 2
    retain: RetainMode = RetainMode.AS_PUBLISHED
    retained: RetainedAtConnect = RetainedAtConnect.ONCE
    qos_0: Qos0Policy = Qos0Policy.DROP
    max_age: float | None = None
    """Seconds after which a message that has to wait here is not worth sending any more."""
    priority: Priority = Priority.NORMAL
    """Which of the messages that waited on disk for the remote go first. The order on a topic is kept."""
    own_stream: bool = False
    """Whether messages to the remote go over a QUIC stream of the route's own, so that they hold up no others."""

    def way(self, direction: Direction) -> Rewrite | None:
        """How the route carries messages in one of the two directions; None: not at all."""
        if self.direction not in {direction, Direction.BOTH}:
            return None
        there = self._there
        return there.reversed() if self.direction is Direction.BOTH and direction is Direction.TO_LOCAL else there

    def one_way(self, direction: Direction) -> Route | None:
        """Return a route for all that this one carries in one of the two directions; None: it carries nothing there."""
        way = self.way(direction)
        if way is None or self.direction is direction:
            return self if way else None
        if direction is Direction.TO_REMOTE:
            return replace(self, direction=direction)
        exclude = [self._there.apply_to_filter(topic_filter) for topic_filter in self.exclude]
        return replace(
            self,
            direction=direction,
            topic_filter=way.topic_filter,
            target=way.target,
            exclude=tuple(topic_filter for topic_filter in exclude if topic_filter is not None),
            own_stream=False,
        )

    @property
    def _there(self) -> Rewrite:
        return Rewrite(self.topic_filter, self.target)

    def problem(self) -> str | None:
        """Say what is wrong with the route, as a translation key; None: nothing."""
        if problem := validate_filter(self.topic_filter):
            return problem
        if self.topic_filter.split("/")[0] == "$SYS":
            return "filter_sys"
        if any(validate_filter(topic_filter) for topic_filter in self.exclude):
            return "exclude_invalid"
        if problem := self._there.problem():
            return problem
        if self.direction is Direction.BOTH and self._there.reversed() is None:
            return "target_one_way"
        if self.own_stream and self.direction is Direction.TO_LOCAL:
            return "own_stream_to_local"
        return None


def same_name(topic_filter: str) -> str:
    """Return the target that gives the topics under a filter the names that they have."""
    numbers = itertools.count(1)
    return "/".join(f"{{{next(numbers)}}}" if level in {"+", "#"} else level for level in topic_filter.split("/"))


_MOST_RETAINED: Final = (RetainedAtConnect.ALWAYS, RetainedAtConnect.ONCE, RetainedAtConnect.NEVER)


@dataclass(frozen=True, slots=True)
class Subscription:
    """What to ask the source of a direction for."""

    topic_filter: str
    qos: int
    retained: RetainedAtConnect = RetainedAtConnect.ONCE
    identifier: int | None = None
    """Subscription Identifier (MQTT 5, 3.8.2.1.2); see overlaps.py."""
    overlaps: bool = field(default=False, compare=False)
    """Whether some topic matches another subscription, too. Nothing that the source is asked for."""
    leaving: bool = field(default=False, compare=False)
    """Whether it is to be unsubscribed as soon as what takes its place is subscribed."""
    renames: frozenset[tuple[str, str, tuple[str, ...]]] | None = field(default=None, compare=False)
    """Filter, target and exceptions of each of its routes that wants what is retained; None: not known any more."""

    def differs_from(self, former: Subscription | None) -> bool:
        """Whether it takes another SUBSCRIBE to have this one."""
        return former is None or former != self or self.is_new_for_some_route(former)

    def is_new_for_some_route(self, former: Subscription) -> bool:
        """Whether some route wants what is retained that had none of it, or under another name, by the former one."""
        return bool(self.renames and former.renames is not None and self.renames - former.renames)


def subscriptions(routes: Iterable[Route], direction: Direction, refused: Collection[str] = ()) -> list[Subscription]:
    """Filters to subscribe at the source of `direction`, each with the most that its routes want.

    A filter covered by another is left out, as a broker may deliver a message once for each filter it matches
    (MQTT 5, 3.3.4), and one message in must be one message out. Where filters overlap otherwise, all are asked with the
    highest quality of service among them: else the first copy, which crosses, might have a lower one than the second.

    `refused` are filters that the source does not let us subscribe, which so cover no others.
    """
    wanted: dict[str, list[Route]] = {}
    for route in routes:
        if (way := route.way(direction)) and way.topic_filter not in refused:
            wanted.setdefault(way.topic_filter, []).append(route)
    tree = TopicTree((topic_filter, topic_filter) for topic_filter in wanted)
    served: dict[str, list[Route]] = {}
    covered = set[str]()
    for topic_filter, group in wanted.items():
        for wider in tree.covering(topic_filter):
            served.setdefault(wider, []).extend(group)
            if wider != topic_filter:
                covered.add(topic_filter)
    widest = [topic_filter for topic_filter in wanted if topic_filter not in covered]
    qos = {topic_filter: max(route.max_qos for route in served[topic_filter]) for topic_filter in widest}
    several = overlapping(widest)
    if len({qos[topic_filter] for topic_filter in several}) > 1:
        for overlaps in groups(several):
            qos |= dict.fromkeys(overlaps, max(qos[topic_filter] for topic_filter in overlaps))
    overlapped = set(several)
    return [
        Subscription(
            topic_filter,
            qos[topic_filter],
            next(mode for mode in _MOST_RETAINED if any(route.retained is mode for route in served[topic_filter])),
            overlaps=topic_filter in overlapped,
            renames=frozenset(
                (way.topic_filter, way.target, route.exclude)
                for route in served[topic_filter]
                if route.retained is not RetainedAtConnect.NEVER and (way := route.way(direction))
            ),
        )
        for topic_filter in widest
    ]


@dataclass(frozen=True, slots=True)
class Hidden:
    """That a route does not get the messages which it is for."""

    by: Route
    """The route before it that takes them all; where two take them, each in one direction, the first."""
    wholly: bool
    """Whether it gets none at all. Else it is one for both ways that carries messages one way only."""


def hidden_ways(routes: Iterable[Route]) -> dict[str, Hidden]:
    """Return the routes that never get a message, or none in one of two directions, by their id."""
    found: dict[str, Hidden] = {}
    earlier: list[Route] = []
    trees = {direction: TopicTree[int]() for direction in (Direction.TO_REMOTE, Direction.TO_LOCAL)}
    for route in routes:
        filters = {direction: way.topic_filter for direction in trees if (way := route.way(direction))}
        takers = [set(trees[direction].covering(topic_filter)) for direction, topic_filter in filters.items()]
        if any_of_them := set.intersection(*takers) or set.union(*takers):
            found[route.id] = Hidden(earlier[min(any_of_them)], wholly=all(takers))
        if not route.exclude:
            for direction, topic_filter in filters.items():
                trees[direction].add(topic_filter, len(earlier))
            earlier.append(route)
    return found


def hidden_routes(routes: Iterable[Route]) -> dict[str, Route]:
    """Return the routes that never get a message, by their id, each with one before it that takes them."""
    return {route_id: hidden.by for route_id, hidden in hidden_ways(routes).items() if hidden.wholly}


def loop_of(routes: Iterable[Route], route: Route) -> Route | None:
    """Return a route that may carry messages of `route` back to where they came from under a new name.

    No Local keeps a bridge from hearing its own messages, but only on one connection of one bridge; what comes back
    under another name goes round for ever where a second bridge is in play.
    """
    there, back = Direction.TO_REMOTE, Direction.TO_LOCAL
    for direction, opposite in ((there, back), (back, there)):
        way = route.way(direction)
        if way is None:
            continue
        for other in routes:
            way_back = other.way(opposite)
            if other.id != route.id and way_back and overlap(way.result_filter, way_back.topic_filter):
                return other
    return None


NO_PRIORITIES: Final = 1
"""See `order_of_priorities`: all messages wait in one queue."""


def order_of_priorities(routes: Iterable[Route]) -> int:
    """Return a number that differs where a topic may have another priority on its way to the remote. Never 0."""
    ways = [
        (way.topic_filter, route.exclude, route.priority.value)
        for route in routes
        if (way := route.way(Direction.TO_REMOTE))
    ]
    if all(priority == Priority.NORMAL for _, _, priority in ways):
        return NO_PRIORITIES
    return int.from_bytes(hashlib.sha256(repr(ways).encode()).digest()[:7]) + 2


def _streams(routes: Iterable[Route]) -> Sequence[tuple[object, ...]]:
    ways = [
        (way.topic_filter, route.exclude, route.id if route.own_stream else None)
        for route in routes
        if (way := route.way(Direction.TO_REMOTE))
    ]
    while ways and ways[-1][-1] is None:
        ways.pop()
    return ways


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with the messages of one topic."""

    route: Route | None
    """None: nothing; the topic has no route, is excluded, or is not valid."""
    topic: bytes | None = None
    """The new name; None: the same."""
    excluded: bool = False
    comes_back: bool = False
    """Whether we are subscribed at the target to what the messages are called there."""
    copies: int = 1
    """How many of our subscriptions at the source the topic matches at most: so often it may send each message."""


class Router:
    """Finds the first route of a direction that matches a topic. Remembers topics it has seen, up to a bound."""

    MAX_CACHED: Final = 10_000
    """Topics it remembers."""
    MAX_CACHED_LENGTH: Final = 512
    """Bytes of a topic and its new name together, so that what it remembers takes some megabytes at the most."""

    def __init__(self, routes: Iterable[Route], direction: Direction, ours: tuple[str, str] = ("", "")) -> None:
        """Take the routes of `direction`, in their order.

        `ours` are our own topics at the source, which does not cross, and at the target, which nothing becomes.
        """
        routes = tuple(routes)
        self.order = order_of_priorities(routes)
        """By which order of routes messages have their priorities."""
        self.streams = _streams(routes)
        """What decides which topics go over which stream of their own."""
        self._ours = ours
        opposite = Direction.TO_LOCAL if direction is Direction.TO_REMOTE else Direction.TO_REMOTE
        self._ways = [(route, way) for route in routes if (way := route.way(direction))]
        self._tree = TopicTree((way.topic_filter, position) for position, (_, way) in enumerate(self._ways))
        self._opposite_ways = [way for route in routes if (way := route.way(opposite))]
        self._filters_back = TopicTree((way.topic_filter, True) for way in self._opposite_ways)
        self._reversed = direction is Direction.TO_LOCAL
        self._cache: dict[bytes, Plan] = {}
        self._cached: list[bytes] = []
        """The topics in `_cache`, to choose from."""
        self._former: Router | None = None

    def succeed(self, former: Router) -> None:
        """Take the place of a router: what was sent for the subscriptions of its routes may still be under way."""
        former._former = None
        former._cache.clear()
        former._cached.clear()
        self._former = former

    def find(self, topic: bytes) -> Plan:
        """Return what to do with a topic."""
        plan = self._cache.get(topic)
        if plan is None:
            plan = self._plan(topic)
            if len(topic) + len(plan.topic or b"") <= self.MAX_CACHED_LENGTH:
                self._remember(topic, plan)
        return plan

    def _remember(self, topic: bytes, plan: Plan) -> None:
        """Remember a topic, in place of any other if there is no room.

        Topics mostly come in turn, each device at its time: to forget the oldest for the newest would then be to forget
        each just before it comes again, so that one topic too many would make all of it useless.
        """
        if len(self._cached) < self.MAX_CACHED:
            self._cached.append(topic)
        else:
            place = int(random.random() * self.MAX_CACHED)  # noqa: S311 - no secret
            del self._cache[self._cached[place]]
            self._cached[place] = topic
        self._cache[topic] = plan

    def _plan(self, topic: bytes) -> Plan:
        if not valid_topic(topic) or topic.startswith(b"$SYS/"):
            return Plan(None)
        name = topic.decode()
        if name == self._ours[0]:
            return Plan(None, excluded=True)
        excluded = False
        positions = sorted(self._tree.covering(name))
        for position in positions:
            route, way = self._ways[position]
            new = way.apply(name)
            if new is None:
                continue
            subject = new if self._reversed and route.direction is Direction.BOTH else name
            if any(matches(topic_filter, subject) for topic_filter in route.exclude):
                excluded = True
                continue
            if new == self._ours[1]:
                return Plan(None)
            comes_back = any(self._filters_back.covering(new))
            copies = self.copies(name) if len(positions) > 1 or self._former is not None else 1
            return Plan(route, None if new == name else new.encode(), comes_back=comes_back, copies=copies)
        return Plan(None, excluded=excluded)

    def copies(self, name: str) -> int:
        """Return how many of the filters that `subscriptions` has for these routes, and the former, match a topic.

        Where one covers the others it may be refused, and these be subscribed in its place; or it takes theirs.
        """
        filters = self._matching(name)
        if self._former is not None:
            return len(filters | self._former._matching(name)) or 1  # noqa: SLF001 - of our own
        widest = sum(not any(one != other and covers(other, one) for other in filters) for one in filters)
        return max(widest, min(2, len(filters)))

    def _matching(self, name: str) -> set[str]:
        return {self._ways[position][1].topic_filter for position in self._tree.covering(name)}

    def response_topic(self, topic: bytes) -> bytes:
        """Name under which an answer to `topic` comes back here (MQTT 5, 4.10); the same where no route brings it."""
        if valid_topic(topic):
            name = topic.decode()
            ways, tree = self._ways_back
            for position in sorted(tree.covering(name)):
                if (new := ways[position].apply(name)) is not None:
                    return new.encode()
        return topic

    @cached_property
    def _ways_back(self) -> tuple[list[Rewrite], TopicTree[int]]:
        """From what the opposite direction makes of topics to their names at its source. Few homes need it ever."""
        ways = [back for way in self._opposite_ways if (back := way.reversed())]
        return ways, TopicTree((back.topic_filter, position) for position, back in enumerate(ways))
