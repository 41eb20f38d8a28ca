"""An MQTT client for tests: one socket, no thread, no task, every acknowledgement awaited."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
import ssl
from typing import Self, override
from uuid import uuid4

from .packets import (
    Connack,
    Connect,
    PacketType,
    Properties,
    Property,
    Publish,
    Splitter,
    Subscription,
    Will,
    decode_ack,
    decode_disconnect,
    decode_suback,
    encode_ack,
    encode_disconnect,
    encode_subscribe,
    encode_unsubscribe,
    varint,
)
from .processes import PATIENCE

_WRITE_AT_ONCE = 512
_PINGREQ = b"\xc0\x00"


@dataclass(slots=True, frozen=True)
class Message:
    """A PUBLISH that came in."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    dup: bool
    packet_id: int
    properties: Properties
    time: float
    """The loop's clock when it came."""


class ClientError(Exception):
    """The connection ended, or the broker refused; `code` is the MQTT code where there is one."""

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


class _Burst:
    """Messages on their way through the send window."""

    def __init__(self, topic: str, payloads: Iterator[bytes], qos: int, v5: bool, done: asyncio.Future[None]) -> None:
        topic_bytes = topic.encode()
        self._head = len(topic_bytes).to_bytes(2) + topic_bytes
        self._tail = b"\0" if v5 else b""
        self._first = bytes((0x30 | qos << 1,))
        self._payloads = payloads
        self.qos = qos
        self.open = 0
        self.exhausted = False
        self.failures: dict[int, int] = {}
        self.done = done

    def encode(self, packet_id: int) -> bytes | None:
        """Make the next packet; None when there is none left."""
        payload = next(self._payloads, None)
        if payload is None:
            self.exhausted = True
            return None
        identifier = packet_id.to_bytes(2) if self.qos else b""
        length = varint(len(self._head) + len(identifier) + len(self._tail) + len(payload))
        return b"".join((self._first, length, self._head, identifier, self._tail, payload))

    def settle(self) -> None:
        """Finish when everything is acknowledged."""
        if self.exhausted and not self.open and not self.done.done():
            self.done.set_result(None)


