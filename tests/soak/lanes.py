"""Lanes of faults, and what happened on them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from .faults import BRIDGE, CONNECTION, DISK, LOCAL, NETWORK, REMOTE, Fault
from .route_faults import ROUTES
from .world import World


@dataclass(slots=True)
class Episode:
    """A fault that happened."""

    name: str
    begin: float
    end: float | None = None
    detail: str = ""


@dataclass(slots=True)
class Chronicle:
    """All faults of a round."""

    episodes: list[Episode] = field(default_factory=list)

    def around(self, begin: float, end: float, margin: float = 2.0) -> list[Episode]:
        """Return those that were going on within `margin` seconds of a time."""
        return [
            item
            for item in self.episodes
            if item.begin <= end + margin and (item.end is None or item.end >= begin - margin)
        ]


LANES: Mapping[str, Sequence[Fault]] = {
    "connection": CONNECTION,
    "network": NETWORK,
    "remote": REMOTE,
    "local": LOCAL,
    "bridge": BRIDGE,
    "disk": DISK,
    "routes": ROUTES,
}
"""Faults of one lane come one after the other, those of different lanes at any time: so they combine freely."""


async def run_lane(
    world: World,
    faults: Sequence[Fault],
    random: Random,
    pause: float,
    chronicle: Chronicle,
    say: Callable[[str], None],
) -> None:
    """Keep faults coming, about `pause` seconds apart, until the round ends and the last one is mended."""
    while not world.mending.is_set():
        await world.rest(random.expovariate(1 / pause))
        fault = random.choice(faults)
        if world.mending.is_set():
            break
        episode = Episode(fault.__name__.replace("_", " "), world.now())
        chronicle.episodes.append(episode)
        episode.detail = await fault(world, random)
        episode.end = world.now()
        say(f"{episode.begin:9.2f} .. {episode.end:8.2f}  {episode.name}: {episode.detail}")
