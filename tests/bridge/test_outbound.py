"""The Outbox beside the forwarder, packet by packet, with restarts in between."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
import time

import pytest

from custom_components.quic_bridge.bridge.bridge import Bridge
from custom_components.quic_bridge.bridge.config import BackoffConfig, BridgeConfig, BrokerConfig, OutboxConfig
from custom_components.quic_bridge.bridge.routes import Direction, Priority, Route
from custom_components.quic_bridge.bridge.status import BridgeState, DropReason

from ..support.packets import PacketType, Properties, Property, Publish
from ..support.processes import wait_until
from ..support.scripted_broker import ScriptedBroker, ScriptedConnection, between_brokers

PUBACK, PUBREC, PUBREL, PUBCOMP = PacketType.PUBACK, PacketType.PUBREC, PacketType.PUBREL, PacketType.PUBCOMP


class Scene:
    """A bridge with an Outbox between two scripted brokers."""

    def __init__(self, local: ScriptedBroker, remote: ScriptedBroker, path: Path) -> None:
        self.local_broker = local
        self.remote_broker = remote
        self.path = path
        self.routes: tuple[Route, ...] = (
            Route(id="1", direction=Direction.BOTH, topic_filter="t/#"),
            Route(id="2", direction=Direction.BOTH, topic_filter="barrier"),
        )
        self.delay = 0.0
        self.bridge = self.make()

    def make(self) -> Bridge:
        """Make the bridge (again, as after a restart of the process)."""

        def broker(name: str, port: int) -> BrokerConfig:
            return BrokerConfig(host="127.0.0.1", port=port, client_id=name)

        config = BridgeConfig(
            remote=broker("remote", self.remote_broker.port),
            routes=self.routes,
            backoff=BackoffConfig(base=0.01, cap=0.05),
            outbox=OutboxConfig(path=self.path, delay=self.delay),
        )
        return Bridge(config, lambda: broker("local", self.local_broker.port), lambda _status: None)

    async def connect(self) -> tuple[ScriptedConnection, ScriptedConnection]:
        """Start the bridge and bring both sides up."""
        await self.bridge.start()
        local = await self.local_broker.session(session_present=True)
        remote = await self.remote_broker.session(session_present=True)
        await remote.barrier(local)
        await local.barrier(remote)
        await wait_until(lambda: self.bridge.status.state is BridgeState.RUNNING, what="running")
        return local, remote

    async def outage(self, remote: ScriptedConnection) -> None:
        """End the remote's connection; the next is not answered until `remote_back`."""
        await remote.close()
        await wait_until(lambda: self.bridge.status.state is not BridgeState.RUNNING, what="outage")

    async def remote_back(self, *, session_present: bool = True) -> ScriptedConnection:
        """Answer the remote connection."""
        return await self.remote_broker.session(session_present=session_present)

    async def restart(self) -> ScriptedConnection:
        """Restart the bridge; returns the new local connection."""
        await self.bridge.stop()
        # Connections of the bridge before, which nobody answered.
        self.remote_broker.forget()
        self.local_broker.forget()
        self.bridge = self.make()
        await self.bridge.start()
        return await self.local_broker.session(session_present=True)

    def stored(self) -> int:
        """Messages on disk."""
        outbox = self.bridge.status.outbox
        assert outbox is not None
        return outbox.messages or 0


@pytest.fixture
async def scene(socket_enabled: None, tmp_path: Path) -> AsyncIterator[Scene]:
    async with between_brokers(lambda local, remote: Scene(local, remote, tmp_path / "outbox.db")) as scene:
        yield scene


async def test_acknowledged_only_when_on_disk_then_sent_and_forgotten(scene: Scene) -> None:
    local, remote = await scene.connect()
    await scene.outage(remote)
    local.publish("t/a", b"1", qos=1, mid=1)
    local.publish("t/a", b"2", qos=2, mid=2)
    await local.expect(PUBACK, 1)
    await local.expect(PUBREC, 2)
    assert scene.stored() == 2
    local.ack(PUBREL, 2)
    await local.expect(PUBCOMP, 2)
    remote = await scene.remote_back()
    first, second = await remote.receive_publish(), await remote.receive_publish()
    assert (first.payload, second.payload) == (b"1", b"2")
    remote.ack(PUBACK, first.packet_id)
    remote.ack(PUBREC, second.packet_id)
    await remote.expect(PUBREL, second.packet_id)
    remote.ack(PUBCOMP, second.packet_id)
    await wait_until(lambda: scene.stored() == 0 and not scene.bridge.status.outbound.waiting)
    # and direct again, with the source's own identifier
    local.publish("t/a", b"3", mid=3)
    assert (await remote.receive_publish()).packet_id == 3


