"""What MQTT 5 adds to a message, between real brokers: requests and their answers, deletes, times and types."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from custom_components.quic_bridge.bridge.bridge import Bridge
from custom_components.quic_bridge.bridge.config import BackoffConfig, BridgeConfig, BrokerConfig, OutboxConfig
from custom_components.quic_bridge.bridge.routes import Direction, Route
from custom_components.quic_bridge.bridge.status import BridgeState, DropReason

from ..support.client import Client
from ..support.mosquitto import Mosquitto
from ..support.packets import Properties, Property
from ..support.processes import wait_until

ROUTES = (
    Route(id="rpc", direction=Direction.BOTH, topic_filter="rpc/#", target="site/7/rpc/{1}"),
    Route(id="state", direction=Direction.BOTH, topic_filter="state/#"),
    Route(id="brief", direction=Direction.TO_REMOTE, topic_filter="brief/#", max_age=100),
)


@pytest.fixture
async def bridge(local_broker: Mosquitto, remote_broker: Mosquitto, tmp_path: Path) -> AsyncIterator[Bridge]:
    """A bridge with an Outbox that takes over at once."""

    def config(broker: Mosquitto) -> BrokerConfig:
        return BrokerConfig(host=broker.host, port=broker.port, client_id="bridge")

    bridge = Bridge(
        BridgeConfig(
            remote=config(remote_broker),
            routes=ROUTES,
            backoff=BackoffConfig(base=0.05, cap=0.1),
            outbox=OutboxConfig(path=tmp_path / "outbox.db", delay=0.0),
        ),
        lambda: config(local_broker),
        lambda _: None,
    )
    try:
        await bridge.start()
        await wait_until(lambda: bridge.status.state is BridgeState.RUNNING, what="running")
        yield bridge
    finally:
        await bridge.stop()


@pytest.fixture
async def home(local_broker: Mosquitto) -> AsyncIterator[Client]:
    async with Client(*local_broker.address) as client:
        yield client


async def waiting_on_disk(bridge: Bridge, number: int) -> None:
    """Wait until so many messages are in the Outbox."""

    def stored() -> bool:
        outbox = bridge.status.outbox
        return outbox is not None and outbox.messages == number

    await wait_until(stored, what="messages in the Outbox")


@pytest.mark.parametrize("asked_at_home", [True, False], ids=["from-home", "from-away"])
async def test_a_request_and_its_response(
    bridge: Bridge, home: Client, remote_broker: Mosquitto, *, asked_at_home: bool
) -> None:
    """The responder knows nothing of the bridge: it answers where the request says, with what the request has."""
    async with Client(*remote_broker.address) as away:
        prefixes = ("rpc", "site/7/rpc") if asked_at_home else ("site/7/rpc", "rpc")
        asker, responder = (home, away) if asked_at_home else (away, home)
        await asker.subscribe(f"{prefixes[0]}/answers/+", qos=1)
        await responder.subscribe(f"{prefixes[1]}/add", qos=1)
        asked: Properties = {
            Property.RESPONSE_TOPIC: f"{prefixes[0]}/answers/42",
            Property.CORRELATION_DATA: b"\x00\xff",
            Property.CONTENT_TYPE: "application/json",
            Property.PAYLOAD_FORMAT: 1,
            Property.MESSAGE_EXPIRY: 60,
        }
        await asker.publish(f"{prefixes[0]}/add", b"[1, 2]", 1, properties=asked)
        [request] = await responder.wait_for(1)
        got = dict(request.properties)
        assert got.pop(Property.MESSAGE_EXPIRY) in {59, 60}
        assert got.pop(Property.USER_PROPERTY) == [("quic_bridge_path", "u" if asked_at_home else "d")]
        answer_to = got.pop(Property.RESPONSE_TOPIC)
        assert got == {
            Property.CORRELATION_DATA: b"\x00\xff",
            Property.CONTENT_TYPE: "application/json",
            Property.PAYLOAD_FORMAT: 1,
        }
        assert answer_to == f"{prefixes[1]}/answers/42"
        await responder.publish(
            str(answer_to), b"3", 1, properties={Property.CORRELATION_DATA: got[Property.CORRELATION_DATA]}
        )
        [answer] = await asker.wait_for(1)
        assert (answer.topic, answer.payload) == (f"{prefixes[0]}/answers/42", b"3")
        assert answer.properties[Property.CORRELATION_DATA] == b"\x00\xff"


async def test_names_that_would_be_too_long(bridge: Bridge, home: Client, remote_broker: Mosquitto) -> None:
    """A new name has to fit into a packet, too: else that message alone does not cross."""
    long = f"rpc/{'x' * 65_530}"
    async with Client(*remote_broker.address) as away:
        await away.subscribe("site/#", qos=1)
        await home.publish(long, b"", 1)
        await home.publish("rpc/a", b"", 1, properties={Property.RESPONSE_TOPIC: long})
        [message] = await away.wait_for(1)
    assert message.topic == "site/7/rpc/a"
    assert message.properties[Property.RESPONSE_TOPIC] == long
    assert bridge.status.outbound.dropped == {DropReason.NO_ROUTE: 1}
    assert bridge.status.local.reconnects == 0


async def test_retained_messages_are_deleted_on_the_other_side(
    bridge: Bridge, home: Client, remote_broker: Mosquitto
) -> None:
    """Both ways, while both are there."""
    async with Client(*remote_broker.address) as away:
        await home.publish("state/a", b"on", 1, retain=True)
        await away.publish("state/b", b"on", 1, retain=True)
        for client in (home, away):
            await client.subscribe("state/#", qos=1)
            await client.wait_for(2)
        await home.publish("state/a", b"", 1, retain=True)
        await away.publish("state/b", b"", 1, retain=True)
        for client in (home, away):
            await client.wait_for(4)
            assert {message.topic: message.payload for message in client.messages} == {"state/a": b"", "state/b": b""}
            async with Client(client.host, client.port) as later:
                await later.subscribe("state/#")
                await later.ping()
                assert later.messages == []
    assert bridge.status.outbound.dropped == bridge.status.inbound.dropped == {}


async def test_a_delete_waits_for_the_remote(bridge: Bridge, home: Client, remote_broker: Mosquitto) -> None:
    """A message retained there before the outage, deleted during it: through the Outbox, with its retain flag."""
    await home.publish("state/a", b"on", 1, retain=True)
    await wait_until(lambda: bridge.status.outbound.forwarded == 1, what="forwarded")
    await remote_broker.stop()
    await wait_until(lambda: bridge.status.state is BridgeState.REMOTE_DOWN, what="remote down")
    await home.publish("state/a", b"", 1, retain=True)
    await waiting_on_disk(bridge, 1)
    await remote_broker.start()
    await wait_until(lambda: bridge.status.outbound.forwarded == 2, what="forwarded")
    async with Client(*remote_broker.address) as later:
        await later.subscribe("#")
        await later.ping()
        assert later.messages == []


async def test_what_a_route_lets_wait_is_not_how_long_a_message_lives(
    bridge: Bridge, home: Client, remote_broker: Mosquitto
) -> None:
    """The Message Expiry Interval goes on with the time spent here taken off, however short a route's patience is."""
    away = Client(*remote_broker.address, client_id="away", clean=False)
    async with away:
        await away.subscribe("brief/#", qos=1)
    await remote_broker.stop()
    await wait_until(lambda: bridge.status.state is BridgeState.REMOTE_DOWN, what="remote down")
    await home.publish("brief/a", b"x", 1, properties={Property.MESSAGE_EXPIRY: 10_000})
    await home.publish("brief/b", b"x", 1, properties={Property.MESSAGE_EXPIRY: 50})
    await home.publish("brief/c", b"x", 1)
    await waiting_on_disk(bridge, 3)
    await remote_broker.start()
    async with away:
        await away.wait_for(3)
    long, short, none = (message.properties.get(Property.MESSAGE_EXPIRY) for message in away.messages)
    assert isinstance(long, int)
    assert isinstance(short, int)
    assert 9_900 < long <= 10_000
    assert 0 < short <= 50
    assert none is None
