"""A broker over TCP that says exactly what a test tells it, packet by packet."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
import contextlib
from types import TracebackType
from typing import Protocol, Self

from .packets import (
    Connack,
    Connect,
    PacketType,
    Properties,
    Property,
    Publish,
    Splitter,
    Subscription,
    body_of,
    decode_ack,
    decode_subscribe,
    encode_ack,
    encode_suback,
    packet as make_packet,
)
from .processes import PATIENCE, wait_until


def encode_unsuback(unsubscribe: bytes, *, v5: bool) -> bytes:
    """Make the UNSUBACK that an UNSUBSCRIBE asks for."""
    reader = body_of(unsubscribe)
    mid = reader.number(2)
    if not v5:
        return make_packet(0xB0, mid.to_bytes(2))
    reader.properties()
    filters = 0
    while not reader.at_end:
        reader.text()
        filters += 1
    return make_packet(0xB0, mid.to_bytes(2), b"\0", bytes(filters))


class ScriptedConnection:
    """One client of the scripted broker. Answers PINGREQ, SUBSCRIBE and UNSUBSCRIBE by itself, unless told not to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._packets: asyncio.Queue[bytes] = asyncio.Queue()
        self.connect = Connect()
        self.filters: list[str] = []
        self.subscribes: list[list[Subscription]] = []
        """What each SUBSCRIBE asked for, that was answered."""
        self.answer_subscribe = True
        self.refused: set[str] = set()
        """Filters that are answered with 0x87, not authorized."""
        self.pings = 0

    @property
    def v5(self) -> bool:
        """Whether the client speaks MQTT 5."""
        return self.connect.level & 0x7F == 5

    async def handshake(
        self, *, session_present: bool = False, code: int = 0, properties: Properties | None = None
    ) -> None:
        """Answer the client's CONNECT (read already)."""
        answer = properties or {} if self.v5 else None
        self.send(Connack(session_present=session_present, code=code, properties=answer).encode())

    async def read_connect(self) -> None:
        """Read the CONNECT."""
        self.connect = Connect.decode(await self.receive())

    async def run(self) -> None:
        """Read until the connection ends; answer what needs no test, keep the rest for `receive`."""
        splitter = Splitter()
        with contextlib.suppress(ConnectionError):
            while data := await self._reader.read(65_536):
                for packet in splitter.feed(data):
                    if not self._answered(packet):
                        self._packets.put_nowait(packet)
        self._packets.put_nowait(b"")

    async def receive(self) -> bytes:
        """Return the next packet that was not answered already; raises EOFError at the end."""
        async with asyncio.timeout(PATIENCE):
            packet = await self._packets.get()
        if not packet:
            self._packets.put_nowait(b"")
            raise EOFError
        return packet

    async def subscribed(self) -> None:
        """Wait for the SUBSCRIBE that follows CONNACK."""
        await wait_until(lambda: self.filters, what="SUBSCRIBE")

    def _answered(self, packet: bytes) -> bool:
        kind = packet[0] >> 4
        if kind == PacketType.PINGREQ:
            self.pings += 1
            self.send(b"\xd0\x00")
        elif kind == PacketType.SUBSCRIBE and self.answer_subscribe:
            mid, subscriptions = decode_subscribe(packet, v5=self.v5)
            self.subscribes.append(subscriptions)
            self.filters += [item.topic_filter for item in subscriptions]
            codes = [0x87 if item.topic_filter in self.refused else item.qos for item in subscriptions]
            self.send(encode_suback(mid, codes, v5=self.v5))
        elif kind == PacketType.UNSUBSCRIBE and self.answer_subscribe:
            self.send(encode_unsuback(packet, v5=self.v5))
        else:
            return False
        return True

    async def receive_publish(self) -> Publish:
        """Return the next packet, which must be a PUBLISH."""
        packet = await self.receive()
        assert packet[0] >> 4 == PacketType.PUBLISH, packet
        return Publish.decode(packet, v5=self.v5)

    async def expect(self, kind: PacketType, mid: int, code: int = 0) -> None:
        """Take the next packet, which must be this acknowledgement."""
        packet = await self.receive()
        assert (PacketType(packet[0] >> 4), *decode_ack(packet)) == (kind, mid, code)

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)

    def publish(
        self,
        topic: str,
        payload: bytes = b"",
        *,
        qos: int = 1,
        mid: int = 0,
        dup: bool = False,
        identifiers: Sequence[int] = (),
    ) -> None:
        """Send a PUBLISH, as if for subscriptions with these identifiers."""
        properties: Properties = {Property.SUBSCRIPTION_IDENTIFIER: list(identifiers)} if identifiers else {}
        message = Publish(
            topic=topic, payload=payload, qos=qos, packet_id=mid, dup=dup, properties=properties if self.v5 else None
        )
        self.send(message.encode())

    def ack(self, kind: PacketType, mid: int, code: int = 0) -> None:
        """Send an acknowledgement."""
        self.send(encode_ack(kind, mid, code))

    async def barrier(self, other: ScriptedConnection, topic: str = "barrier") -> None:
        """Make sure that all sent so far was handled: a QoS 0 message sent here must be the next to arrive there."""
        self.publish(topic, b"barrier", qos=0)
        arrived = await other.receive_publish()
        assert (arrived.topic, arrived.payload) == (topic, b"barrier"), arrived

    async def close(self) -> None:
        """Close the connection."""
        self._writer.transport.abort()


class ScriptedBroker:
    """Listens on loopback; each connection is handed to the test."""

    host = "127.0.0.1"

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._accepted: asyncio.Queue[ScriptedConnection] = asyncio.Queue()
        self._all: list[ScriptedConnection] = []
        self.port = 0

    async def accept(self) -> ScriptedConnection:
        """Return the next connection, its CONNECT read and not answered."""
        async with asyncio.timeout(PATIENCE):
            connection = await self._accepted.get()
            await connection.read_connect()
            return connection

    def forget(self) -> None:
        """Forget connections that nobody has accepted."""
        while not self._accepted.empty():
            self._accepted.get_nowait()

    async def session(
        self, *, session_present: bool = False, properties: Properties | None = None
    ) -> ScriptedConnection:
        """Return the next connection, accepted and subscribed."""
        connection = await self.accept()
        await connection.handshake(session_present=session_present, properties=properties)
        await connection.subscribed()
        return connection

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._on_connection, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self._all:
            await connection.close()
        await self._server.wait_closed()

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = ScriptedConnection(reader, writer)
        self._all.append(connection)
        self._accepted.put_nowait(connection)
        await connection.run()


class Stoppable(Protocol):
    """What can be stopped: a bridge, of which this file knows nothing."""

    async def stop(self) -> None:
        """Release everything."""


class Scene(Protocol):
    """What has a bridge between two brokers."""

    @property
    def bridge(self) -> Stoppable:
        """The bridge that is to be stopped in the end."""


@contextlib.asynccontextmanager
async def between_brokers[T: Scene](make: Callable[[ScriptedBroker, ScriptedBroker], T]) -> AsyncIterator[T]:
    """Have two brokers, the local and the remote one, what `make` makes between them, and its bridge stopped."""
    async with ScriptedBroker() as local, ScriptedBroker() as remote:
        scene = make(local, remote)
        try:
            yield scene
        finally:
            await scene.bridge.stop()
