"""The bridge between two real brokers, over real QUIC."""

import asyncio
from collections.abc import AsyncIterator, Callable
import contextlib
from pathlib import Path

import pytest

from custom_components.quic_bridge.bridge.bridge import Bridge
from custom_components.quic_bridge.bridge.check import forget_session
from custom_components.quic_bridge.bridge.config import (
    BackoffConfig,
    BridgeConfig,
    BrokerConfig,
    QuicConfig,
    TlsConfig,
    TransportKind,
)
from custom_components.quic_bridge.bridge.errors import BridgeError, ErrorCode
from custom_components.quic_bridge.bridge.routes import Direction, Route
from custom_components.quic_bridge.bridge.status import BridgeState, BridgeStatus, LinkState, Side

from ..support.certs import Certificates
from ..support.client import Client
from ..support.front_process import FrontProcess
from ..support.mosquitto import Mosquitto
from ..support.packets import PacketType, Property
from ..support.processes import PATIENCE, wait_until
from ..support.quic_front import Front

ROUTES = (
    Route(id="up", direction=Direction.TO_REMOTE, topic_filter="up/#"),
    Route(id="down", direction=Direction.TO_LOCAL, topic_filter="down/#"),
    Route(id="both", direction=Direction.BOTH, topic_filter="both/#"),
)


class Running:
    """A bridge with its statuses, local TCP to remote QUIC."""

    def __init__(self, local: Mosquitto, remote: tuple[str, int], certs: Certificates, **quic: float) -> None:
        self.local = BrokerConfig(host=local.host, port=local.port, client_id="bridge")
        self.remote = BrokerConfig(
            host=remote[0],
            port=remote[1],
            client_id="bridge",
            transport=TransportKind.QUIC,
            tls=TlsConfig(ca=certs.ca_pem),
            quic=QuicConfig(**quic),  # type: ignore[arg-type] # timers only
        )
        self.statuses: list[BridgeStatus] = []
        self.error: BridgeError | None = None
        self.bridge = self.make()

    def make(self) -> Bridge:
        """Make the bridge (again)."""
        config = BridgeConfig(remote=self.remote, routes=ROUTES, backoff=BackoffConfig(base=0.05, cap=0.2))
        return Bridge(config, self._local, self.statuses.append)

    def _local(self) -> BrokerConfig:
        if self.error is not None:
            raise self.error
        return self.local

    async def until(self, condition: Callable[[BridgeStatus], object], timeout: float = PATIENCE) -> None:  # noqa: ASYNC109
        """Wait for a status."""
        await wait_until(lambda: condition(self.bridge.status), timeout, "bridge status")

    async def running(self) -> None:
        """Start, if it is not started, and wait until both sides are up."""
        await self.bridge.start()
        await self.until(lambda status: status.state is BridgeState.RUNNING)


@pytest.fixture
async def running(local_broker: Mosquitto, quic_front: Front, certs: Certificates) -> AsyncIterator[Running]:
    bridge = Running(local_broker, quic_front.address, certs)
    try:
        yield bridge
    finally:
        await bridge.bridge.stop()


@pytest.fixture
async def home(local_broker: Mosquitto) -> AsyncIterator[Client]:
    async with Client(local_broker.host, local_broker.port, client_id="home") as client:
        await client.subscribe("#", qos=2)
        yield client


@pytest.fixture
async def away(remote_broker: Mosquitto) -> AsyncIterator[Client]:
    async with Client(remote_broker.host, remote_broker.port, client_id="away") as client:
        await client.subscribe("#", qos=2)
        yield client


