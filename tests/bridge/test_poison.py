"""Messages that a broker will not have: dropped or tried again as the reason says, counted, reported once."""

from collections.abc import AsyncIterator
from dataclasses import replace
import logging
from pathlib import Path

import pytest

from custom_components.quic_bridge.bridge.errors import ErrorCode
from custom_components.quic_bridge.bridge.status import BridgeState, DropReason, LinkState

from ..support.certs import Certificates
from ..support.client import Client
from ..support.faults import (
    enforce_packet_size,
    enforce_receive_maximum,
    refuse_connect,
    refuse_publish,
    rewrite_connack,
    swallow,
)
from ..support.front_connection import FrontConnection
from ..support.front_policy import Direction
from ..support.mosquitto import MosquittoOptions
from ..support.packets import PacketType, Properties, Property, Publish, packet
from ..support.processes import wait_until
from .link_support import Numbers, Scene, make_scene

pytestmark = pytest.mark.usefixtures("socket_enabled")


@pytest.fixture
async def scene(socket_enabled: None, certs: Certificates, tmp_path: Path) -> AsyncIterator[Scene]:
    async with make_scene(certs, tmp_path) as scene:
        yield scene


@pytest.fixture
async def home(scene: Scene) -> AsyncIterator[Client]:
    async with Client(scene.local.host, scene.local.port) as client:
        await client.subscribe("down/#", qos=2)
        yield client


@pytest.fixture
async def away(scene: Scene) -> AsyncIterator[Client]:
    async with Client(scene.remote.host, scene.remote.port) as client:
        await client.subscribe("up/#", qos=2)
        yield client


def drop_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was reported of drops, as a person sees it with default logging."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and "Dropped a message" in record.getMessage()
    ]


# --- the remote will not have them ------------------------------------------------------------------------------------


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_larger_than_the_remote_takes(
    scene: Scene, home: Client, away: Client, caplog: pytest.LogCaptureFixture, qos: int
) -> None:
    """The limit of the CONNACK is kept: only the large message is dropped, what follows arrives (thin-edge#3124)."""
    scene.front.add_rule(rewrite_connack({Property.MAXIMUM_PACKET_SIZE: 1000}), enforce_packet_size(1000))
    await scene.running()
    for number in range(3):
        await home.publish("up/large", bytes(2000), qos)
        await home.publish("up/small", b"%d" % number, 1)
    await away.wait_for(3)
    assert away.payloads == [b"0", b"1", b"2"]
    assert scene.bridge.status.outbound.dropped == {DropReason.TOO_LARGE: 3}
    await scene.until(lambda status: not status.outbound.waiting, "nothing waits")
    assert scene.errors() == []
    [warning] = drop_warnings(caplog)
    assert "too_large" in warning
    # The limit is for the packet as it is sent: one byte decides.
    path: Properties = {Property.USER_PROPERTY: [("quic_bridge_path", "u")]}
    head = len(Publish(topic="up/edge", qos=1, packet_id=1, properties=path).encode()) + 1  # of the longer length
    await home.publish("up/edge", bytes(1000 - head), 1)
    await home.publish("up/edge", bytes(1001 - head), 1)
    await home.publish("up/small", b"3", 1)
    await away.wait_for(lambda messages: messages[-1].payload == b"3")
    assert [len(message.payload) for message in away.messages if message.topic == "up/edge"] == [1000 - head]


@pytest.mark.parametrize("qos", [1, 2])
async def test_larger_than_the_remote_takes_while_it_was_away(
    scene: Scene, home: Client, away: Client, qos: int
) -> None:
    """Messages that waited meet a limit that nobody knew when they came."""
    await scene.running()
    await scene.front.stop()
    await scene.until(lambda status: status.remote.state is LinkState.WAITING, "loss")
    await home.publish("up/small", b"0", qos)
    await home.publish("up/large", bytes(2000), qos)
    await home.publish("up/small", b"1", qos)
    await scene.until(lambda status: status.outbound.waiting == 3, "waiting")
    scene.front.add_rule(rewrite_connack({Property.MAXIMUM_PACKET_SIZE: 1000}), enforce_packet_size(1000))
    await scene.front.start()
    await away.wait_for(2)
    assert away.payloads == [b"0", b"1"]
    await scene.until(lambda status: not status.outbound.waiting, "nothing waits")
    assert scene.bridge.status.outbound.dropped == {DropReason.TOO_LARGE: 1}


