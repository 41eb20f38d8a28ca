"""Subscriptions that overlap: of each message that the source sends once for each of them, one copy crosses."""

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from hypothesis import given, strategies as st
import pytest

from custom_components.quic_bridge.bridge import copies as copies_module
from custom_components.quic_bridge.bridge.bridge import Bridge
from custom_components.quic_bridge.bridge.config import BackoffConfig, BridgeConfig, BrokerConfig
from custom_components.quic_bridge.bridge.copies import Copies
from custom_components.quic_bridge.bridge.routes import Direction, RetainedAtConnect, Route
from custom_components.quic_bridge.bridge.status import BridgeState

from ..support.certs import Certificates
from ..support.packets import PacketType, Properties, Property, Publish, body_of, decode_subscribe, encode_suback
from ..support.processes import wait_until
from ..support.scripted_broker import ScriptedBroker, ScriptedConnection, between_brokers
from .link_support import ROUTES, Numbers, Scene, make_scene

# --- counting ---------------------------------------------------------------------------------------------------------


def publish(content: str, *identifiers: int, topic: str = "home/temp", qos: int = 1, expiry: int = 60) -> bytes:
    """Make a PUBLISH that comes through subscriptions with these identifiers."""
    properties: Properties = {
        Property.SUBSCRIPTION_IDENTIFIER: list(identifiers),
        Property.MESSAGE_EXPIRY: expiry,
        Property.CONTENT_TYPE: "text/plain",
    }
    return Publish(topic=topic, payload=content.encode(), qos=qos, packet_id=7, properties=properties).encode()


def is_copy(copies: Copies, packet: bytes, expected: int = 2) -> bool:
    return copies.take(packet[0], body_of(packet).position, packet, expected)


@dataclass(frozen=True)
class Flow:
    """What is published, and how it arrives through several identifiers."""

    published: list[str]
    arrived: list[tuple[str, int]]
    identifiers: int

    def crosses(self, copies: Copies) -> list[str]:
        """Return the contents that cross."""
        return [
            content
            for content, number in self.arrived
            if not is_copy(copies, publish(content, number), self.identifiers)
        ]


def interleaved(draw: st.DrawFn, streams: Sequence[Sequence[str]]) -> list[tuple[str, int]]:
    """Let streams arrive, each in its order, numbered from 1 on."""
    place = [0] * len(streams)
    arrived = []
    while left := [index for index, stream in enumerate(streams) if place[index] < len(stream)]:
        index = draw(st.sampled_from(left))
        arrived.append((streams[index][place[index]], index + 1))
        place[index] += 1
    return arrived


@st.composite
def different(draw: st.DrawFn) -> Flow:
    """Publishes of different content, whose copies come at any time, as between the nodes of a cluster."""
    published = draw(st.lists(st.text(max_size=2), unique=True, max_size=12))
    number = draw(st.integers(2, 4))
    return Flow(published, interleaved(draw, [published] * number), number)


@st.composite
def in_step(draw: st.DrawFn) -> Flow:
    """Publishes of any content, whose copies come one after the other, as from one process."""
    published = draw(st.lists(st.sampled_from("ab"), max_size=12))
    number = draw(st.integers(2, 4))
    order = st.permutations(range(1, number + 1))
    return Flow(published, [(content, name) for content in published for name in draw(order)], number)


@st.composite
def with_losses(draw: st.DrawFn) -> Flow:
    """Publishes of any content, at any time, of which the first identifier brings all and the others some."""
    published = draw(st.lists(st.sampled_from("ab"), max_size=12))
    others = draw(st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=3))
    some = [[content for content, kept in zip(published, keep, strict=False) if kept] for keep in others]
    return Flow(published, interleaved(draw, [published, *some]), 1 + len(some))


def contains(whole: Iterable[str], part: Iterable[str]) -> bool:
    """Whether all of `part` is in `whole`, in that order."""
    rest = iter(whole)
    return all(item in rest for item in part)


@given(different() | in_step())
def test_each_publish_crosses_once(flow: Flow) -> None:
    copies = Copies()
    assert flow.crosses(copies) == flow.published
    assert copies.left_out == len(flow.arrived) - len(flow.published)
    assert not copies._topics
    assert not copies._size


@st.composite
def in_step_with_losses(draw: st.DrawFn) -> Flow:
    """... whose copies come one after the other."""
    published = draw(st.lists(st.sampled_from("ab"), max_size=12))
    number = draw(st.integers(2, 4))
    others = st.lists(st.integers(2, number), unique=True)
    arrived = [
        (content, name)
        for content in published
        for name in draw(others.flatmap(lambda some: st.permutations([1, *some])))
    ]
    return Flow(published, arrived, number)


