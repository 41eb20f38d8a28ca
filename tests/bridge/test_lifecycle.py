"""Stops, reloads, reconnects by the hundred: always in time, never with an error, and nothing is left behind."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
import gc
import logging
import os
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
from custom_components.quic_bridge.bridge.status import BridgeState, BridgeStatus, Side

from ..support.certs import Certificates
from ..support.client import Client
from ..support.faults import delay_connack, refuse_connect, swallow
from ..support.front_policy import Direction as Way
from ..support.mosquitto import Mosquitto
from ..support.packets import PacketType
from ..support.processes import wait_until
from ..support.quic_front import Front

_STOP_LIMIT = 5.0
_BRIDGES = 10
"""Bridges that live at the same time."""


@dataclass(frozen=True)
class Inventory:
    """What the process holds."""

    tasks: int
    timers: int
    files: tuple[str, ...]
    threads: int

    @classmethod
    def now(cls) -> Inventory:
        loop = asyncio.get_running_loop()
        scheduled: list[asyncio.TimerHandle] = loop._scheduled  # type: ignore[attr-defined]
        return cls(
            tasks=len(asyncio.all_tasks()),
            timers=sum(not handle.cancelled() for handle in scheduled),
            files=tuple(sorted(_files())),
            threads=threading.active_count(),
        )


def _files() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        found.append(target.partition(":")[0])
    return found


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
            backoff=BackoffConfig(base=0.01, cap=0.05, refused_base=0.01, refused_cap=0.05),
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


@pytest.fixture(autouse=True)
def nothing_unexpected(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)


async def until_running(bridge: Bridge) -> None:
    await wait_until(lambda: bridge.status.state is BridgeState.RUNNING, 20, "running")


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


def no_error_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def stop_at_random(stage: Stage, random: Random, times: int, longest: float, *, running: bool = False) -> None:
    """Start and stop bridges, in each of their lives at an instant of its own."""

    async def lives(name: str, number: int) -> None:
        for _ in range(number):
            bridge = stage.bridge(name)
            await bridge.start()
            if running:
                await until_running(bridge)
            if random.random() < 0.5:
                await turns(random, 60)
            else:
                await asyncio.sleep(random.uniform(0.0, longest))
            if random.random() < 0.1:
                bridge.reconnect(random.choice((None, Side.LOCAL, Side.REMOTE)))
                await turns(random, 5)
            await stop_in_time(bridge)

    await asyncio.gather(*(lives(f"bridge{number}", times // _BRIDGES) for number in range(_BRIDGES)))


async def same_as(before: Inventory) -> None:
    """Wait until nothing is left of what was not there before; the front and the brokers' clients need a moment."""
    try:
        await wait_until(lambda: Inventory.now() == before, 3)
    except TimeoutError:
        assert Inventory.now() == before  # noqa: PT017 - shows the difference


async def with_executor(stage: Stage, front: Front) -> Inventory:
    """Take the inventory when the executor has all its threads, which stay."""
    await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.02) for _ in range(64)))
    await wait_until(lambda: not front.live, what="empty front")
    return Inventory.now()


async def _normal(front: Front) -> None:
    """Do nothing: everything works."""


async def _silent(front: Front) -> None:
    front.freeze()


async def _dead(front: Front) -> None:
    front.die()


async def _no_connack(front: Front) -> None:
    front.add_rule(delay_connack(None))


async def _no_suback(front: Front) -> None:
    front.add_rule(swallow(Way.TO_CLIENT, PacketType.SUBACK))


async def _refusing(front: Front) -> None:
    front.add_rule(refuse_connect(0x87))


async def _slow(front: Front) -> None:
    for way in (front.incoming, front.outgoing):
        way.delay = 0.005


@pytest.mark.parametrize(
    ("prepare", "times", "longest"),
    [
        (_normal, 200, 0.2),
        (_slow, 100, 0.3),
        (_silent, 100, 0.1),
        (_dead, 100, 0.3),
        (_no_connack, 100, 0.15),
        (_no_suback, 100, 0.15),
        (_refusing, 100, 0.3),
    ],
)
@pytest.mark.parametrize("seed", [1])
async def test_stop_at_any_instant_of_connecting(
    stage: Stage,
    quic_front: Front,
    caplog: pytest.LogCaptureFixture,
    prepare: Callable[[Front], Awaitable[None]],
    times: int,
    longest: float,
    seed: int,
) -> None:
    before = await with_executor(stage, quic_front)
    await prepare(quic_front)
    await stop_at_random(stage, Random(seed), times, longest)
    quic_front.clear_rules()
    quic_front.thaw()
    if prepare is _dead:
        await quic_front.start()
    await same_as(before)
    no_error_logged(caplog)
