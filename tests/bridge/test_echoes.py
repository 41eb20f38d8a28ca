"""A topic both ways with brokers of MQTT 3.1.1, which have no No Local: no message comes back, and none is missed."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
import logging

import pytest

from custom_components.quic_bridge.bridge import echoes as echoes_module
from custom_components.quic_bridge.bridge.bridge import Bridge
from custom_components.quic_bridge.bridge.config import BackoffConfig, BridgeConfig, BrokerConfig
from custom_components.quic_bridge.bridge.echoes import Echoes
from custom_components.quic_bridge.bridge.routes import Direction, Route
from custom_components.quic_bridge.bridge.status import BridgeState, LinkState

from ..support.client import Client
from ..support.mosquitto import Mosquitto
from ..support.packets import PacketType, Publish
from ..support.processes import wait_until
from ..support.scripted_broker import ScriptedBroker, ScriptedConnection
from ..support.version_gate import BRIDGE_BIT, VersionGate

# --- counting ---------------------------------------------------------------------------------------------------------


def test_each_echo_is_taken_once() -> None:
    echoes = Echoes()
    for _ in range(2):
        echoes.expect(b"t", b"on")
    assert not echoes.take(b"t", b"off")
    assert not echoes.take(b"u", b"on")
    assert [echoes.take(b"t", b"on") for _ in range(3)] == [True, True, False]
    echoes.expect(b"t", b"on")
    echoes.clear()
    assert not echoes.take(b"t", b"on")


def test_an_echo_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(echoes_module, "monotonic", lambda: now)
    echoes = Echoes()
    echoes.expect(b"t", b"on")
    now += 20
    echoes.expect(b"t", b"on")
    now += 20
    assert [echoes.take(b"t", b"on") for _ in range(2)] == [True, False]


def test_only_so_many_are_waited_for() -> None:
    echoes = Echoes()
    for number in range(30_000):
        echoes.expect(b"t", b"%d" % number)
        if number % 2:
            assert echoes.take(b"t", b"%d" % number)
    assert not echoes.take(b"t", b"0")
    assert echoes.take(b"t", b"29998")
    assert len(echoes._order) <= 10_000
    assert len(echoes._expected) <= 10_000


def test_what_should_not_come_back_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is taken for an echo then, and only what all comes back, in order and soon, is proof."""
    now = 1000.0
    monkeypatch.setattr(echoes_module, "monotonic", lambda: now)
    seen: list[float] = []
    echoes = Echoes()
    echoes.watch(lambda: seen.append(now))

    def publish(*payloads: bytes) -> None:
        for payload in payloads:
            echoes.expect(b"t", payload)

    def receive(*payloads: bytes) -> None:
        assert not any(echoes.take(b"t", payload) for payload in payloads)

    publish(b"1", b"2")
    receive(b"1", b"x", b"2")
    assert not seen
    # One is left out ...
    publish(b"3", b"4", b"5")
    receive(b"4", b"5")
    assert not seen
    # ... or late ...
    publish(b"6")
    now += 11
    receive(b"6")
    publish(b"7", b"8")
    receive(b"7", b"8")
    assert not seen
    # ... or others just say the same, again and again.
    publish(*[b"on", b"off"] * 10)
    now += 11
    publish(*[b"on", b"off"] * 10)
    receive(*[b"on", b"off"] * 10)
    assert not seen
    publish(b"left out")
    now += 11
    publish(b"9", b"10", b"9", b"11")
    receive(b"9", b"10", b"9")
    assert not seen
    receive(b"11")
    assert seen == [now]

    for _ in range(50):
        assert len(seen) == 1
        publish(b"round and round")
        receive(b"round and round")
    assert len(seen) == 2

    publish(b"before")
    echoes.watch(None)
    publish(b"after")
    assert [echoes.take(b"t", payload) for payload in (b"before", b"after")] == [False, True]


# --- between brokers --------------------------------------------------------------------------------------------------


