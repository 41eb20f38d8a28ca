"""What many routes cost the event loop: at the start, at each change of a route, and for each message.

    python -m benchmarks.routes [--routes N ...] [--topics N] [--json]

The routes are what people have: names of rooms and devices, one in ten with a wildcard in front, one in ten both ways,
each renamed. Each figure is the best of three. Comparing all routes with each other (hidden) runs in the executor, but
for the forms; the rest runs in the loop.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
import json
import sys
import time

from custom_components.quic_bridge.bridge.routes import Direction, Route, Router, hidden_routes, loop_of, subscriptions

from .common import figure, table


@dataclass(frozen=True, slots=True)
class Figures:
    """One line of the table."""

    routes: int
    subscriptions_ms: float
    """What is to be subscribed at one broker."""
    router_ms: float
    """Making the table by which messages find their route."""
    hidden_ms: float
    """Which routes get nothing because of others."""
    loop_ms: float
    """Which route may bring back what one route sends."""
    first_us: float
    """Finding the route of a topic that is seen for the first time."""
    again_us: float
    """... and again."""


def make_routes(number: int) -> list[Route]:
    """Make routes as people have them."""
    routes = []
    for index in range(number):
        wild = index % 10 == 3
        name = f"+/device{index}/#" if wild else f"room{index % 50}/device{index}/#"
        target = f"site/7/{{1}}/device{index}/{{2}}" if wild else f"site/7/device{index}/{{1}}"
        direction = Direction.BOTH if index % 10 == 5 else Direction.TO_REMOTE
        routes.append(Route(id=str(index), direction=direction, topic_filter=name, target=target))
    return routes


def best(action: Callable[[], object]) -> float:
    """Seconds that an action takes: the best of three."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def measure(number: int, topics: int) -> Figures:
    """Measure with so many routes, and topics spread over them."""
    routes = make_routes(number)
    names = [b"room%d/device%d/state/%d" % (index % 50, index % number, index) for index in range(topics)]

    def find(router: Router) -> None:
        for name in names:
            router.find(name)

    warm = Router(routes, Direction.TO_REMOTE)
    find(warm)
    cold = [Router(routes, Direction.TO_REMOTE) for _ in range(3)]
    return Figures(
        routes=number,
        subscriptions_ms=best(lambda: subscriptions(routes, Direction.TO_REMOTE)) * 1e3,
        router_ms=best(lambda: Router(routes, Direction.TO_REMOTE)) * 1e3,
        hidden_ms=best(lambda: hidden_routes(routes)) * 1e3,
        loop_ms=best(lambda: loop_of(routes, routes[0])) * 1e3,
        first_us=best(lambda: find(cold.pop())) * 1e6 / topics,
        again_us=best(lambda: find(warm)) * 1e6 / topics,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--routes", type=int, nargs="+", default=[10, 100, 500, 2000])
    parser.add_argument("--topics", type=int, default=Router.MAX_CACHED)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    found = [measure(number, options.topics) for number in options.routes]
    if options.json:
        json.dump([asdict(item) for item in found], sys.stdout, indent=2)
        return
    head = ("Routes", "Subscriptions, ms", "Router, ms", "Hidden, ms", "Loop, ms", "New topic, µs", "Known topic, µs")
    rows = [
        (
            str(item.routes),
            *(figure(value, 2) for value in (item.subscriptions_ms, item.router_ms, item.hidden_ms, item.loop_ms)),
            *(figure(value, 2) for value in (item.first_us, item.again_us)),
        )
        for item in found
    ]
    print(table(head, rows))


if __name__ == "__main__":
    main()