@pytest.mark.parametrize("code", [0x80, 0x83, 0x87, 0x90, 0x99], ids=lambda code: f"{code:#x}")
@pytest.mark.parametrize("qos", [1, 2])
async def test_refused_with_a_reason(
    scene: Scene, home: Client, away: Client, caplog: pytest.LogCaptureFixture, code: int, qos: int
) -> None:
    """Not authorised, topic or payload invalid, ...: it would be refused for ever, so it is dropped and counted."""
    scene.front.add_rule(refuse_publish(code, topic="up/poison"))
    await scene.running()
    for number in range(3):
        await home.publish("up/poison", b"", qos)
        await home.publish("up/good", b"%d" % number, qos)
    await away.wait_for(3)
    assert away.payloads == [b"0", b"1", b"2"]
    await scene.until(lambda status: not status.outbound.waiting, "nothing waits")
    assert scene.bridge.status.outbound.dropped == {DropReason.REJECTED: 3}
    assert scene.bridge.status.outbound.forwarded == 3
    [warning] = drop_warnings(caplog)
    assert f"0x{code:02X}" in warning
    assert scene.link.reconnects == 0


@pytest.mark.parametrize("qos", [1, 2])
async def test_a_topic_that_the_remotes_access_list_forbids(scene: Scene, home: Client, away: Client, qos: int) -> None:
    """The same from a real broker."""
    await scene.front.stop()
    await scene.remote.kill()
    acl = "topic readwrite down/#\ntopic readwrite up/good\npattern readwrite up/other/%c\n"
    # Without a bound of its queues mosquitto 2.0.11 hangs up after each refusal.
    scene.remote.options = MosquittoOptions(acl=acl)
    await scene.remote.start()
    await scene.front.start()
    await scene.running()
    async with Client(scene.remote.host, scene.remote.port) as allowed:
        await allowed.subscribe("up/good", qos=2)
        for number in range(3):
            await home.publish("up/secret", b"", qos)
            await home.publish("up/good", b"%d" % number, qos)
        await allowed.wait_for(3)
        assert allowed.payloads == [b"0", b"1", b"2"]
    await scene.until(lambda status: not status.outbound.waiting, "nothing waits")
    assert scene.bridge.status.outbound.dropped == {DropReason.REJECTED: 3}
    assert scene.link.reconnects == 0


@pytest.mark.parametrize("qos", [1, 2])
async def test_over_a_quota_is_tried_again(scene: Scene, home: Client, away: Client, qos: int) -> None:
    """0x97 passes: nothing is dropped, and nothing new is sent meanwhile. What was under way may pass the refused."""
    scene.front.add_rule(refuse_publish(0x97, times=4))
    await scene.running()
    await home.burst("up/a", [b"%d" % number for number in range(30)], qos)
    await away.wait_for(30)
    assert sorted(away.payloads, key=int) == [b"%d" % number for number in range(30)]
    assert away.payloads[-6:] == [b"%d" % number for number in range(24, 30)]
    assert scene.bridge.status.outbound.dropped == {}
    assert scene.link.reconnects == 0


async def test_a_remote_with_less_quality_of_service(scene: Scene, home: Client, away: Client) -> None:
    """Maximum QoS 0: everything is sent with QoS 0, and acknowledged at home."""
    scene.front.add_rule(rewrite_connack({Property.MAXIMUM_QOS: 0}))
    await scene.running()
    for qos in (0, 1, 2):
        await home.publish("up/a", b"%d" % qos, qos)
    await away.wait_for(3)
    assert [(message.payload, message.qos) for message in away.messages] == [(b"0", 0), (b"1", 0), (b"2", 0)]
    assert scene.bridge.status.outbound.waiting == 0


