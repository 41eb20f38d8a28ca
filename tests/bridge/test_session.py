"""MQTT on one connection, byte by byte, against brokers that say exactly what the test wants."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
import gc
import logging

import pytest

from custom_components.quic_bridge.bridge import session as session_module
from custom_components.quic_bridge.bridge.bridge import Bridge
from custom_components.quic_bridge.bridge.config import BackoffConfig, BridgeConfig, BrokerConfig
from custom_components.quic_bridge.bridge.errors import ErrorCode
from custom_components.quic_bridge.bridge.routes import Direction, Route
from custom_components.quic_bridge.bridge.status import BridgeState, BridgeStatus, LinkError, LinkState, LinkStatus

from ..support.packets import (
    Connack,
    PacketType,
    Properties,
    Property,
    Publish,
    Subscription,
    decode_subscribe,
    encode_disconnect,
    encode_suback,
    packet,
)
from ..support.processes import AT_ONCE, PATIENCE, wait_until
from ..support.scripted_broker import ScriptedBroker, ScriptedConnection, between_brokers
from ..support.version_gate import BRIDGE_BIT

PUBACK = PacketType.PUBACK
BRIDGE_3_1_1 = 4 | BRIDGE_BIT


class Wire:
    """A bridge between two scripted brokers."""

    def __init__(self, local: ScriptedBroker, remote: ScriptedBroker) -> None:
        self.local_broker = local
        self.remote_broker = remote
        self.local_config = BrokerConfig(host="127.0.0.1", port=local.port, client_id="bridge")
        self.remote_config = BrokerConfig(host="127.0.0.1", port=remote.port, client_id="bridge", max_payload=100_000)
        self.routes: tuple[Route, ...] = (
            Route(id="1", direction=Direction.BOTH, topic_filter="t/#"),
            Route(id="2", direction=Direction.BOTH, topic_filter="barrier"),
        )
        self.statuses: list[BridgeStatus] = []
        self._bridge: Bridge | None = None

    @property
    def bridge(self) -> Bridge:
        """The bridge, made when it is needed first."""
        if self._bridge is None:
            config = BridgeConfig(
                remote=self.remote_config,
                routes=self.routes,
                backoff=BackoffConfig(base=0.02, cap=0.05, refused_base=0.05, refused_cap=0.1),
            )
            self._bridge = Bridge(config, lambda: self.local_config, self.statuses.append)
        return self._bridge

    @property
    def link(self) -> LinkStatus:
        """The remote side."""
        return self.bridge.status.remote

    async def start(self) -> ScriptedConnection:
        """Start the bridge, accept its remote connection and bring up the local side; the CONNECT is unanswered."""
        await self.bridge.start()
        connection = await self.remote_broker.accept()
        await self.local_broker.session()
        return connection

    async def connect(self, properties: Properties | None = None) -> tuple[ScriptedConnection, ScriptedConnection]:
        """Start the bridge and bring both sides up."""
        await self.bridge.start()
        local = await self.local_broker.session()
        remote = await self.remote_broker.session(properties=properties)
        await wait_until(lambda: self.bridge.status.state is BridgeState.RUNNING, what="running")
        return local, remote

    async def error(self) -> LinkError:
        """Wait for the remote's first error."""
        await wait_until(lambda: self.link.error, what="an error")
        assert self.link.error is not None
        return self.link.error

    async def crosses(self, source: ScriptedConnection, target: ScriptedConnection) -> None:
        """Make sure that messages pass, and that the next one there is the one sent here."""
        await source.barrier(target)

    async def running(self) -> None:
        """Wait until both sides are up."""
        await wait_until(lambda: self.bridge.status.state is BridgeState.RUNNING, what="running")


def withhold_pingresp(connection: ScriptedConnection) -> None:
    """Let a broker take PINGREQ and not answer."""
    send = connection.send
    connection.send = lambda data: None if data == b"\xd0\x00" else send(data)  # type: ignore[method-assign]