def payloads(client: Client, topic: str) -> list[bytes]:
    return [message.payload for message in client.messages if message.topic == topic]


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_messages_cross_both_ways(running: Running, home: Client, away: Client, qos: int) -> None:
    await running.running()
    await home.publish("up/a", b"up", qos, retain=True)
    await away.publish("down/a", b"down", qos, properties={Property.USER_PROPERTY: [("k", "v")]})
    await away.wait_for(lambda messages: any(message.topic == "up/a" for message in messages))
    await home.wait_for(lambda messages: any(message.topic == "down/a" for message in messages))
    [up] = [message for message in away.messages if message.topic == "up/a"]
    [down] = [message for message in home.messages if message.topic == "down/a"]
    assert (up.payload, up.qos) == (b"up", qos)
    assert (down.payload, down.qos) == (b"down", qos)
    assert down.properties[Property.USER_PROPERTY] == [("k", "v"), ("quic_bridge_path", "d")]
    async with Client(away.host, away.port) as later:
        await later.subscribe("up/#")
        await later.wait_for(1)
        assert later.messages[0].retain


async def test_a_topic_bridged_both_ways_does_not_loop(running: Running, home: Client, away: Client) -> None:
    await running.running()
    await home.publish("both/a", b"from home", 1)
    await away.publish("both/a", b"from away", 1)
    await away.wait_for(lambda messages: len(messages) >= 2)
    await home.wait_for(lambda messages: len(messages) >= 2)
    # What would loop comes before the markers.
    await home.publish("both/marker", b"", 1)
    await away.publish("both/marker", b"", 1)
    for client in (home, away):
        await client.wait_for(lambda messages: sum(item.topic == "both/marker" for item in messages) == 2)
        assert sorted(payloads(client, "both/a")) == [b"from away", b"from home"]


@pytest.mark.parametrize("qos", [1, 2])
async def test_a_burst_arrives_whole_and_in_order(running: Running, home: Client, away: Client, qos: int) -> None:
    await running.running()
    sent = [b"%05d" % number for number in range(2000)]
    await home.burst("up/burst", sent, qos)
    await away.wait_for(lambda messages: len(messages) >= len(sent))
    assert payloads(away, "up/burst") == sent


@pytest.mark.parametrize("qos", [1, 2])
async def test_a_killed_front_loses_nothing(
    local_broker: Mosquitto,
    remote_broker: Mosquitto,
    certs: Certificates,
    home: Client,
    away: Client,
    tmp_path: Path,
    qos: int,
) -> None:
    async with FrontProcess(tmp_path, remote_broker.address, certs.server) as front:
        running = Running(local_broker, front.address, certs, ping_interval=0.5, ping_timeout=0.5)
        try:
            await running.running()
            sent = [b"%05d" % number for number in range(3000)]
            burst = asyncio.create_task(home.burst("up/burst", sent, qos))
            for reached in (300, 1200):
                await away.wait_for(reached)
                await front.kill()
                await running.until(lambda status: status.remote.state is not LinkState.CONNECTED)
                assert running.bridge.status.local.state is LinkState.CONNECTED
                await front.start()
            await burst
            await wait_until(lambda: len(set(payloads(away, "up/burst"))) == len(sent), what="all messages")
            arrived = payloads(away, "up/burst")
            assert list(dict.fromkeys(arrived)) == sent
            if qos == 2:
                assert arrived == sent
            await running.running()
            assert running.bridge.status.remote.reconnects >= 2
        finally:
            await running.bridge.stop()


async def test_the_local_broker_restarts(running: Running, local_broker: Mosquitto, away: Client) -> None:
    await running.running()
    await local_broker.stop()
    await running.until(lambda status: status.state is BridgeState.LOCAL_DOWN)
    for number in range(20):
        await away.publish("down/a", b"%d" % number, 1)
    await local_broker.start()
    async with Client(local_broker.host, local_broker.port) as home:
        await home.subscribe("down/#", qos=1)
        await running.running()
        # What waits for the bridge's return may cross before this client has subscribed, so ask for one more.
        await away.publish("down/a", b"last", 1)
        await home.wait_for(lambda messages: messages and messages[-1].payload == b"last")