async def test_a_remote_without_qos_2(scene: Scene, home: Client, away: Client) -> None:
    scene.front.add_rule(rewrite_connack({Property.MAXIMUM_QOS: 1}))
    await scene.running()
    for qos in (0, 1, 2):
        await home.publish("up/a", b"%d" % qos, qos)
    await away.wait_for(3)
    assert [(message.payload, message.qos) for message in away.messages] == [(b"0", 0), (b"1", 1), (b"2", 1)]
    await scene.until(lambda status: not status.outbound.waiting, "nothing waits")


async def test_a_remote_that_retains_nothing(scene: Scene, home: Client, away: Client) -> None:
    """A retained message for such a broker would end the connection (0x9A): it is sent without the flag."""
    scene.front.add_rule(rewrite_connack({Property.RETAIN_AVAILABLE: 0}))
    await scene.running()
    await home.publish("up/a", b"retained", 1, retain=True)
    await away.wait_for(1)
    async with Client(scene.remote.host, scene.remote.port) as late:
        await late.subscribe("up/#")
        await late.ping()
        assert late.messages == []


async def test_a_small_receive_maximum(scene: Scene, home: Client, away: Client) -> None:
    """Never more under way than the remote allows; a real EMQX would throw us out (0x93)."""
    scene.front.add_rule(rewrite_connack({Property.RECEIVE_MAXIMUM: 3}), *enforce_receive_maximum(3))
    await scene.running()
    for qos in (1, 2):
        await home.burst("up/a", [b"%d" % number for number in range(100)], qos)
    await away.wait_for(200)
    assert scene.link.reconnects == 0
    assert scene.errors() == []


# --- the remote throws us out for them --------------------------------------------------------------------------------


async def test_larger_than_the_remote_takes_although_it_did_not_say(scene: Scene, home: Client, away: Client) -> None:
    """Every MQTT 3.1.1 broker is like that: it closes the connection. After some tries the message must go."""
    scene.backoff = replace(scene.backoff, base=0.02, cap=0.05)
    scene.front.add_rule(enforce_packet_size(1000))
    await scene.running()
    await home.publish("up/small", b"0", 1)
    await home.publish("up/large", bytes(2000), 1)
    await home.publish("up/small", b"1", 1)
    await away.wait_for(lambda messages: any(message.payload == b"1" for message in messages))
    # A broker that hangs up takes acknowledgements with it: QoS 1 may be repeated.
    assert list(dict.fromkeys(away.payloads)) == [b"0", b"1"]
    await scene.until(lambda status: not status.outbound.waiting, "nothing waits")
    assert scene.bridge.status.outbound.dropped == {DropReason.REJECTED: 1}


@pytest.mark.parametrize("code", [0x87, 0x90, 0x8D], ids=lambda code: f"{code:#x}")
async def test_thrown_out_for_a_message(scene: Scene, home: Client, away: Client, code: int) -> None:
    """EMQX with `deny_action = disconnect`: DISCONNECT in place of a PUBACK that refuses.

    Or one whose Server Keep Alive (0x8D) is too short for a large message on a slow line, however often it is sent.
    """
    scene.backoff = replace(scene.backoff, base=0.02, cap=0.05, refused_base=0.05, refused_cap=0.05)

    def throw_out(connection: FrontConnection, _packet: bytes) -> bytes:
        connection.end_stream(disconnect=code)
        return b""

    rule = refuse_publish(code, topic="up/poison")
    rule.apply = throw_out
    scene.front.add_rule(rule)
    await scene.running()
    await home.publish("up/good", b"0", 1)
    await home.publish("up/poison", b"", 1)
    await home.publish("up/good", b"1", 1)
    await away.wait_for(lambda messages: any(message.payload == b"1" for message in messages))
    # A broker that hangs up takes acknowledgements with it: QoS 1 may be repeated.
    assert list(dict.fromkeys(away.payloads)) == [b"0", b"1"]
    await scene.until(lambda status: not status.outbound.waiting, "nothing waits")
    assert scene.bridge.status.outbound.dropped == {DropReason.REJECTED: 1}