@pytest.fixture
async def wire(socket_enabled: None) -> AsyncIterator[Wire]:
    async with between_brokers(Wire) as wire:
        yield wire


# --- CONNECT and CONNACK ----------------------------------------------------------------------------------------------


async def test_what_we_ask_for(wire: Wire) -> None:
    wire.remote_config = replace(
        wire.remote_config, client_id="my bridge", username="user", password="secret", keepalive=17, receive_maximum=7
    )
    connection = await wire.start()
    connect = connection.connect
    assert (connect.client_id, connect.username, connect.password) == ("my bridge", "user", b"secret")
    assert connect.level == 5, "neither an old version nor mosquitto's bridge bit, of which MQTT 5 knows nothing"
    assert connect.keepalive == 17
    assert not connect.clean
    assert connect.properties == {
        Property.SESSION_EXPIRY: 7 * 24 * 3600,
        Property.RECEIVE_MAXIMUM: 7,
        Property.MAXIMUM_PACKET_SIZE: 100_000 + 64 * 1024,
    }


async def test_an_assigned_client_identifier_and_unknown_limits_do_no_harm(wire: Wire) -> None:
    local, remote = await wire.connect(
        {
            Property.ASSIGNED_CLIENT_IDENTIFIER: "another",
            Property.TOPIC_ALIAS_MAXIMUM: 10,
            Property.SESSION_EXPIRY: 5,
            Property.SHARED_AVAILABLE: 0,
            Property.SUBSCRIPTION_IDENTIFIER_AVAILABLE: 0,
            Property.REASON_STRING: "hello",
            Property.USER_PROPERTY: [("a", "b")],
        }
    )
    await wire.crosses(local, remote)
    await remote.close()
    again = await wire.remote_broker.accept()
    assert again.connect.client_id == "bridge"


@pytest.mark.parametrize("limit", [268_435_455, 268_435_456, 268_435_460, 0xFFFF_FFFF])
async def test_a_maximum_packet_size_larger_than_any_packet(wire: Wire, limit: int) -> None:
    local, remote = await wire.connect({Property.USER_PROPERTY: [("a", "b")], Property.MAXIMUM_PACKET_SIZE: limit})
    await wire.crosses(local, remote)
    assert wire.link.error is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        pytest.param(b"\x20\x01\x00", "short CONNACK", id="short"),
        pytest.param(b"\x20\x00", "short CONNACK", id="empty"),
        pytest.param(b"\x20\x02\x00\x00", "cut short", id="without-properties"),
        pytest.param(b"\x20\x05\x00\x00\x02\x21\x00", "type 2", id="cut-property"),
        pytest.param(b"\x20\x06\x00\x00\x03\x7f\x00\x00", "type 2", id="unknown-property"),
        pytest.param(Connack(properties={Property.RECEIVE_MAXIMUM: 0}).encode(), "range", id="receive-maximum-0"),
        pytest.param(Connack(properties={Property.MAXIMUM_PACKET_SIZE: 0}).encode(), "range", id="packet-size-0"),
        pytest.param(b"\x90\x04\x00\x01\x00\x00", "before CONNACK", id="suback-first"),
        pytest.param(b"\x30\x05\x00\x01a\x00x", "before CONNACK", id="publish-first"),
        pytest.param(b"\x40\x02\x00\x01", "before CONNACK", id="puback-first"),
        pytest.param(b"\x10\x00", "type 1", id="connect"),
        pytest.param(b"\xf0\x02\x18\x00", "type 15", id="auth"),
        pytest.param(b"\x20\xff\xff\xff\xff\x01", "four bytes", id="endless-length"),
        pytest.param(b"\x20\xff\xff\xff\x7f", "bytes", id="256-megabytes"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n" + b"x-fill: y\r\n" * 9, "before CONNACK", id="a-web-server"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n" * 3, "before CONNACK", id="an-ssh-server"),
    ],
)
async def test_no_proper_connack(wire: Wire, data: bytes, says: str) -> None:
    """Bytes that are no CONNACK end the attempt at once, by name; the next one may do better."""
    connection = await wire.start()
    connection.send(data)
    error = await wire.error()
    assert error.code is ErrorCode.MALFORMED_PACKET
    assert says in error.text
    assert wire.link.state is LinkState.WAITING
    with pytest.raises(EOFError):
        await connection.receive()
    remote = await wire.remote_broker.session()
    await wire.running()
    await remote.close()


