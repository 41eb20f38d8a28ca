"""Routes with a QUIC stream of their own: they hold up no others, and lose nothing that EMQX's data streams would."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
import logging
from pathlib import Path

import pytest

from custom_components.quic_bridge.bridge import data_streams
from custom_components.quic_bridge.bridge.config import OutboxConfig, TransportKind
from custom_components.quic_bridge.bridge.routes import Direction, Qos0Policy, Route
from custom_components.quic_bridge.bridge.status import BridgeState, DropReason

from ..support.certs import Certificates
from ..support.front_connection import FrontConnection
from ..support.packets import PacketType
from ..support.processes import wait_until
from .link_support import QUICK, Numbers, Scene, make_scene

STREAM = 4
"""The second bidirectional stream of a client."""


@pytest.fixture
async def scene(socket_enabled: None, certs: Certificates, tmp_path: Path) -> AsyncIterator[Scene]:
    async with make_scene(certs, tmp_path) as scene:
        scene.routes = (
            Route(id="up", direction=Direction.BOTH, topic_filter="up/#", own_stream=True),
            Route(id="down", direction=Direction.TO_LOCAL, topic_filter="down/#"),
            Route(id="plain", direction=Direction.TO_REMOTE, topic_filter="plain/#"),
        )
        scene.tune()
        yield scene


def on_session_stream(connection: FrontConnection) -> int:
    """Messages that came over the session's own stream."""
    return connection.stats.from_client[PacketType.PUBLISH]


async def test_a_routes_qos_1_takes_its_own_stream_and_all_else_that_of_the_session(scene: Scene) -> None:
    await scene.running()
    async with Numbers(scene) as numbers:
        await numbers.step(numbers.home, "up", 50)
        await numbers.away.subscribe("plain/#", qos=2)
        await numbers.home.burst("plain/1", [b"x"] * 30, 1)
        await numbers.settled()
        await numbers.away.wait_for(130)
        connection = scene.front.connection
        assert list(connection.data_streams) == [STREAM]
        assert on_session_stream(connection) == 80, "QoS 2 and the other route"
        await wait_until(lambda: scene.bridge.status.outbound.waiting == 0, what="nothing under way")


async def test_what_is_stuck_on_its_own_stream_holds_up_nothing_else(scene: Scene) -> None:
    scene.front.policy.serve_data_streams = False
    scene.tune(replace(QUICK, ping_interval=5.0))
    await scene.running()
    home, away = scene.clients()
    async with home, away:
        await away.subscribe("plain/#", "up/#", qos=1)
        # A common stream would have nothing but this on its way, and over 256 KiB nothing more would be read.
        for _ in range(3):
            await home.publish("up/large", bytes(1_000_000), 1)
        for number in range(50):
            await home.publish("plain/small", b"%d" % number, 1)
        await away.wait_for(50)
        assert {message.topic for message in away.messages} == {"plain/small"}


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(lambda front: front.connection.data_streams[STREAM].end(reset=0), id="stream-reset"),
        pytest.param(lambda front: front.connection.data_streams[STREAM].end(), id="stream-fin"),
        pytest.param(lambda front: front.connection.close(0), id="connection-closed"),
        pytest.param(lambda front: front.connection.kick(), id="kicked"),
    ],
)
async def test_nothing_is_lost_and_order_is_kept_when_it_ends(
    scene: Scene, loss: Callable[[object], None], large: bool
) -> None:
    scene.backoff = replace(scene.backoff, refused_base=0.05, refused_cap=0.1)
    await scene.running()
    async with Numbers(scene) as numbers:
        numbers.start()
        await numbers.flowing()
        for _ in range(3):
            await wait_until(
                lambda: STREAM in scene.front.connection.data_streams, what="a stream of the route in this session"
            )
            if large:
                await numbers.home.publish("plain/large", bytes(500_000), 1)
            loss(scene.front)
            await numbers.flowing()
        await numbers.settled()