async def test_what_was_sent_before_the_outage_keeps_its_identifier_over_a_restart(scene: Scene) -> None:
    local, remote = await scene.connect()
    for mid in (11, 12):
        local.publish("t/a", b"%d" % mid, qos=2, mid=mid)
        await remote.receive_publish()
    await scene.outage(remote)
    local.publish("t/a", b"13", qos=2, mid=13)
    for mid in (11, 12, 13):
        await local.expect(PUBREC, mid)
    await scene.restart()
    remote = await scene.remote_back()
    messages = [await remote.receive_publish() for _ in range(3)]
    assert [(item.packet_id, item.payload) for item in messages[:2]] == [(11, b"11"), (12, b"12")]
    assert messages[2].payload == b"13"
    assert messages[2].packet_id not in {11, 12}


async def test_what_the_source_repeats_behind_a_new_message_keeps_its_identifier(scene: Scene) -> None:
    """Under another one the remote would take it for another message, and keep a place for the first for ever."""
    scene.delay = 60.0
    scene.bridge = scene.make()
    local, remote = await scene.connect()
    local.publish("t/a", b"11", qos=2, mid=11)
    assert (await remote.receive_publish()).packet_id == 11
    scene.delay = 0.0
    local = await scene.restart()
    local.publish("t/b", b"20", qos=1, mid=20)
    await local.expect(PUBACK, 20)
    local.publish("t/a", b"11", qos=2, mid=11, dup=True)
    await local.expect(PUBREC, 11)
    assert scene.stored() == 2
    remote = await scene.remote_back()
    assert (await remote.receive_publish()).payload == b"20"
    message = await remote.receive_publish()
    assert (message.packet_id, message.payload) == (11, b"11")


async def test_what_the_source_repeats_does_not_pass_what_is_on_disk(scene: Scene) -> None:
    """It never went to the remote: others had to wait on disk already."""
    scene.routes = tuple(replace(route, priority=Priority.HIGH) for route in scene.routes)
    scene.bridge = scene.make()
    local, remote = await scene.connect()
    await scene.outage(remote)
    local.publish("t/a", b"11", qos=2, mid=11)
    await local.expect(PUBREC, 11)
    local = await scene.restart()
    local.publish("t/a", b"12", qos=2, mid=12, dup=True)
    await local.expect(PUBREC, 12)
    remote = await scene.remote_back()
    assert [(await remote.receive_publish()).payload for _ in range(2)] == [b"11", b"12"]


async def test_a_released_message_is_never_published_again(scene: Scene) -> None:
    local, remote = await scene.connect()
    await scene.outage(remote)
    local.publish("t/a", b"1", qos=2, mid=1)
    await local.expect(PUBREC, 1)
    remote = await scene.remote_back()
    message = await remote.receive_publish()
    remote.ack(PUBREC, message.packet_id)
    await remote.expect(PUBREL, message.packet_id)
    await scene.restart()
    remote = await scene.remote_back()
    await remote.expect(PUBREL, message.packet_id)
    remote.ack(PUBCOMP, message.packet_id, 0x92)
    await wait_until(lambda: not scene.bridge.status.outbound.waiting)


async def test_a_message_on_disk_whose_route_went_does_not_keep_a_place_at_the_remote(scene: Scene) -> None:
    local, remote = await scene.connect()
    local.publish("t/a", b"1", qos=2, mid=11)
    await remote.receive_publish()
    await scene.outage(remote)
    await local.expect(PUBREC, 11)
    scene.routes = (Route(id="2", direction=Direction.BOTH, topic_filter="barrier"),)
    await scene.restart()
    remote = await scene.remote_back()
    await remote.expect(PUBREL, 11)
    remote.ack(PUBCOMP, 11)
    await wait_until(lambda: scene.stored() == 0 and not scene.bridge.status.outbound.waiting)
    assert scene.bridge.status.outbound.dropped == {DropReason.NO_ROUTE: 1}


