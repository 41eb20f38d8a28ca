"""End-to-end acknowledgement, packet by packet, between two brokers that say exactly what the test wants."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
import time

import pytest

from custom_components.quic_bridge.bridge.bridge import Bridge
from custom_components.quic_bridge.bridge.config import BackoffConfig, BridgeConfig, BrokerConfig
from custom_components.quic_bridge.bridge.routes import Direction, Qos0Policy, RetainMode, Route
from custom_components.quic_bridge.bridge.status import BridgeState, BridgeStatus, DropReason, LinkState

from ..support.packets import PacketType, Properties, Property, Publish, decode_subscribe, encode_suback
from ..support.processes import wait_until
from ..support.scripted_broker import ScriptedBroker, ScriptedConnection, between_brokers, encode_unsuback

PUBACK, PUBREC, PUBREL, PUBCOMP = PacketType.PUBACK, PacketType.PUBREC, PacketType.PUBREL, PacketType.PUBCOMP
UP: Properties = {Property.USER_PROPERTY: [("quic_bridge_path", "u")]}
BACKOFF = BackoffConfig(base=0.01, cap=0.05, refused_base=0.05, refused_cap=0.1)


class Scene:
    """A bridge between two scripted brokers."""

    def __init__(self, local: ScriptedBroker, remote: ScriptedBroker) -> None:
        self.local_broker = local
        self.remote_broker = remote
        self.statuses: list[BridgeStatus] = []
        self.routes: tuple[Route, ...] = (
            Route(id="1", direction=Direction.BOTH, topic_filter="t/#"),
            Route(id="2", direction=Direction.BOTH, topic_filter="low/#", max_qos=1),
            Route(id="3", direction=Direction.BOTH, topic_filter="zero/#", max_qos=0),
            Route(id="4", direction=Direction.BOTH, topic_filter="barrier"),
        )
        self.window = 100
        self.bridge = self.make_bridge()

    def make_bridge(self, *, both_windows: bool = True) -> Bridge:
        """Make a bridge (again, as after a restart of the process); else our own Receive Maximum is the default."""

        def broker(name: str, port: int) -> BrokerConfig:
            config = BrokerConfig(host="127.0.0.1", port=port, client_id=name, window=self.window, max_payload=100_000)
            return replace(config, receive_maximum=self.window) if both_windows else config

        config = BridgeConfig(remote=broker("remote", self.remote_broker.port), routes=self.routes, backoff=BACKOFF)
        return Bridge(config, lambda: broker("local", self.local_broker.port), self.statuses.append)

    async def connect(self) -> tuple[ScriptedConnection, ScriptedConnection]:
        """Start the bridge and bring both sides up."""
        await self.bridge.start()
        local = await self.local_broker.session()
        remote = await self.remote_broker.session()
        await self.settled(local, remote)
        return local, remote

    async def settled(self, local: ScriptedConnection, remote: ScriptedConnection) -> None:
        """Wait until both connections are up and nothing is on its way."""
        await wait_until(lambda: True)
        await remote.barrier(local)
        await local.barrier(remote)
        await wait_until(lambda: self.bridge.status.state is BridgeState.RUNNING, what="running")

    async def forwarded(self, number: int) -> None:
        """Wait until so many messages went out."""
        await wait_until(lambda: self.bridge.status.outbound.forwarded >= number, what="forwarded")


def let_pass(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Put the wall clock forward."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + seconds)


@pytest.fixture
async def scene(socket_enabled: None) -> AsyncIterator[Scene]:
    async with between_brokers(Scene) as scene:
        yield scene


async def test_qos_1_is_acknowledged_only_when_the_target_did(scene: Scene) -> None:
    local, remote = await scene.connect()
    local.publish("t/a", b"1", mid=7)
    message = await remote.receive_publish()
    assert (message.topic, message.payload, message.qos, message.packet_id) == ("t/a", b"1", 1, 7)
    await local.barrier(remote)
    remote.ack(PUBACK, 7)
    await local.expect(PUBACK, 7)
    # and the other way
    remote.publish("t/b", b"2", mid=7)
    message = await local.receive_publish()
    assert (message.topic, message.packet_id) == ("t/b", 7)
    local.ack(PUBACK, 7)
    await remote.expect(PUBACK, 7)


async def test_qos_2_all_four_steps_pass_through(scene: Scene) -> None:
    local, remote = await scene.connect()
    local.publish("t/a", b"1", qos=2, mid=9)
    assert (await remote.receive_publish()).packet_id == 9
    remote.ack(PUBREC, 9)
    await local.expect(PUBREC, 9)
    local.ack(PUBREL, 9)
    await remote.expect(PUBREL, 9)
    await local.barrier(remote)
    remote.ack(PUBCOMP, 9)
    await local.expect(PUBCOMP, 9)
    assert scene.bridge.status.outbound.waiting == 0


async def test_a_target_that_takes_qos_2_as_qos_1(scene: Scene) -> None:
    """RabbitMQ with MQTT 3.1.1 answers a QoS 2 PUBLISH with PUBACK; waiting for PUBREC would stop everything."""
    scene.window = 1
    scene.bridge = scene.make_bridge()
    local, remote = await scene.connect()
    for mid in (1, 2):
        local.publish("t/a", b"%d" % mid, qos=2, mid=mid)
    for mid in (1, 2):
        assert (await remote.receive_publish()).packet_id == mid
        remote.ack(PUBACK, mid)
        await local.expect(PUBREC, mid)
        local.ack(PUBREL, mid)
        await local.expect(PUBCOMP, mid)
    assert scene.bridge.status.outbound.waiting == 0


async def test_a_lower_qos_limit(scene: Scene) -> None:
    local, remote = await scene.connect()
    local.publish("low/a", b"1", qos=2, mid=3)
    message = await remote.receive_publish()
    assert (message.qos, message.packet_id) == (1, 3)
    remote.ack(PUBACK, 3)
    await local.expect(PUBREC, 3)
    local.ack(PUBREL, 3)
    await local.expect(PUBCOMP, 3)
    for qos, answer in ((1, PUBACK), (2, PUBREC)):
        local.publish("zero/a", b"1", qos=qos, mid=4)
        assert (await remote.receive_publish()).qos == 0
        await local.expect(answer, 4)
    local.ack(PUBREL, 4)
    await local.expect(PUBCOMP, 4)


async def test_unacknowledged_messages_are_sent_again_in_order_when_the_target_resumes(scene: Scene) -> None:
    local, remote = await scene.connect()
    for mid, qos in ((1, 1), (2, 2), (3, 1), (4, 2)):
        local.publish("t/a", b"%d" % mid, qos=qos, mid=mid)
        await remote.receive_publish()
    remote.ack(PUBREC, 4)
    await local.expect(PUBREC, 4)
    await remote.close()
    remote = await scene.remote_broker.session(session_present=True)
    again = [await remote.receive_publish() for _ in range(3)]
    # DUP for QoS 1; QoS 2 without, see the forwarder. The one with PUBREC is the target's already.
    assert [(item.packet_id, item.qos, item.dup) for item in again] == [(1, 1, True), (2, 2, False), (3, 1, True)]
    local.ack(PUBREL, 4)
    await remote.expect(PUBREL, 4)


@pytest.mark.parametrize("refused", [False, True])
async def test_a_pubrec_of_before_does_not_pass_an_earlier_message(scene: Scene, *, refused: bool) -> None:
    """Mosquitto says PUBREC again of what it holds, before it reads what is sent again."""
    local, remote = await scene.connect()
    for mid in (1, 2, 3):
        local.publish("t/a", b"%d" % mid, qos=2, mid=mid)
        await remote.receive_publish()
    await remote.close()
    remote = await scene.remote_broker.session(session_present=True)
    for mid in (1, 2, 3):
        assert (await remote.receive_publish()).packet_id == mid
    remote.ack(PUBREC, 3)
    remote.ack(PUBREC, 2)
    await remote.barrier(local)
    remote.ack(PUBREC, 1, 0x83 if refused else 0)
    for mid in (1, 2, 3):
        await local.expect(PUBREC, mid)


async def test_pubrel_is_sent_again_when_the_target_resumes(scene: Scene) -> None:
    local, remote = await scene.connect()
    local.publish("t/a", qos=2, mid=5)
    await remote.receive_publish()
    remote.ack(PUBREC, 5)
    await local.expect(PUBREC, 5)
    local.ack(PUBREL, 5)
    await remote.expect(PUBREL, 5)
    await remote.close()
    remote = await scene.remote_broker.session(session_present=True)
    await remote.expect(PUBREL, 5)
    remote.ack(PUBCOMP, 5, 0x92)
    await local.expect(PUBCOMP, 5)


async def test_a_target_that_lost_its_session_gets_everything_afresh(scene: Scene) -> None:
    local, remote = await scene.connect()
    local.publish("t/a", b"1", qos=1, mid=1)
    local.publish("t/a", b"2", qos=2, mid=2)
    for _ in range(2):
        await remote.receive_publish()
    remote.ack(PUBREC, 2)
    await local.expect(PUBREC, 2)
    local.ack(PUBREL, 2)
    await remote.expect(PUBREL, 2)
    await remote.close()
    remote = await scene.remote_broker.session()
    again = [await remote.receive_publish() for _ in range(2)]
    assert [(item.payload, item.qos, item.dup) for item in again] == [(b"1", 1, False), (b"2", 2, False)]
    remote.ack(PUBREC, 2)
    await remote.expect(PUBREL, 2)
    remote.ack(PUBCOMP, 2)
    await local.expect(PUBCOMP, 2)


async def test_messages_wait_while_the_target_is_away(scene: Scene) -> None:
    local, remote = await scene.connect()
    await remote.close()
    await wait_until(lambda: scene.bridge.status.state is not BridgeState.RUNNING)
    local.publish("t/a", b"0", qos=0)
    for mid in (1, 2, 3):
        local.publish("t/a", b"%d" % mid, mid=mid)
    await wait_until(lambda: scene.bridge.status.outbound.waiting == 3)
    assert scene.bridge.status.outbound.dropped == {DropReason.DISCONNECTED: 1}
    remote = await scene.remote_broker.session(session_present=True)
    assert [(await remote.receive_publish()).payload for _ in range(3)] == [b"1", b"2", b"3"]


async def test_never_more_under_way_than_the_target_allows(scene: Scene) -> None:
    await scene.bridge.start()
    local = await scene.local_broker.session()
    remote = await scene.remote_broker.session(properties={Property.RECEIVE_MAXIMUM: 3})
    await scene.settled(local, remote)
    for mid in range(1, 9):
        local.publish("t/a", b"%d" % mid, qos=1 + mid % 2, mid=mid)
    first = [await remote.receive_publish() for _ in range(3)]
    await local.barrier(remote)
    assert [item.packet_id for item in first] == [1, 2, 3]
    remote.ack(PUBREC, 1)  # still under way
    await local.expect(PUBREC, 1)
    await local.barrier(remote)
    remote.ack(PUBACK, 2)
    assert (await remote.receive_publish()).packet_id == 4
    await local.barrier(remote)


async def test_a_source_that_drops_what_exceeds_our_receive_maximum(scene: Scene) -> None:
    """FlashMQ and NanoMQ do, instead of letting it wait: a burst must fit, however slow the target is."""
    scene.bridge = scene.make_bridge(both_windows=False)
    local, remote = await scene.connect()
    assert local.connect.properties is not None
    allowed = local.connect.properties.get(Property.RECEIVE_MAXIMUM, 65_535)
    assert isinstance(allowed, int)
    burst = 10_000
    for mid in range(1, min(burst, allowed) + 1):  # nothing is acknowledged meanwhile
        local.publish("t/a", b"%d" % mid, mid=mid)
    for mid in range(1, burst + 1):
        message = await remote.receive_publish()
        assert (message.payload, message.packet_id) == (b"%d" % mid, mid)
        remote.ack(PUBACK, mid)
    await scene.forwarded(burst)


async def test_a_source_that_comes_back_is_answered_without_a_second_copy(scene: Scene) -> None:
    local, remote = await scene.connect()
    local.publish("t/a", b"1", qos=1, mid=1)
    local.publish("t/a", b"2", qos=2, mid=2)
    local.publish("t/a", b"3", qos=2, mid=3)
    for _ in range(3):
        await remote.receive_publish()
    remote.ack(PUBREC, 3)
    await local.expect(PUBREC, 3)
    await local.close()
    await wait_until(lambda: scene.bridge.status.state is not BridgeState.RUNNING)
    remote.ack(PUBACK, 1)
    remote.ack(PUBREC, 2)
    await scene.forwarded(1)
    local = await scene.local_broker.session(session_present=True)
    local.publish("t/a", b"1", qos=1, mid=1, dup=True)
    local.publish("t/a", b"2", qos=2, mid=2, dup=True)
    local.publish("t/a", b"3", qos=2, mid=3)  # mosquitto repeats without DUP
    await local.expect(PUBACK, 1)
    await local.expect(PUBREC, 2)
    await local.expect(PUBREC, 3)
    local.ack(PUBREL, 3)
    await remote.expect(PUBREL, 3)


async def test_a_source_that_lost_its_session_does_not_lose_what_it_gave_us(scene: Scene) -> None:
    local, remote = await scene.connect()
    local.publish("t/a", b"old 1", qos=1, mid=1)
    local.publish("t/a", b"old 2", qos=2, mid=2)
    local.publish("t/a", b"old 3", qos=2, mid=3)
    for _ in range(3):
        await remote.receive_publish()
    remote.ack(PUBREC, 3)
    await local.expect(PUBREC, 3)
    await local.close()
    local = await scene.local_broker.session()
    # Nobody will release the orphan with PUBREC but we; the identifiers are in use until the orphans are through.
    await remote.expect(PUBREL, 3)
    local.publish("t/a", b"new 1", qos=1, mid=1)
    local.publish("t/a", b"new 2", qos=2, mid=2)
    await local.barrier(remote)
    remote.ack(PUBREC, 2)
    await remote.expect(PUBREL, 2)
    remote.ack(PUBCOMP, 3)
    remote.ack(PUBACK, 1)
    assert (await remote.receive_publish()).payload == b"new 1"
    remote.ack(PUBCOMP, 2)
    assert (await remote.receive_publish()).payload == b"new 2"
    remote.ack(PUBACK, 1)
    await local.expect(PUBACK, 1)


async def test_a_source_that_reuses_the_identifier_of_an_expired_message(scene: Scene) -> None:
    local, remote = await scene.connect()
    local.publish("t/a", b"old", mid=1)
    await remote.receive_publish()
    await local.close()
    local = await scene.local_broker.session(session_present=True)
    local.publish("t/a", b"new", mid=1)
    await local.barrier(remote)
    remote.ack(PUBACK, 1)
    assert (await remote.receive_publish()).payload == b"new"
    remote.ack(PUBACK, 1)
    await local.expect(PUBACK, 1)


async def test_a_message_that_the_target_may_have_is_finished_however_long_it_waited(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would hold one of the target's places for ever; mosquitto has twenty."""
    scene.routes = (
        Route(id="1", direction=Direction.TO_REMOTE, topic_filter="t/#", max_age=60.0),
        Route(id="2", direction=Direction.BOTH, topic_filter="barrier"),
    )
    scene.bridge = scene.make_bridge()
    await scene.bridge.start()
    local = await scene.local_broker.session()
    for mid, qos in ((1, 2), (2, 1)):
        local.publish("t/a", b"waits", qos=qos, mid=mid)
    await wait_until(lambda: scene.bridge.status.outbound.waiting == 2, what="waiting")
    remote = await scene.remote_broker.session()
    for _ in range(2):
        await remote.receive_publish()
    await remote.close()
    await wait_until(lambda: scene.bridge.status.remote.state is not LinkState.CONNECTED, what="lost")
    let_pass(monkeypatch, 61.0)
    remote = await scene.remote_broker.session(session_present=True)
    again = await remote.receive_publish()
    assert (again.packet_id, again.qos) == (1, 2)
    remote.ack(PUBREC, 1)
    await local.expect(PUBACK, 2)
    await local.expect(PUBREC, 1)
    assert scene.bridge.status.outbound.dropped == {DropReason.EXPIRED: 1}


