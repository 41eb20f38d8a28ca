"""Changes of routes while messages cross, wait in the Outbox, or are on their way out of it."""

from collections.abc import Sequence
from random import Random

from .faults import Fault, duration
from .routes import AGED, COMING, GROUPS, MOVED, TARGETS
from .world import World

_PRIORITIES = ("high", "normal", "low")
_PRIORITIZED = ("up/urgent", "up/lazy", "up/moved", "up/aged", "up/plain")


async def priorities_changed(world: World, random: Random) -> str:
    """Give routes other priorities."""
    chosen = {name: random.choice(_PRIORITIES) for name in random.sample(_PRIORITIZED, random.randint(1, 3))}
    for name, priority in chosen.items():
        world.routes[name].options["priority"] = priority
    await world.follow_routes()
    return ", ".join(f"{name} {priority}" for name, priority in chosen.items())


async def ages_changed(world: World, random: Random) -> str:
    """Let messages of a route wait for a longer or shorter time."""
    name, age = random.choice(AGED), random.choice((0.3, 1.0, 3.0))
    world.routes[name].options["max_age"] = age
    await world.follow_routes()
    return f"{name} {age:g} s"


async def policies_changed(world: World, random: Random) -> str:
    """Do something else with QoS 0 while the other broker is away."""
    name = f"{random.choice(('up', 'down'))}/{random.choice(('state', 'queue'))}"
    policy = random.choice(("latest", "queue"))
    world.routes[name].options["qos_0"] = policy
    await world.follow_routes()
    return f"{name} {policy}"


async def route_removed(world: World, random: Random) -> str:
    """Take a route away, as when it is deleted or disabled, and give it back."""
    name, seconds = random.choice(COMING), duration(random)
    streams = [world.streams[topic] for topic, _ in GROUPS[name].all_topics]
    for stream in streams:
        stream.route_goes()
    world.routes[name].present = False
    await world.follow_routes()
    await world.rest(seconds)
    world.routes[name].present = True
    await world.follow_routes()
    for stream in streams:
        stream.route_is_back()
    return f"{name} for {seconds:.2f} s"


async def route_moved(world: World, random: Random) -> str:
    """Let the messages of a route arrive under another name."""
    name, target = random.choice(MOVED), random.choice(TARGETS)
    world.routes.move(name, target)
    await world.follow_routes()
    return f"{name} to {target}"


async def stream_changed(world: World, random: Random) -> str:
    """Give a route a QUIC stream of its own, or take it away."""
    name, own = random.choice(("up/lazy", "up/urgent")), random.random() < 0.5
    world.routes[name].options["own_stream"] = own
    await world.follow_routes()
    return f"{name} {'on a stream of its own' if own else 'on the common one'}"


ROUTES: Sequence[Fault] = (
    priorities_changed,
    ages_changed,
    policies_changed,
    route_removed,
    route_removed,
    route_moved,
    stream_changed,
)
