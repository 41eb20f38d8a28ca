"""A bridge between two brokers in memory: quick enough for thousands of lives, with every byte in the test's hand."""

import asyncio
from collections.abc import Callable
from functools import partial
import logging
from typing import Self, override

from custom_components.quic_bridge.bridge import link
from custom_components.quic_bridge.bridge.bridge import Bridge
from custom_components.quic_bridge.bridge.config import BackoffConfig, BridgeConfig, BrokerConfig, TransportKind
from custom_components.quic_bridge.bridge.errors import BridgeError, ErrorCode
from custom_components.quic_bridge.bridge.routes import Direction, Route
from custom_components.quic_bridge.bridge.session import MqttSession
from custom_components.quic_bridge.bridge.status import BridgeState, LinkStatus, TransportStatus
from custom_components.quic_bridge.bridge.transport.base import StreamReceiver, Transport, TransportReceiver

from ..support.packets import (
    Connack,
    Connect,
    PacketType,
    Properties,
    Property,
    Publish,
    Splitter,
    decode_ack,
    decode_subscribe,
    encode_ack,
    encode_suback,
)

_LOGGER = logging.getLogger("custom_components.quic_bridge")

MAX_PAYLOAD = 3000
MAX_PACKET = MAX_PAYLOAD + 64 * 1024
_TURNS = 300
_READ_SIZE = 16 * 1024
_REFUSED_VERSION = 0x84
_FIRST_BYTES = {
    PacketType.CONNECT: 0,
    PacketType.PUBACK: 0,
    PacketType.PUBREC: 0,
    PacketType.PUBREL: 2,
    PacketType.PUBCOMP: 0,
    PacketType.SUBSCRIBE: 2,
    PacketType.PINGREQ: 0,
    PacketType.DISCONNECT: 0,
}
"""What a client may send besides PUBLISH, and the flags it must have (MQTT 5, 2.1.3)."""


class MemoryTransport:
    """A Transport (see transport/base.py) whose other end is a Peer."""

    kind = TransportKind.TCP
    backlog = written = acknowledged = 0
    status = TransportStatus()

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.receiver: TransportReceiver | None = None
        self.closed = False

    async def connect(self, receiver: TransportReceiver, hello: bytes = b"") -> None:
        """See Transport."""
        await asyncio.sleep(0)
        self.receiver = receiver
        self._peer.connected(self)
        self.write(hello)

    def write(self, data: bytes) -> None:
        """See Transport."""
        if not self.closed:
            self._peer.received(data)

    def open_stream(self, _receiver: StreamReceiver) -> None:
        """See Transport."""

    def pause_reading(self) -> None:
        """See Transport."""

    def resume_reading(self) -> None:
        """See Transport."""

    async def close(self) -> None:
        """See Transport."""
        self.abort()

    def abort(self) -> None:
        """See Transport."""
        self.closed = True
        self.receiver = None


class Peer:
    """A broker that checks what it gets, and answers as a broker would, or not at all."""

    def __init__(self, *, v5: bool) -> None:
        self.v5 = v5
        self.transport: MemoryTransport | None = None
        self.answering = True
        """Answer everything but PUBLISH; when it is off, nothing is answered, CONNECT included."""
        self.settling = True
        """Answer PUBLISH and its acknowledgements."""
        self.session_present = False
        """What it says in CONNACK."""
        self.connections = 0
        self.published: list[Publish] = []
        self.wrong: list[str] = []
        """What a broker would not have taken."""
        self._splitter = Splitter()
        self._client_v5 = True

    @property
    def session(self) -> MqttSession | None:
        """The bridge's session with this broker."""
        receiver = self.transport.receiver if self.transport is not None else None
        assert receiver is None or isinstance(receiver, MqttSession)
        return receiver

    def connected(self, transport: MemoryTransport) -> None:
        """A client came."""
        self.transport = transport
        self.connections += 1
        self._splitter = Splitter()

    def send(self, data: bytes) -> None:
        """Send bytes, at most 16 KiB at a time, until the bridge has closed the connection."""
        for start in range(0, len(data), _READ_SIZE):
            session = self.session
            if session is not None:
                session.data_received(data[start : start + _READ_SIZE])

    def connected_since(self, number: int) -> bool:
        """Whether there were more connections than that number."""
        return self.connections > number

    def has_marker(self, mid: int) -> bool:
        """Whether the marker came that was published under `mid`."""
        return any(message.payload == b"marker %d" % mid for message in self.published)

    def hang_up(self) -> None:
        """End the connection."""
        transport = self.transport
        if transport is not None and transport.receiver is not None:
            receiver = transport.receiver
            transport.abort()
            receiver.connection_lost(BridgeError(ErrorCode.CLOSED_BY_BROKER, "the test hung up"))

    def publish(self, topic: str, payload: bytes, mid: int) -> None:
        """Send a QoS 1 message."""
        properties: Properties | None = {} if self._client_v5 else None
        self.send(Publish(topic=topic, payload=payload, qos=1, packet_id=mid, properties=properties).encode())

    def received(self, data: bytes) -> None:
        """Take what the bridge wrote."""
        for packet in self._splitter.feed(data):
            try:
                answer = self._answer(packet)
            except (ValueError, AssertionError) as error:
                self.wrong.append(f"{packet!r}: {error!r}")
                continue
            if answer:
                # In a turn of its own, as a network would.
                asyncio.get_running_loop().call_soon(self._send_to, self.transport, answer)

    def _send_to(self, transport: MemoryTransport | None, data: bytes) -> None:
        if transport is self.transport:
            self.send(data)

    def _answer(self, packet: bytes) -> bytes:
        kind = PacketType(packet[0] >> 4)
        if kind is PacketType.PUBLISH:
            return self._take(packet)
        assert packet[0] & 0x0F == _FIRST_BYTES[kind], "flags"
        if kind is PacketType.CONNECT:
            return self._accept(Connect.decode(packet))
        if kind is PacketType.SUBSCRIBE:
            mid, subscriptions = decode_subscribe(packet, v5=self._client_v5)
            codes = [item.qos for item in subscriptions]
            return encode_suback(mid, codes, v5=self._client_v5) if self.answering else b""
        if kind in {PacketType.PUBACK, PacketType.PUBREC, PacketType.PUBREL, PacketType.PUBCOMP}:
            mid, code = decode_ack(packet)
            assert mid, "packet identifier 0"
            assert not code or self._client_v5, "a reason code in MQTT 3.1.1"
            if self.settling and kind is PacketType.PUBREC and code < 0x80:
                return encode_ack(PacketType.PUBREL, mid)
            if self.settling and kind is PacketType.PUBREL:
                return encode_ack(PacketType.PUBCOMP, mid)
        return b""

    def _accept(self, connect: Connect) -> bytes:
        self._client_v5 = connect.level == 5
        if self._client_v5 and not self.v5:
            return Connack(code=_REFUSED_VERSION, properties={}).encode()
        connack = Connack(session_present=self.session_present, properties={} if self._client_v5 else None)
        return connack.encode() if self.answering else b""

    def _take(self, packet: bytes) -> bytes:
        message = Publish.decode(packet, v5=self._client_v5)
        assert message.qos < 3, "QoS 3"
        assert message.packet_id or not message.qos, "packet identifier 0"
        assert not (message.dup and not message.qos), "DUP with QoS 0"
        assert message.topic, "no topic"
        assert not set(message.topic) & {"+", "#", "\0"}, "wildcard in a topic"
        assert not set(message.properties or {}) & {Property.TOPIC_ALIAS, Property.SUBSCRIPTION_IDENTIFIER}, "property"
        assert len(message.encode()) == len(packet), "a property twice, or a length in more bytes than it needs"
        self.published.append(message)
        if not self.settling or not message.qos:
            return b""
        return encode_ack(PacketType.PUBACK if message.qos == 1 else PacketType.PUBREC, message.packet_id)


