"""The status topic at both brokers: what it says, when, and that nothing else says it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import pairwise
import logging
from pathlib import Path

import pytest

from custom_components.quic_bridge.bridge.bridge import Bridge
from custom_components.quic_bridge.bridge.check import check_broker, forget_session
from custom_components.quic_bridge.bridge.config import (
    BackoffConfig,
    BridgeConfig,
    BrokerConfig,
    OutboxConfig,
    PresenceConfig,
    TransportKind,
)
from custom_components.quic_bridge.bridge.errors import ErrorCode
from custom_components.quic_bridge.bridge.routes import Direction, Route
from custom_components.quic_bridge.bridge.status import BridgeState, DropReason, LinkState

from ..support.bridge_process import BridgeProcess, BridgeSettings
from ..support.certs import Certificates
from ..support.client import Client
from ..support.mosquitto import Mosquitto
from ..support.packets import PacketType, Properties, Property, Publish, Will
from ..support.processes import wait_until
from ..support.quic_front import Front
from ..support.scripted_broker import ScriptedBroker, ScriptedConnection, between_brokers
from .link_support import QUICK, BridgeScene

LOCAL, REMOTE = "state/of/remote", "state/of/home"
PRESENCE = PresenceConfig(local_topic=LOCAL, remote_topic=REMOTE, will_delay=1)
EVERYTHING = (Route(id="1", direction=Direction.BOTH, topic_filter="#"),)
DISCONNECT = b"\xe0\x00"


# --- packet by packet -------------------------------------------------------------------------------------------------


class Wire:
    """A bridge between two scripted brokers that know nothing of state but what they are sent."""

    def __init__(self, local: ScriptedBroker, remote: ScriptedBroker) -> None:
        self.local = local
        self.remote = remote
        self.bridge = self._make()

    def _make(self) -> Bridge:
        def config(broker: ScriptedBroker) -> BrokerConfig:
            return BrokerConfig(host="127.0.0.1", port=broker.port, client_id="bridge")

        settings = BridgeConfig(
            remote=config(self.remote),
            routes=EVERYTHING,
            backoff=BackoffConfig(base=0.01, cap=0.05, refused_base=0.05, refused_cap=0.1),
            presence=PRESENCE,
        )
        return Bridge(settings, lambda: config(self.local), lambda _: None)

    async def connect(self) -> tuple[ScriptedConnection, ScriptedConnection]:
        """Bring the local side up first, then the remote; take what was said of it."""
        await self.bridge.start()
        local = await self.local.session()
        await said(local, LOCAL, "offline")
        await wait_until(lambda: self.bridge.status.local.state is LinkState.CONNECTED, what="local side")
        remote = await self.remote.session()
        await said(remote, REMOTE, "online")
        await said(local, LOCAL, "online")
        return local, remote


@pytest.fixture
async def wire(socket_enabled: None) -> AsyncIterator[Wire]:
    async with between_brokers(Wire) as wire:
        yield wire


async def said(connection: ScriptedConnection, topic: str, payload: str) -> None:
    """Take the next packet, which must be this state."""
    properties: Properties | None = {} if connection.v5 else None
    wanted = Publish(topic=topic, payload=payload.encode(), retain=True, properties=properties)
    assert await connection.receive_publish() == wanted


async def test_before_anything_else(wire: Wire) -> None:
    """Also before messages that are sent again, and the Will says the opposite."""
    local, remote = await wire.connect()
    assert remote.connect.will == Will(
        topic=REMOTE, payload=b"offline", qos=0, retain=True, properties={Property.WILL_DELAY: 1}
    )
    assert local.connect.will is not None
    assert local.connect.will.topic == LOCAL
    local.publish("t", b"1", mid=1)
    assert (await remote.receive_publish()).payload == b"1"
    await remote.close()
    await said(local, LOCAL, "offline")
    remote = await wire.remote.session(session_present=True)
    await said(remote, REMOTE, "online")
    assert (await remote.receive_publish()).dup
    await said(local, LOCAL, "online")


async def test_online_means_that_messages_cross(wire: Wire) -> None:
    """Not before SUBACK, and not at the remote while the local broker is away."""
    local, remote = await wire.connect()
    await local.close()
    await said(remote, REMOTE, "offline")
    await remote.close()
    remote = await wire.remote.session()
    await said(remote, REMOTE, "offline")
    local = await wire.local.accept()
    await local.handshake()
    await said(local, LOCAL, "online")
    await local.subscribed()
    await said(remote, REMOTE, "online")


async def test_flapping_says_each_state_once(wire: Wire) -> None:
    local, remote = await wire.connect()
    for _ in range(3):
        await remote.close()
        await said(local, LOCAL, "offline")
        for _ in range(3):  # attempts that fail are the same state still
            await (await wire.remote.accept()).close()
        remote = await wire.remote.session()
        await said(remote, REMOTE, "online")
        await said(local, LOCAL, "online")
    remote.publish("t", b"last", qos=0)
    assert (await local.receive_publish()).payload == b"last"


async def test_an_orderly_stop(wire: Wire) -> None:
    local, remote = await wire.connect()
    await wire.bridge.stop()
    for connection, topic in ((local, LOCAL), (remote, REMOTE)):
        await said(connection, topic, "offline")
        assert await connection.receive() == DISCONNECT
        with pytest.raises(EOFError):
            await connection.receive()


async def test_another_topic_takes_its_place(wire: Wire) -> None:
    """The retained message of the old one is taken away; that of a topic that stays is not."""
    local, remote = await wire.connect()
    wire.bridge.retire_presence(PresenceConfig(local_topic="other", remote_topic=REMOTE))
    await wire.bridge.stop()
    said_locally = [await local.receive_publish()]
    while (packet := await local.receive()) != DISCONNECT:
        said_locally.append(Publish.decode(packet, v5=True))
    assert (said_locally[-1].topic, said_locally[-1].payload, said_locally[-1].retain) == (LOCAL, b"", True)
    await said(remote, REMOTE, "offline")


async def test_a_broker_that_refuses_the_will(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """Connected without, at once, and said; a broker that has taken it is not doubted later."""
    await wire.bridge.start()
    refused = await wire.remote.accept()
    assert refused.connect.will is not None
    await refused.handshake(code=0x87)
    remote = await wire.remote.session()
    assert remote.connect.will is None
    await wait_until(lambda: wire.bridge.status.remote.state is LinkState.CONNECTED, what="remote side")
    local = await wire.local.session()
    await said(local, LOCAL, "online")
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert REMOTE in warning
    remote.publish("t", b"1", qos=0)
    assert (await local.receive_publish()).payload == b"1"
    local.publish("t", b"2", qos=0)
    assert (await remote.receive_publish()).payload == b"2"
    assert wire.bridge.status.remote.error is None

    await local.close()
    local = await wire.local.accept()
    await local.handshake(code=0x87)
    await wait_until(lambda: wire.bridge.status.local.state is LinkState.REFUSED, what="refused")
    assert (await wire.local.accept()).connect.will is not None


async def test_wrong_credentials_are_not_tried_twice_as_often(wire: Wire) -> None:
    await wire.bridge.start()
    wills = []
    for _ in range(5):
        connection = await wire.remote.accept()
        wills.append(connection.connect.will is not None)
        await connection.handshake(code=0x87)
    error = wire.bridge.status.remote.error
    assert error is not None
    assert error.code is ErrorCode.NOT_AUTHORIZED
    # The second came at once; without the Will it was the same, so it is not the reason.
    assert wills == [True, False, True, True, True]


async def test_a_broker_that_retains_nothing(wire: Wire) -> None:
    await wire.bridge.start()
    local = await wire.local.session(properties={Property.RETAIN_AVAILABLE: 0})
    remote = await wire.remote.session()
    await wait_until(lambda: wire.bridge.status.state is BridgeState.RUNNING, what="running")
    remote.publish("t", b"1", qos=0)
    assert (await local.receive_publish()).payload == b"1"


async def test_mqtt_3_1_1(wire: Wire) -> None:
    await wire.bridge.start()
    await (await wire.remote.accept()).handshake(code=0x84)
    remote = await wire.remote.session()
    assert remote.connect.will == Will(topic=REMOTE, payload=b"offline", qos=0, retain=True)
    await remote.receive_publish()
    local = await wire.local.session()
    await said(remote, REMOTE, "online")
    await wire.bridge.stop()
    await said(remote, REMOTE, "offline")
    assert local.v5


async def test_it_never_crosses(wire: Wire) -> None:
    """Neither way, not by a route for everything; and nothing that crosses becomes it."""
    local, remote = await wire.connect()
    for source, target, ours, theirs in ((local, remote, LOCAL, REMOTE), (remote, local, REMOTE, LOCAL)):
        source.publish(ours, b"ours", mid=1)
        await source.expect(PacketType.PUBACK, 1)
        source.publish(theirs, b"forged", mid=2)
        await source.expect(PacketType.PUBACK, 2)
        await source.barrier(target)
    status = wire.bridge.status
    assert status.outbound.dropped == status.inbound.dropped == {DropReason.NO_ROUTE: 1}


# --- between brokers --------------------------------------------------------------------------------------------------


async def test_a_bridge_that_is_killed(local_broker: Mosquitto, remote_broker: Mosquitto, tmp_path: Path) -> None:
    """With kill -9: both brokers say it, and what they say again when it is back."""
    settings = BridgeSettings(
        local=local_broker.address,
        remote=remote_broker.address,
        ca_file="",
        transport="tcp",
        routes=(("both", "#"),),
        presence={"local_topic": LOCAL, "remote_topic": REMOTE, "will_delay": 1},
    )
    process = BridgeProcess(tmp_path, settings)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(process.stop)
        await process.start()
        home = await stack.enter_async_context(Client(*local_broker.address))
        away = await stack.enter_async_context(Client(*remote_broker.address))
        for client, topic in ((home, LOCAL), (away, REMOTE)):
            await client.subscribe(topic)
            await client.wait_for(lambda messages: messages and messages[-1].payload == b"online")
        await process.kill()
        for client in (home, away):
            await client.wait_for(lambda messages: messages[-1].payload == b"offline")
        await process.start()
        for client in (home, away):
            await client.wait_for(lambda messages: messages[-1].payload == b"online")
        async with Client(*remote_broker.address) as later:
            await later.subscribe("#")
            await later.wait_for(1)
            assert [(item.topic, item.payload, item.retain) for item in later.messages] == [(REMOTE, b"online", True)]


async def test_through_an_outage(
    local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates, tmp_path: Path
) -> None:
    """Nothing old comes after the outage (mosquitto#2097), and home knows of it while it lasts (mosquitto#2467)."""
    scene = BridgeScene(local_broker, remote_broker, quic_front.address, certs, tmp_path)
    scene.tune(QUICK)
    scene.routes = EVERYTHING
    scene.presence = PRESENCE
    scene.outbox = OutboxConfig(path=scene.outbox_path, delay=0.0)
    home, away = scene.clients()
    async with home, away:
        await home.subscribe(LOCAL)
        await away.subscribe("#", qos=1)
        await scene.running()
        await home.wait_for(lambda messages: messages[-1].payload == b"online")
        quic_front.die()
        await home.wait_for(lambda messages: messages[-1].payload == b"offline")
        await away.wait_for(lambda messages: messages[-1].payload == b"offline")
        for number in range(20):
            await home.publish("t", b"%d" % number, 1)
        await wait_until(lambda: scene.box.messages == 20, what="all in the Outbox")
        away.messages.clear()
        await quic_front.start()
        await away.wait_for(21)
        assert [item.payload for item in away.messages if item.topic == REMOTE] == [b"online"]
        assert away.messages[0].topic == REMOTE
        await home.wait_for(lambda messages: messages[-1].payload == b"online")
        said_at_home = [item.payload for item in home.messages]
        assert all(one != other for one, other in pairwise(said_at_home))
    await scene.bridge.stop()


async def test_a_visit_says_nothing_and_a_removal_takes_it_away(
    running_bridge: Bridge, remote_broker: Mosquitto
) -> None:
    config = BrokerConfig(host=remote_broker.host, port=remote_broker.port, client_id="bridge")
    async with Client(*remote_broker.address) as away:
        await away.subscribe("#")
        await away.wait_for(1)
        await check_broker(config)
        await away.ping()
        assert away.payloads == [b"online"]
        await running_bridge.stop()
        await away.wait_for(2)
        await forget_session(config, REMOTE)
        await away.wait_for(3)
        assert away.payloads == [b"online", b"offline", b""]
        async with Client(*remote_broker.address) as later:
            await later.subscribe("#")
            await later.ping()
            assert later.messages == []


@pytest.fixture
async def running_bridge(local_broker: Mosquitto, remote_broker: Mosquitto) -> AsyncIterator[Bridge]:
    """A bridge between two mosquittos that is up."""

    def config(broker: Mosquitto) -> BrokerConfig:
        return BrokerConfig(host=broker.host, port=broker.port, client_id="bridge", transport=TransportKind.TCP)

    bridge = Bridge(
        BridgeConfig(remote=config(remote_broker), routes=EVERYTHING, presence=PRESENCE),
        lambda: config(local_broker),
        lambda _: None,
    )
    try:
        await bridge.start()
        await wait_until(lambda: bridge.status.state is BridgeState.RUNNING, what="running")
        yield bridge
    finally:
        await bridge.stop()