async def test_a_second_connack(wire: Wire) -> None:
    _, remote = await wire.connect()
    remote.send(Connack(properties={}).encode())
    error = await wire.error()
    assert error.code is ErrorCode.MALFORMED_PACKET
    await wire.remote_broker.session()
    await wire.running()


async def test_a_disconnect_right_behind_the_connack_is_not_missed(wire: Wire) -> None:
    connection = await wire.start()
    connection.send(Connack(properties={}).encode() + encode_disconnect(0x8B))
    error = await wire.error()
    assert (error.code, error.reason_code) == (ErrorCode.SHUTTING_DOWN, 0x8B)
    await wire.remote_broker.session()
    await wire.running()


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (0x00, ErrorCode.BROKER_DISCONNECT),
        (0x80, ErrorCode.BROKER_DISCONNECT),
        (0x81, ErrorCode.PROTOCOL_ERROR),
        (0x82, ErrorCode.PROTOCOL_ERROR),
        (0x87, ErrorCode.NOT_AUTHORIZED),
        (0x89, ErrorCode.OVERLOADED),
        (0x8B, ErrorCode.SHUTTING_DOWN),
        (0x8D, ErrorCode.KEEPALIVE_TIMEOUT),
        (0x8E, ErrorCode.SESSION_TAKEN_OVER),
        (0x93, ErrorCode.PROTOCOL_ERROR),
        (0x95, ErrorCode.PROTOCOL_ERROR),
        (0x97, ErrorCode.OVERLOADED),
        (0x98, ErrorCode.KICKED),
        (0x9C, ErrorCode.BROKER_DISCONNECT),
        (0xA0, ErrorCode.BROKER_DISCONNECT),
        (0xEE, ErrorCode.BROKER_DISCONNECT),
    ],
    ids=lambda value: f"{value:#x}" if isinstance(value, int) and not isinstance(value, bool) else "",
)
async def test_reasons_of_a_disconnect(wire: Wire, reason: int, code: ErrorCode) -> None:
    _, remote = await wire.connect()
    remote.send(encode_disconnect(reason, {Property.REASON_STRING: "because of the test"}))
    error = await wire.error()
    assert (error.code, error.reason_code) == (code, reason)
    assert f"0x{reason:02X}" in error.text
    assert "because of the test" in error.text


async def test_a_reason_string_that_is_broken_or_endless(wire: Wire) -> None:
    _, remote = await wire.connect()
    remote.send(packet(0xE0, b"\x8b", b"\x05\x1f\x00\x09x"))
    error = await wire.error()
    assert (error.code, error.text.count("\n")) == (ErrorCode.SHUTTING_DOWN, 0)
    remote = await wire.remote_broker.session()
    await wire.running()
    remote.send(encode_disconnect(0x8D, {Property.REASON_STRING: "x" * 60_000}))
    await wait_until(lambda: wire.link.error and wire.link.error.reason_code == 0x8D, what="second error")
    assert wire.link.error is not None
    assert len(wire.link.error.text) < 400


# --- the version ------------------------------------------------------------------------------------------------------


async def test_a_broker_that_says_it_does_not_know_mqtt_5(wire: Wire) -> None:
    """0x84 in a CONNACK of MQTT 5: 3.1.1 is tried at once, and from then on."""
    connection = await wire.start()
    connection.send(Connack(code=0x84, properties={}).encode())
    remote = await wire.remote_broker.session()
    assert remote.connect.level == BRIDGE_3_1_1
    assert not remote.connect.clean
    await wire.running()
    assert wire.link.protocol == "3.1.1"
    assert wire.link.error is None
    await remote.close()
    again = await wire.remote_broker.session()
    assert again.connect.level == BRIDGE_3_1_1