async def test_a_remote_of_3_1_1_is_not_sent_more_than_it_has_places_for(scene: Scene) -> None:
    """It may hold messages from before our restart, and cannot say that it has no place for another.

    mosquitto answers PUBREC and forgets the message, or PUBACK and hangs up.
    """

    async def remote_back() -> ScriptedConnection:
        await (await scene.remote_broker.accept()).handshake(code=0x84)
        return await scene.remote_back()

    await scene.bridge.start()
    local = await scene.local_broker.session(session_present=True)
    remote = await remote_back()
    for mid, qos in ((11, 2), (12, 1), (13, 2)):
        local.publish("t/a", b"%d" % mid, qos=qos, mid=mid)
        assert (await remote.receive_publish()).packet_id == mid
    await scene.outage(remote)
    for mid, answer in ((11, PUBREC), (12, PUBACK), (13, PUBREC)):
        await local.expect(answer, mid)
    await scene.restart()
    remote = await remote_back()
    for mid in (11, 13):
        assert (await remote.receive_publish()).packet_id == mid
        remote.ack(PUBREC, mid)
        await remote.expect(PUBREL, mid)  # not the next PUBLISH
        remote.ack(PUBCOMP, mid)
        if mid == 11:
            assert (await remote.receive_publish()).packet_id == 12
    remote.ack(PUBACK, 12)
    await wait_until(lambda: not scene.bridge.status.outbound.waiting)


async def test_what_falls_on_disk_and_in_memory_is_counted_together(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, remote = await scene.connect()
    await scene.outage(remote)
    began = time.time()
    for mid, expiry in ((1, 1), (2, 100), (3, 100)):
        properties: Properties = {Property.MESSAGE_EXPIRY: expiry}
        local.send(Publish(topic="t/a", qos=1, packet_id=mid, properties=properties).encode())
        await local.expect(PUBACK, mid)
    await wait_until(lambda: time.time() > began + 1.5)
    remote = await scene.remote_broker.session(session_present=True, properties={Property.RECEIVE_MAXIMUM: 1})
    second = await remote.receive_publish()
    await wait_until(lambda: scene.stored() == 2, what="the first one dropped from the file")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 200)
    remote.ack(PUBACK, second.packet_id)
    await wait_until(lambda: not scene.bridge.status.outbound.waiting, what="the third one dropped from memory")
    assert scene.bridge.status.outbound.dropped == {DropReason.EXPIRED: 2}


async def test_receipts_survive_a_restart(scene: Scene) -> None:
    local, remote = await scene.connect()
    await scene.outage(remote)
    local.publish("t/a", b"1", qos=2, mid=1)
    local.publish("t/a", b"2", qos=2, mid=2)
    await local.expect(PUBREC, 1)
    await local.expect(PUBREC, 2)
    local = await scene.restart()
    local.publish("t/a", b"1", qos=2, mid=1, dup=True)  # it did not hear our PUBREC
    await local.expect(PUBREC, 1)
    for mid in (1, 2):
        local.ack(PUBREL, mid)
        await local.expect(PUBCOMP, mid)
    remote = await scene.remote_back()
    assert [(await remote.receive_publish()).payload for _ in range(2)] == [b"1", b"2"]
    assert scene.stored() == 2


async def test_a_release_repeated_after_a_restart_does_not_pass_its_message(scene: Scene) -> None:
    """Found by the soak: the remote delivered on the repeated PUBREL, and again when the row was sent afterwards."""
    scene.delay = 0.3
    scene.bridge = scene.make()
    local, remote = await scene.connect()
    local.publish("t/a", b"1", qos=2, mid=5)
    assert (await remote.receive_publish()).packet_id == 5
    remote.ack(PUBREC, 5)
    await local.expect(PUBREC, 5)
    await scene.outage(remote)
    # Released before it goes to disk, so there is no receipt; and the source does not hear that we took it over.
    local.ack(PUBREL, 5)
    local.publish("t/a", b"2", mid=6)
    await wait_until(lambda: scene.bridge.status.outbound.waiting == 2, what="both in memory")
    await local.close()
    await wait_until(lambda: scene.stored() == 2, what="both on disk")
    local = await scene.restart()
    local.ack(PUBREL, 5)
    await local.expect(PUBCOMP, 5)
    remote = await scene.remote_back()
    first, second = await remote.receive_publish(), await remote.receive_publish()
    assert (first.packet_id, first.payload, second.payload) == (5, b"1", b"2")
    remote.ack(PUBREC, 5)
    await remote.expect(PUBREL, 5)


async def test_qos_1_repeated_after_a_restart_is_not_stored_twice(scene: Scene) -> None:
    local, remote = await scene.connect()
    await scene.outage(remote)
    local.publish("t/a", b"1", mid=1)
    await local.expect(PUBACK, 1)
    local = await scene.restart()
    local.publish("t/a", b"1", mid=1, dup=True)
    local.publish("t/a", b"2", mid=2, dup=True)
    await local.expect(PUBACK, 1)
    await local.expect(PUBACK, 2)
    assert scene.stored() == 2
    remote = await scene.remote_back()
    assert [(await remote.receive_publish()).payload for _ in range(2)] == [b"1", b"2"]