PLAIN, BIT, FIVE = (4,), (4, 4 | BRIDGE_BIT), (5,)
IGNORED = (4 | BRIDGE_BIT, 4)


class Scene:
    """A bridge whose brokers are behind gates that refuse MQTT 5."""

    def __init__(self, home: Client, away: Client, gates: dict[str, VersionGate], bridge: Bridge) -> None:
        self.home = home
        self.away = away
        self.gates = gates
        self.bridge = bridge


def make_gate(broker: Mosquitto, levels: tuple[int, ...], *, silent: bool) -> VersionGate:
    return VersionGate(broker.address, *levels, silent=silent, ignores_bridge_bit=levels is IGNORED)


@pytest.fixture
async def scene(
    request: pytest.FixtureRequest, local_broker: Mosquitto, remote_broker: Mosquitto
) -> AsyncIterator[Scene]:
    """The parameter: protocol levels that the local and the remote broker take, and whether they refuse silently.

    With `IGNORED` for levels the broker takes the bridge bit and does as if it were not there.
    """
    local_levels, remote_levels, silent = request.param
    async with AsyncExitStack() as stack:
        local = await stack.enter_async_context(make_gate(local_broker, local_levels, silent=silent))
        remote = await stack.enter_async_context(make_gate(remote_broker, remote_levels, silent=silent))

        def config(gate: VersionGate) -> BrokerConfig:
            return BrokerConfig(host=gate.host, port=gate.port, client_id="bridge")

        routes = (
            Route(id="1", direction=Direction.BOTH, topic_filter="both/#"),
            Route(id="2", direction=Direction.BOTH, topic_filter="home/+", target="away/{1}"),
        )
        backoff = BackoffConfig(base=0.01, cap=0.05)
        bridge = Bridge(
            BridgeConfig(remote=config(remote), routes=routes, backoff=backoff), lambda: config(local), lambda _: None
        )
        stack.push_async_callback(bridge.stop)
        home = await stack.enter_async_context(Client(*local_broker.address))
        away = await stack.enter_async_context(Client(*remote_broker.address))
        for client in (home, away):
            await client.subscribe("#", qos=2)
        await bridge.start()
        await wait_until(lambda: bridge.status.state is BridgeState.RUNNING, what="running")
        yield Scene(home, away, {"local": local, "remote": remote}, bridge)


@pytest.mark.parametrize(
    "scene",
    [
        pytest.param((PLAIN, FIVE, False), id="local"),
        pytest.param((FIVE, PLAIN, False), id="remote"),
        pytest.param((PLAIN, PLAIN, False), id="both"),
        pytest.param((PLAIN, PLAIN, True), id="both-hang-up"),
        pytest.param((BIT, BIT, False), id="bridge-bit"),
    ],
    indirect=True,
)
async def test_a_topic_both_ways(scene: Scene) -> None:
    """The same content again and again, from either side: each message arrives, once."""
    home, away = scene.home, scene.away
    for qos in (0, 1, 2):
        for _ in range(3):
            await home.publish("both/lamp", b"on", qos)
            await away.publish("both/lamp", b"on", qos)
            await home.publish("home/lamp", b"on", qos)
            await away.publish("away/lamp", b"on", qos)
    # What would come back comes before these.
    await home.publish("both/end", b"from home", 1)
    await away.publish("both/end", b"from away", 1)
    for client, topic in ((home, "home/lamp"), (away, "away/lamp")):
        await client.wait_for(lambda messages: sum(item.topic == "both/end" for item in messages) == 2)
        await client.wait_for(lambda messages: len(messages) >= 38)
        topics = [message.topic for message in client.messages]
        assert (topics.count("both/lamp"), topics.count(topic), len(topics)) == (18, 18, 38)
    await wait_until(lambda: scene.bridge.status.outbound.forwarded == 19, what="all sent")
    await wait_until(lambda: scene.bridge.status.inbound.forwarded == 19, what="all received")
    status = scene.bridge.status
    assert status.outbound.dropped == status.inbound.dropped == {}
    assert status.outbound.waiting == status.inbound.waiting == 0