async def test_after_a_lost_stream_the_route_gets_another(scene: Scene) -> None:
    await scene.running()
    async with Numbers(scene) as numbers:
        await numbers.step(numbers.home, "up")
        await numbers.away.wait_for(20)
        connection = scene.front.connection
        connection.data_streams[STREAM].end(reset=0)
        await wait_until(lambda: scene.bridge.status.outbound.waiting == 0, what="nothing under way")
        await numbers.step(numbers.home, "up")
        await numbers.away.wait_for(40)
        await numbers.step(numbers.home, "up")
        await numbers.settled()
        assert list(connection.data_streams) == [STREAM, STREAM + 4]


async def stick(scene: Scene, numbers: Numbers, number: int) -> FrontConnection:
    """Have so many QoS 1 messages of the route stuck, behind ten that have arrived; and read no more."""
    await numbers.step(numbers.home, "up")
    await numbers.away.wait_for(20)
    connection = scene.front.connection
    connection.data_streams[STREAM].held = True
    await numbers.home.burst("up/1", [b"%d" % item for item in range(10, 10 + number)], 1)
    await scene.until(lambda status: status.outbound.waiting == number, f"{number} that are stuck")
    connection.stop_reading()
    return connection


async def settled_in_order(numbers: Numbers, connection: FrontConnection, number: int) -> None:
    """See that nothing took another stream, then read on until all of so many have arrived in order."""
    # By the time that this has crossed, what was sent before on a stream has arrived at the front.
    await numbers.home.subscribe("down/#", qos=1)
    await numbers.away.publish("down/later", b"", 1)
    await numbers.home.wait_for(lambda messages: any(message.topic == "down/later" for message in messages))
    assert list(connection.data_streams) == [STREAM], "they passed by on another stream"
    connection.resume_reading()
    numbers.sent["up/1"] = number
    await numbers.settled()


async def test_what_is_sent_again_on_the_sessions_stream_is_not_passed_by_what_follows(scene: Scene) -> None:
    await scene.running()
    async with Numbers(scene) as numbers:
        connection = await stick(scene, numbers, 5)
        before = on_session_stream(connection)
        connection.data_streams[STREAM].end(reset=0)
        await wait_until(lambda: on_session_stream(connection) == before + 5, what="the five again")
        await numbers.home.burst("up/1", [b"%d" % number for number in range(15, 20)], 1)
        await scene.until(lambda status: status.outbound.waiting == 10, "ten that wait")
        await settled_in_order(numbers, connection, 20)


async def test_nor_while_the_sessions_stream_takes_nothing(scene: Scene) -> None:
    """What was under way on a lost stream cannot be sent again yet, and what waited for that stream waits on."""
    scene.tune(replace(QUICK, ping_interval=5.0))
    await scene.running()
    async with Numbers(scene) as numbers:
        connection = await stick(scene, numbers, 20)  # half a window, and more
        await numbers.home.publish("plain/large", bytes(1_000_000), 1)
        await scene.until(lambda status: status.outbound.waiting == 21, "a large message on its way")
        connection.data_streams[STREAM].end(reset=0)
        await settled_in_order(numbers, connection, 30)


@pytest.mark.parametrize("own", [False, True], ids=["given-up", "got"])
async def test_order_is_kept_when_a_route_changes_its_stream(scene: Scene, own: bool) -> None:
    """What went over the former one is not passed by what follows over the other."""
    routes = scene.routes
    changed = (replace(routes[0], own_stream=not routes[0].own_stream), *routes[1:])
    scene.routes = routes if not own else changed
    await scene.running()
    async with Numbers(scene) as numbers:
        await numbers.step(numbers.home, "up")
        await numbers.away.wait_for(20)
        connection = scene.front.connection
        if own:
            connection.stop_reading()
        else:
            connection.data_streams[STREAM].held = True
        await numbers.home.burst("up/1", [b"%d" % number for number in range(10, 15)], 1)
        await scene.until(lambda status: status.outbound.waiting == 5, "five that are stuck")
        if own:
            await wait_until(lambda: on_session_stream(connection) == 25, what="the five at the front")
        before = on_session_stream(connection)
        change = asyncio.create_task(scene.bridge.apply_routes(changed if not own else routes))
        await numbers.home.burst("up/1", [b"%d" % number for number in range(15, 20)], 1)
        await scene.until(lambda status: status.outbound.waiting == 10, "ten that wait")
        # By the time that this has crossed, what was sent before on a stream has arrived at the front.
        await numbers.home.subscribe("down/#", qos=1)
        await numbers.away.publish("down/later", b"", 1)
        await numbers.home.wait_for(lambda messages: any(message.topic == "down/later" for message in messages))
        assert on_session_stream(connection) == before
        assert list(connection.data_streams) == ([] if own else [STREAM])
        if own:
            connection.resume_reading()
        else:
            connection.data_streams[STREAM].end(reset=0)
        await change
        numbers.sent["up/1"] = 20
        await numbers.settled()


