"""What keeps routes from carrying messages, as far as the bridge can know."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from .bridge.routes import Direction, Route
from .bridge.status import BridgeStatus, LinkState, Side

_SOURCES = ((Direction.TO_REMOTE, Side.LOCAL), (Direction.TO_LOCAL, Side.REMOTE))
"""Which broker is asked for the messages of a direction."""


class Problem(StrEnum):
    """Why a route carries nothing."""

    REFUSED = "refused"
    """A broker does not let us subscribe its topics."""
    HIDDEN = "hidden"
    """A route before it takes all its messages."""


@dataclass(frozen=True, slots=True)
class RouteProblem:
    """One route that carries nothing, at least in one direction."""

    problem: Problem
    route: Route
    side: Side | None = None
    """The broker that refuses."""
    reason: str | None = None
    """In the broker's words."""
    other: Route | None = None
    """The route that takes the messages."""


def route_problems(
    routes: Sequence[Route], hidden: Mapping[str, Route], status: BridgeStatus
) -> Iterator[RouteProblem]:
    """Find what is wrong with routes: `hidden` is what `hidden_routes` finds, the rest is in the status.

    What a broker refused counts until it is asked again, so also while it is away, but not of a bridge that is paused.
    """
    for direction, side in _SOURCES:
        link = status.link(side)
        if link.state is LinkState.STOPPED or not link.failed_filters:
            continue
        for route in routes:
            way = route.way(direction)
            reason = link.failed_filters.get(way.topic_filter) if way else None
            if reason is not None:
                yield RouteProblem(Problem.REFUSED, route, side=side, reason=reason)
    for route in routes:
        if (other := hidden.get(route.id)) is not None:
            yield RouteProblem(Problem.HIDDEN, route, other=other)
