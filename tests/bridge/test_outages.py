"""Long outages: what the remote misses goes to disk and arrives later, whole and in order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
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
from custom_components.quic_bridge.bridge.outbox_model import OutboxFault, OutboxLimits, OutboxPolicy
from custom_components.quic_bridge.bridge.routes import Direction, Qos0Policy, Route
from custom_components.quic_bridge.bridge.status import BridgeState, BridgeStatus, DropReason, OutboxStatus

from ..support.certs import Certificates
from ..support.client import Client
from ..support.mosquitto import Mosquitto, MosquittoOptions
from ..support.packets import Property
from ..support.processes import wait_until
from ..support.quic_front import Front


class Home:
    """A bridge with an Outbox, the brokers' clients and the front at hand."""

    def __init__(self, local: Mosquitto, front: Front, certs: Certificates, folder: Path) -> None:
        self.local = local
        self.front = front
        self.path = folder / "outbox.db"
        self.outbox = OutboxConfig(path=self.path, delay=0.1)
        self.routes: tuple[Route, ...] = (
            Route(id="up", direction=Direction.TO_REMOTE, topic_filter="up/#"),
            Route(id="latest", direction=Direction.BOTH, topic_filter="latest/#", qos_0=Qos0Policy.LATEST),
            Route(id="queue", direction=Direction.BOTH, topic_filter="queue/#", qos_0=Qos0Policy.QUEUE),
        )
        self.remote_config = BrokerConfig(
            host=front.host,
            port=front.port,
            client_id="bridge",
            transport=TransportKind.QUIC,
            tls=TlsConfig(ca=certs.ca_pem),
            quic=QuicConfig(ping_interval=1.0),
        )
        self.statuses: list[BridgeStatus] = []
        self.bridge = self.make()

    def make(self) -> Bridge:
        """Make the bridge (again), as after a restart."""
        config = BridgeConfig(
            remote=self.remote_config,
            routes=self.routes,
            backoff=BackoffConfig(base=0.05, cap=0.2),
            outbox=self.outbox,
        )
        local = BrokerConfig(host=self.local.host, port=self.local.port, client_id="bridge")
        return Bridge(config, lambda: local, self.statuses.append)

    @property
    def box(self) -> OutboxStatus:
        """Figures of the Outbox."""
        outbox = self.bridge.status.outbox
        assert outbox is not None
        return outbox

    async def running(self) -> None:
        """Wait until both sides are up."""
        await wait_until(lambda: self.bridge.status.state is BridgeState.RUNNING, what="running")

    async def remote_gone(self) -> None:
        """Take the remote away, without a word."""
        self.front.die()
        await wait_until(lambda: self.bridge.status.state is BridgeState.REMOTE_DOWN, what="remote down")

    async def restart(self) -> None:
        """Stop the bridge and start another on the same file."""
        await self.bridge.stop()
        self.bridge = self.make()
        await self.bridge.start()

    async def stored(self, number: int) -> None:
        """Wait until so many messages are on disk."""
        await wait_until(lambda: (self.box.messages or 0) >= number, what=f"{number} messages on disk")

    async def empty(self) -> None:
        """Wait until nothing is left on disk or on its way."""
        await wait_until(lambda: not self.box.messages and not self.bridge.status.outbound.waiting, what="empty Outbox")


@pytest.fixture
async def home(local_broker: Mosquitto, quic_front: Front, certs: Certificates, tmp_path: Path) -> AsyncIterator[Home]:
    home = Home(local_broker, quic_front, certs, tmp_path)
    try:
        yield home
    finally:
        await home.bridge.stop()


@pytest.fixture
async def source(local_broker: Mosquitto) -> AsyncIterator[Client]:
    async with Client(local_broker.host, local_broker.port) as client:
        yield client


@pytest.fixture
async def sink(remote_broker: Mosquitto) -> AsyncIterator[Client]:
    async with Client(remote_broker.host, remote_broker.port) as client:
        await client.subscribe("#", qos=2)
        yield client


def numbered(number: int, start: int = 0) -> list[bytes]:
    return [b"%06d" % item for item in range(start, start + number)]


