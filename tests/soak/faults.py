"""What can go wrong, chosen by a seeded generator. Every fault mends itself, at the latest when the round ends."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random

from ..support.faults import refuse_connect, swallow
from ..support.front_connection import FrontConnection
from ..support.front_policy import Direction
from ..support.mosquitto import Mosquitto
from ..support.packets import PacketType
from ..support.quic_front import Way
from .world import World

_CATCH_UP = 0.5
"""Seconds in which a broker that was frozen answers what waits."""

type Fault = Callable[[World, Random], Awaitable[str]]
"""Does something bad for a while; returns what it did, in words."""


def duration(random: Random) -> float:
    """Choose how long a fault lasts: mostly short, sometimes long enough for the Outbox."""
    low, high = random.choices(((0.0, 0.5), (0.5, 3.0), (3.0, 8.0)), (50, 38, 12))[0]
    return random.uniform(low, high)


# --- the QUIC side ----------------------------------------------------------------------------------------------------


async def front_killed(world: World, random: Random) -> str:
    """Take the front away without a word; ICMP answers."""
    seconds = duration(random)
    world.front.die()
    await world.rest(seconds)
    await world.front.start()
    return f"for {seconds:.2f} s"


async def front_stopped(world: World, random: Random) -> str:
    """Take the front away in good order: CONNECTION_CLOSE 0, as EMQX does when it stops."""
    seconds = duration(random)
    await world.front.stop()
    await world.rest(seconds)
    await world.front.start()
    return f"for {seconds:.2f} s"


async def front_frozen(world: World, random: Random) -> str:
    """Make the network a black hole, in one direction or both."""
    seconds = duration(random)
    ways: tuple[Way, ...] = ("both", "incoming", "outgoing")
    way = random.choice(ways)
    world.front.freeze(way)
    await world.rest(seconds)
    world.front.thaw()
    return f"{way} for {seconds:.2f} s"


async def network_bad(world: World, random: Random) -> str:
    """Lose, delay, reorder and duplicate datagrams."""
    seconds = 2 * duration(random)
    loss = random.choice((0.0, 0.02, 0.1, 0.25))
    delay = random.choice((0.0, 0.005, 0.04))
    front = world.front
    for way in (front.incoming, front.outgoing):
        way.loss, way.delay, way.jitter, way.reorder, way.duplicate = loss, delay, delay / 2, 0.05, 0.02
    await world.rest(seconds)
    frozen = front.incoming.blackhole, front.outgoing.blackhole
    front.incoming.clear()
    front.outgoing.clear()
    front.incoming.blackhole, front.outgoing.blackhole = frozen
    return f"{loss:.0%} lost, {delay * 1000:g} ms for {seconds:.2f} s"


async def address_changed(world: World, random: Random) -> str:
    """Give the bridge another address under its connection, as a NAT does that forgot it."""
    world.relay.rebind()
    return f"port {world.relay.outer_ports[-1]}" if world.relay.outer_ports else "nobody came this way"


def on_connection(end: Callable[[FrontConnection, Random], str]) -> Fault:
    """Make a fault of something that a broker can do to one connection."""

    async def fault(world: World, random: Random) -> str:
        live = world.front.live
        detail = end(live[-1], random) if live else "nobody was connected"
        await asyncio.sleep(0)
        return detail

    fault.__name__ = end.__name__
    return fault


def connection_finished(connection: FrontConnection, random: Random) -> str:
    """End the stream with a FIN; CONNECTION_CLOSE later, or never."""
    connection.end_stream()
    if random.random() < 0.3:
        connection.never_close()
    return "FIN"


def connection_kicked(connection: FrontConnection, random: Random) -> str:
    """Kick the client: DISCONNECT and STOP_SENDING without a FIN."""
    code = random.choice((0x98, 0x8E))
    connection.kick(code)
    return f"0x{code:02X}"


def connection_disconnected(connection: FrontConnection, random: Random) -> str:
    """End with a DISCONNECT and a FIN in one packet."""
    code = random.choice((0x00, 0x8B, 0x8D, 0x97, 0x81))
    connection.end_stream(disconnect=code)
    return f"0x{code:02X}"


def connection_reset(connection: FrontConnection, random: Random) -> str:
    """Reset the stream in the middle of what was under way."""
    connection.end_stream(reset=0)
    return "RESET_STREAM"


def data_stream_ended(connection: FrontConnection, random: Random) -> str:
    """End the stream of a route, and nothing else."""
    streams = [stream for stream in connection.data_streams.values() if not stream.ended]
    if not streams:
        return "there was none"
    reset = random.choice((0, None))
    streams[-1].end(reset=reset)
    return "FIN" if reset is None else "RESET_STREAM"


def connection_closed(connection: FrontConnection, random: Random) -> str:
    """Close the connection, whatever is under way."""
    code = random.choice((0, 1, 0x15A))
    connection.close(code)
    return f"code {code:#x}"


async def acknowledgements_lost(world: World, random: Random) -> str:
    """Swallow the broker's acknowledgements for a while, and then end the connection so that they can be repeated."""
    kinds = random.sample((PacketType.PUBACK, PacketType.PUBREC, PacketType.PUBCOMP, PacketType.PUBREL), 2)
    way = random.choice(tuple(Direction))
    seconds = min(1.0, duration(random))
    live = world.front.live
    rule = swallow(way, *kinds)
    world.front.add_rule(rule)
    await world.rest(seconds)
    for connection in {*live, *world.front.live}:
        connection.close(0)
    world.front.remove_rule(rule)
    return f"{'/'.join(kind.name for kind in kinds)} {way.value} for {seconds:.2f} s"


