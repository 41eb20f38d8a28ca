"""Stops, reloads, reconnects by the hundred: always in time, never with an error, and nothing is left behind."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
import gc
import logging
from pathlib import Path
from random import Random
import sys
import threading
import time

import pytest

from custom_components.quic_bridge.bridge.bridge import Bridge
from custom_components.quic_bridge.bridge.config import (
    BackoffConfig,
    BridgeConfig,
    BrokerConfig,
    OutboxConfig,
    QuicConfig,
    TlsConfig,
    TransportKind,
)
from custom_components.quic_bridge.bridge.outbox import Outbox
from custom_components.quic_bridge.bridge.routes import Direction, Route
from custom_components.quic_bridge.bridge.status import BridgeState, BridgeStatus, LinkState, Side

from ..support.certs import Certificates
from ..support.client import Client
from ..support.faults import delay_connack, refuse_connect, swallow
from ..support.front_policy import Direction as Way
from ..support.mosquitto import Mosquitto
from ..support.packets import PacketType
from ..support.processes import wait_until
from ..support.quic_front import Front

_STOP_LIMIT = 30.0
"""Seconds for one of many on a busy machine; how long a stop takes at most, see test_link_stop.py."""
_BRIDGES = 10
"""Bridges that live at the same time."""
_TOLERANCE = 10_000
"""Memory blocks: less than 35 for each further reconnect or bridge."""


@dataclass(frozen=True)
class Inventory:
    """What the process holds."""

    tasks: tuple[str, ...]
    timers: tuple[str, ...]
    files: tuple[str, ...]
    threads: tuple[str, ...]
    """Without those of the loop's executor, which stay."""

    @classmethod
    def now(cls) -> Inventory:
        """Look around."""
        scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        return cls(
            tasks=tuple(sorted(repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task())),
            timers=tuple(sorted(repr(handle) for handle in scheduled if not handle.cancelled())),
            files=tuple(sorted(_open_files())),
            threads=tuple(thread.name for thread in threading.enumerate() if "SyncWorker" not in thread.name),
        )


def _open_files() -> Iterator[str]:
    for entry in Path("/proc/self/fd").iterdir():
        try:
            yield str(entry.readlink()).partition(":")[0]  # a socket has a number, too
        except FileNotFoundError:
            continue  # that of the listing itself


class Stage:
    """Two brokers, QUIC in front of one of them, and any number of bridges."""

    def __init__(self, local: Mosquitto, front: Front, certs: Certificates, folder: Path) -> None:
        self.local = local
        self.front = front
        self.folder = folder
        self.ca = certs.ca_pem
        self.outbox = False

    def bridge(self, name: str, on_status: Callable[[BridgeStatus], None] = lambda _: None) -> Bridge:
        """Make a bridge with a client identifier, topics and a file of its own."""
        local = BrokerConfig(host=self.local.host, port=self.local.port, client_id=name, session_expiry=0)
        remote = BrokerConfig(
            host=self.front.host,
            port=self.front.port,
            client_id=name,
            session_expiry=0,
            transport=TransportKind.QUIC,
            tls=TlsConfig(ca=self.ca),
            quic=QuicConfig(ping_interval=0.5, ping_timeout=0.5),
        )
        config = BridgeConfig(
            remote=remote,
            routes=(
                Route(id="up", direction=Direction.TO_REMOTE, topic_filter=f"{name}/up/#"),
                Route(id="down", direction=Direction.TO_LOCAL, topic_filter=f"{name}/down/#"),
            ),
            backoff=BackoffConfig(base=0.002, cap=0.01, refused_base=0.01, refused_cap=0.05),
            outbox=OutboxConfig(path=self.outbox_path(name), delay=0.02) if self.outbox else None,
        )
        return Bridge(config, lambda: local, on_status)

    def outbox_path(self, name: str) -> Path:
        """Where the Outbox of a bridge is."""
        return self.folder / f"{name}.db"


@pytest.fixture
async def stage(local_broker: Mosquitto, quic_front: Front, certs: Certificates, tmp_path: Path) -> Stage:
    quic_front.policy.close_delay = 0.01
    return Stage(local_broker, quic_front, certs, tmp_path)


@pytest.fixture
async def home(local_broker: Mosquitto) -> AsyncIterator[Client]:
    async with Client(local_broker.host, local_broker.port) as client:
        yield client


@pytest.fixture
async def away(remote_broker: Mosquitto) -> AsyncIterator[Client]:
    async with Client(remote_broker.host, remote_broker.port) as client:
        yield client