@pytest.mark.parametrize("qos", [1, 2])
async def test_more_messages_than_the_local_broker_would_keep(
    quic_front: Front, certs: Certificates, tmp_path: Path, sink: Client, qos: int
) -> None:
    # A broker as it comes: it queues 1000 messages for us and drops silently above that.
    async with (
        Mosquitto(tmp_path / "small", MosquittoOptions(), name="small") as broker,
        Client(broker.host, broker.port) as source,
    ):
        home = Home(broker, quic_front, certs, tmp_path)
        try:
            await home.bridge.start()
            await home.running()
            await source.burst("up/a", numbered(100), qos)
            await sink.wait_for(100)
            await home.remote_gone()
            for start in range(0, 2000, 400):
                await source.burst("up/a", numbered(400, 100 + start), qos)
                await home.stored(start + 400)
            await home.front.start()
            await wait_until(lambda: len(set(sink.payloads)) == 2100, what="all messages")
            # New messages queue behind what waited.
            await source.burst("up/a", numbered(500, 2100), qos)
            await wait_until(lambda: len(set(sink.payloads)) == 2600, what="all messages")
            await home.empty()
            # The remote died with acknowledgements on their way: QoS 1 may repeat those messages.
            assert list(dict.fromkeys(sink.payloads)) == numbered(2600)
            assert len(sink.payloads) == 2600 or qos == 1
            assert home.bridge.status.outbound.dropped == {}
        finally:
            await home.bridge.stop()


@pytest.mark.parametrize("qos", [1, 2])
async def test_messages_under_way_when_the_remote_goes(home: Home, source: Client, sink: Client, qos: int) -> None:
    await home.bridge.start()
    await home.running()
    burst = asyncio.create_task(source.burst("up/a", numbered(3000), qos))
    await sink.wait_for(500)
    await home.remote_gone()
    await burst
    await home.stored(1)
    await wait_until(lambda: not home.bridge.status.outbound.waiting, what="all on disk")
    await home.front.start()
    await wait_until(lambda: len(set(sink.payloads)) == 3000, what="all messages")
    await home.empty()
    assert list(dict.fromkeys(sink.payloads)) == numbered(3000)
    if qos == 2:
        assert len(sink.payloads) == 3000


@pytest.mark.parametrize("qos", [1, 2])
async def test_a_restart_during_the_outage_and_one_during_the_drain(
    home: Home, source: Client, sink: Client, qos: int
) -> None:
    await home.bridge.start()
    await home.running()
    await home.remote_gone()
    await source.burst("up/a", numbered(1500), qos)
    await home.stored(1500)
    await home.restart()
    await source.burst("up/a", numbered(1500, 1500), qos)
    await home.stored(3000)
    await home.front.start()
    await sink.wait_for(200)
    await home.restart()
    await wait_until(lambda: len(set(sink.payloads)) == 3000, what="all messages")
    await home.empty()
    assert list(dict.fromkeys(sink.payloads)) == numbered(3000)
    if qos == 2:
        assert len(sink.payloads) == 3000


async def test_the_remote_goes_again_and_again_while_the_outbox_drains(
    home: Home, source: Client, sink: Client
) -> None:
    await home.bridge.start()
    await home.running()
    await home.remote_gone()
    await source.burst("up/a", numbered(3000), 2)
    await home.stored(3000)
    for reached in (300, 900, 1800):
        await home.front.start()
        await sink.wait_for(reached)
        await home.remote_gone()
        await source.burst("up/b", numbered(10, reached), 2)
    await home.front.start()
    await wait_until(lambda: len(sink.payloads) == 3030, what="all messages")
    await home.empty()
    assert [message.payload for message in sink.messages if message.topic == "up/a"] == numbered(3000)


async def test_qos_0_while_the_remote_is_away(home: Home, source: Client, sink: Client) -> None:
    await home.bridge.start()
    await home.running()
    await home.remote_gone()
    for number in range(3):
        for topic in ("up/a", "latest/a", "latest/b", "queue/a"):
            await source.publish(topic, b"%d" % number, 0)
    await source.publish("up/last", b"", 1)
    await home.stored(6)
    await wait_until(lambda: not home.bridge.status.outbound.waiting, what="all on disk")
    await home.front.start()
    await sink.wait_for(lambda messages: any(message.topic == "up/last" for message in messages))
    arrived = sorted((message.topic, message.payload) for message in sink.messages)
    assert arrived == [
        ("latest/a", b"2"),
        ("latest/b", b"2"),
        ("queue/a", b"0"),
        ("queue/a", b"1"),
        ("queue/a", b"2"),
        ("up/last", b""),
    ]
    dropped = home.bridge.status.outbound.dropped
    assert dropped[DropReason.DISCONNECTED] == 3
    assert dropped[DropReason.REPLACED] == 4