class Client(asyncio.Protocol):
    """One connection to a broker, used as an async context manager or with `connect` and `disconnect`.

    After a `disconnect` it may connect again (a persistent session then goes on); `messages` keeps growing.
    Keepalive is off unless asked for. Incoming QoS 1 and 2 messages are acknowledged at once unless `manual_ack`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        client_id: str | None = None,
        version: int = 5,
        clean: bool = True,
        session_expiry: int | None = None,
        username: str | None = None,
        password: str | None = None,
        keepalive: int = 0,
        will: Will | None = None,
        properties: Properties | None = None,
        tls: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        manual_ack: bool = False,
    ) -> None:
        self.host = host
        self.port = port
        self.client_id = f"test-{uuid4().hex[:12]}" if client_id is None else client_id
        self.v5 = version == 5
        connect_properties = dict(properties or {})
        if self.v5:
            # In MQTT 5 a session ends with its connection unless an expiry is asked for.
            expiry = session_expiry if session_expiry is not None else 0 if clean else 0xFFFFFFFF
            if expiry:
                connect_properties.setdefault(Property.SESSION_EXPIRY, expiry)
        self._connect = Connect(
            client_id=self.client_id,
            level=5 if self.v5 else 4,
            clean=clean,
            keepalive=keepalive,
            username=username,
            password=None if password is None else password.encode(),
            will=will,
            properties=connect_properties,
        )
        self._tls = tls
        self._server_hostname = server_hostname
        self._manual_ack = manual_ack
        self.messages: list[Message] = []
        self.connack: Connack | None = None
        self.disconnect_code: int | None = None
        """Reason of the broker's DISCONNECT, if it sent one."""
        self.send_window = 20
        """Unacknowledged QoS 1 and 2 messages we allow ourselves; taken from the broker's Receive Maximum in MQTT 5."""
        self._transport: asyncio.Transport | None = None
        self._lost: asyncio.Future[None] | None = None
        self._received_qos2: set[int] = set()
        """Part of the session: kept over connections for as long as the broker keeps the session."""
        self._reset()

    def _reset(self) -> None:
        self._splitter = Splitter()
        self._waiting: dict[tuple[PacketType, int], asyncio.Future[list[int]]] = {}
        self._bursts: dict[int, _Burst] = {}
        self._burst: _Burst | None = None
        self._next_id = 0
        self._ping_timer: asyncio.TimerHandle | None = None
        self._watcher: tuple[Callable[[], object], asyncio.Future[None]] | None = None
        self._writable = True

    # Connection

    @property
    def connected(self) -> bool:
        """Whether the session is up."""
        return self._transport is not None and self.connack is not None

    async def connect(self) -> Connack:
        """Open the connection and the session; raises ClientError (with the code) when the broker refuses."""
        loop = asyncio.get_running_loop()
        self._reset()
        self.connack = None
        self.disconnect_code = None
        self._lost = None
        async with asyncio.timeout(PATIENCE):
            await loop.create_connection(
                lambda: self, self.host, self.port, ssl=self._tls, server_hostname=self._server_hostname
            )
            answer = self._expect(PacketType.CONNACK, 0)
            self._write(self._connect.encode())
            try:
                await answer
            except BaseException:
                self.abort()
                raise
        connack = self.connack
        if connack is None:
            raise ClientError("no CONNACK")
        if connack.code:
            await self.close()
            raise ClientError(f"connection refused: {connack.code:#x}", connack.code)
        if self.v5:
            limit = (connack.properties or {}).get(Property.RECEIVE_MAXIMUM, 65535)
            self.send_window = min(1000, limit if isinstance(limit, int) else 65535)
        if self._connect.keepalive:
            self._ping()
        return connack

    async def disconnect(self, code: int | None = None) -> None:
        """Say goodbye (no will is published) and wait for the end of the connection."""
        if self._transport is not None:
            self._write(encode_disconnect(code))
            await self.close()

    async def close(self) -> None:
        """Close the socket without a DISCONNECT (the broker publishes the will) and wait for its end."""
        if self._transport is not None:
            self._transport.close()
        await self.wait_closed()

    def abort(self) -> None:
        """Drop the socket at once."""
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self, timeout: float = PATIENCE) -> None:  # noqa: ASYNC109
        """Wait until the connection is gone, whoever ended it."""
        if self._lost is not None:
            async with asyncio.timeout(timeout):
                await asyncio.shield(self._lost)

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.disconnect()

    # Operations

    async def subscribe(
        self, *subscriptions: Subscription | str, qos: int = 0, properties: Properties | None = None
    ) -> list[int]:
        """Subscribe and return the SUBACK's codes; a plain string is subscribed with `qos`."""
        items = [item if isinstance(item, Subscription) else Subscription(item, qos) for item in subscriptions]
        packet_id = self._identifier()
        answer = self._expect(PacketType.SUBACK, packet_id)
        self._write(encode_subscribe(packet_id, items, v5=self.v5, properties=properties))
        return await self._answered(answer)

    async def unsubscribe(self, *topic_filters: str) -> list[int]:
        """Unsubscribe and return the UNSUBACK's codes (none in 3.1.1)."""
        packet_id = self._identifier()
        answer = self._expect(PacketType.UNSUBACK, packet_id)
        self._write(encode_unsubscribe(packet_id, list(topic_filters), v5=self.v5))
        return await self._answered(answer)

    async def publish(
        self,
        topic: str,
        payload: bytes | str = b"",
        qos: int = 0,
        *,
        retain: bool = False,
        properties: Properties | None = None,
    ) -> int:
        """Publish and wait for PUBACK or PUBCOMP; returns the reason code (of the PUBREC when that refuses)."""
        packet_id = self._identifier() if qos else 0
        answer = self._expect(PacketType.PUBACK if qos == 1 else PacketType.PUBCOMP, packet_id) if qos else None
        self._write(
            Publish(
                topic=topic,
                payload=payload.encode() if isinstance(payload, str) else payload,
                qos=qos,
                retain=retain,
                packet_id=packet_id,
                properties=(properties or {}) if self.v5 else None,
            ).encode()
        )
        return (await self._answered(answer))[0] if answer is not None else 0

    async def burst(
        self,
        topic: str,
        payloads: Iterable[bytes],
        qos: int = 1,
        *,
        timeout: float = 2 * PATIENCE,  # noqa: ASYNC109
    ) -> dict[int, int]:
        """Publish many messages as fast as the broker takes them, in order, and wait until it has taken them all.

        Returns how often each reason code of failure (0x80 and above) came. QoS 0 ends with a PING.
        """
        if self._burst is not None:
            raise RuntimeError("one burst at a time")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        burst = self._burst = _Burst(topic, iter(payloads), qos, self.v5, done)
        self._fill()
        try:
            async with asyncio.timeout(timeout):
                await done
                if not qos:
                    await self.ping()
        finally:
            self._burst = None
        return burst.failures

    async def ping(self) -> None:
        """Wait for a PINGRESP: everything sent before has been read by the broker."""
        answer = self._expect(PacketType.PINGRESP, 0)
        self._write(_PINGREQ)
        await self._answered(answer)

    def ack(self, message: Message) -> None:
        """Acknowledge a message of QoS 1 or 2 (`manual_ack`)."""
        if message.qos:
            self._write(encode_ack(PacketType.PUBACK if message.qos == 1 else PacketType.PUBREC, message.packet_id))

    async def wait_for(
        self,
        expected: int | Callable[[list[Message]], object],
        timeout: float = PATIENCE,  # noqa: ASYNC109
    ) -> list[Message]:
        """Wait until so many messages came in all, or until the predicate over all of them is true; returns them."""

        def condition() -> object:
            if isinstance(expected, int):
                return len(self.messages) >= expected
            return expected(self.messages)

        if not condition():
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._watcher = (condition, future)
            try:
                async with asyncio.timeout(timeout):
                    await future
            except TimeoutError:
                wanted = f"of {expected} " if isinstance(expected, int) else ""
                raise TimeoutError(f"{len(self.messages)} {wanted}messages within {timeout:g} s") from None
            finally:
                self._watcher = None
        return self.messages

    @property
    def payloads(self) -> list[bytes]:
        """The payloads that came, in order."""
        return [message.payload for message in self.messages]

    # Inside

    def _identifier(self) -> int:
        while True:
            self._next_id = self._next_id % 65535 + 1
            if self._next_id not in self._bursts and all(key[1] != self._next_id for key in self._waiting):
                return self._next_id

    def _expect(self, kind: PacketType, packet_id: int) -> asyncio.Future[list[int]]:
        answer: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._waiting[kind, packet_id] = answer
        return answer

    async def _answered(self, answer: asyncio.Future[list[int]]) -> list[int]:
        async with asyncio.timeout(PATIENCE):
            return await answer

    def _resolve(self, kind: PacketType, packet_id: int, codes: list[int]) -> None:
        answer = self._waiting.pop((kind, packet_id), None)
        if answer is not None and not answer.done():
            answer.set_result(codes)

    def _write(self, data: bytes) -> None:
        if self._transport is None:
            raise ClientError("not connected", self.disconnect_code)
        self._transport.write(data)

    def _ping(self) -> None:
        self._write(_PINGREQ)
        self._ping_timer = asyncio.get_running_loop().call_later(self._connect.keepalive, self._ping)

    def _fill(self) -> None:
        burst = self._burst
        if burst is None or burst.exhausted or not self._writable or self._transport is None:
            return
        room = self.send_window - len(self._bursts) if burst.qos else _WRITE_AT_ONCE
        pieces = []
        for _ in range(room):
            packet_id = self._identifier() if burst.qos else 0
            piece = burst.encode(packet_id)
            if piece is None:
                break
            pieces.append(piece)
            if burst.qos:
                self._bursts[packet_id] = burst
                burst.open += 1
        if pieces:
            self._transport.write(b"".join(pieces))
        if burst.exhausted:
            burst.settle()
        elif not burst.qos and self._writable:
            asyncio.get_running_loop().call_soon(self._fill)

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport
            self._lost = asyncio.get_running_loop().create_future()

    @override
    def data_received(self, data: bytes) -> None:
        """Handle every complete packet, answer them with one write."""
        answers: list[bytes] = []
        for piece in self._splitter.feed(data):
            kind = PacketType(piece[0] >> 4)
            if kind is PacketType.PUBLISH:
                self._received(piece, answers)
            elif kind in {PacketType.PUBACK, PacketType.PUBREC, PacketType.PUBREL, PacketType.PUBCOMP}:
                self._acknowledged(kind, piece, answers)
            elif kind is PacketType.CONNACK:
                self.connack = Connack.decode(piece)
                if not self.connack.session_present:
                    self._received_qos2.clear()
                self._resolve(kind, 0, [self.connack.code])
            elif kind in {PacketType.SUBACK, PacketType.UNSUBACK}:
                self._resolve(kind, *decode_suback(piece, v5=self.v5))
            elif kind is PacketType.PINGRESP:
                self._resolve(kind, 0, [])
            elif kind is PacketType.DISCONNECT:
                self.disconnect_code = decode_disconnect(piece)
        if answers and self._transport is not None:
            self._transport.write(b"".join(answers))
        self._fill()
        if self._watcher is not None and not self._watcher[1].done() and self._watcher[0]():
            self._watcher[1].set_result(None)

    def _received(self, piece: bytes, answers: list[bytes]) -> None:
        packet = Publish.decode(piece, v5=self.v5)
        if packet.qos == 2:
            known = packet.packet_id in self._received_qos2
            self._received_qos2.add(packet.packet_id)
            if not self._manual_ack or known:
                answers.append(encode_ack(PacketType.PUBREC, packet.packet_id))
            if known:
                return
        elif packet.qos and not self._manual_ack:
            answers.append(encode_ack(PacketType.PUBACK, packet.packet_id))
        self.messages.append(
            Message(
                packet.topic,
                packet.payload,
                packet.qos,
                packet.retain,
                packet.dup,
                packet.packet_id,
                packet.properties or {},
                asyncio.get_running_loop().time(),
            )
        )

    def _acknowledged(self, kind: PacketType, piece: bytes, answers: list[bytes]) -> None:
        packet_id, code = decode_ack(piece)
        if kind is PacketType.PUBREL:
            self._received_qos2.discard(packet_id)
            answers.append(encode_ack(PacketType.PUBCOMP, packet_id))
            return
        if kind is PacketType.PUBREC and code < 0x80:
            answers.append(encode_ack(PacketType.PUBREL, packet_id))
            return
        burst = self._bursts.pop(packet_id, None)
        if burst is None:
            self._resolve(PacketType.PUBACK if kind is PacketType.PUBACK else PacketType.PUBCOMP, packet_id, [code])
            return
        burst.open -= 1
        if code >= 0x80:
            burst.failures[code] = burst.failures.get(code, 0) + 1
        burst.settle()

    @override
    def pause_writing(self) -> None:
        """The kernel takes no more for now."""
        self._writable = False

    @override
    def resume_writing(self) -> None:
        """... and now it does."""
        self._writable = True
        self._fill()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything; whoever waits learns why."""
        self._transport = None
        if self._ping_timer is not None:
            self._ping_timer.cancel()
            self._ping_timer = None
        error = ClientError(f"connection lost: {exc or 'closed'}", self.disconnect_code)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(error)
        self._waiting.clear()
        if self._burst is not None and not self._burst.done.done():
            self._burst.done.set_exception(error)
        self._burst = None
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)