async def test_a_new_session_of_the_source_makes_its_identifiers_new(scene: Scene) -> None:
    local, remote = await scene.connect()
    await scene.outage(remote)
    local.publish("t/a", b"old", qos=2, mid=1)
    await local.expect(PUBREC, 1)
    await local.close()
    local = await scene.local_broker.session()  # it lost its session, and our receipt with it
    local.publish("t/a", b"new", qos=2, mid=1)
    await local.expect(PUBREC, 1)
    assert scene.stored() == 2
    remote = await scene.remote_back()
    assert [(await remote.receive_publish()).payload for _ in range(2)] == [b"old", b"new"]


async def test_new_messages_never_pass_those_on_disk(scene: Scene) -> None:
    local, remote = await scene.connect()
    await scene.outage(remote)
    for mid in range(1, 6):
        local.publish("t/a", b"%d" % mid, mid=mid)
        await local.expect(PUBACK, mid)
    remote = await scene.remote_back()
    rows = [await remote.receive_publish() for _ in range(5)]
    # All rows are under way, so new messages wait in memory until the last is through.
    local.publish("t/a", b"6", mid=6)
    for row in rows:
        remote.ack(PUBACK, row.packet_id)
    message = await remote.receive_publish()
    assert message.payload == b"6"
    remote.ack(PUBACK, message.packet_id)
    await local.expect(PUBACK, 6)


async def test_many_messages_are_taken_over_at_once(scene: Scene) -> None:
    """A local broker that keeps 512 messages for us, as FlashMQ does, must not have to drop any while we wait."""
    scene.delay = 600.0
    scene.bridge = scene.make()
    local, remote = await scene.connect()
    await scene.outage(remote)
    for mid in range(1, 513):
        local.publish("t/a", b"%d" % mid, mid=mid)
    await local.expect(PUBACK, 1)


async def test_under_way_with_pubrec_when_the_remote_goes(scene: Scene) -> None:
    local, remote = await scene.connect()
    for mid in (1, 2):
        local.publish("t/a", b"%d" % mid, qos=2, mid=mid)
        await remote.receive_publish()
        remote.ack(PUBREC, mid)
        await local.expect(PUBREC, mid)
    local.ack(PUBREL, 2)
    await remote.expect(PUBREL, 2)
    await scene.outage(remote)
    await local.expect(PUBCOMP, 2)  # taken over: the file has its release
    local.ack(PUBREL, 1)
    await local.expect(PUBCOMP, 1)
    remote = await scene.remote_back()
    seen: set[object] = set()
    for _ in range(2):
        packet = await remote.receive()
        if packet[0] >> 4 == PacketType.PUBLISH:
            message = Publish.decode(packet, v5=True)
            seen.add((message.packet_id, message.payload))
        else:
            seen.add((PacketType(packet[0] >> 4), packet[3]))
    # The first may or may not be known to the remote: its identifier tells. The second must never be published again.
    assert seen == {(1, b"1"), (PUBREL, 2)}


async def test_quota_is_waited_for(scene: Scene) -> None:
    local, remote = await scene.connect()
    local.publish("t/a", b"1", mid=1)
    await remote.receive_publish()
    remote.ack(PUBACK, 1, 0x97)
    local.publish("t/a", b"2", mid=2)
    again = [await remote.receive_publish() for _ in range(2)]
    assert [item.payload for item in again] == [b"1", b"2"]
    remote.ack(PUBACK, 1)
    remote.ack(PUBACK, 2)
    await local.expect(PUBACK, 1)
    await local.expect(PUBACK, 2)
    assert DropReason.REJECTED not in scene.bridge.status.outbound.dropped


async def test_a_release_from_before_a_restart_is_taken_over(scene: Scene) -> None:
    await scene.bridge.start()
    local = await scene.local_broker.session(session_present=True)
    local.ack(PUBREL, 7)  # of a message that the bridge before had passed on
    local.publish("t/a", b"1", mid=1)
    await local.expect(PUBCOMP, 7)
    await local.expect(PUBACK, 1)
    remote = await scene.remote_back()
    await remote.expect(PUBREL, 7)
    remote.ack(PUBCOMP, 7, 0x92)
    assert (await remote.receive_publish()).payload == b"1"


def routes(**priorities: Priority) -> tuple[Route, ...]:
    """One route for each priority, and that of the barrier."""
    return (
        Route(id="barrier", direction=Direction.BOTH, topic_filter="barrier"),
        *(
            Route(id=name, direction=Direction.BOTH, topic_filter=f"{name}/#", priority=priority)
            for name, priority in priorities.items()
        ),
    )