async def test_bounds_are_kept_and_counted(home: Home, source: Client, sink: Client) -> None:
    home.outbox = replace(home.outbox, limits=OutboxLimits(messages=100))
    home.bridge = home.make()
    await home.bridge.start()
    await home.running()
    await home.remote_gone()
    await source.burst("up/a", numbered(250), 1)
    full = {DropReason.OUTBOX_FULL: 150}
    await wait_until(lambda: home.bridge.status.outbound.dropped == full, what="what is over the bound")
    await wait_until(lambda: not home.bridge.status.outbound.waiting, what="all on disk")
    assert home.box.messages == 100
    await home.front.start()
    await sink.wait_for(100)
    await home.empty()
    assert sink.payloads == numbered(100, 150)
    assert home.bridge.status.outbound.dropped == full


async def test_an_outbox_that_refuses_leaves_the_rest_to_the_broker(home: Home, source: Client, sink: Client) -> None:
    home.outbox = replace(home.outbox, limits=OutboxLimits(messages=100, policy=OutboxPolicy.REFUSE))
    home.bridge = home.make()
    await home.bridge.start()
    await home.running()
    await home.remote_gone()
    await source.burst("up/a", numbered(250), 1)
    await wait_until(lambda: home.box.fault is OutboxFault.FULL, what="full")
    await home.front.start()
    await sink.wait_for(250)
    assert sink.payloads == numbered(250)
    await wait_until(lambda: home.box.fault is None, what="mended")


async def test_message_expiry(home: Home, source: Client, sink: Client) -> None:
    await home.bridge.start()
    await home.running()
    await home.remote_gone()
    began = time.time()
    await source.publish("up/short", b"", 1, properties={Property.MESSAGE_EXPIRY: 3})
    await source.publish("up/long", b"", 1, properties={Property.MESSAGE_EXPIRY: 100})
    await home.stored(2)
    oldest = home.box.oldest
    assert oldest is not None
    await wait_until(lambda: time.time() > oldest.timestamp() + 3.1, what="expiry")
    await home.front.start()
    await sink.wait_for(1)
    await home.empty()
    [message] = sink.messages
    assert message.topic == "up/long"
    left = (message.properties or {})[Property.MESSAGE_EXPIRY]
    assert isinstance(left, int)
    # Whole seconds, of which both brokers may take one.
    assert 100 - (time.time() - began) - 3 < left <= 97
    assert home.bridge.status.outbound.dropped == {DropReason.EXPIRED: 1}


async def test_a_disk_that_cannot_be_written_loses_nothing(home: Home, source: Client, sink: Client) -> None:
    home.path.mkdir()  # a folder where the file should be
    await home.bridge.start()
    await home.running()
    assert home.box.fault is not None
    await home.remote_gone()
    await source.burst("up/a", numbered(300), 1)
    await wait_until(lambda: home.bridge.status.outbound.waiting == 300, what="held in memory")
    await home.front.start()
    await sink.wait_for(300)
    assert sink.payloads == numbered(300)


async def test_a_short_outage_leaves_the_disk_alone(home: Home, source: Client, sink: Client) -> None:
    home.outbox = replace(home.outbox, delay=60.0)
    home.bridge = home.make()
    await home.bridge.start()
    await home.running()
    await home.remote_gone()
    await source.burst("up/a", numbered(100), 1)
    await home.front.start()
    await sink.wait_for(100)
    assert sink.payloads == numbered(100)
    assert all(status.outbox is None or not status.outbox.messages for status in home.statuses)


async def test_two_bridges_have_two_files(home: Home, certs: Certificates, tmp_path: Path) -> None:
    second = Home(home.local, home.front, certs, tmp_path)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(second.bridge.stop)
        await home.bridge.start()
        await second.bridge.start()
        assert home.box.fault is None
        assert second.box.fault is OutboxFault.IN_USE
