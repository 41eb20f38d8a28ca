"""The bridge is stopped, or told to reconnect, in the middle of anything; and the broker fails while it stops.

That nothing is left behind (tasks, timers, sockets, threads) is checked by the test harness after each test.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
import random

import pytest

from custom_components.quic_bridge.bridge.config import QuicConfig
from custom_components.quic_bridge.bridge.errors import ErrorCode
from custom_components.quic_bridge.bridge.status import BridgeState, LinkState, Side

from ..support.certs import Certificates
from ..support.faults import delay_connack, refuse_connect, swallow
from ..support.front_policy import Direction
from ..support.packets import PacketType
from ..support.processes import wait_until
from .link_support import Numbers, Scene, busy, draining, idle, make_scene

pytestmark = pytest.mark.usefixtures("socket_enabled")

STOP_WITHIN = 6.0
"""Seconds for a stop at the worst moment: 1 s for a farewell that nobody answers, and a machine that stands still."""


@pytest.fixture
async def scene(socket_enabled: None, certs: Certificates, tmp_path: Path) -> AsyncIterator[Scene]:
    async with make_scene(certs, tmp_path) as scene:
        yield scene


# --- the states -------------------------------------------------------------------------------------------------------


async def _dialling(scene: Scene, _numbers: Numbers) -> None:
    scene.front.freeze()
    await scene.local_up()
    await wait_until(lambda: scene.front._endpoint.incoming.dropped, what="first datagram")


async def _handshaking(scene: Scene, _numbers: Numbers) -> None:
    scene.front.freeze("outgoing")
    await scene.local_up()
    await wait_until(lambda: scene.front.connections, what="first datagram")


async def _waiting_for_connack(scene: Scene, _numbers: Numbers) -> None:
    scene.front.add_rule(delay_connack(None, times=1))
    await scene.local_up()
    await scene.front.wait_session(1)


async def _subscribing(scene: Scene, _numbers: Numbers) -> None:
    scene.front.add_rule(swallow(Direction.TO_CLIENT, PacketType.SUBACK, times=1))
    await scene.local_up()
    await wait_until(lambda: scene.front.stats.from_broker[PacketType.SUBACK], what="SUBACK of the broker")


async def _waiting(scene: Scene, _numbers: Numbers) -> None:
    scene.tune(QuicConfig(handshake_timeout=0.2))
    scene.front.freeze()
    await scene.local_up()
    await scene.until(lambda status: status.remote.state is LinkState.WAITING, "waiting")


async def _refused(scene: Scene, _numbers: Numbers) -> None:
    scene.front.add_rule(refuse_connect(0x86, times=1))
    await scene.local_up()
    await scene.until(lambda status: status.remote.state is LinkState.REFUSED, "refused")


STATES: dict[str, Callable[[Scene, Numbers], Awaitable[None]]] = {
    "dialling": _dialling,
    "handshaking": _handshaking,
    "connack": _waiting_for_connack,
    "subscribing": _subscribing,
    "idle": idle,
    "busy": busy,
    "draining": draining,
    "waiting": _waiting,
    "refused": _refused,
}
LOGGED_IN = {"subscribing", "idle", "busy", "draining"}


async def stop(scene: Scene) -> float:
    """Stop the bridge, check what the status says then, and return how long it took."""
    loop = asyncio.get_running_loop()
    errors, began, seen = len(scene.errors()), loop.time(), len(scene.history)
    await scene.bridge.stop()
    elapsed = loop.time() - began
    status = scene.bridge.status
    assert status.state is BridgeState.STOPPED
    for link in (status.local, status.remote):
        assert link.state is LinkState.STOPPED
        assert link.next_attempt is None
        assert link.connected_at is None
    # A stop that was asked for is no loss.
    assert len(scene.errors()) == errors
    assert LinkState.WAITING not in [status.remote.state for _, status in scene.history[seen:]]
    assert scene.history[-1][1].state is BridgeState.STOPPED
    return elapsed


async def in_few_turns(work: Awaitable[object]) -> None:
    """Do what needs no time: a few turns of the loop, however long the machine takes for them."""
    ending = asyncio.ensure_future(work)
    for _ in range(20):
        await asyncio.sleep(0)
    assert ending.done()
    await ending


async def heal(scene: Scene) -> None:
    """Take every fault away."""
    scene.front.thaw()
    scene.front.clear_rules()
    if not scene.front._endpoint.is_open:
        await scene.front.start()


@pytest.mark.parametrize("state", STATES)
async def test_stop_from_every_state(scene: Scene, state: str) -> None:
    """Quick, said to the broker where it listens, nothing lost for the next start."""
    async with Numbers(scene) as numbers:
        await STATES[state](scene, numbers)
        connections = list(scene.front.connections)
        assert await stop(scene) < STOP_WITHIN
        if state in LOGGED_IN:
            assert scene.front.connection.stats.disconnects == [0]
        if state in LOGGED_IN | {"connack"}:
            await wait_until(lambda: all(connection.closed for connection in connections), what="end of QUIC")
            assert [close.error_code for close in scene.front.connection.stats.closes] == [0]
        # Nobody is left to say goodbye to, which would take a second. The best of three: the machine may stand still.
        assert min([await stop(scene) for _ in range(3)]) < 0.5
        if state in {"busy", "draining"}:
            assert numbers.missing()
        await heal(scene)
        await scene.renew()
        await scene.running()
        if state != "busy":
            numbers.start()
        await numbers.flowing()
        await numbers.settled()


FAULTS: dict[str, Callable[[Scene], object]] = {
    "silent": lambda scene: scene.front.freeze(),
    "killed": lambda scene: scene.front.die(),
    "fin": lambda scene: scene.front.connection.end_stream(),
    "take-over": lambda scene: scene.front.connection.kick(0x8E),
    "close": lambda scene: scene.front.connection.close(0),
    "does-not-read": lambda scene: scene.front.connection.stop_reading(),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_broker_fails_while_we_stop(scene: Scene, fault: str) -> None:
    async with Numbers(scene) as numbers:
        await busy(scene, numbers)
        stopping = asyncio.create_task(stop(scene))
        # The stop has begun, and the fault comes before any answer to it.
        await asyncio.sleep(0)
        FAULTS[fault](scene)
        assert await stopping < STOP_WITHIN
        await heal(scene)
        await scene.renew()
        await scene.running()
        await numbers.flowing()
        await numbers.settled()


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_broker_fails_just_before_we_stop(scene: Scene, fault: str) -> None:
    async with Numbers(scene) as numbers:
        await busy(scene, numbers)
        FAULTS[fault](scene)
        assert await stop(scene) < STOP_WITHIN
        await heal(scene)
        await scene.renew()
        await scene.running()
        await numbers.flowing()
        await numbers.settled()


async def test_a_farewell_that_is_lost_is_said_again(scene: Scene) -> None:
    """The DISCONNECT is not a datagram and a prayer: QUIC repeats it until the broker has it."""
    await scene.running()
    left = 2

    def drop(_datagram: bytes) -> bool:
        nonlocal left
        left -= 1
        return left >= 0

    scene.front.incoming.drop = drop
    assert await stop(scene) < STOP_WITHIN
    assert left < 0
    await wait_until(lambda: scene.front.stats.disconnects, what="DISCONNECT")
    assert scene.front.stats.disconnects == [0]


async def test_stops_at_the_same_time_end_together(scene: Scene) -> None:
    """Whoever asked for the stop may rely on it, also when somebody else asked before."""
    await scene.running()
    scene.front.freeze()  # so that the farewell takes its second
    stops = [asyncio.create_task(scene.bridge.stop()) for _ in range(3)]
    done, pending = await asyncio.wait(stops, return_when=asyncio.FIRST_COMPLETED)
    assert scene.bridge.status.state is BridgeState.STOPPED
    assert scene.front.stats.disconnects == []
    await in_few_turns(asyncio.gather(*pending, *done))


async def test_a_stop_that_is_cut_short_releases_all_the_same(scene: Scene) -> None:
    await scene.running()
    scene.front.freeze()
    stopping = asyncio.create_task(scene.bridge.stop())
    await asyncio.sleep(0.05)
    stopping.cancel()
    await asyncio.wait((stopping,))
    assert stopping.cancelled()
    await in_few_turns(scene.bridge.stop())
    assert scene.bridge.status.state is BridgeState.STOPPED


async def test_stops_at_random_instants(scene: Scene) -> None:
    """Start, stop at any moment, start again, with messages under way: nothing is lost and nothing left."""
    rng = random.Random(3)
    async with Numbers(scene) as numbers:
        await busy(scene, numbers)
        for _ in range(25):
            await scene.renew()
            await scene.bridge.start()
            await asyncio.sleep(rng.random() ** 2 * 0.08)
        await scene.running()
        await numbers.flowing()
        await numbers.settled()


@pytest.mark.parametrize("state", STATES)
async def test_reconnect_from_every_state(scene: Scene, state: str) -> None:
    """A person's wish, or a changed network, cuts everything short: no wait, no back-off, and no false error."""
    async with Numbers(scene) as numbers:
        await STATES[state](scene, numbers)
        await heal(scene)
        errors, sessions = scene.errors(), scene.link.reconnects + (1 if state in LOGGED_IN else 0)
        scene.bridge.reconnect(Side.REMOTE)
        # From waiting and refused too: the next attempt begins at once, and succeeds.
        await scene.until(
            lambda status: status.remote.state is LinkState.CONNECTED and status.remote.reconnects == sessions, "up"
        )
        await scene.running()
        fresh = [error.code for error in scene.errors()[len(errors) :]]
        assert set(fresh) <= {ErrorCode.RECONNECT_REQUESTED}
        if state not in {"waiting", "refused"}:
            assert fresh == [ErrorCode.RECONNECT_REQUESTED]
        assert scene.bridge.status.local.reconnects == 0
        if state != "busy":
            numbers.start()
        await numbers.flowing()
        await numbers.settled()