PRIORITIES = routes(low=Priority.LOW, some=Priority.NORMAL, high=Priority.HIGH)
EXCHANGED = routes(low=Priority.HIGH, some=Priority.NORMAL, high=Priority.LOW)


async def fill(scene: Scene, local: ScriptedConnection, start: int, *topics: str) -> None:
    """Have messages put on disk, numbered from `start`, QoS 1."""
    for number, topic in enumerate(topics, start):
        local.publish(topic, b"%d" % number, mid=number)
        await local.expect(PUBACK, number)


async def drained(remote: ScriptedConnection, number: int) -> list[bytes]:
    """Acknowledge so many messages; returns their payloads."""
    payloads = []
    for _ in range(number):
        message = await remote.receive_publish()
        payloads.append(message.payload)
        remote.ack(PUBACK, message.packet_id)
    return payloads


async def test_priorities_go_first_and_topics_keep_their_order(scene: Scene) -> None:
    """What was under way when the remote went comes before all."""
    scene.routes = PRIORITIES
    scene.bridge = scene.make()
    local, remote = await scene.connect()
    local.publish("low/a", b"0", mid=100)
    await remote.receive_publish()
    await scene.outage(remote)
    await local.expect(PUBACK, 100)
    await fill(scene, local, 1, "low/a", "some/a", "high/a", "low/a", "some/b", "high/a")
    remote = await scene.remote_back()
    assert await drained(remote, 7) == [b"0", b"3", b"6", b"2", b"5", b"1", b"4"]
    await wait_until(lambda: scene.stored() == 0 and not scene.bridge.status.outbound.waiting)
    # and direct again, in the order in which they come
    for topic in ("low/a", "high/a"):
        local.publish(topic, topic.encode(), mid=9)
        assert await drained(remote, 1) == [topic.encode()]
        await local.expect(PUBACK, 9)


@pytest.mark.parametrize("restarted", [False, True], ids=["changed", "changed-while-away"])
async def test_priorities_that_change_while_messages_wait(scene: Scene, *, restarted: bool) -> None:
    """New messages come behind all that wait: none passes an earlier one of its topic. And so over a restart."""
    scene.routes = PRIORITIES
    scene.bridge = scene.make()
    local, remote = await scene.connect()
    await scene.outage(remote)
    await fill(scene, local, 1, "low/a", "high/a")
    scene.routes = EXCHANGED
    if restarted:
        local = await scene.restart()
    else:
        await scene.bridge.apply_routes(EXCHANGED)
    await fill(scene, local, 3, "low/a", "high/a")
    scene.routes = PRIORITIES  # back again: what waits is in disorder all the same
    local = await scene.restart()
    await fill(scene, local, 5, "high/a", "low/a")
    remote = await scene.remote_back()
    assert await drained(remote, 6) == [b"2", b"1", b"3", b"4", b"5", b"6"]
    await wait_until(lambda: scene.stored() == 0 and not scene.bridge.status.outbound.waiting)
    # With the file empty, priorities count again.
    await scene.outage(remote)
    await fill(scene, local, 7, "low/a", "high/a")
    remote = await scene.remote_back()
    assert await drained(remote, 2) == [b"8", b"7"]


async def test_priorities_that_change_before_anything_is_on_disk(scene: Scene) -> None:
    """What waits in memory until the Outbox takes over is of both orders then."""
    scene.routes = PRIORITIES
    scene.delay = 0.5
    scene.bridge = scene.make()
    local, remote = await scene.connect()
    await scene.outage(remote)
    local.publish("low/a", b"1", mid=1)
    await wait_until(lambda: scene.bridge.status.outbound.waiting == 1, what="it to wait")
    await scene.bridge.apply_routes(EXCHANGED)
    local.publish("low/a", b"2", mid=2)
    await local.expect(PUBACK, 1)
    await local.expect(PUBACK, 2)
    assert scene.stored() == 2
    remote = await scene.remote_back()
    assert await drained(remote, 2) == [b"1", b"2"]


async def test_priorities_outlast_a_restart(scene: Scene) -> None:
    scene.routes = PRIORITIES
    scene.bridge = scene.make()
    local, remote = await scene.connect()
    await scene.outage(remote)
    await fill(scene, local, 1, "low/a", "high/a")
    local = await scene.restart()
    await fill(scene, local, 3, "low/a", "high/a")
    remote = await scene.remote_back()
    assert await drained(remote, 4) == [b"2", b"4", b"1", b"3"]