async def connection_stalled(world: World, random: Random) -> str:
    """Take nothing from the client, or give it nothing, for a while."""
    seconds = duration(random)
    live = world.front.live
    if not live:
        return "nobody was connected"
    connection = live[-1]
    reading = random.random() < 0.5
    (connection.stop_reading if reading else connection.stop_writing)()
    await world.rest(seconds)
    if not connection.closed:
        (connection.resume_reading if reading else connection.resume_writing)()
    return f"{'reading' if reading else 'writing'} for {seconds:.2f} s"


async def connects_refused(world: World, random: Random) -> str:
    """Refuse CONNECT for a while: the server is unavailable, busy, or shedding load."""
    seconds = duration(random)
    front = world.front
    code = random.choice((0x88, 0x89, 0x9F, None))
    rule = None if code is None else refuse_connect(code)
    if rule is None:
        front.policy.refuse_handshake = 0x15A
    else:
        front.add_rule(rule)
    for connection in front.live:
        connection.close(0)
    await world.rest(seconds)
    front.policy.refuse_handshake = None
    if rule is not None:
        front.remove_rule(rule)
    return f"{'handshake' if code is None else hex(code)} for {seconds:.2f} s"


# --- the brokers and the bridge ---------------------------------------------------------------------------------------


async def _broker_restarted(world: World, broker: Mosquitto, random: Random) -> str:
    seconds = random.choice((0.0, duration(random)))
    await broker.stop()
    await world.rest(seconds)
    await broker.start()
    return f"away for {seconds:.2f} s"


async def _broker_frozen(world: World, broker: Mosquitto, random: Random) -> str:
    seconds = duration(random)
    broker.freeze()
    await world.rest(seconds)
    broker.thaw()
    return f"for {seconds:.2f} s"


async def remote_restarted(world: World, random: Random) -> str:
    """Restart the remote broker, which keeps its sessions."""
    return await _broker_restarted(world, world.remote, random)


async def remote_frozen(world: World, random: Random) -> str:
    """Stop the remote broker in its tracks, behind a front that answers."""
    return await _broker_frozen(world, world.remote, random)


async def local_restarted(world: World, random: Random) -> str:
    """Restart the local broker, which keeps its sessions."""
    return await _broker_restarted(world, world.local, random)


async def local_frozen(world: World, random: Random) -> str:
    """Stop the local broker in its tracks."""
    async with world.whole_connections:
        done = await _broker_frozen(world, world.local, random)
        await asyncio.sleep(_CATCH_UP)
    return done


async def bridge_killed(world: World, random: Random) -> str:
    """Kill -9 the bridge and start it again."""
    seconds = random.choice((0.0, duration(random)))
    async with world.whole_connections:
        await world.bridge.kill()
    await world.rest(seconds)
    await world.bridge.start()
    return f"away for {seconds:.2f} s"


async def bridge_reloaded(world: World, random: Random) -> str:
    """Stop the bridge in good order and start it again, as a reload does."""
    async with world.whole_connections:
        seconds = await world.stop_bridge()
    await world.bridge.start()
    return f"stopped within {seconds:.2f} s"


async def disk_filled(world: World, random: Random) -> str:
    """Fill the disk that the Outbox is on."""
    if not world.disk.mounted:
        return "it has no disk of its own"
    seconds = 2 * duration(random)
    await asyncio.to_thread(world.disk.fill)
    try:
        await world.rest(seconds)
    finally:
        world.disk.free()
    return f"for {seconds:.2f} s"


CONNECTION: Sequence[Fault] = (
    *map(on_connection, (connection_finished, connection_kicked, connection_disconnected)),
    *map(on_connection, (connection_reset, connection_closed, data_stream_ended)),
    acknowledgements_lost,
    connection_stalled,
)
NETWORK: Sequence[Fault] = (
    front_killed,
    front_stopped,
    front_frozen,
    network_bad,
    connects_refused,
    address_changed,
)
REMOTE: Sequence[Fault] = (remote_restarted, remote_frozen)
LOCAL: Sequence[Fault] = (local_restarted, local_frozen)
BRIDGE: Sequence[Fault] = (bridge_killed, bridge_killed, bridge_reloaded)
RELOADS: Sequence[Fault] = (bridge_reloaded,)
DISK: Sequence[Fault] = (disk_filled,)