async def test_a_broker_of_3_1_1_that_says_so_in_its_own_words(wire: Wire) -> None:
    connection = await wire.start()
    connection.send(b"\x20\x02\x00\x01")
    remote = await wire.remote_broker.session()
    assert remote.connect.level == BRIDGE_3_1_1
    await wire.running()


async def test_a_broker_that_refuses_both_versions(wire: Wire) -> None:
    connection = await wire.start()
    connection.send(Connack(code=0x84, properties={}).encode())
    for level in (BRIDGE_3_1_1, 4):
        connection = await wire.remote_broker.accept()
        assert connection.connect.level == level
        connection.send(b"\x20\x02\x00\x01")
    error = await wire.error()
    assert (error.code, error.reason_code) == (ErrorCode.PROTOCOL_VERSION, 1)
    assert wire.link.state is LinkState.REFUSED
    assert (await wire.remote_broker.accept()).connect.level == 5


@pytest.mark.parametrize("silent", [False, True])
async def test_a_broker_that_hangs_up_on_mqtt_5(wire: Wire, *, silent: bool) -> None:
    """Neither a CONNACK nor a word, or not even that (amqtt): after two such attempts the third is 3.1.1."""
    if silent:
        wire.remote_config = replace(wire.remote_config, connack_timeout=1.0)
    connection = await wire.start()
    levels = [connection.connect.level]
    while levels[-1] == 5:
        if not silent:
            await connection.close()
        connection = await wire.remote_broker.accept()
        levels.append(connection.connect.level)
    assert levels == [5, 5, BRIDGE_3_1_1]
    await connection.handshake()
    await connection.subscribed()
    await wire.running()
    assert wire.link.protocol == "3.1.1"


async def test_a_broker_that_was_only_restarting_gets_mqtt_5_again(wire: Wire) -> None:
    """A proxy whose broker is away hangs up, too. What we guessed then is not for ever."""
    connection = await wire.start()
    for _ in range(2):
        await connection.close()
        connection = await wire.remote_broker.accept()
    assert connection.connect.level == BRIDGE_3_1_1
    await connection.handshake()
    await connection.subscribed()
    await wire.running()
    await connection.close()
    remote = await wire.remote_broker.session()
    assert remote.connect.level == 5
    await wire.running()
    # Once it has spoken MQTT 5 there is nothing to guess any more.
    await remote.close()
    for _ in range(5):
        connection = await wire.remote_broker.accept()
        assert connection.connect.level == 5
        await connection.close()


# --- liveness ---------------------------------------------------------------------------------------------------------


async def test_pingreq_is_sent_each_keepalive_whatever_the_traffic(wire: Wire) -> None:
    """One side only sends, the other only receives: both brokers hear a PINGREQ each second (nanomq#1958, #2011)."""
    wire.local_config = replace(wire.local_config, keepalive=1)
    wire.remote_config = replace(wire.remote_config, keepalive=1)
    local, remote = await wire.connect()
    loop = asyncio.get_running_loop()
    began, number, seconds = loop.time(), 0, 0
    timer: asyncio.TimerHandle | None = None

    def second() -> None:
        # As late as the bridge's own timers on a machine that stands still.
        nonlocal timer, seconds
        seconds += 1
        timer = loop.call_later(1.0, second)

    timer = loop.call_later(1.0, second)
    while seconds < 4:
        local.publish("t/a", b"%d" % number, qos=0)  # local: downlink alone; remote: uplink alone
        number += 1
        assert (await remote.receive_publish()).qos == 0
        await asyncio.sleep(0.005)
    timer.cancel()
    assert number > 50
    for connection in (local, remote):
        assert 3 <= connection.pings <= loop.time() - began + 1
    assert wire.link.error is None


async def test_server_keep_alive_is_obeyed(wire: Wire) -> None:
    wire.remote_config = replace(wire.remote_config, keepalive=600)
    _, remote = await wire.connect({Property.SERVER_KEEP_ALIVE: 1})
    await wait_until(lambda: remote.pings, what="PINGREQ")