@given(in_step_with_losses())
def test_order_is_kept(flow: Flow) -> None:
    """The first identifier brings all: in what crosses it is all there, in its order."""
    assert contains(flow.crosses(Copies()), flow.published)


@given(with_losses(), st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)), st.integers(1, 5))
def test_no_publish_is_missed(flow: Flow, late: set[int], new_sessions: set[int], most: int) -> None:
    """Whatever is lost, late or forgotten: what one identifier brings whole crosses whole."""
    now = 1000.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies_module, "monotonic", lambda: now)
        patch.setattr(copies_module, "_MOST_OF_TOPIC", most)
        copies = Copies()
        crossed = []
        for index, (content, number) in enumerate(flow.arrived):
            now += 31 if index in late else 0.1
            if index in new_sessions:
                copies.clear()
            if not is_copy(copies, publish(content, number), flow.identifiers):
                crossed.append(content)
    assert Counter(crossed) >= Counter(flow.published)


def test_what_is_a_copy() -> None:
    """The same in all but the identifier, and the time that it waited at the broker."""
    copies = Copies()
    assert not is_copy(copies, publish("on", 1))
    for other in (
        publish("off", 2),
        publish("on", 2, topic="hall/temp"),
        publish("on", 2, qos=2),
        Publish(topic="home/temp", payload=b"on", qos=1, packet_id=7, properties={}).encode(),
        publish("on", 1),  # published again
    ):
        assert not is_copy(copies, other)
    assert is_copy(copies, publish("on", 2, expiry=58))
    damaged = bytearray(publish("on", 2))
    damaged[body_of(bytes(damaged)).position + 2 + len("home/temp") + 3] = 0x7F  # no such property
    assert not is_copy(copies, bytes(damaged))
    assert copies.left_out == 1


def test_a_broker_that_sends_one_message_for_all_subscriptions() -> None:
    """It may do so (MQTT 5, 3.3.4), with all identifiers; retained messages may still come for each."""
    copies = Copies()
    assert [is_copy(copies, publish("on", *numbers)) for numbers in ((1, 2), (1, 2), (1,), (2,), (2, 1))] == [
        False,
        False,
        False,
        True,
        False,
    ]