class Errors(logging.Handler):
    """Collects what is logged as an error, and exceptions that nobody caught."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    @override
    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.texts.append(self.format(record))


class Table:
    """The bridge and its two brokers."""

    def __init__(self, *, local_v5: bool = True, remote_v5: bool = True) -> None:
        self.local = Peer(v5=local_v5)
        self.remote = Peer(v5=remote_v5)
        self.errors = Errors()
        peers = {1: self.local, 2: self.remote}
        self._make = vars(link)["make_transport"]

        def make_transport(config: BrokerConfig, _resources: object) -> Transport:
            return MemoryTransport(peers[config.port])

        vars(link)["make_transport"] = make_transport
        self.bridge = Bridge(
            BridgeConfig(
                remote=self._broker(2),
                routes=(Route(id="all", direction=Direction.BOTH, topic_filter="t/#"),),
                backoff=BackoffConfig(base=0.0, cap=0.0, refused_base=0.0, refused_cap=0.0),
            ),
            lambda: self._broker(1),
            lambda _: None,
        )

    @staticmethod
    def _broker(port: int) -> BrokerConfig:
        return BrokerConfig(host="memory", port=port, client_id="bridge", keepalive=0, max_payload=MAX_PAYLOAD)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        loop.set_debug(False)  # it would take most of the time
        loop.set_exception_handler(lambda _, context: self.errors.texts.append(str(context)))
        _LOGGER.addHandler(self.errors)
        _LOGGER.setLevel(logging.ERROR)
        await self.bridge.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.bridge.stop()
        vars(link)["make_transport"] = self._make
        asyncio.get_running_loop().set_exception_handler(None)
        _LOGGER.removeHandler(self.errors)
        _LOGGER.setLevel(logging.NOTSET)

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Let turns of the loop pass; raises AssertionError when a condition does not become true in many."""
        for _ in range(_TURNS):
            if condition():
                return
            await asyncio.sleep(0)
        raise AssertionError(f"{what} not seen: {self.bridge.status}")

    async def running(self) -> None:
        """Wait until both sides are up."""
        await self.until(lambda: self.bridge.status.state is BridgeState.RUNNING, "running")

    def status_of(self, peer: Peer) -> LinkStatus:
        """Status of the side to which a peer belongs."""
        return self.bridge.status.local if peer is self.local else self.bridge.status.remote

    async def heal(self, *, session_present: bool) -> None:
        """Connect both sides anew, with their sessions or without, and see a message cross each way."""
        for peer in (self.local, self.remote):
            peer.answering = peer.settling = True
            peer.session_present = session_present
            before = peer.connections
            peer.hang_up()
            await self.until(partial(peer.connected_since, before), "reconnect")
        await self.running()
        for source, target, mid in ((self.local, self.remote, 65_000), (self.remote, self.local, 65_001)):
            # Not the same both ways: this broker of 3.1.1 sends no echo, and that would be taken for one.
            source.publish("t/marker", b"marker %d" % mid, mid)
            await self.until(partial(target.has_marker, mid), "a message")
