"""A home with hundreds of routes and thousands of topics, for the tests and the benchmark."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from .ha_helpers import route_data
from .support.client import Client

SITE: Final = "site/7"
"""What comes before the names at the remote broker."""


def from_remote(index: int) -> bool:
    """Tell whether a route brings messages home only: three in ten."""
    return 6 <= index % 10 < 9


def here(index: int) -> str:
    """Return what the topics of a route begin with at home."""
    return f"room{index % 50}/device{index}"


def there(index: int) -> str:
    """Return what the topics of a route begin with at the remote broker."""
    return f"{SITE}/device{index}"


def routes_of_a_home(number: int) -> list[dict[str, Any]]:
    """Make routes as people have them: six in ten to the remote, three back, one both ways, all renamed."""

    def route(index: int) -> dict[str, Any]:
        if from_remote(index):
            return route_data("to_local", f"{there(index)}/#", target=f"{here(index)}/{{1}}")
        direction = "both" if index % 10 == 9 else "to_remote"
        return route_data(direction, f"{here(index)}/#", target=f"{there(index)}/{{1}}")

    return [route(index) for index in range(number)]


def topics_of_a_home(routes: int, topics: int) -> tuple[dict[str, str], dict[str, str]]:
    """Return topics that fall under the routes, spread over them: those for the remote, and those from there.

    Each with the name under which it is to arrive.
    """
    out: dict[str, str] = {}
    back: dict[str, str] = {}
    for number in range(topics):
        index = number % routes
        home, away = f"{here(index)}/state/{number}", f"{there(index)}/state/{number}"
        if from_remote(index):
            back[away] = home
        else:
            out[home] = away
    return out, back


async def publish_all(client: Client, topics: Sequence[str]) -> None:
    """Publish once to each topic, with QoS 1 and 2 in turn, as many at a time as the broker takes."""
    waiting = iter(enumerate(topics))

    async def work() -> None:
        for number, topic in waiting:
            await client.publish(topic, topic, 1 + number % 2)

    await asyncio.gather(*(work() for _ in range(client.send_window)))