async def test_the_latest_of_a_topic_waits_for_as_long_as_it_may_itself(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.routes = (
        Route(id="1", direction=Direction.TO_LOCAL, topic_filter="t/#", max_age=60.0, qos_0=Qos0Policy.LATEST),
        Route(id="2", direction=Direction.BOTH, topic_filter="barrier"),
    )
    scene.bridge = scene.make_bridge()
    await scene.bridge.start()
    remote = await scene.remote_broker.session()
    remote.publish("t/a", b"old", qos=0)
    await wait_until(lambda: scene.bridge.status.inbound.waiting == 1, what="waiting")
    let_pass(monkeypatch, 40.0)
    remote.publish("t/a", b"new", qos=0)
    await wait_until(lambda: DropReason.REPLACED in scene.bridge.status.inbound.dropped, what="replaced")
    let_pass(monkeypatch, 40.0)
    local = await scene.local_broker.session()
    assert (await local.receive_publish()).payload == b"new"


async def test_qos_0_that_waited_is_not_passed_by_later_ones(scene: Scene) -> None:
    scene.routes = (
        Route(id="1", direction=Direction.TO_REMOTE, topic_filter="t/#", qos_0=Qos0Policy.QUEUE),
        Route(id="2", direction=Direction.BOTH, topic_filter="barrier"),
    )
    scene.bridge = scene.make_bridge()
    await scene.bridge.start()
    local = await scene.local_broker.session()
    for mid in (1, 2):
        local.publish("t/other", mid=mid)
    local.publish("t/a", b"first", qos=0)
    await wait_until(lambda: scene.bridge.status.outbound.waiting == 3, what="waiting")
    remote = await scene.remote_broker.session(properties={Property.RECEIVE_MAXIMUM: 1})
    assert (await remote.receive_publish()).packet_id == 1
    local.publish("t/a", b"second", qos=0)
    await local.barrier(remote)
    remote.ack(PUBACK, 1)
    assert (await remote.receive_publish()).packet_id == 2
    remote.ack(PUBACK, 2)
    assert [(await remote.receive_publish()).payload for _ in range(2)] == [b"first", b"second"]


async def test_a_restart_between_pubrec_and_pubrel(scene: Scene) -> None:
    local, remote = await scene.connect()
    local.publish("t/a", b"1", qos=2, mid=6)
    await remote.receive_publish()
    remote.ack(PUBREC, 6)
    await local.expect(PUBREC, 6)
    await scene.bridge.stop()
    scene.bridge = scene.make_bridge()
    await scene.bridge.start()
    local = await scene.local_broker.session(session_present=True)
    local.ack(PUBREL, 6)
    remote = await scene.remote_broker.session(session_present=True)
    await remote.expect(PUBREL, 6)
    remote.ack(PUBCOMP, 6)
    await local.expect(PUBCOMP, 6)


async def test_a_message_whose_route_went_does_not_keep_a_place_at_the_target(scene: Scene) -> None:
    local, remote = await scene.connect()
    local.publish("t/a", b"1", qos=2, mid=6)
    await remote.receive_publish()
    await scene.bridge.stop()
    scene.routes = (Route(id="4", direction=Direction.BOTH, topic_filter="barrier"),)
    scene.bridge = scene.make_bridge()
    await scene.bridge.start()
    local = await scene.local_broker.session(session_present=True)
    local.publish("t/a", b"1", qos=2, mid=6, dup=True)
    local.publish("t/a", b"2", qos=2, mid=7)
    await local.expect(PUBREC, 6)
    await local.expect(PUBREC, 7)
    remote = await scene.remote_broker.session(session_present=True)
    for mid in (6, 7):
        local.ack(PUBREL, mid)
    await local.expect(PUBCOMP, 7)
    await remote.expect(PUBREL, 6)
    remote.ack(PUBCOMP, 6)
    await local.expect(PUBCOMP, 6)
    outbound = scene.bridge.status.outbound
    assert (outbound.forwarded, outbound.waiting, outbound.dropped) == (0, 0, {DropReason.NO_ROUTE: 2})


async def test_a_restart_between_pubrec_and_pubrel_with_the_targets_session_lost(scene: Scene) -> None:
    await scene.bridge.start()
    local = await scene.local_broker.session(session_present=True)
    local.ack(PUBREL, 6)
    await scene.remote_broker.session()
    await local.expect(PUBCOMP, 6)


async def test_an_identifier_left_over_at_the_target_does_not_swallow_a_new_message(scene: Scene) -> None:
    local, remote = await scene.connect()
    local.publish("t/a", b"new", qos=2, mid=8)
    await remote.receive_publish()
    remote.ack(PUBREC, 8, 0x91)
    await remote.expect(PUBREL, 8)
    remote.ack(PUBCOMP, 8)
    assert (await remote.receive_publish()).payload == b"new"
    remote.ack(PUBREC, 8)
    await local.expect(PUBREC, 8)


async def test_identifier_in_use_means_already_there_for_a_message_sent_before(scene: Scene) -> None:
    local, remote = await scene.connect()
    local.publish("t/a", b"repeated after our restart", qos=2, mid=8, dup=True)
    await remote.receive_publish()
    remote.ack(PUBREC, 8, 0x91)
    await local.expect(PUBREC, 8)
    local.publish("t/a", b"repeated by us", qos=2, mid=9)
    await remote.receive_publish()
    await remote.close()
    remote = await scene.remote_broker.session(session_present=True)
    await remote.receive_publish()
    remote.ack(PUBREC, 9, 0x91)
    await local.expect(PUBREC, 9)


@pytest.mark.parametrize(("qos", "answer"), [(1, PUBACK), (2, PUBREC)])
async def test_a_message_that_the_target_refuses_does_not_stop_the_rest(
    scene: Scene, qos: int, answer: PacketType
) -> None:
    local, remote = await scene.connect()
    local.publish("t/forbidden", qos=qos, mid=1)
    local.publish("t/a", mid=2)
    for _ in range(2):
        await remote.receive_publish()
    remote.ack(answer, 1, 0x87)
    await local.expect(answer, 1)
    remote.ack(PUBACK, 2)
    await local.expect(PUBACK, 2)
    if qos == 2:
        local.ack(PUBREL, 1)
        await local.expect(PUBCOMP, 1)
    status = scene.bridge.status.outbound
    assert (status.dropped, status.forwarded - 1, status.waiting) == ({DropReason.REJECTED: 1}, 1, 0)


async def test_messages_too_large_for_the_target_or_for_us(scene: Scene) -> None:
    await scene.bridge.start()
    local = await scene.local_broker.session()
    remote = await scene.remote_broker.session(properties={Property.MAXIMUM_PACKET_SIZE: 1000})
    await scene.settled(local, remote)
    local.publish("t/a", b"x" * 1000, mid=1)
    local.publish("t/a", b"x" * 1000, qos=0)
    local.publish("t/a", b"x" * 200_000, qos=2, mid=2)
    local.publish("t/a", b"small", mid=3)
    assert (await remote.receive_publish()).payload == b"small"
    await local.expect(PUBACK, 1)
    await local.expect(PUBREC, 2)
    local.ack(PUBREL, 2)
    await local.expect(PUBCOMP, 2)
    assert scene.bridge.status.outbound.dropped == {DropReason.TOO_LARGE: 3}


async def test_what_no_route_wants_is_acknowledged_and_counted(scene: Scene) -> None:
    local, remote = await scene.connect()
    local.publish("other", qos=1, mid=1)
    local.publish("other", qos=0)
    await local.expect(PUBACK, 1)
    await local.barrier(remote)
    assert scene.bridge.status.outbound.dropped == {DropReason.NO_ROUTE: 2}


async def test_unknown_acknowledgements_do_no_harm(scene: Scene) -> None:
    local, remote = await scene.connect()
    for kind in (PUBACK, PUBCOMP, PUBREC):
        remote.ack(kind, 99)
    await remote.expect(PUBREL, 99)
    local.publish("t/a", mid=1)
    await remote.receive_publish()
    remote.ack(PUBCOMP, 1)
    remote.ack(PUBREC, 1)
    await remote.barrier(local)
    remote.ack(PUBACK, 1)
    await local.expect(PUBACK, 1)


async def test_properties_cross_except_those_of_one_connection(scene: Scene) -> None:
    local, remote = await scene.connect()
    packet = bytes.fromhex("30 15") + b"\x00\x03t/a" + bytes.fromhex("0e 0b05 26 0001 61 0001 62 02 0000003c") + b"x"
    local.send(packet)
    message = await remote.receive_publish()
    assert message.properties == {
        Property.USER_PROPERTY: [("a", "b"), ("quic_bridge_path", "u")],
        Property.MESSAGE_EXPIRY: 60,
    }
    assert message.payload == b"x"


async def test_a_broker_of_3_1_1_on_one_side(scene: Scene) -> None:
    await scene.bridge.start()
    local = await scene.local_broker.accept()
    await local.handshake(code=0x84)
    local = await scene.local_broker.session()
    assert not local.v5
    remote = await scene.remote_broker.session()
    await scene.settled(local, remote)
    local.publish("t/a", b"up", mid=1)
    message = await remote.receive_publish()
    assert (message.payload, message.properties) == (b"up", UP)
    remote.send(bytes.fromhex("32 11") + b"\x00\x03t/b" + bytes.fromhex("0005 05 03 0002 6262") + b"down")
    message = await local.receive_publish()
    assert (message.topic, message.payload, message.properties) == ("t/b", b"down", None)


async def test_a_route_renames_limits_and_retains(scene: Scene) -> None:
    routes = (
        Route(id="1", direction=Direction.BOTH, topic_filter="barrier"),
        Route(
            id="2",
            direction=Direction.BOTH,
            topic_filter="z/#",
            target="site/7/z/{1}",
            exclude=("z/secret",),
            retain=RetainMode.NEVER,
        ),
    )
    local, remote = await scene.connect()
    await scene.bridge.apply_routes(routes)
    local.send(Publish(topic="z/secret", qos=1, packet_id=1, properties={}).encode())
    local.send(Publish(topic="z/lamp/set", payload=b"on", qos=1, packet_id=2, retain=True, properties={}).encode())
    message = await remote.receive_publish()
    assert (message.topic, message.payload, message.packet_id, message.retain) == ("site/7/z/lamp/set", b"on", 2, False)
    await local.expect(PUBACK, 1)
    remote.publish("site/7/z/lamp", b"is on", qos=2, mid=3)
    back = await local.receive_publish()
    assert (back.topic, back.payload, back.qos, back.packet_id) == ("z/lamp", b"is on", 2, 3)
    assert scene.bridge.status.outbound.dropped == {}


async def test_a_request_finds_its_way_back(scene: Scene) -> None:
    routes = (
        Route(id="1", direction=Direction.BOTH, topic_filter="barrier"),
        Route(id="2", direction=Direction.BOTH, topic_filter="rpc/#", target="site/7/rpc/{1}"),
    )
    local, remote = await scene.connect()
    await scene.bridge.apply_routes(routes)
    properties: Properties = {Property.RESPONSE_TOPIC: "rpc/answers/1", Property.CORRELATION_DATA: b"\x01"}
    local.send(Publish(topic="rpc/ask", payload=b"?", properties=properties).encode())
    request = await remote.receive_publish()
    assert request.properties == {
        Property.RESPONSE_TOPIC: "site/7/rpc/answers/1",
        Property.CORRELATION_DATA: b"\x01",
        **UP,
    }
    remote.publish("site/7/rpc/answers/1", b"!", qos=0)
    assert (await local.receive_publish()).topic == "rpc/answers/1"


async def test_changed_routes_change_only_the_subscriptions_that_differ(scene: Scene) -> None:
    local, remote = await scene.connect()
    local.answer_subscribe = remote.answer_subscribe = False
    changed = (*scene.routes[:3], Route(id="5", direction=Direction.TO_LOCAL, topic_filter="new/#", max_qos=1))
    apply = asyncio.create_task(scene.bridge.apply_routes(changed))
    mid, wanted = decode_subscribe(await remote.receive(), v5=True)
    assert [(item.topic_filter, item.qos) for item in wanted] == [("new/#", 1)]
    remote.send(encode_suback(mid, [1], v5=True))
    for connection in (local, remote):
        packet = await connection.receive()
        assert packet[0] >> 4 == PacketType.UNSUBSCRIBE
        assert b"barrier" in packet
        connection.send(encode_unsuback(packet, v5=True))
    await apply
    remote.publish("new/a", b"1", mid=1)
    assert (await local.receive_publish()).topic == "new/a"
    assert scene.bridge.status.local.reconnects == scene.bridge.status.remote.reconnects == 0


async def test_a_source_that_begins_a_completed_exchange_again(scene: Scene) -> None:
    local, remote = await scene.connect()
    local.publish("t/a", b"once", qos=2, mid=1)
    await remote.receive_publish()
    remote.ack(PUBREC, 1)
    await local.expect(PUBREC, 1)
    local.ack(PUBREL, 1)
    await remote.expect(PUBREL, 1)
    remote.ack(PUBCOMP, 1)
    await local.expect(PUBCOMP, 1)
    await local.close()
    local = await scene.local_broker.session(session_present=True)
    local.publish("t/a", b"once", qos=2, mid=1, dup=True)  # mosquitto did not hear PUBCOMP
    await local.expect(PUBREC, 1)
    local.ack(PUBREL, 1)
    await local.expect(PUBCOMP, 1)
    local.publish("t/a", b"once", qos=2, mid=1)  # a new one that looks the same
    assert (await remote.receive_publish()).payload == b"once"
    assert scene.bridge.status.outbound.forwarded == 1 + 1  # and the barrier


@pytest.mark.parametrize("reason", [0x93, 0x97])
async def test_a_message_sent_back_over_a_quota_keeps_its_place(scene: Scene, reason: int) -> None:
    local, remote = await scene.connect()
    for mid in (1, 2, 3):
        local.publish("t/a", b"%d" % mid, mid=mid)
        await remote.receive_publish()
    remote.ack(PUBACK, 1, reason)
    await remote.barrier(local)
    await remote.close()
    remote = await scene.remote_broker.session(session_present=True)
    assert [(await remote.receive_publish()).payload for _ in range(3)] == [b"1", b"2", b"3"]
    assert scene.bridge.status.outbound.dropped == {}


async def test_qos_2_leaves_a_place_for_qos_1(scene: Scene) -> None:
    await scene.bridge.start()
    local = await scene.local_broker.session()
    remote = await scene.remote_broker.session(properties={Property.RECEIVE_MAXIMUM: 3})
    await scene.settled(local, remote)
    for mid in (1, 2, 3):
        local.publish("t/a", b"%d" % mid, qos=2, mid=mid)
    assert [(await remote.receive_publish()).packet_id for _ in range(2)] == [1, 2]
    for mid in (1, 2):
        remote.ack(PUBREC, mid)
        await local.expect(PUBREC, mid)
    await local.barrier(remote)
    local.ack(PUBREL, 1)
    await remote.expect(PUBREL, 1)
    remote.ack(PUBCOMP, 1)
    assert (await remote.receive_publish()).packet_id == 3


async def test_a_target_whose_places_are_held_from_before_a_restart(scene: Scene) -> None:
    await scene.bridge.start()
    local = await scene.local_broker.session(session_present=True)
    remote = await scene.remote_broker.session(session_present=True, properties={Property.RECEIVE_MAXIMUM: 1})
    await scene.settled(local, remote)
    local.publish("t/a", b"older", qos=1, mid=1, dup=True)
    local.publish("t/b", b"held", qos=2, mid=2, dup=True)
    await remote.receive_publish()
    remote.ack(PUBACK, 1, 0x97)  # and mosquitto hangs up
    await remote.barrier(local)
    await remote.close()
    remote = await scene.remote_broker.session(session_present=True, properties={Property.RECEIVE_MAXIMUM: 1})
    assert (await remote.receive_publish()).packet_id == 2
    remote.ack(PUBREC, 2)
    await local.expect(PUBREC, 2)
    local.ack(PUBREL, 2)
    await remote.expect(PUBREL, 2)
    remote.ack(PUBCOMP, 2)
    assert (await remote.receive_publish()).packet_id == 1


async def test_pubrecs_keep_their_order_when_the_source_comes_back(scene: Scene) -> None:
    """A target that delivers on PUBREL (mosquitto) delivers in the order of the source's PUBRELs, so of our PUBRECs."""
    local, remote = await scene.connect()
    for mid in (1, 2):
        remote.publish("t/a", b"%d" % mid, qos=2, mid=mid)
        assert (await local.receive_publish()).packet_id == mid
    await remote.close()
    await wait_until(lambda: scene.bridge.status.state is not BridgeState.RUNNING)
    local.ack(PUBREC, 1)  # kept: the source is away
    remote = await scene.remote_broker.session(session_present=True)
    await scene.settled(local, remote)
    local.ack(PUBREC, 2)
    await local.barrier(remote)  # nothing of it comes before the source has repeated both
    for mid in (1, 2):
        remote.publish("t/a", b"%d" % mid, qos=2, mid=mid, dup=True)
    for mid in (1, 2):
        await remote.expect(PUBREC, mid)