@pytest.mark.parametrize(
    ("scene", "levels"),
    [
        pytest.param((BIT, BIT, False), [5, 0x84], id="takes-it"),
        pytest.param((PLAIN, PLAIN, False), [5, 0x84, 4], id="refuses-it"),
        pytest.param((PLAIN, PLAIN, True), [5, 5, 0x84, 4], id="hangs-up"),
        pytest.param((FIVE, FIVE, False), [5], id="needs-none"),
    ],
    indirect=["scene"],
)
async def test_the_bridge_bit(scene: Scene, levels: list[int]) -> None:
    """Asked with it once, and not again once it was refused."""
    for gate in scene.gates.values():
        assert gate.levels == levels
    scene.bridge.reconnect()
    await wait_until(
        lambda: scene.bridge.status.local.reconnects == scene.bridge.status.remote.reconnects == 1, what="reconnect"
    )
    await wait_until(lambda: scene.bridge.status.state is BridgeState.RUNNING, what="running")
    for gate in scene.gates.values():
        again = gate.levels[len(levels) :]
        assert again[-1] == levels[-1]
        assert set(again[:-1]) <= {5}


@pytest.mark.parametrize(
    ("scene", "sides"),
    [
        pytest.param((IGNORED, IGNORED, False), ("local", "remote"), id="both"),
        pytest.param((FIVE, IGNORED, False), ("remote",), id="remote"),
    ],
    indirect=["scene"],
)
async def test_a_broker_that_ignores_the_bridge_bit(
    scene: Scene, sides: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """It is found out before a message has gone round for long; then it is asked without, and echoes are known."""
    home, away = scene.home, scene.away
    for number in range(3):
        await home.publish("both/lamp", b"%d" % number, 1)
    gates = [scene.gates[side] for side in sides]
    await wait_until(lambda: all(gate.levels[-2:] == [4 | BRIDGE_BIT, 4] for gate in gates), what="asked without")
    await wait_until(lambda: scene.bridge.status.state is BridgeState.RUNNING, what="running")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len([text for text in warnings if "ignores the bridge bit" in text]) == len(sides)

    for number in range(10):
        await home.publish("both/lamp", b"home %d" % number, 1)
        await away.publish("both/lamp", b"away %d" % number, 1)
    await home.publish("both/end", b"from home", 1)
    await away.publish("both/end", b"from away", 1)
    for client in (home, away):
        await client.wait_for(lambda messages: sum(item.topic == "both/end" for item in messages) == 2)
        counts = Counter(client.payloads)
        assert set(counts) >= {b"0", b"1", b"2"}
        assert {counts[b"%s %d" % (side, number)] for side in (b"home", b"away") for number in range(10)} == {1}
        assert max(counts.values()) < 20, "a message went round"
    assert scene.bridge.status.outbound.dropped == scene.bridge.status.inbound.dropped == {}
    assert [gate.levels.count(4) for gate in gates] == [1] * len(gates)


# --- packet by packet -------------------------------------------------------------------------------------------------


@pytest.fixture
async def scripted(socket_enabled: None) -> AsyncIterator[tuple[Bridge, ScriptedBroker, ScriptedBroker]]:
    """A bridge between two scripted brokers."""
    async with ScriptedBroker() as local, ScriptedBroker() as remote:

        def config(broker: ScriptedBroker) -> BrokerConfig:
            return BrokerConfig(host="127.0.0.1", port=broker.port, client_id="bridge")

        routes = (Route(id="1", direction=Direction.BOTH, topic_filter="#"),)
        backoff = BackoffConfig(base=0.01, cap=0.05)
        bridge = Bridge(
            BridgeConfig(remote=config(remote), routes=routes, backoff=backoff), lambda: config(local), lambda _: None
        )
        try:
            yield bridge, local, remote
        finally:
            await bridge.stop()


async def old_session(broker: ScriptedBroker, *, session_present: bool = False) -> ScriptedConnection:
    """Accept the bridge as a strict broker of MQTT 3.1.1 does."""
    connection = await broker.accept()
    while connection.connect.level != 4:
        await connection.handshake(code=0x84 if connection.v5 else 1)
        connection = await broker.accept()
    await connection.handshake(session_present=session_present)
    await connection.subscribed()
    return connection


async def test_echoes_packet_by_packet(scripted: tuple[Bridge, ScriptedBroker, ScriptedBroker]) -> None:
    bridge, local_broker, remote_broker = scripted
    await bridge.start()
    local, remote = await old_session(local_broker), await remote_broker.session()
    await wait_until(lambda: bridge.status.state is BridgeState.RUNNING, what="running")

    # QoS 2 there and back: all four steps with the broker, none with the other one.
    remote.publish("t", b"on", qos=2, mid=1)
    assert (await local.receive_publish()).payload == b"on"
    local.publish("t", b"on", qos=2, mid=7)
    await local.expect(PacketType.PUBREC, 7)
    # Repeated, it is the same echo still.
    local.publish("t", b"on", qos=2, mid=7, dup=True)
    await local.expect(PacketType.PUBREC, 7)
    local.ack(PacketType.PUBREL, 7)
    await local.expect(PacketType.PUBCOMP, 7)
    # The next one is somebody's who has switched it on, too.
    local.publish("t", b"on", qos=1, mid=8)
    assert (await remote.receive_publish()).packet_id == 8

    # What the topic's retained message is has nothing to do with what was sent just now.
    remote.publish("t", b"on", qos=0)
    await local.receive_publish()
    local.send(Publish(topic="t", payload=b"on", retain=True).encode())
    assert (await remote.receive_publish()).retain
    local.publish("t", b"on", qos=0)

    # A message sent again is not counted again: the broker may have taken it for the same.
    remote.publish("t", b"again", qos=1, mid=2)
    await local.receive_publish()
    await local.close()
    local = await old_session(local_broker, session_present=True)
    repeated = [await local.receive_publish(), await local.receive_publish()]
    assert [(item.payload, item.dup) for item in repeated] == [(b"on", False), (b"again", True)]
    local.publish("t", b"again", qos=0)
    local.publish("t", b"again", qos=0)
    assert (await remote.receive_publish()).payload == b"again"

    # A new session has nothing to send back.
    remote.publish("t", b"gone", qos=0)
    await local.receive_publish()
    await local.close()
    await wait_until(lambda: bridge.status.local.state is not LinkState.CONNECTED, what="lost")
    local = await old_session(local_broker)
    await wait_until(lambda: bridge.status.state is BridgeState.RUNNING, what="running")
    local.publish("t", b"gone", qos=0)
    assert (await remote.receive_publish()).payload == b"gone"


async def test_what_we_are_not_subscribed_to_has_no_echo(
    scripted: tuple[Bridge, ScriptedBroker, ScriptedBroker],
) -> None:
    bridge, local_broker, remote_broker = scripted
    await bridge.apply_routes(
        (
            Route(id="1", direction=Direction.TO_LOCAL, topic_filter="down/#"),
            Route(id="2", direction=Direction.TO_REMOTE, topic_filter="up/#"),
        )
    )
    await bridge.start()
    local, remote = await old_session(local_broker), await remote_broker.session()
    await wait_until(lambda: bridge.status.state is BridgeState.RUNNING, what="running")
    remote.publish("down/t", b"on", qos=0)
    await local.receive_publish()
    both = Route(id="3", direction=Direction.BOTH, topic_filter="down/#")
    await bridge.apply_routes((both,))
    local.publish("down/t", b"on", qos=0)
    assert (await remote.receive_publish()).payload == b"on"