def test_what_a_later_message_has_overtaken_has_no_copy_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker lost the second copy of one publish and the first of another of the same content: both cross."""
    now = 1000.0
    monkeypatch.setattr(copies_module, "monotonic", lambda: now)
    copies = Copies()
    assert not is_copy(copies, publish("on", 1))
    now += 2
    for number, expected in ((1, False), (2, True)):
        assert is_copy(copies, publish("off", number)) is expected
    assert not is_copy(copies, publish("on", 2))


def test_messages_that_come_late() -> None:
    """Mosquitto 2.0 may send what waited in a session behind what came later, and that between its two copies."""
    arrived = [("3", 1), ("1", 1), ("1", 2), ("2", 1), ("2", 2), ("3", 2), ("4", 1), ("4", 2)]
    assert Flow([], arrived, 2).crosses(Copies()) == ["3", "1", "2", "4"]


def test_a_copy_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(copies_module, "monotonic", lambda: now)
    copies = Copies()
    assert not is_copy(copies, publish("on", 1))
    now += 29
    assert is_copy(copies, publish("on", 2))
    assert not is_copy(copies, publish("on", 1))
    now += 31
    assert not is_copy(copies, publish("on", 2))
    # While a broker is away nothing comes, however long that takes.
    now += 600
    copies.resume()
    now += 29
    assert is_copy(copies, publish("on", 1))


def test_only_so_much_is_remembered() -> None:
    copies = Copies()
    for topic in "ab":
        for number in range(3000):
            assert not is_copy(copies, publish(f"{number}", 1, topic=topic))
    assert copies._size == 2000
    assert is_copy(copies, publish("2000", 2, topic="a"))
    assert not is_copy(copies, publish("1999", 2, topic="b"))
    for number in range(30_000):
        assert not is_copy(copies, publish("on", 1, topic=f"{number}"))
    assert copies._size == sum(len(topic.crossed) for topic in copies._topics.values()) == 10_000
    assert is_copy(copies, publish("on", 2, topic="29999"))
    assert not is_copy(copies, publish("on", 2, topic="0"))
    copies.clear()
    assert not is_copy(copies, publish("on", 2, topic="29998"))


# --- between brokers, both of which send a message for each subscription ----------------------------------------------

OVERLAPPING = (
    *ROUTES,
    *(Route(id=f"{qos}", direction=Direction.BOTH, topic_filter=f"+/{qos}") for qos in (0, 1, 2)),
)


@pytest.fixture
async def scene(socket_enabled: None, certs: Certificates, tmp_path: Path) -> AsyncIterator[Scene]:
    async with make_scene(certs, tmp_path) as scene:
        scene.routes = OVERLAPPING
        yield scene


async def test_the_same_again_and_again(scene: Scene) -> None:
    """Whatever repeats itself crosses as often as it was published, the retained message included."""
    async with AsyncExitStack() as stack:
        home, away = [await stack.enter_async_context(client) for client in scene.clients()]
        for client, prefix in ((home, "up"), (away, "down")):
            await client.publish(f"{prefix}/1", b"before", 1, retain=True)
        await home.subscribe("down/#", qos=2)
        await away.subscribe("up/#", qos=2)
        await home.wait_for(0)
        await scene.running()
        for client, prefix in ((home, "up"), (away, "down")):
            for qos in (0, 1, 2):
                await client.burst(f"{prefix}/{qos}", [b"on"] * 50, qos)
                await client.publish(f"{prefix}/{qos}", b"end", qos)
        for client, prefix in ((home, "down"), (away, "up")):
            await client.wait_for(lambda messages: sum(item.payload == b"end" for item in messages) == 3)
            arrived = [(item.topic, item.payload) for item in client.messages]
            for qos in (0, 1, 2):
                assert arrived.count((f"{prefix}/{qos}", b"on")) == 50
                assert arrived.count((f"{prefix}/{qos}", b"end")) == 1
            assert arrived.count((f"{prefix}/1", b"before")) == 1
    status = scene.bridge.status
    assert status.outbound.copies == status.inbound.copies == 154
    assert status.outbound.dropped == status.inbound.dropped == {}


async def test_lost_connections(scene: Scene) -> None:
    """Of each pair of copies one may come before and one after."""
    scene.tune()
    await scene.running()
    async with Numbers(scene) as numbers:
        numbers.start()
        for number in range(6):
            await numbers.flowing()
            if number % 2:
                scene.front.die()
                await scene.front.restart()
            else:
                scene.front.connection.end_stream()
        await numbers.flowing()
        await numbers.settled()
    status = scene.bridge.status
    assert status.outbound.copies > 100
    assert status.inbound.copies > 100


async def test_routes_change_while_messages_flow(scene: Scene) -> None:
    """Others that overlap them, or cover them, come and go: QoS 2 arrives once all the time."""
    scene.routes = ROUTES
    everything = Route(id="all", direction=Direction.BOTH, topic_filter="#")
    await scene.running()
    async with Numbers(scene) as numbers:
        numbers.start()
        for _ in range(5):
            for routes in (
                OVERLAPPING,
                ROUTES,
                (*ROUTES, everything),
                (*OVERLAPPING[2:], *ROUTES),
                OVERLAPPING[2:],
                (*OVERLAPPING[2:], everything),
                OVERLAPPING[::-1],
            ):
                await numbers.flowing()
                await scene.bridge.apply_routes(routes)
        await numbers.settled()
    assert scene.link.reconnects == 0
    status = scene.bridge.status
    assert status.outbound.dropped == status.inbound.dropped == {}


# --- packet by packet -------------------------------------------------------------------------------------------------


class Wire:
    """A bridge from a scripted broker, by routes that overlap, to another one."""

    def __init__(self, local: ScriptedBroker, remote: ScriptedBroker) -> None:
        self.local_broker = local
        self.remote_broker = remote
        self.routes: tuple[Route, ...] = tuple(
            Route(id=name, direction=Direction.TO_REMOTE, topic_filter=name, max_qos=qos)
            for name, qos in (("+/temp", 1), ("hall/#", 0), ("home/#", 2), ("garage/lamp", 0))
        )
        self.bridge: Bridge

    async def start(self, *, session_present: bool = False) -> ScriptedConnection:
        """Start the bridge and bring the remote side up."""

        def config(broker: ScriptedBroker) -> BrokerConfig:
            return BrokerConfig(host=broker.host, port=broker.port, client_id="bridge")

        self.bridge = Bridge(
            BridgeConfig(
                remote=config(self.remote_broker), routes=self.routes, backoff=BackoffConfig(base=0.01, cap=0.05)
            ),
            lambda: config(self.local_broker),
            lambda _: None,
        )
        await self.bridge.start()
        remote = await self.remote_broker.accept()
        await remote.handshake(session_present=session_present)
        return remote

    async def connect(self, properties: Properties | None = None) -> tuple[ScriptedConnection, ScriptedConnection]:
        """Start the bridge and bring both sides up."""
        remote = await self.start()
        local = await self.local_broker.session(properties=properties)
        await self.running()
        return local, remote

    async def running(self) -> None:
        """Wait until both sides are up."""
        await wait_until(lambda: self.bridge.status.state is BridgeState.RUNNING, what="running")


@pytest.fixture
async def wire(socket_enabled: None) -> AsyncIterator[Wire]:
    async with between_brokers(Wire) as wire:
        yield wire


def asked(connection: ScriptedConnection, start: int = 0) -> list[dict[str, tuple[int, int | None]]]:
    """Return the quality of service and identifier of each filter, for each SUBSCRIBE from the `start`th on."""
    return [{item.topic_filter: (item.qos, item.identifier) for item in each} for each in connection.subscribes[start:]]


async def test_what_is_asked_for(wire: Wire) -> None:
    """Only what overlaps has an identifier, and the highest quality of service among it."""
    local, _ = await wire.connect()
    assert asked(local) == [
        {"+/temp": (2, 1)},
        {"hall/#": (2, 2), "home/#": (2, 2)},
        {"garage/lamp": (0, None)},
    ]
    await local.close()
    local = await wire.local_broker.session(session_present=True)
    await wait_until(lambda: len(local.subscribes) == 3, what="all again")
    assert asked(local)[1] == {"hall/#": (2, 2), "home/#": (2, 2)}


async def test_many_need_few_packets(wire: Wire) -> None:
    """As many as there are identifiers, and for each 100 filters."""
    wire.routes = (
        *(Route(id=f"{room}", direction=Direction.TO_REMOTE, topic_filter=f"room{room}/#") for room in range(500)),
        *(Route(id=name, direction=Direction.TO_REMOTE, topic_filter=f"+/{name}") for name in ("temp", "lamp")),
    )
    local, _ = await wire.connect()
    await wait_until(lambda: len(local.filters) == 502, what="all subscriptions")
    assert len(local.subscribes) == 6


async def test_a_broker_that_refuses_what_covers_them(wire: Wire) -> None:
    """What is subscribed instead overlaps, and its copies are known."""
    wire.routes = (Route(id="all", direction=Direction.TO_REMOTE, topic_filter="#"), *wire.routes)
    remote = await wire.start()
    local = await wire.local_broker.accept()
    local.answer_subscribe = False
    await local.handshake()
    mid, _ = decode_subscribe(await local.receive(), v5=True)
    local.answer_subscribe = True
    local.send(encode_suback(mid, [0x87], v5=True))
    await wire.running()
    assert asked(local)[0] == {"+/temp": (2, 1)}
    local.publish("home/temp", b"21", mid=1, identifiers=[2])
    assert (await remote.receive_publish()).packet_id == 1
    local.publish("home/temp", b"21", mid=2, identifiers=[1])
    await local.expect(PacketType.PUBACK, 2)


async def test_a_broker_without_identifiers(wire: Wire) -> None:
    """It says so in its CONNACK, and what it sends twice cannot be told from what was published twice."""
    local, remote = await wire.connect({Property.SUBSCRIPTION_IDENTIFIER_AVAILABLE: 0})
    assert asked(local) == [{"+/temp": (2, None), "hall/#": (2, None), "home/#": (2, None), "garage/lamp": (0, None)}]
    for mid in (1, 2):
        local.publish("home/temp", b"21", mid=mid)
        assert (await remote.receive_publish()).packet_id == mid


async def test_a_copy_is_settled_with_the_source_alone(wire: Wire) -> None:
    local, remote = await wire.connect()
    local.publish("home/temp", b"21", qos=1, mid=1, identifiers=[2])
    assert (await remote.receive_publish()).packet_id == 1
    local.publish("home/temp", b"21", qos=1, mid=2, identifiers=[1])
    await local.expect(PacketType.PUBACK, 2)
    remote.ack(PacketType.PUBACK, 1)
    await local.expect(PacketType.PUBACK, 1)

    local.publish("home/temp", b"21", qos=2, mid=3, identifiers=[2])
    assert (await remote.receive_publish()).packet_id == 3
    for dup in (False, True):
        local.publish("home/temp", b"21", qos=2, mid=4, dup=dup, identifiers=[1])
        await local.expect(PacketType.PUBREC, 4)
    local.ack(PacketType.PUBREL, 4)
    await local.expect(PacketType.PUBCOMP, 4)

    for number in (2, 1):
        local.publish("home/temp", b"21", qos=0, identifiers=[number])
    assert (await remote.receive_publish()).qos == 0
    # One that overlaps nothing here has an identifier as well.
    for mid in (5, 6):
        local.publish("home/lamp", b"on", mid=mid, identifiers=[2])
        assert (await remote.receive_publish()).packet_id == mid
    assert wire.bridge.status.outbound.copies == 3


async def test_a_copy_that_crossed_before_a_restart_of_ours(wire: Wire) -> None:
    """The target holds it (QoS 2), so it is released, or the next message with its identifier would be lost there."""
    wire.routes = tuple(replace(route, max_qos=2) for route in wire.routes)
    local, remote = await wire.connect()
    local.publish("home/temp", b"21", qos=2, mid=2, identifiers=[2])
    assert (await remote.receive_publish()).packet_id == 2
    remote.ack(PacketType.PUBREC, 2)
    await local.expect(PacketType.PUBREC, 2)
    local.publish("home/temp", b"21", qos=2, mid=1, identifiers=[1])
    await local.expect(PacketType.PUBREC, 1)
    await wire.bridge.stop()
    remote = await wire.start(session_present=True)
    local = await wire.local_broker.session(session_present=True)
    await wire.running()
    local.publish("home/temp", b"21", qos=2, mid=1, dup=True, identifiers=[1])
    assert (await remote.receive_publish()).packet_id == 1
    local.publish("home/temp", b"21", qos=2, mid=2, dup=True, identifiers=[2])
    await local.expect(PacketType.PUBREC, 2)
    assert wire.bridge.status.outbound.copies == 1
    local.ack(PacketType.PUBREL, 2)
    await remote.expect(PacketType.PUBREL, 2)
    remote.ack(PacketType.PUBCOMP, 2)
    await local.expect(PacketType.PUBCOMP, 2)


@pytest.mark.parametrize("resumed", [True, False])
async def test_a_copy_after_a_lost_connection(wire: Wire, *, resumed: bool) -> None:
    """A new session has no copies left: the same content is another message."""
    local, remote = await wire.connect()
    local.publish("home/temp", b"21", mid=1, identifiers=[2])
    assert (await remote.receive_publish()).packet_id == 1
    remote.ack(PacketType.PUBACK, 1)
    await local.expect(PacketType.PUBACK, 1)
    await local.close()
    local = await wire.local_broker.session(session_present=resumed)
    local.publish("home/temp", b"21", mid=2, identifiers=[1])
    if not resumed:
        assert (await remote.receive_publish()).packet_id == 2
        remote.ack(PacketType.PUBACK, 2)
    await local.expect(PacketType.PUBACK, 2)
    assert wire.bridge.status.outbound.copies == resumed


async def test_a_copy_that_waits_for_the_target(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its window full of what the target has not acknowledged, the source can send it only after an outage."""
    now = 1000.0
    monkeypatch.setattr(copies_module, "monotonic", lambda: now)
    local, remote = await wire.connect()
    local.publish("home/temp", b"21", mid=1, identifiers=[2])
    assert (await remote.receive_publish()).packet_id == 1
    await remote.close()
    now += 600
    remote = await wire.remote_broker.accept()
    await remote.handshake(session_present=True)
    assert (await remote.receive_publish()).dup
    local.publish("home/temp", b"21", mid=2, identifiers=[1])
    await local.expect(PacketType.PUBACK, 2)