async def test_no_answer_to_pingreq(wire: Wire) -> None:
    wire.remote_config = replace(wire.remote_config, keepalive=1, ping_timeout=0.2)
    _, remote = await wire.connect()
    withhold_pingresp(remote)
    error = await wire.error()
    assert error.code is ErrorCode.PING_TIMEOUT
    assert "PINGREQ" in error.text
    assert remote.pings == 1


async def test_any_packet_answers_a_pingreq(wire: Wire) -> None:
    """A broker that is busy sending may be late with its PINGRESP."""
    wire.remote_config = replace(wire.remote_config, keepalive=1, ping_timeout=2.5)
    local, remote = await wire.connect()
    withhold_pingresp(remote)
    loop = asyncio.get_running_loop()
    pinged = None
    while pinged is None or loop.time() < pinged + 3.0:
        remote.publish("t/a", b"", qos=0)
        await local.receive_publish()
        await asyncio.sleep(0.01)
        if pinged is None and remote.pings:
            pinged = loop.time()
    assert wire.link.error is None


# --- subscriptions ----------------------------------------------------------------------------------------------------


async def test_five_hundred_subscriptions(wire: Wire) -> None:
    """All of them are asked for and acknowledged, in few packets, and again after a reconnect."""
    wire.routes += tuple(
        Route(id=f"r{number}", direction=Direction.TO_LOCAL, topic_filter=f"many/{number}/+") for number in range(500)
    )
    _, remote = await wire.connect()
    expected = {f"many/{number}/+" for number in range(500)} | {"t/#", "barrier"}
    assert set(remote.filters) == expected
    assert len(remote.filters) == len(expected)
    assert wire.link.failed_filters == {}
    await remote.close()
    again = await wire.remote_broker.session()
    await wait_until(lambda: set(again.filters) == expected, what="all again")
    await wire.running()


async def test_a_subscribe_is_no_larger_than_the_broker_takes(wire: Wire) -> None:
    """It would end the connection, each time anew."""
    names = [f"many/{number}/{'x' * 40}" for number in range(100)]
    wire.routes += tuple(Route(id=name, direction=Direction.TO_LOCAL, topic_filter=name) for name in names)
    connection = await wire.start()
    connection.answer_subscribe = False
    await connection.handshake(properties={Property.MAXIMUM_PACKET_SIZE: 1000})
    asked: list[str] = []
    while len(asked) < len(names) + 2:
        packet = await connection.receive()
        assert len(packet) <= 1000
        mid, wanted = decode_subscribe(packet, v5=True)
        asked += [item.topic_filter for item in wanted]
        connection.send(encode_suback(mid, [item.qos for item in wanted], v5=True))
    await wire.running()
    assert set(asked) == {*names, "t/#", "barrier"}


@pytest.mark.parametrize("v5", [True, False])
async def test_hundreds_of_filters_are_asked_for_a_few_packets_at_a_time(wire: Wire, v5: bool) -> None:
    """A round trip for each packet would take its time; the answers may come in any order, late, and refuse."""
    names = [f"many/{number}" for number in range(1500)]
    wire.routes += tuple(Route(id=name, direction=Direction.TO_LOCAL, topic_filter=name) for name in names)
    connection = await wire.start()
    if not v5:
        await connection.handshake(code=0x84)
        connection = await wire.remote_broker.accept()
    connection.answer_subscribe = False
    await connection.handshake()
    asked: list[tuple[int, list[Subscription]]] = []
    refused = {"many/0", "many/777", "many/1499"}

    async def receive() -> None:
        asked.append(decode_subscribe(await connection.receive(), v5=v5))

    def answer(mid: int, wanted: list[Subscription]) -> None:
        codes = [0x80 if item.topic_filter in refused else item.qos for item in wanted]
        connection.send(encode_suback(mid, codes, v5=v5))

    for _ in range(8):
        await receive()
    assert len({mid for mid, _ in asked}) == 8
    for mid, wanted in reversed(asked[1:]):
        answer(mid, wanted)
    connection.publish("t/a", b"on", qos=0)
    with pytest.raises(TimeoutError):  # the first has no answer yet: no more than eight are under way
        async with asyncio.timeout(0.05):
            await receive()
    answer(*asked[0])
    while len(asked) < 16:
        await receive()
        answer(*asked[-1])
    await wire.running()
    assert {item.topic_filter for _, wanted in asked for item in wanted} == {*names, "t/#", "barrier"}
    assert set(wire.link.failed_filters) == refused


