"""The brokers fail: restart, freeze, stop acknowledging or reading, forget us, let somebody else take over."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from custom_components.quic_bridge.bridge.config import QuicConfig
from custom_components.quic_bridge.bridge.errors import ErrorCode
from custom_components.quic_bridge.bridge.status import BridgeState, BridgeStatus, LinkState, LinkStatus

from ..support.certs import Certificates
from ..support.client import Client
from ..support.faults import ACKNOWLEDGEMENTS, inject, swallow
from ..support.front_connection import FrontConnection
from ..support.front_policy import Direction, Rule
from ..support.mosquitto import Mosquitto, MosquittoOptions
from ..support.packets import PacketType, Publish
from ..support.processes import AT_ONCE, wait_until
from ..support.quic_front import Front
from .link_support import Numbers, Scene, make_scene, now

pytestmark = pytest.mark.usefixtures("socket_enabled")

DEADLINE = 1.5
"""Seconds for the answer to a PINGREQ, of a broker that may get no time to run for one of them."""


@pytest.fixture
async def scene(socket_enabled: None, certs: Certificates, tmp_path: Path) -> AsyncIterator[Scene]:
    async with make_scene(certs, tmp_path) as scene:
        yield scene


async def test_a_broker_that_freezes_behind_a_live_connection(scene: Scene) -> None:
    """QUIC still answers, MQTT does not: the PINGREQ's deadline finds out."""
    scene.tune(QuicConfig(handshake_timeout=5.0), keepalive=1, ping_timeout=DEADLINE)
    await scene.running()
    async with Numbers(scene) as numbers:
        numbers.start()
        await numbers.flowing()
        before = now()
        scene.remote.freeze()
        try:
            elapsed, link = await scene.noticed(before)
        finally:
            scene.remote.thaw()
        error = link.error
        assert error is not None
        assert error.code is ErrorCode.PING_TIMEOUT
        assert "PINGREQ" in error.text
        assert elapsed < 1 + DEADLINE + AT_ONCE
        assert link.state is LinkState.WAITING
        await numbers.flowing()
        await numbers.settled()


async def test_the_local_broker_freezes(scene: Scene) -> None:
    scene.local_config = replace(scene.local_config, keepalive=1, ping_timeout=DEADLINE)
    await scene.running()
    async with Numbers(scene) as numbers:
        numbers.start()
        await numbers.flowing()
        scene.local.freeze()
        try:
            await scene.until(lambda status: status.state is BridgeState.LOCAL_DOWN, "local down")
        finally:
            scene.local.thaw()
        error = scene.bridge.status.local.error
        assert error is not None
        assert error.code is ErrorCode.PING_TIMEOUT
        assert scene.link.state is LinkState.CONNECTED
        await numbers.flowing()
        await numbers.settled()
    assert scene.link.reconnects == 0


async def test_a_broker_that_stops_acknowledging_and_goes_on(scene: Scene) -> None:
    """Nothing times out, nothing is sent again: sending goes on by itself when the acknowledgements come again."""
    await scene.running()
    async with Numbers(scene) as numbers:
        numbers.start(down=False)
        await numbers.flowing()
        held: list[bytes] = []

        def hold(_connection: FrontConnection, packet: bytes) -> bytes:
            held.append(packet)
            return b""

        scene.front.add_rule(Rule(direction=Direction.TO_CLIENT, types=ACKNOWLEDGEMENTS, apply=hold))
        published = scene.front.stats.from_client[PacketType.PUBLISH]
        # QoS 2 leaves one place to QoS 1 (InFlight.has_place); the source's window may be all of QoS 2.
        await wait_until(lambda: len(held) >= scene.remote_config.window - 1, what="a full window")
        sent = scene.front.stats.from_client[PacketType.PUBLISH]
        assert sent - published <= 2 * scene.remote_config.window
        scene.front.clear_rules()
        for packet in held:
            scene.front.connection.send(packet)
        await numbers.flowing()
        await numbers.settled()
        assert scene.link.reconnects == 0
        assert scene.errors() == []
        up = [message for message in numbers.away.messages if message.topic == "up/1"]
        assert len(up) == numbers.sent["up/1"]