async def test_a_broker_that_does_not_serve_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(data_streams, "ACK_TIMEOUT", 0.5)
    scene.front.policy.serve_data_streams = False
    await scene.running()
    async with Numbers(scene) as numbers:
        numbers.start()
        await numbers.flowing()
        scene.front.connection.close(0)
        await numbers.flowing()
        await numbers.settled()
        warnings = [
            record.getMessage()
            for record in caplog.records
            if record.name == data_streams.__name__ and record.levelno == logging.WARNING
        ]
        assert len(warnings) == 1
        assert "does not serve" in warnings[0]
        scene.front.connection.close(0)
        await scene.until(lambda status: status.remote.reconnects == 2, "the third session")
        await numbers.step(numbers.home, "up")
        await numbers.settled()
        assert not scene.front.connection.data_streams, "tried a third time"


async def test_a_broker_that_allows_no_more_streams(scene: Scene) -> None:
    scene.front.policy.bidirectional_streams = 1
    await scene.running()
    async with Numbers(scene) as numbers:
        numbers.start()
        await numbers.flowing(100)
        await numbers.settled()
        assert not scene.front.connection.data_streams


async def test_a_broker_that_hangs_up_on_it(scene: Scene) -> None:
    """As one that takes every stream for a client of its own, and closes all when the first packet is no CONNECT."""
    await scene.running()
    scene.front.policy.on_data_stream = lambda connection: connection.close(0)
    async with Numbers(scene) as numbers:
        numbers.start()
        await numbers.flowing(100)
        await numbers.settled()
        assert scene.link.reconnects == 2, "the stream was tried more than twice"


async def test_qos_0_takes_it_once_the_broker_has_acknowledged_something_there(scene: Scene) -> None:
    await scene.running()
    home, away = scene.clients()
    async with home, away:
        await away.subscribe("up/#", qos=1)
        await home.publish("up/0", b"first")
        await away.wait_for(1)
        assert on_session_stream(scene.front.connection) == 1
        await home.publish("up/1", b"proof", 1)
        await wait_until(lambda: scene.bridge.status.outbound.forwarded == 2, what="its acknowledgement")
        await home.publish("up/0", b"second")
        await away.wait_for(3)
        assert on_session_stream(scene.front.connection) == 1
        assert [message.payload for message in away.messages] == [b"first", b"proof", b"second"]


async def test_qos_0_does_not_pass_what_went_over_the_sessions_stream_before(scene: Scene) -> None:
    scene.tune(replace(QUICK, ping_interval=10.0, ping_timeout=10.0))
    await scene.running()
    home, away = scene.clients()
    async with home, away:
        await away.subscribe("up/#", qos=1)
        scene.remote.freeze()
        await home.publish("up/1", b"proof", 1)
        await wait_until(lambda: STREAM in scene.front.connection.data_streams, what="the route's stream")
        scene.front.freeze("incoming")
        await home.publish("up/0", b"first")
        await wait_until(lambda: scene.bridge.status.outbound.forwarded == 1, what="the first, which is lost")
        scene.remote.thaw()
        await wait_until(lambda: scene.bridge.status.outbound.forwarded == 2, what="the acknowledgement of the proof")
        await home.publish("up/0", b"second")
        await wait_until(lambda: scene.bridge.status.outbound.waiting == 1, what="the second, which waits")
        scene.front.thaw()
        await away.wait_for(3)
        assert [message.payload for message in away.messages] == [b"proof", b"first", b"second"]
        assert scene.front.connection.data_streams[STREAM].packets == {PacketType.PUBLISH: 2}