async def test_status_of_a_remote_that_was_never_there(
    local_broker: Mosquitto, certs: Certificates, home: Client
) -> None:
    running = Running(local_broker, ("127.0.0.1", 9), certs)
    try:
        await running.bridge.start()
        await running.until(lambda status: status.remote.state is LinkState.WAITING)
        await home.publish("up/a", b"waits", 1)
        await running.until(lambda status: status.outbound.waiting == 1)
        status = running.bridge.status
        assert status.state is BridgeState.REMOTE_DOWN
        assert status.remote.error is not None
        assert status.remote.error.code is ErrorCode.REFUSED
        assert status.remote.next_attempt is not None
    finally:
        await running.bridge.stop()
    assert running.bridge.status.state is BridgeState.STOPPED


async def test_the_status_does_not_flap_during_an_outage(running: Running, quic_front: Front) -> None:
    await running.running()
    quic_front.die()
    await running.until(lambda status: status.remote.attempts >= 4)
    await quic_front.start()
    await running.running()
    states = [status.state for status in running.statuses]
    changes = [state for index, state in enumerate(states) if index == 0 or state is not states[index - 1]]
    assert changes == [BridgeState.CONNECTING, BridgeState.RUNNING, BridgeState.REMOTE_DOWN, BridgeState.RUNNING]


async def test_stop_says_goodbye(running: Running, quic_front: Front) -> None:
    await running.running()
    await running.bridge.stop()
    await running.bridge.stop()
    await wait_until(lambda: quic_front.stats.closes, what="CONNECTION_CLOSE")
    assert quic_front.stats.disconnects == [0]
    assert [close.error_code for close in quic_front.stats.closes] == [0]
    assert running.statuses[-1].state is BridgeState.STOPPED


async def test_settings_that_cannot_be_had_are_asked_for_again(running: Running) -> None:
    running.error = BridgeError(ErrorCode.LOCAL_ENTRY_MISSING, "no MQTT entry")
    await running.bridge.start()
    await running.until(lambda status: status.local.state is LinkState.REFUSED)
    assert running.bridge.status.state is BridgeState.REFUSED
    running.error = None
    running.bridge.reconnect(Side.LOCAL)
    await running.running()


async def test_reconnect_on_request(running: Running, quic_front: Front) -> None:
    await running.running()
    running.bridge.reconnect(Side.REMOTE)
    await running.until(lambda status: status.remote.reconnects == 1 and status.state is BridgeState.RUNNING)
    assert running.bridge.status.local.reconnects == 0
    await wait_until(lambda: quic_front.stats.from_client[PacketType.SUBSCRIBE] == 2, what="second SUBSCRIBE")


async def test_two_bridges_do_not_disturb_each_other(
    local_broker: Mosquitto, quic_front: Front, certs: Certificates, home: Client, away: Client
) -> None:
    first, second = Running(local_broker, quic_front.address, certs), Running(local_broker, quic_front.address, certs)
    second.local = BrokerConfig(host=local_broker.host, port=local_broker.port, client_id="other")
    async with contextlib.AsyncExitStack() as stack:
        for running in (first, second):
            stack.push_async_callback(running.bridge.stop)
        await first.running()
        await first.bridge.stop()
        await second.running()
        await home.publish("up/a", b"by the second", 1)
        await away.wait_for(1)


async def test_a_broker_forgets_the_session_of_a_bridge_that_is_removed(running: Running, home: Client) -> None:
    await running.running()
    await running.bridge.stop()
    await forget_session(running.local)
    await forget_session(running.remote)
    running.bridge = running.make()
    await running.running()
    status = running.bridge.status
    assert (status.local.session_present, status.remote.session_present) == (False, False)
    await home.publish("up/a", b"still crosses", 1)
    await running.until(lambda status: status.outbound.forwarded == 1)


async def test_a_session_is_found_again(running: Running) -> None:
    await running.running()
    await running.bridge.stop()
    running.bridge = running.make()
    await running.running()
    status = running.bridge.status
    assert (status.local.session_present, status.remote.session_present) == (True, True)