async def test_a_broker_that_never_acknowledges_again(scene: Scene) -> None:
    """The window stays bounded, the session stays, and the next session gets everything."""
    await scene.running()
    async with Numbers(scene) as numbers:
        scene.front.add_rule(swallow(Direction.TO_CLIENT, *ACKNOWLEDGEMENTS))
        numbers.start(down=False)
        await wait_until(
            lambda: scene.front.stats.from_client[PacketType.PUBLISH] >= scene.remote_config.window, what="full window"
        )
        await wait_until(lambda: scene.bridge.status.outbound.waiting > 40, what="messages that wait")
        assert scene.front.stats.from_client[PacketType.PUBLISH] == scene.remote_config.window
        scene.front.clear_rules()
        scene.front.connection.end_stream()
        await numbers.flowing()
        await numbers.settled()


async def test_a_broker_that_stops_reading(scene: Scene) -> None:
    """Its flow control stops us, and we stop the local broker, without memory growing; later everything goes on."""
    scene.remote_config = replace(scene.remote_config, window=1000, receive_maximum=1000)
    scene.front.policy.stream_window = 64 * 1024
    await scene.remote.kill()
    scene.remote.options = MosquittoOptions(max_queued_messages=0, max_inflight_messages=1000)
    await scene.remote.start()
    await scene.running()
    async with Client(scene.local.host, scene.local.port) as home, Client(scene.remote.host, scene.remote.port) as away:
        await away.subscribe("up/#", qos=1)
        scene.front.connection.stop_reading()
        payloads = [b"%04d" % number + bytes(4000) for number in range(400)]
        burst = asyncio.create_task(home.burst("up/a", payloads, 1))
        # 256 KiB under way and waiting for credit; then the local broker is not read any more.
        await wait_until(lambda: scene.bridge.status.outbound.waiting > 60, what="back-pressure")
        await burst
        assert 60 < scene.bridge.status.outbound.waiting < 100
        assert scene.link.state is LinkState.CONNECTED
        scene.front.connection.resume_reading()
        await away.wait_for(400)
        assert away.payloads == payloads
    assert scene.link.reconnects == 0


async def test_a_broker_that_stops_reading_for_ever(scene: Scene) -> None:
    """The PINGREQ does not get through either: its deadline ends the session, and the next one goes on."""
    scene.tune(QuicConfig(handshake_timeout=5.0), keepalive=2, ping_timeout=DEADLINE)
    await scene.running()
    async with Numbers(scene) as numbers:
        before = now()
        scene.front.connection.stop_reading()
        numbers.start(down=False)
        elapsed, link = await scene.noticed(before)
        assert link.error is not None
        assert link.error.code is ErrorCode.PING_TIMEOUT
        assert elapsed < 2 + DEADLINE + AT_ONCE
        await numbers.flowing()
        await numbers.settled()


async def test_a_message_that_waited_comes_before_the_suback(scene: Scene) -> None:
    """A resumed session delivers before we have subscribed again: nothing of that is lost."""
    early = Publish(topic="down/1", payload=b"early", qos=0, properties={}).encode()
    scene.front.add_rule(inject(PacketType.SUBACK, early))
    async with Client(scene.local.host, scene.local.port) as home:
        await home.subscribe("down/#")
        await scene.running()
        await home.wait_for(1)
        assert home.payloads == [b"early"]


async def test_messages_with_the_fin(scene: Scene) -> None:
    """What comes in one packet with the DISCONNECT and the FIN is delivered, and the reason is known."""
    await scene.running()
    async with Client(scene.local.host, scene.local.port) as home:
        await home.subscribe("down/#", qos=1)
        last = b"".join(
            Publish(topic="down/1", payload=b"%d" % number, qos=1, packet_id=500 + number, properties={}).encode()
            for number in range(3)
        )
        scene.front.connection.end_stream(data=last, disconnect=0x8B)
        await home.wait_for(3)
        assert home.payloads == [b"0", b"1", b"2"]
        await wait_until(scene.errors, what="loss")
        assert scene.errors()[0].code is ErrorCode.SHUTTING_DOWN
        await scene.running()