# --- malformed, or more than we take ----------------------------------------------------------------------------------


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_larger_than_we_take_and_the_broker_does_not_know(
    scene: Scene, home: Client, away: Client, caplog: pytest.LogCaptureFixture, qos: int
) -> None:
    """One byte too many, or far too many to be stored: dropped, counted, reported once, and what follows arrives."""
    scene.local_config = replace(scene.local_config, max_payload=1000, announce_limit=False)
    await scene.running()
    for number in range(2):
        for size in (1000, 1001, 200_000):
            await home.publish("up/large", bytes(size), qos)
        await home.publish("up/small", b"%d" % number, qos)
    await away.wait_for(4)
    assert away.payloads == [bytes(1000), b"0", bytes(1000), b"1"]
    assert scene.bridge.status.outbound.dropped == {DropReason.TOO_LARGE: 4}
    await scene.until(lambda status: not status.outbound.waiting, "nothing waits")
    [warning] = drop_warnings(caplog)
    assert "up/large" in warning
    assert scene.link.reconnects == 0


@pytest.mark.parametrize("side", ["local", "remote"])
async def test_larger_than_we_take(scene: Scene, home: Client, away: Client, side: str) -> None:
    """A broker that ignores our Maximum Packet Size: the message is skipped without being stored, and acknowledged."""
    small = 20_000
    if side == "local":
        scene.local_config = replace(scene.local_config, max_payload=small)
    else:
        scene.remote_config = replace(scene.remote_config, max_payload=small)
        # mosquitto keeps to what it is told, so it is not told.
    await scene.running()
    source, sink, topic = (home, away, "up") if side == "local" else (away, home, "down")
    await source.publish(f"{topic}/a", b"0", 1)
    await source.publish(f"{topic}/a", bytes(100_000), 1)
    await source.publish(f"{topic}/a", b"1", 1)
    if side == "remote":
        large = Publish(topic="down/a", payload=bytes(100_000), qos=1, packet_id=900, properties={}).encode()
        scene.front.connection.send(large)
    await source.publish(f"{topic}/a", b"2", 1)
    await sink.wait_for(3)
    assert sink.payloads == [b"0", b"1", b"2"]
    direction = scene.bridge.status.outbound if side == "local" else scene.bridge.status.inbound
    # mosquitto itself drops what we said we do not take.
    assert direction.dropped == ({} if side == "local" else {DropReason.TOO_LARGE: 1})
    assert scene.link.reconnects == 0


SKIPPED = {
    "wildcard-in-topic": Publish(topic="down/#", payload=b"x", qos=1, packet_id=900, properties={}).encode(),
    "nul-in-topic": Publish(topic="down/\0", payload=b"x", qos=1, packet_id=900, properties={}).encode(),
    "topic-is-not-utf-8": packet(0x32, b"\0\6down/\xff", b"\3\x84", b"\0", b"x"),
    "foreign-topic": Publish(topic="not/ours", payload=b"x", qos=1, packet_id=900, properties={}).encode(),
    "unknown-property": packet(0x32, b"\0\6down/1", b"\3\x84", b"\2\x7f\0", b"x"),
    "cut-property": packet(0x32, b"\0\6down/1", b"\3\x84", b"\2\x02\0", b"x"),
    "properties-longer-than-the-packet": packet(0x32, b"\0\6down/1", b"\3\x84", b"\x50", b"x"),
}