async def until(bridge: Bridge, condition: Callable[[BridgeStatus], object]) -> None:
    await wait_until(lambda: condition(bridge.status), what="status")


def local_connected(status: BridgeStatus) -> bool:
    return status.local.state is LinkState.CONNECTED


def drained(status: BridgeStatus) -> bool:
    return status.outbox is not None and not status.outbox.messages


async def until_running(bridge: Bridge) -> None:
    await until(bridge, lambda status: status.state is BridgeState.RUNNING)


async def stop_in_time(bridge: Bridge) -> None:
    """Stop it, twice at once, as an unload and the end of Home Assistant may."""
    began = time.monotonic()
    await asyncio.gather(bridge.stop(), bridge.stop())
    assert time.monotonic() - began < _STOP_LIMIT
    assert bridge.status.state is BridgeState.STOPPED


async def turns(random: Random, most: int) -> None:
    """Let a random number of turns of the event loop pass: the finest grain there is."""
    for _ in range(random.randint(0, most)):
        await asyncio.sleep(0)


@pytest.fixture
def no_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test in which an error was logged."""
    # What is logged is kept, and would be taken for a leak.
    caplog.set_level(logging.WARNING)
    yield
    assert [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR] == []


@pytest.fixture
async def nothing_left(stage: Stage, no_errors: None) -> AsyncIterator[None]:
    """Fail a test that leaves a task, timer, file or thread behind."""
    # In debug mode the loop keeps a traceback with each handle: twice the time, and half of the turns.
    asyncio.get_running_loop().set_debug(False)
    before = Inventory.now()
    yield
    try:
        await wait_until(lambda: Inventory.now() == before)
    except TimeoutError:
        assert Inventory.now() == before


async def live_and_stop(
    stage: Stage, random: Random, times: int, longest: float, prepare: Callable[[Bridge], Awaitable[None]] | None = None
) -> None:
    """Start bridges and stop each at an instant of its own, at most `longest` seconds after it is prepared."""

    async def lives(name: str, number: int) -> None:
        for _ in range(number):
            bridge = stage.bridge(name)
            await bridge.start()
            if prepare is not None:
                await prepare(bridge)
            if random.random() < 0.5:
                await turns(random, 60)
            else:
                await asyncio.sleep(random.uniform(0.0, longest))
            if random.random() < 0.1:
                bridge.reconnect(random.choice((None, Side.LOCAL, Side.REMOTE)))
                await turns(random, 5)
            await stop_in_time(bridge)

    await asyncio.gather(*(lives(f"bridge{number}", times // _BRIDGES) for number in range(_BRIDGES)))


async def nothing(_front: Front) -> None:
    """Everything works."""


async def slow(front: Front) -> None:
    """Every datagram takes its time."""
    for way in (front.incoming, front.outgoing):
        way.delay = 0.005


async def silent(front: Front) -> None:
    """Nothing comes back."""
    front.freeze()


async def dead(front: Front) -> None:
    """Nothing listens."""
    front.die()


async def no_connack(front: Front) -> None:
    """CONNECT is not answered."""
    front.add_rule(delay_connack(None))


async def no_suback(front: Front) -> None:
    """SUBSCRIBE is not answered."""
    front.add_rule(swallow(Way.TO_CLIENT, PacketType.SUBACK))


async def refusing(front: Front) -> None:
    """CONNECT is refused."""
    front.add_rule(refuse_connect(0x87))


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("trouble", "times", "longest"),
    [
        (nothing, 200, 0.2),
        (slow, 100, 0.3),
        (silent, 100, 0.1),
        (dead, 100, 0.3),
        (no_connack, 100, 0.15),
        (no_suback, 100, 0.15),
        (refusing, 100, 0.3),
    ],
)
@pytest.mark.parametrize("seed", [1])
async def test_stop_at_any_instant_of_connecting(
    stage: Stage, trouble: Callable[[Front], Awaitable[None]], times: int, longest: float, seed: int
) -> None:
    front = stage.front
    await trouble(front)
    await live_and_stop(stage, Random(seed), times, longest)
    front.clear_rules()
    front.thaw()
    if trouble is dead:
        await front.start()


async def bursts(client: Client, way: str, ended: asyncio.Event) -> None:
    """Keep all bridges busy in one direction."""
    while not ended.is_set():
        for number in range(_BRIDGES):
            for qos in (0, 1, 2):
                await client.burst(f"bridge{number}/{way}/a", [b"x" * 100] * 20, qos)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("seed", [1])
async def test_stop_when_busy(stage: Stage, home: Client, away: Client, seed: int) -> None:
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(bursts(home, "up", ended))
        group.create_task(bursts(away, "down", ended))
        await live_and_stop(stage, Random(seed), 100, 0.1, until_running)
        ended.set()


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("seed", [1])
async def test_stop_when_the_remote_fell_silent(stage: Stage, home: Client, seed: int) -> None:
    all_run = asyncio.Barrier(_BRIDGES)

    async def fall_silent(bridge: Bridge) -> None:
        await until_running(bridge)
        await all_run.wait()  # what is frozen before lets nobody else connect
        stage.front.freeze()

    for number in range(2):
        await live_and_stop(stage, Random(seed + number), _BRIDGES, 0.5, fall_silent)
        stage.front.die()  # it has not heard the farewells
        stage.front.thaw()
        await stage.front.start()


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("seed", [1])
async def test_stop_when_draining(stage: Stage, home: Client, away: Client, seed: int) -> None:
    stage.outbox = True
    bridges = [stage.bridge(f"bridge{number}") for number in range(_BRIDGES)]
    await away.subscribe("+/up/#", qos=1)
    stage.front.die()
    sent = [b"%04d" % number for number in range(400)]
    for number, bridge in enumerate(bridges):
        await bridge.start()
        await until(bridge, local_connected)
        await home.burst(f"bridge{number}/up/a", sent, 1)
    for bridge in bridges:
        await until(bridge, lambda status: not status.outbound.waiting)
        await stop_in_time(bridge)
    await stage.front.start()
    random = Random(seed)
    await live_and_stop(stage, random, 100, 0.1)
    # The rest, so that it is known that the stops lost nothing.
    bridges = [stage.bridge(f"bridge{number}") for number in range(_BRIDGES)]
    for bridge in bridges:
        await bridge.start()
    for number, bridge in enumerate(bridges):
        await until(bridge, drained)
        await stop_in_time(bridge)
        arrived = [message.payload for message in away.messages if message.topic == f"bridge{number}/up/a"]
        assert list(dict.fromkeys(arrived)) == sent


def reconnected(bridge: Bridge, before: int) -> bool:
    return bridge.status.remote.reconnects > before


def blocks(front: Front) -> int:
    """Count the memory blocks in use."""
    front.connections[:] = front.live  # it remembers those of the past
    gc.collect()
    return sys.getallocatedblocks()


@pytest.mark.usefixtures("nothing_left")
async def test_500_reconnects(stage: Stage, home: Client, away: Client) -> None:
    front = stage.front
    await away.subscribe("+/up/#", qos=1)
    bridge = stage.bridge("bridge")
    await bridge.start()
    await until_running(bridge)
    baseline, inventory = 0, Inventory.now()
    for number in range(500):
        if number == 200:
            baseline = blocks(front)
        before = bridge.status.remote.reconnects
        match number % 5:
            case 0:
                bridge.reconnect(Side.REMOTE)
            case 1:
                front.live[-1].close(0)
            case 2:
                front.live[-1].end_stream()
            case 3:
                front.live[-1].end_stream(disconnect=0x8B)
            case 4:
                front.live[-1].end_stream(reset=0)
        await wait_until(partial(reconnected, bridge, before), what="reconnect")
        await until_running(bridge)
        await home.publish("bridge/up/a", b"%d" % number, 1)
    await away.wait_for(500)
    away.messages.clear()
    assert blocks(front) < baseline + _TOLERANCE
    await wait_until(lambda: len(Inventory.now().files) == len(inventory.files))
    assert len(Inventory.now().tasks) == len(inventory.tasks)
    await stop_in_time(bridge)


@pytest.mark.usefixtures("nothing_left")
async def test_100_bridges_created_and_removed(stage: Stage, home: Client, away: Client) -> None:
    stage.outbox = True
    front = stage.front
    await away.subscribe("+/up/#", qos=1)
    baseline = 0
    for number in range(100):
        if number == 40:
            baseline = blocks(front)
        name = f"bridge{number}"
        bridge = stage.bridge(name)
        await bridge.start()
        await until_running(bridge)
        await home.publish(f"{name}/up/a", b"", 1)
        await stop_in_time(bridge)
        await Outbox(stage.outbox_path(name)).remove()
    await away.wait_for(100)
    assert list(stage.folder.glob("*.db*")) == []
    assert blocks(front) < baseline + _TOLERANCE