async def test_both_brokers_restart(
    local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates, tmp_path: Path
) -> None:
    scene = Scene(local_broker, remote_broker, quic_front, certs, tmp_path)
    scene.tune()
    home = Client(local_broker.host, local_broker.port, client_id="home", clean=False)
    away = Client(remote_broker.host, remote_broker.port, client_id="away", clean=False)
    try:
        await scene.running()
        for client, topic in ((home, "down/#"), (away, "up/#")):
            await client.connect()
            await client.subscribe(topic, qos=2)
        await home.burst("up/1", [b"%d" % number for number in range(50)], 2)
        await away.burst("down/1", [b"%d" % number for number in range(50)], 2)
        await asyncio.gather(local_broker.stop(), remote_broker.stop(), quic_front.stop())
        await scene.until(lambda status: status.state is BridgeState.DOWN, "both down")
        await asyncio.gather(local_broker.start(), remote_broker.start(), quic_front.start())
        await home.connect()
        await away.connect()
        await home.burst("up/1", [b"%d" % number for number in range(50, 100)], 2)
        await away.burst("down/1", [b"%d" % number for number in range(50, 100)], 2)
        await away.wait_for(100)
        await home.wait_for(100)
        assert home.payloads == away.payloads == [b"%d" % number for number in range(100)]
        await scene.running()
        assert scene.link.session_present
        assert scene.bridge.status.local.session_present
    finally:
        await home.disconnect()
        await away.disconnect()
        await scene.bridge.stop()


async def test_the_remote_comes_back_without_our_session(scene: Scene) -> None:
    """A broker that keeps nothing on disk: subscribed again, and what was not acknowledged is sent again."""
    scene.tune()
    await scene.running()
    async with Client(scene.local.host, scene.local.port) as home:
        await home.subscribe("down/#", qos=1)
        await scene.remote.kill()
        await scene.until(lambda status: status.remote.state is LinkState.WAITING, "loss")
        for number in range(20):
            await home.publish("up/1", b"%d" % number, 1)
        await scene.until(lambda status: status.outbound.waiting == 20, "waiting")
        await scene.front.stop()
        await scene.remote.start()
        async with Client(scene.remote.host, scene.remote.port) as away:
            await away.subscribe("up/#", qos=1)
            await scene.front.start()
            await scene.running()
            assert scene.link.session_present is False
            await away.wait_for(20)
            assert away.payloads == [b"%d" % number for number in range(20)]
            await away.publish("down/1", b"subscribed again", 1)
            await home.wait_for(1)


# --- two clients with one identifier ----------------------------------------------------------------------------------


def _side(status: BridgeStatus, side: str) -> LinkStatus:
    return status.remote if side == "remote" else status.local


@pytest.mark.parametrize(
    ("side", "codes", "rounds", "shortest"),
    [
        pytest.param("remote", {ErrorCode.SESSION_TAKEN_OVER}, 4, 0.2, id="told"),
        pytest.param("local", {ErrorCode.CLOSED_BY_BROKER, ErrorCode.SESSION_TAKEN_OVER}, 10, 0.04, id="hung-up-on"),
    ],
)
async def test_two_bridges_with_the_same_client_identifier_do_not_fight(
    scene: Scene, certs: Certificates, tmp_path: Path, side: str, codes: set[ErrorCode], rounds: int, shortest: float
) -> None:
    """A broker lets in whoever comes last. EMQX says so (0x8E): both wait long. mosquitto hangs up: the waits grow.

    Since 2.1 mosquitto says so, too.
    """
    scene.backoff = replace(scene.backoff, base=0.05, cap=0.6, refused_base=0.4, refused_cap=0.4)
    other = Scene(scene.local, scene.remote, scene.front, certs, tmp_path)
    other.backoff = scene.backoff
    if side == "remote":
        other.local_config = replace(other.local_config, client_id="another")
    else:
        other.remote_config = replace(other.remote_config, client_id="another")
    try:
        await scene.running()

        def sessions() -> int:
            return sum(_side(bridge.status, side).reconnects + 1 for bridge in (scene.bridge, other.bridge))

        began = asyncio.get_running_loop().time()
        await other.bridge.start()
        await wait_until(lambda: sessions() >= 2 + rounds, what="rounds")
        assert asyncio.get_running_loop().time() - began >= rounds * shortest
        errors = [_side(status, side).error for _, status in [*scene.history, *other.history]]
        seen = {error.code for error in errors if error is not None}
        assert len(seen) == 1
        assert seen <= codes
    finally:
        await other.bridge.stop()