@pytest.mark.parametrize("name", SKIPPED)
async def test_malformed_inside_a_sound_frame(scene: Scene, home: Client, away: Client, name: str) -> None:
    """The stream is still in step, so such a message is dropped, counted and acknowledged; the session goes on."""
    await scene.running()
    connection = scene.front.connection
    scene.front.add_rule(swallow(Direction.TO_BROKER, PacketType.PUBACK, times=1))  # of 900, which it never sent
    connection.send(SKIPPED[name])
    await wait_until(lambda: connection.stats.from_client[PacketType.PUBACK] == 1, what="PUBACK")
    await away.publish("down/1", b"good", 1)
    await home.wait_for(1)
    assert home.payloads == [b"good"]
    assert sum(scene.bridge.status.inbound.dropped.values()) == 1
    assert scene.link.reconnects == 0
    assert scene.errors() == []


BROKEN = {
    "qos-3": packet(0x36, b"\0\6down/1", b"\3\x84", b"\0", b"x"),
    "no-identifier": packet(0x32, b"\0\6down/1"),
    "identifier-0": packet(0x32, b"\0\6down/1", b"\0\0", b"\0", b"x"),
    "cut-topic": packet(0x30, b"\0\x60down/1"),
    "no-topic": packet(0x30, b"\0\0", b"\0", b"x"),
    "empty": packet(0x30),
    "puback-without-identifier": packet(0x40, b"\0"),
    "reserved-type": packet(0x00, b"\0"),
    "auth": packet(0xF0, b"\x18\0"),
    "subscribe": packet(0x82, b"\0\1", b"\0", b"\0\1a\0"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_no_mqtt_any_more(scene: Scene, name: str) -> None:
    """Nothing that follows can be trusted: the connection is closed, with its reason, and a new one loses nothing."""
    await scene.running()
    async with Numbers(scene) as numbers:
        numbers.start()
        await numbers.flowing()
        connection = scene.front.connection
        connection.send(BROKEN[name])
        await wait_until(scene.errors, what="loss")
        error = scene.errors()[0]
        assert error.code is ErrorCode.MALFORMED_PACKET
        assert "malformed packet from the broker" in error.text
        await wait_until(lambda: connection.closed, what="end of the connection")
        await numbers.flowing()
        await numbers.settled()
    assert scene.link.reconnects == 1


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_messages_of_every_size(scene: Scene, home: Client, away: Client, qos: int) -> None:
    """Nothing, one byte, around the limits of the length field, megabytes; any bytes, and topics in any script."""
    scene.remote_config = replace(scene.remote_config, max_payload=4 * 1024 * 1024)
    await scene.running()
    sizes = [0, 1, 100, 127, 128, 16_250, 16_384, 65_535, 65_536, 1_000_000]
    payloads = [bytes(range(256)) * (size // 256) + bytes(size % 256) for size in sizes]
    for source, sink, topic in ((home, away, "up/灯/ä b"), (away, home, "down/\N{SNOWMAN}")):
        for payload in payloads:
            await source.publish(topic, payload, qos)
        await sink.wait_for(len(sizes))
        assert sink.payloads == payloads
        assert {(message.topic, message.qos) for message in sink.messages} == {(topic, qos)}


# --- one side's trouble is not the other's ----------------------------------------------------------------------------


async def test_a_remote_that_refuses_us_leaves_home_alone(scene: Scene, home: Client) -> None:
    """Messages queue within their bounds, the local side stays up, nothing spins."""
    scene.front.add_rule(refuse_connect(0x86))
    await scene.local_up()
    await home.burst("up/a", [b"%d" % number for number in range(500)], 1)
    await scene.until(lambda status: status.remote.state is LinkState.REFUSED, "refused")
    await scene.until(lambda status: status.outbound.waiting == 500, "waiting")
    assert scene.bridge.status.state is BridgeState.REFUSED
    assert scene.bridge.status.local.state is LinkState.CONNECTED
    scene.front.clear_rules()
    async with Client(scene.remote.host, scene.remote.port) as away:
        await away.subscribe("up/#", qos=1)
        await scene.running()
        await away.wait_for(500)
        assert away.payloads == [b"%d" % number for number in range(500)]