async def test_only_what_differs_is_asked_again(wire: Wire) -> None:
    """What is there already gets its identifier before another one is subscribed that overlaps it."""
    always = [replace(route, retained=RetainedAtConnect.ALWAYS) for route in wire.routes]
    wire.routes = tuple(always[1:])
    local, _ = await wire.connect()
    assert asked(local) == [{"hall/#": (0, None), "home/#": (2, None), "garage/lamp": (0, None)}]
    await wire.bridge.apply_routes(tuple(always))
    assert asked(local, 1) == [{"hall/#": (2, 2), "home/#": (2, 2)}, {"+/temp": (2, 1)}]
    # Nobody asked for the retained messages again.
    assert [item.retain_handling for each in local.subscribes[1:] for item in each] == [1, 1, 0]
    # What does not overlap any more keeps its identifier, and what comes anew takes another; so does, until it is
    # unsubscribed, what that takes the place of.
    await wire.bridge.apply_routes(tuple(always[1:]))
    assert asked(local, 3) == [{"hall/#": (0, 2)}]
    other = Route(id="5", direction=Direction.TO_REMOTE, topic_filter="+/lamp")
    await wire.bridge.apply_routes((other, *always[1:]))
    assert asked(local, 4) == [{"hall/#": (2, 2)}, {"garage/lamp": (0, 3)}, {"+/lamp": (2, 1)}]