async def test_a_broker_that_takes_long_for_each_subscribe(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has as long for each as if there was no other, although it answers PINGREQ at once."""
    monkeypatch.setattr(session_module, "_SUBACK_TIMEOUT", 3.0)
    names = [f"many/{number}" for number in range(500)]
    wire.routes += tuple(Route(id=name, direction=Direction.TO_LOCAL, topic_filter=name) for name in names)
    connection = await wire.start()
    connection.answer_subscribe = False
    await connection.handshake()
    for _ in range(6):
        mid, wanted = decode_subscribe(await connection.receive(), v5=True)
        await asyncio.sleep(0.6)
        connection.send(encode_suback(mid, [item.qos for item in wanted], v5=True))
    await wire.running()
    assert wire.link.error is None


async def test_the_connection_ends_while_several_subscribes_are_under_way(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"many/{number}" for number in range(500)]
    wire.routes += tuple(Route(id=name, direction=Direction.TO_LOCAL, topic_filter=name) for name in names)
    connection = await wire.start()
    connection.answer_subscribe = False
    await connection.handshake()
    await connection.receive()
    await connection.close()
    await wire.error()
    await wire.remote_broker.session()
    await wire.running()
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_a_refused_filter_is_named_and_the_others_work(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    wire.routes += (Route(id="3", direction=Direction.TO_LOCAL, topic_filter="forbidden/#"),)
    for attempt in range(2):
        if not attempt:
            connection = await wire.start()
        else:
            connection = await wire.remote_broker.accept()
        connection.answer_subscribe = False
        await connection.handshake()
        mid, wanted = decode_subscribe(await connection.receive(), v5=True)
        codes = [0x87 if item.topic_filter == "forbidden/#" else item.qos for item in wanted]
        connection.send(encode_suback(mid, codes, v5=True))
        await wire.running()
        assert list(wire.link.failed_filters) == ["forbidden/#"]
        await connection.close()
        await wait_until(lambda: wire.link.state is not LinkState.CONNECTED, what="loss")
    # It worked the third time.
    await wire.remote_broker.session()
    await wire.running()
    assert wire.link.failed_filters == {}
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["The remote broker refused subscriptions: forbidden/# (not authorized (0x87))"]


async def test_a_refused_filter_takes_no_other_with_it(wire: Wire) -> None:
    """What it covers is subscribed instead, at the same connection; if it is allowed later, it covers them again."""
    wire.routes += tuple(
        Route(id=name, direction=Direction.TO_LOCAL, topic_filter=name) for name in ("t/+/a", "t/b/a", "t/c")
    )
    connection = await wire.start()
    connection.answer_subscribe = False
    await connection.handshake()
    asked: list[list[str]] = []
    refusals: list[set[str]] = [{"t/#"}, {"t/+/a"}, set()]
    for refused in refusals:
        mid, wanted = decode_subscribe(await connection.receive(), v5=True)
        asked.append([item.topic_filter for item in wanted])
        codes = [0x87 if item.topic_filter in refused else item.qos for item in wanted]
        connection.send(encode_suback(mid, codes, v5=True))
    assert asked == [["t/#", "barrier"], ["t/+/a", "t/c"], ["t/b/a"]]
    await wire.running()
    assert list(wire.link.failed_filters) == ["t/#", "t/+/a"]
    await connection.close()
    await wait_until(lambda: wire.link.state is not LinkState.CONNECTED, what="loss")
    again = await wire.remote_broker.session()
    await wait_until(lambda: set(again.filters) == {"t/#", "barrier"}, what="what covers all")
    await wire.running()
    assert wire.link.failed_filters == {}


async def test_a_suback_with_too_few_codes(wire: Wire) -> None:
    connection = await wire.start()
    connection.answer_subscribe = False
    await connection.handshake()
    mid, wanted = decode_subscribe(await connection.receive(), v5=True)
    connection.send(encode_suback(mid + 1 & 0xFFFF, [0, 0, 0], v5=True))  # nobody asked for that one
    connection.send(encode_suback(mid, [2], v5=True))
    await wire.running()
    assert list(wire.link.failed_filters) == [wanted[1].topic_filter]


@pytest.mark.parametrize("code", [0x80, 0x8F, 0x97, 0xA2, 0xEE])
async def test_reasons_of_a_suback(wire: Wire, code: int) -> None:
    """Also one that nobody knows costs its filter and no more."""
    connection = await wire.start()
    connection.answer_subscribe = False
    await connection.handshake()
    mid, wanted = decode_subscribe(await connection.receive(), v5=True)
    connection.send(encode_suback(mid, [code, 2], v5=True))
    await wire.running()
    assert list(wire.link.failed_filters) == [wanted[0].topic_filter]
    assert wire.link.error is None


@pytest.mark.parametrize("data", [b"\x90\x00", b"\x90\x01\x00", b"\x90\x02\xff\xff", b"\x90\x03\xff\xff\x05"])
async def test_a_malformed_suback(wire: Wire, data: bytes) -> None:
    connection = await wire.start()
    connection.answer_subscribe = False
    await connection.handshake()
    connection.send(data)
    assert (await wire.error()).code is ErrorCode.MALFORMED_PACKET
    await wire.remote_broker.session()
    await wire.running()


async def test_no_suback(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_SUBACK_TIMEOUT", 0.2)
    connection = await wire.start()
    connection.answer_subscribe = False
    await connection.handshake()
    error = await wire.error()
    assert error.code is ErrorCode.PROTOCOL_ERROR
    assert "did not answer SUBSCRIBE" in error.text
    assert LinkState.CONNECTED not in [status.remote.state for status in wire.statuses]
    monkeypatch.setattr(session_module, "_SUBACK_TIMEOUT", PATIENCE)
    await wire.remote_broker.session()
    await wire.running()


async def test_no_suback_among_much_else(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes is life, but a SUBACK that is passed over by the answer to a later PINGREQ is not waited for."""
    monkeypatch.setattr(session_module, "_SUBACK_TIMEOUT", 0.2)
    connection = await wire.start()
    connection.answer_subscribe = False
    await connection.handshake()
    while wire.link.error is None:
        connection.publish("t/a", b"much", qos=0)
        await asyncio.sleep(0.02)
        assert connection.pings < 2
    assert connection.pings == 1
    assert "did not answer SUBSCRIBE" in wire.link.error.text
    monkeypatch.setattr(session_module, "_SUBACK_TIMEOUT", PATIENCE)
    await wire.remote_broker.session()
    await wire.running()


async def test_a_broker_without_wildcards(wire: Wire) -> None:
    """Filters that it cannot have are not asked for (that might end the connection) but named."""
    local, remote = await wire.connect({Property.WILDCARD_AVAILABLE: 0})
    assert remote.filters == ["barrier"]
    assert list(wire.link.failed_filters) == ["t/#"]
    await wire.crosses(remote, local)
    await wire.crosses(local, remote)


async def test_routes_that_change_while_we_subscribe(wire: Wire) -> None:
    """A route that comes while the SUBACK is under way is subscribed as soon as that has come."""
    connection = await wire.start()
    connection.answer_subscribe = False
    await connection.handshake()
    mid, wanted = decode_subscribe(await connection.receive(), v5=True)
    applying = asyncio.create_task(
        wire.bridge.apply_routes((*wire.routes, Route(id="9", direction=Direction.TO_LOCAL, topic_filter="late")))
    )
    await asyncio.sleep(0)
    connection.send(encode_suback(mid, [item.qos for item in wanted], v5=True))
    mid, wanted = decode_subscribe(await connection.receive(), v5=True)
    assert [item.topic_filter for item in wanted] == ["late"]
    connection.send(encode_suback(mid, [2], v5=True))
    await applying
    await wire.running()


async def test_routes_that_change_while_the_remote_is_away(wire: Wire) -> None:
    """Nobody waits for a broker that is not there, and it is asked when it comes."""
    _, remote = await wire.connect()
    await remote.close()
    connection = await wire.remote_broker.accept()  # which says nothing for now
    routes = (wire.routes[1], Route(id="9", direction=Direction.TO_LOCAL, topic_filter="late"))
    async with asyncio.timeout(AT_ONCE):
        await wire.bridge.apply_routes(routes)
    await connection.handshake()
    await wait_until(lambda: len(connection.filters) >= 2, what="SUBSCRIBE")
    assert set(connection.filters) == {"barrier", "late"}
    await wire.running()


async def test_subscribe_asks_for_what_keeps_loops_away(wire: Wire) -> None:
    connection = await wire.start()
    connection.answer_subscribe = False
    await connection.handshake()
    _, wanted = decode_subscribe(await connection.receive(), v5=True)
    assert wanted == [
        Subscription("t/#", 2, no_local=True, retain_as_published=True, retain_handling=1),
        Subscription("barrier", 2, no_local=True, retain_as_published=True, retain_handling=1),
    ]


# --- what comes with the end, or in between ---------------------------------------------------------------------------


async def test_messages_before_the_suback(wire: Wire) -> None:
    """A resumed session delivers before we have subscribed again."""
    await wire.bridge.start()
    local = await wire.local_broker.session()
    connection = await wire.remote_broker.accept()
    connection.answer_subscribe = False
    await connection.handshake(session_present=True)
    connection.publish("t/a", b"early", qos=1, mid=9)
    message = await local.receive_publish()
    assert (message.payload, message.packet_id) == (b"early", 9)
    local.ack(PUBACK, 9)
    mid, wanted = decode_subscribe(await connection.receive(), v5=True)
    await connection.expect(PUBACK, 9)
    connection.send(encode_suback(mid, [item.qos for item in wanted], v5=True))
    await wire.running()


async def test_messages_with_the_end(wire: Wire) -> None:
    """What a broker sends last, in one go with DISCONNECT and FIN, still arrives, and with it the reason."""
    local, remote = await wire.connect()
    last = Publish(topic="t/a", payload=b"last", qos=1, packet_id=3, properties={}).encode()
    remote.send(last + encode_disconnect(0x8B))
    remote._writer.write_eof()
    message = await local.receive_publish()
    assert message.payload == b"last"
    error = await wire.error()
    assert error.code is ErrorCode.SHUTTING_DOWN


async def test_every_cut_of_a_packet(wire: Wire) -> None:
    """Packets that come byte by byte are the same packets."""
    local, remote = await wire.connect()
    for byte in Publish(topic="t/a", payload=b"x" * 200, qos=2, packet_id=5, properties={}).encode():
        remote.send(bytes((byte,)))
        await asyncio.sleep(0)
    message = await local.receive_publish()
    assert (message.payload, message.packet_id) == (b"x" * 200, 5)


# --- reconnect on request ---------------------------------------------------------------------------------------------


async def test_reconnect_is_not_called_a_failure(wire: Wire) -> None:
    connection = await wire.start()  # waits for CONNACK
    wire.bridge.reconnect()
    with pytest.raises(EOFError):
        await connection.receive()
    error = await wire.error()
    assert error.code is ErrorCode.RECONNECT_REQUESTED
    await wire.remote_broker.session()
    await wire.local_broker.session()
    await wire.running()
    assert all(status.state is not BridgeState.REMOTE_DOWN for status in wire.statuses)