@pytest.mark.parametrize(("policy", "kept"), [(Qos0Policy.DROP, False), (Qos0Policy.QUEUE, True)])
async def test_qos_0_that_waits_for_it_when_the_connection_ends(scene: Scene, policy: Qos0Policy, kept: bool) -> None:
    scene.routes = (Route(id="up", direction=Direction.TO_REMOTE, topic_filter="up/#", own_stream=True, qos_0=policy),)
    await scene.running()
    home, away = scene.clients()
    async with home, away:
        await away.subscribe("up/#", qos=1)
        await home.publish("up/1", b"proof", 1)
        await wait_until(lambda: scene.bridge.status.outbound.forwarded == 1, what="its acknowledgement")
        scene.front.freeze("incoming")
        for _ in range(3):
            await home.publish("up/0", bytes(300_000))
        await wait_until(lambda: scene.bridge.status.outbound.waiting == 2, what="two that wait")
        scene.front.die()
        await scene.until(lambda status: status.state is BridgeState.REMOTE_DOWN, "remote down")
        scene.front.thaw()
        await scene.front.restart()
        await scene.until(lambda status: status.state is BridgeState.RUNNING, "running")
        await home.publish("up/1", b"last", 1)
        await away.wait_for(lambda messages: messages and messages[-1].payload == b"last")
        dropped = scene.bridge.status.outbound.dropped.get(DropReason.DISCONNECTED, 0)
        assert (len(away.messages), dropped) == ((4, 0) if kept else (2, 2))


async def test_the_backlog_of_an_outage(scene: Scene, tmp_path: Path) -> None:
    scene.outbox = OutboxConfig(path=tmp_path / "outbox.db", delay=0.05)
    await scene.running()
    async with Numbers(scene) as numbers:
        numbers.start(down=False)
        await numbers.flowing()
        for _ in range(2):
            scene.front.die()
            await wait_until(lambda: (scene.box.messages or 0) > 100, what="messages on disk")
            await scene.front.restart()
            await numbers.flowing(100)
        await numbers.settled()


async def test_the_window_is_kept_to_and_half_of_it_left_to_others(scene: Scene) -> None:
    scene.tune(replace(QUICK, ping_interval=5.0), window=10)
    scene.front.policy.serve_data_streams = False
    await scene.running()
    home, away = scene.clients()
    async with home, away:
        await away.subscribe("plain/#", qos=1)
        await home.burst("up/1", [b"stuck"] * 100, 1)
        await wait_until(lambda: scene.bridge.status.outbound.waiting == 100, what="all that is stuck")
        await home.burst("plain/1", [b"%d" % number for number in range(200)], 1)
        await away.wait_for(200)
        assert scene.front.connection.data_streams[STREAM].packets == {PacketType.PUBLISH: 5}


async def test_a_remote_over_tcp_has_none(scene: Scene) -> None:
    scene.remote_config = replace(
        scene.remote_config, host=scene.remote.host, port=scene.remote.port, transport=TransportKind.TCP, tls=None
    )
    await scene.running()
    async with Numbers(scene) as numbers:
        numbers.start()
        await numbers.flowing(100)
        await numbers.settled()


async def test_stopping_leaves_nothing_behind(scene: Scene) -> None:
    await scene.running()
    async with Numbers(scene) as numbers:
        numbers.start()
        await numbers.flowing()
        await scene.renew()
        await scene.running()
        await numbers.flowing()
        await numbers.settled()
    before = asyncio.all_tasks()
    await scene.bridge.stop()
    assert len(asyncio.all_tasks()) <= len(before)
