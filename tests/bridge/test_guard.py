"""The path of a message: who writes it, who stops it, and what becomes of paths that nobody here wrote."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from custom_components.quic_bridge.bridge import codec
from custom_components.quic_bridge.bridge.bridge import Bridge
from custom_components.quic_bridge.bridge.config import BridgeConfig, BrokerConfig
from custom_components.quic_bridge.bridge.guard import PATH_PROPERTY, GuardMode, LoopError, LoopGuard, PathMarker
from custom_components.quic_bridge.bridge.routes import Direction, Route
from custom_components.quic_bridge.bridge.status import DropReason

from ..support.packets import PacketType, Properties, Property, Publish
from ..support.scripted_broker import ScriptedBroker, ScriptedConnection, between_brokers

UP_AND_DOWN = LoopGuard()
ONE_BRIDGE = LoopGuard(mode=GuardMode.ONE_BRIDGE)
THREE = LoopGuard(mode=GuardMode.COUNT, limit=3)


@pytest.mark.parametrize(
    ("guard", "allowed", "stopped"),
    [
        (UP_AND_DOWN, ["u", "d", "ud"], ["uu", "dd", "du", "udu", "udd", "x", "xu", "UD"]),
        (ONE_BRIDGE, ["u", "d", "x"], ["uu", "ud", "du", "xu"]),
        (THREE, ["u", "dd", "udu", "xyz"], ["uuuu", "xyzu"]),
    ],
)
def test_paths(guard: LoopGuard, allowed: list[str], stopped: list[str]) -> None:
    assert all(guard.allows(path.encode()) for path in allowed)
    assert not any(guard.allows(path.encode()) for path in stopped)


def test_extending_a_path() -> None:
    up, down = PathMarker(UP_AND_DOWN, Direction.TO_REMOTE), PathMarker(UP_AND_DOWN, Direction.TO_LOCAL)
    assert up.extended(b"") == up.first == codec.user_property(PATH_PROPERTY, b"u")
    assert down.extended(b"u") == codec.user_property(PATH_PROPERTY, b"ud")
    for marker, path in ((up, b"u"), (down, b"ud"), (up, b"d"), (up, b"?" * 60_000)):
        with pytest.raises(LoopError) as error:
            marker.extended(path)
        assert len(str(error.value)) < 200


def test_taking_out_the_path() -> None:
    marker = PathMarker(UP_AND_DOWN, Direction.TO_REMOTE)
    one, two = codec.user_property("a", b"1"), codec.user_property("a", b"2")
    longer = codec.user_property(PATH_PROPERTY + "s", b"u")
    hidden = b"\x09" + len(marker.first).to_bytes(2) + marker.first  # Correlation Data with such bytes in it
    for block, rest, path in (
        (b"", b"", b""),
        (one + longer + two, one + longer + two, b""),
        (one + marker.first + two + hidden, one + two + hidden, b"u"),
        (marker.first + hidden + codec.user_property(PATH_PROPERTY, b"d"), hidden, b"ud"),
        (codec.user_property(PATH_PROPERTY, b""), b"", b""),
    ):
        assert marker.take_out(block) == (rest, path)


@pytest.mark.parametrize("size", [0, 60, 80, 102, 103, 130, 16_300, 16_400, 70_000])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_splicing_into_a_packet(qos: int, size: int) -> None:
    """The remaining length grows by the property's, over each of its own borders."""
    first = 0x30 | qos << 1
    marker = PathMarker(UP_AND_DOWN, Direction.TO_REMOTE)
    packet = codec.encode_publish(first, b"a/b", 7, b"", b"x" * size)
    header = codec.header_length(packet)
    position = header + 2 + 3 + (2 if qos else 0)
    wanted = codec.encode_publish(first | 1, b"a/b", 7, marker.first, b"x" * size)
    assert codec.with_properties(first | 1, header, position, packet, marker.first_block) == wanted


