"""Messages of our own to the remote broker, beside those that are forwarded."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from custom_components.quic_bridge.bridge import publisher
from custom_components.quic_bridge.bridge.publisher import (
    Publication,
    PublishError,
    PublishFault,
    Receipt,
    encode_properties,
)
from custom_components.quic_bridge.bridge.status import BridgeState

from ..support.certs import Certificates
from ..support.client import Client
from ..support.packets import PacketType, Properties, Property
from ..support.processes import wait_until
from ..support.scripted_broker import between_brokers
from .link_support import Numbers, Scene as RealScene, make_scene
from .test_forwarder import Scene

PUBACK, PUBREC, PUBREL, PUBCOMP = PacketType.PUBACK, PacketType.PUBREC, PacketType.PUBREL, PacketType.PUBCOMP
NEVER = 60.0

type Publishing = asyncio.Task[Receipt]


@pytest.fixture
async def scene(socket_enabled: None) -> AsyncIterator[Scene]:
    async with between_brokers(Scene) as scene:
        yield scene


@pytest.fixture
async def real(socket_enabled: None, certs: Certificates, tmp_path: Path) -> AsyncIterator[RealScene]:
    async with make_scene(certs, tmp_path) as scene:
        yield scene


def publish(scene: Scene, payload: bytes = b"own", qos: int = 1, **fields: object) -> Publishing:
    message = Publication(topic="own", payload=payload, qos=qos, **fields)  # type: ignore[arg-type]
    return asyncio.create_task(scene.bridge.publish(message))


async def fault(task: Publishing) -> tuple[PublishFault, str]:
    """What a message failed with."""
    with pytest.raises(PublishError) as caught:
        await task
    return caught.value.fault, caught.value.text


async def test_each_quality_of_service(scene: Scene) -> None:
    _, remote = await scene.connect()
    assert (await publish(scene, qos=0)).reason_code is None
    assert (await remote.receive_publish()).qos == 0

    task = publish(scene, retain=True)
    message = await remote.receive_publish()
    assert (message.topic, message.payload, message.qos, message.retain) == ("own", b"own", 1, True)
    assert not task.done()
    remote.ack(PUBACK, message.packet_id, 0x10)
    receipt = await task
    assert receipt.reason_code == 0x10
    assert 0 < receipt.seconds < 5

    task = publish(scene, qos=2)
    mid = (await remote.receive_publish()).packet_id
    remote.ack(PUBREC, mid)
    await remote.expect(PUBREL, mid)
    assert not task.done()
    remote.ack(PUBREC, mid)  # once more, as brokers do
    await remote.expect(PUBREL, mid)
    remote.ack(PUBCOMP, mid)
    assert (await task).reason_code == 0

    task = publish(scene, qos=2)
    remote.ack(PUBACK, (await remote.receive_publish()).packet_id)  # taken as QoS 1, as RabbitMQ does
    assert (await task).reason_code == 0


async def test_a_message_that_the_broker_refuses(scene: Scene) -> None:
    _, remote = await scene.connect()
    for qos, answer in ((1, PUBACK), (2, PUBREC)):
        task = publish(scene, qos=qos)
        remote.ack(answer, (await remote.receive_publish()).packet_id, 0x87)
        assert await fault(task) == (PublishFault.REFUSED, "not authorized (0x87)")
    # Nothing is left of them.
    assert (await publish(scene, qos=0)).reason_code is None


async def test_forwarded_messages_wait_for_the_packet_identifier_of_ours(scene: Scene) -> None:
    local, remote = await scene.connect()
    task = publish(scene)
    mid = (await remote.receive_publish()).packet_id
    local.publish("t/a", b"same", mid=mid)
    local.publish("t/a", b"next", mid=1)
    await local.barrier(remote)
    remote.ack(PUBACK, mid)
    await task
    assert [(await remote.receive_publish()).payload for _ in range(2)] == [b"same", b"next"]
    remote.ack(PUBACK, mid)
    await local.expect(PUBACK, mid)  # the forwarder's own again

    # And ours avoid those that are under way.
    local.publish("t/a", b"theirs", mid=mid - 1)
    await remote.receive_publish()
    task = publish(scene)
    assert (await remote.receive_publish()).packet_id == mid - 2
    remote.ack(PUBACK, mid - 2)
    await task


async def test_a_release_from_before_a_restart_waits_for_the_packet_identifier_of_ours(scene: Scene) -> None:
    local, remote = await scene.connect()
    task = publish(scene, qos=2)
    mid = (await remote.receive_publish()).packet_id
    local.ack(PUBREL, mid)
    await local.barrier(remote)
    remote.ack(PUBREC, mid)
    await remote.expect(PUBREL, mid)
    remote.ack(PUBCOMP, mid)
    await task
    await remote.expect(PUBREL, mid)
    remote.ack(PUBCOMP, mid, 0x92)
    await local.expect(PUBCOMP, mid)


async def test_an_identifier_that_the_broker_has_in_use(scene: Scene) -> None:
    _, remote = await scene.connect()
    task = publish(scene, qos=2)
    first = (await remote.receive_publish()).packet_id
    remote.ack(PUBREC, first, 0x91)
    second = (await remote.receive_publish()).packet_id
    assert second != first
    remote.ack(PUBREC, second)
    await remote.expect(PUBREL, second)
    remote.ack(PUBCOMP, second)
    await task

    task = publish(scene, qos=2)
    for _ in range(4):
        remote.ack(PUBREC, (await remote.receive_publish()).packet_id, 0x91)
    assert await fault(task) == (PublishFault.REFUSED, "packet identifier in use (0x91)")


async def test_the_window_is_shared(scene: Scene) -> None:
    scene.window = 3
    scene.bridge = scene.make_bridge()
    local, remote = await scene.connect()
    for mid in range(1, 6):
        local.publish("t/a", b"%d" % mid, mid=mid)
    assert [(await remote.receive_publish()).packet_id for _ in range(3)] == [1, 2, 3]
    ours = [publish(scene, payload) for payload in (b"A", b"B")]
    await local.barrier(remote)  # neither ours nor theirs: the window is full
    remote.ack(PUBACK, 1)
    await local.expect(PUBACK, 1)
    # The place that became free was claimed, though forwarded messages wait, too.
    first = await remote.receive_publish()
    assert first.payload == b"A"
    remote.ack(PUBACK, 2)
    await local.expect(PUBACK, 2)
    assert (await remote.receive_publish()).packet_id == 4  # never more than half of the places for us
    remote.ack(PUBACK, first.packet_id)
    await ours[0]
    second = await remote.receive_publish()
    assert second.payload == b"B"
    remote.ack(PUBACK, second.packet_id)
    await ours[1]
    assert (await remote.receive_publish()).packet_id == 5


async def test_what_the_broker_does_not_take(scene: Scene) -> None:
    task = publish(scene)
    assert (await fault(task))[0] is PublishFault.NOT_CONNECTED
    await scene.bridge.start()
    await scene.local_broker.session()
    limits: Properties = {Property.MAXIMUM_PACKET_SIZE: 100, Property.MAXIMUM_QOS: 1, Property.RETAIN_AVAILABLE: 0}
    remote = await scene.remote_broker.session(properties=limits)
    await wait_until(lambda: scene.bridge.status.state is BridgeState.RUNNING, what="running")
    assert await fault(publish(scene, bytes(100))) == (
        PublishFault.TOO_LARGE,
        "110 bytes, the broker takes 100",
    )
    assert await fault(publish(scene, qos=2)) == (PublishFault.QOS, "1")
    assert (await fault(publish(scene, retain=True)))[0] is PublishFault.RETAIN
    await publish(scene, qos=0)
    assert (await remote.receive_publish()).payload == b"own"


async def test_a_broker_that_speaks_3_1_1(scene: Scene) -> None:
    await scene.bridge.start()
    await scene.local_broker.session()
    refused = await scene.remote_broker.accept()
    await refused.handshake(code=0x84)
    remote = await scene.remote_broker.session()
    assert not remote.v5
    await wait_until(lambda: scene.bridge.status.state is BridgeState.RUNNING, what="running")
    assert (await fault(publish(scene, content_type="text/plain")))[0] is PublishFault.NO_PROPERTIES
    task = publish(scene)
    remote.ack(PUBACK, (await remote.receive_publish()).packet_id)
    assert (await task).reason_code == 0


@pytest.mark.parametrize("topic", ["", "a/+", "a/#", "a\0", "x" * 65_536, "\ud800"])
async def test_topics_that_are_none(scene: Scene, topic: str) -> None:
    with pytest.raises(PublishError) as caught:
        await scene.bridge.publish(Publication(topic=topic))
    assert caught.value.fault is PublishFault.INVALID_TOPIC


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"content_type": "a\0"}, "a text with a null character"),
        ({"content_type": "x" * 65_536}, "one of more than 65535 bytes"),
        ({"correlation_data": b"x" * 65_536}, "one of more than 65535 bytes"),
        ({"user_properties": (("a", "\N{EURO SIGN}" * 22_000),)}, "one of more than 65535 bytes"),
        ({"response_topic": "a/#"}, "the response topic is not a topic name"),
        ({"message_expiry": 2**32}, "an expiry of more than 4294967295 seconds"),
        ({"payload": b"\xff", "payload_is_text": True}, "the payload is said to be text and is not"),
        ({"user_properties": (("a", "\ud800"),)}, "surrogates not allowed"),
    ],
)
def test_properties_that_cannot_be(fields: dict[str, object], text: str) -> None:
    with pytest.raises(PublishError) as caught:
        encode_properties(Publication(topic="t", **fields))  # type: ignore[arg-type]
    assert caught.value.fault is PublishFault.INVALID_PROPERTY
    assert text in caught.value.text


async def test_a_broker_that_does_not_answer(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.window = 2
    scene.bridge = scene.make_bridge()
    _, remote = await scene.connect()
    quick = Publication(topic="own", payload=b"1", qos=1)
    with pytest.raises(PublishError) as caught:
        await scene.bridge._publisher.publish(quick, timeout=0.05)
    assert caught.value.fault is PublishFault.TIMED_OUT
    mid = (await remote.receive_publish()).packet_id
    # It has its place until it is answered: the next one is not sent.
    with pytest.raises(PublishError) as caught:
        await scene.bridge._publisher.publish(quick, timeout=0.05)
    assert caught.value.fault is PublishFault.BUSY
    monkeypatch.setattr(publisher, "_MAX_WAITING", 1)
    waiting = publish(scene, b"2")
    await asyncio.sleep(0)
    assert (await fault(publish(scene, b"3")))[0] is PublishFault.BUSY
    remote.ack(PUBACK, mid)  # late
    message = await remote.receive_publish()
    assert message.payload == b"2"
    remote.ack(PUBACK, message.packet_id)
    await waiting


async def test_a_connection_that_is_lost_meanwhile(scene: Scene) -> None:
    scene.window = 4
    scene.bridge = scene.make_bridge()
    local, remote = await scene.connect()
    twice, once, waits = publish(scene, b"2", 2), publish(scene, b"1", 1), publish(scene, b"not sent", 1)
    mid = (await remote.receive_publish()).packet_id
    await remote.receive_publish()
    await remote.close()
    assert (await fault(twice))[0] is (await fault(once))[0] is PublishFault.CONNECTION_LOST
    assert (await fault(waits))[0] is PublishFault.NOT_CONNECTED
    # The one of QoS 2 would keep its place at the broker: it is released, and its identifier is not used until then.
    remote = await scene.remote_broker.session(session_present=True)
    await remote.expect(PUBREL, mid)
    local.publish("t/a", b"same", mid=mid)
    await local.barrier(remote)
    remote.ack(PUBCOMP, mid, 0x92)
    assert (await remote.receive_publish()).payload == b"same"
    remote.ack(PUBACK, mid)
    await local.expect(PUBACK, mid)

    # A broker that has lost its session knows nothing of it.
    task = publish(scene, qos=2)
    await remote.receive_publish()
    await remote.close()
    await fault(task)
    remote = await scene.remote_broker.session()
    await local.barrier(remote)

    task = publish(scene, qos=2)
    await remote.receive_publish()
    await scene.bridge.stop()
    assert await fault(task) == (PublishFault.CONNECTION_LOST, "the bridge was stopped")


async def test_between_real_brokers_under_traffic(real: RealScene) -> None:
    await real.running()
    message = Publication(
        topic="own/all",
        payload="grün".encode(),
        qos=2,
        payload_is_text=True,
        message_expiry=600,
        content_type="text/plain",
        response_topic="answers",
        correlation_data=b"\0\1",
        user_properties=(("a", "1"), ("a", "2")),
    )
    async with Numbers(real) as numbers, Client(*real.remote.address) as watcher:
        await watcher.subscribe("own/#", qos=2)
        numbers.start()
        await numbers.flowing()
        receipts = await asyncio.gather(
            real.bridge.publish(message),
            *(
                real.bridge.publish(Publication(topic="own/n", payload=b"%d" % number, qos=1 + number % 2))
                for number in range(50)
            ),
        )
        await numbers.settled()
        await watcher.wait_for(51)
    assert {receipt.reason_code for receipt in receipts} == {0}
    whole = next(item for item in watcher.messages if item.topic == "own/all")
    assert (whole.payload, whole.qos) == (message.payload, 2)
    assert whole.properties == {
        Property.PAYLOAD_FORMAT: 1,
        Property.MESSAGE_EXPIRY: 600,
        Property.CONTENT_TYPE: "text/plain",
        Property.RESPONSE_TOPIC: "answers",
        Property.CORRELATION_DATA: b"\0\1",
        Property.USER_PROPERTY: [("a", "1"), ("a", "2")],
    }
    order = [int(item.payload) for item in watcher.messages if item.topic == "own/n"]
    assert sorted(order) == list(range(50))
    # The wish for an answer to a QoS 1 message that nobody hears is fulfilled, too.
    assert (await real.bridge.publish(Publication(topic="nobody", qos=1))).reason_code == 0x10