class Scene:
    """A bridge between two scripted brokers, and the guard it has."""

    def __init__(self, local: ScriptedBroker, remote: ScriptedBroker) -> None:
        self.brokers = (local, remote)
        self.config = BridgeConfig(
            remote=self._broker(remote),
            routes=(Route(id="1", direction=Direction.BOTH, topic_filter="#"),),
        )
        self._bridge: Bridge | None = None

    @staticmethod
    def _broker(broker: ScriptedBroker) -> BrokerConfig:
        return BrokerConfig(host="127.0.0.1", port=broker.port, client_id="bridge")

    @property
    def bridge(self) -> Bridge:
        """The bridge, made when it is needed first."""
        if self._bridge is None:
            self._bridge = Bridge(self.config, lambda: self._broker(self.brokers[0]), lambda _: None)
        return self._bridge

    async def connect(
        self, guard: LoopGuard = UP_AND_DOWN, *, local_v5: bool = True, remote_v5: bool = True
    ) -> tuple[ScriptedConnection, ScriptedConnection]:
        """Start the bridge; returns both brokers' connections."""
        self.config = replace(self.config, guard=guard)
        await self.bridge.start()
        connections = []
        for broker, v5 in zip(self.brokers, (local_v5, remote_v5), strict=True):
            if not v5:
                await (await broker.accept()).handshake(code=0x84)
            connections.append(await broker.session())
        local, remote = connections
        await remote.barrier(local)
        await local.barrier(remote)
        return local, remote


@pytest.fixture
async def scene(socket_enabled: None) -> AsyncIterator[Scene]:
    async with between_brokers(Scene) as scene:
        yield scene


def message(path: str | None, qos: int = 0, mid: int = 0, payload: bytes = b"x") -> bytes:
    """A PUBLISH that came by `path`."""
    names = [("a", "1"), ("b", "2"), ("a", "3")]
    if path is not None:
        names.insert(1, (PATH_PROPERTY, path))
    properties: Properties = {Property.USER_PROPERTY: names}
    return Publish(topic="t", payload=payload, qos=qos, packet_id=mid, properties=properties).encode()


async def test_each_direction_has_its_letter(scene: Scene) -> None:
    local, remote = await scene.connect()
    for source, target, path, longer in (
        (local, remote, None, "u"),
        (remote, local, None, "d"),
        (remote, local, "u", "ud"),
    ):
        source.send(message(path))
        arrived = await target.receive_publish()
        # Those of others keep their order (MQTT 5, 3.3.2.3.7).
        assert arrived.properties == {
            Property.USER_PROPERTY: [("a", "1"), ("b", "2"), ("a", "3"), (PATH_PROPERTY, longer)]
        }


async def test_what_came_far_enough_is_acknowledged_and_counted(scene: Scene) -> None:
    local, remote = await scene.connect()
    local.send(message("u", 1, 1) + message("d", 2, 2) + message("from somebody else", 0))
    await local.expect(PacketType.PUBACK, 1)
    await local.expect(PacketType.PUBREC, 2)
    local.ack(PacketType.PUBREL, 2)
    await local.expect(PacketType.PUBCOMP, 2)
    await local.barrier(remote)
    assert scene.bridge.status.outbound.dropped == {DropReason.LOOP: 3}
    assert scene.bridge.status.outbound.waiting == 0


async def test_a_repeat_has_the_same_path(scene: Scene) -> None:
    """QoS 1 and 2 sent again, by the source and by us, are the same message still."""
    local, remote = await scene.connect(THREE)
    local.send(message("d", 1, 1) + message("d", 2, 2))
    first = [await remote.receive_publish() for _ in range(2)]
    await remote.close()
    remote = await scene.brokers[1].session(session_present=True)
    again = [await remote.receive_publish() for _ in range(2)]
    assert [replace(item, dup=False) for item in again] == first
    assert again[0].properties == {Property.USER_PROPERTY: [("a", "1"), ("b", "2"), ("a", "3"), (PATH_PROPERTY, "du")]}


async def test_a_target_of_3_1_1_has_no_path_but_is_guarded(scene: Scene) -> None:
    local, remote = await scene.connect(local_v5=False)
    remote.send(message("d", payload=b"stopped") + message("u", payload=b"crosses"))
    arrived = await local.receive_publish()
    assert (arrived.payload, arrived.properties) == (b"crosses", None)
    assert scene.bridge.status.inbound.dropped == {DropReason.LOOP: 1}
