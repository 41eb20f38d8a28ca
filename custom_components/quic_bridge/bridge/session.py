"""MQTT over a Transport: CONNECT to DISCONNECT, subscriptions, liveness; and the PUBLISH family on a fast path.

paho-mqtt builds and reads what is rare and rich (CONNECT, CONNACK, SUBSCRIBE and their properties). It stays behind
its public face: it gets whole packets through a socket-like object. Three things it leaves undone are done here:
PUBLISH and its acknowledgements (paho acknowledges on its own and renumbers), the ping (paho ignores Server Keep
Alive and lets other traffic postpone the PINGREQ), and DISCONNECT (paho 2.1 drops a reason code without properties).
"""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain, islice, repeat
import logging
from typing import Final, Protocol, override

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from . import codec
from .config import BrokerConfig
from .echoes import Echoes
from .errors import BridgeError, ErrorCode
from .keepalive import Keepalive
from .limits import Limits
from .paho_client import (
    MQTT_5,
    PAHO_ERRORS,
    ByteSocket,
    PahoClient,
    make_properties,
    readable_connack,
    reason_string,
)
from .presence import Presence
from .reasons import connack_error, disconnect_error, stream_error
from .routes import RetainedAtConnect, Subscription
from .topics import has_wildcards
from .transport.base import ExtraStream, StreamReceiver, Transport, TransportReceiver

_LOGGER = logging.getLogger(__name__)

_SUBACK_TIMEOUT: Final = 10.0
_FILTERS_PER_SUBSCRIBE: Final = 100
_ASKED_AT_ONCE: Final = 8
"""SUBSCRIBE or UNSUBSCRIBE packets under way. Receive Maximum is not about them, but a broker has to keep them."""
_SUBSCRIBE_HEAD: Final = 14
"""Bytes before the first filter, at most: fixed header, packet identifier, and the properties we send."""
_FILTER_OVERHEAD: Final = 3
"""Bytes with each filter: its length and its options."""
_RETAIN_HANDLING: Final = {
    RetainedAtConnect.ALWAYS: SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE,
    RetainedAtConnect.ONCE: SubscribeOptions.RETAIN_SEND_IF_NEW_SUB,
    RetainedAtConnect.NEVER: SubscribeOptions.RETAIN_DO_NOT_SEND,
}
_UNSPECIFIED: Final = 0x80
_NO_WILDCARDS: Final = 0xA2
_NOT_HEARD: Final = frozenset({ErrorCode.KEEPALIVE_TIMEOUT, ErrorCode.CLOSED_BY_BROKER})
"""How a session ends when the broker has not heard us in time; some brokers, and all of 3.1.1, say nothing."""
_NEEDS_CONNACK: Final = frozenset(
    {codec.PUBLISH, codec.PUBACK, codec.PUBREC, codec.PUBREL, codec.PUBCOMP, codec.SUBACK, codec.UNSUBACK}
)
"""What a broker must not send before it."""
_PINGRESP: Final = 0
"""Stands for a packet identifier, which PINGREQ and PINGRESP do not have."""


class PublishReceiver(Protocol):
    """Takes what the broker publishes to us: the forwarder for which this broker is the source."""

    def source_attached(self, session: MqttSession) -> None:
        """Hear that the broker accepted our CONNECT. Runs before any later packet is read."""

    def source_lost(self) -> None:
        """Hear that the session is over."""

    def source_publish(self, first: int, header: int, packet: bytes) -> None:
        """Take a PUBLISH. May raise MalformedPacketError."""

    def source_oversized(self, first: int, header: int, head: bytes, size: int) -> None:
        """Take the head of a PUBLISH that is larger than we accept. May raise MalformedPacketError."""

    def source_release(self, mid: int) -> None:
        """Take a PUBREL."""

    def source_overdue(self, now: float) -> bool:
        """Look at a PINGRESP whether the broker fails to send a PUBREL."""


class AckReceiver(Protocol):
    """Takes the broker's acknowledgements: the forwarder for which this broker is the target."""

    def target_attached(self, session: MqttSession) -> None:
        """Hear that the broker accepted our CONNECT. Runs before any later packet is read."""

    def target_lost(self, error: BridgeError | None) -> None:
        """Hear that the session is over, and why; None: we ended it."""

    def target_ack(self, packet_type: int, mid: int, reason: int) -> None:
        """Take a PUBACK, PUBREC or PUBCOMP."""

    def target_writable(self) -> None:
        """Hear that the connection takes more, or that a packet identifier became free."""

    def target_congested(self) -> None:
        """Hear that the connection takes no more for now."""

    def target_mids(self) -> Collection[int]:
        """Packet identifiers in use towards the broker."""

    def target_overdue(self, now: float) -> bool:
        """Look at a PINGRESP whether the broker fails to acknowledge a message."""


class MqttSession(TransportReceiver):
    """One MQTT session over one Transport, used once."""

    def __init__(
        self,
        config: BrokerConfig,
        transport: Transport,
        *,
        protocol: int,
        publishes: PublishReceiver,
        acks: AckReceiver,
        clean: bool = False,
        bridge_bit: bool = False,
        echoes: Echoes | None = None,
        presence: Presence | None = None,
        keep_alive: int = 0,
    ) -> None:
        """Prepare a session; `clean` asks for a new one that the broker forgets at once when it ends.

        `bridge_bit` tells a broker of MQTT 3.1.1 that we are a bridge, which must not get its own messages back; with
        `echoes` it sends them back, and they are to be recognised. `presence` is written there, and is the Will.
        The broker is told `keep_alive` seconds if that is more than the configured time between PINGREQs.
        """
        self.config = config
        self.transport = transport
        self.protocol = protocol
        self.v5 = protocol == MQTT_5
        self.limits = Limits(window=1)
        self.echoes = echoes
        self.session_present = False
        self.congested = False
        self.connected = False
        self.asked = False
        """CONNECT was sent."""
        self.reserved: set[int] = set()
        """Packet identifiers of packets of our own that wait for their answer: the forwarder must not use them."""
        self.own = 0
        """Places of the send window that messages of our own take, see publisher.py."""
        self.write = transport.write
        self._publishes = publishes
        self._acks = acks
        self._clean = clean
        self._presence = presence
        self._framer = codec.Framer(config.max_packet)
        self._hello = bytearray()
        self._socket = ByteSocket(self._hello.extend)
        self._paho = PahoClient(config, protocol, self._socket, self.reserve_mid, clean=clean, bridge_bit=bridge_bit)
        if presence is not None and presence.in_use:
            self._paho.will_set(
                presence.topic, presence.offline, retain=True, properties=self._will_properties(presence.will_delay)
            )
        self._paho.on_connect = self._on_connect
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._connack: asyncio.Future[None] = loop.create_future()
        self._lost: asyncio.Future[BridgeError] = loop.create_future()
        self._subacks: dict[int, asyncio.Future[list[int]]] = {}
        self._last_mid = 65_535
        self._keepalive = Keepalive(transport, config.ping_timeout, self.fail)
        self._keep_alive = max(keep_alive, config.keepalive) if config.keepalive else 0
        """What the broker is told, or tells us."""

    # --- life -----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect the transport and log in. Raises BridgeError; releases everything if it does or is cancelled."""
        try:
            try:
                self._make_connect()
                await self.transport.connect(self, bytes(self._hello))
            except BridgeError:
                if self._lost.done():  # `fail` closed the transport: it knows why
                    raise self._lost.result() from None
                raise
            self.asked = True
            try:
                async with asyncio.timeout(self.config.connack_timeout):
                    await asyncio.wait((self._connack, self._lost), return_when=asyncio.FIRST_COMPLETED)
            except TimeoutError:
                raise BridgeError(
                    ErrorCode.NO_CONNACK,
                    f"the broker did not answer CONNECT within {self.config.connack_timeout:g} s",
                ) from None
            if self._lost.done():
                raise self._lost.result()  # noqa: TRY301 - the clean-up below is for this, too
        except BaseException:
            self._end()
            self.transport.abort()
            raise

    async def wait_lost(self) -> BridgeError:
        """Wait until the session is over, and return why."""
        return await asyncio.shield(self._lost)

    async def close(self) -> None:
        """Say goodbye (the broker then keeps the session but publishes no Will) and release everything."""
        if self.connected:
            if self._presence is not None:
                self._presence.leaving()
            self.write(codec.DISCONNECT_PACKET)
        self._end()
        await self.transport.close()

    def fail(self, error: BridgeError) -> None:
        """End the session because of `error`; for what the transport cannot know."""
        if not self._lost.done():
            self._lost.set_result(error)
            self._end()
            self.transport.abort()

    @property
    def _ended(self) -> BridgeError | None:
        """Why it was lost; None: it was not, or we ended it."""
        return self._lost.result() if self._lost.done() and not self._lost.cancelled() else None

    def _end(self) -> None:
        """Release what is ours and tell the forwarders, once."""
        self._keepalive.stop()
        ended = self._ended
        for future in self._subacks.values():
            if not future.done():
                future.set_exception(ended or BridgeError(ErrorCode.CLOSED_BY_BROKER, "the session was closed"))
                future.exception()  # of several questions one is waited for
        self._connack.cancel()
        if not self._lost.done():
            self._lost.cancel()
        if self.connected:
            self.connected = False
            if self._presence is not None:
                self._presence.lost()
            self._publishes.source_lost()
            self._acks.target_lost(ended)

    @property
    def keep_alive_wanted(self) -> int:
        """The Keep Alive with which the broker would not have ended the session; 0: it ended for another reason."""
        if self._ended is None or self._ended.code not in _NOT_HEARD or self.limits.server_keep_alive is not None:
            return 0
        return self._keepalive.wanted(self._keep_alive)

    # --- CONNECT --------------------------------------------------------------------------------------------------

    def _make_connect(self) -> None:
        """Have paho make CONNECT, before there is a connection: it may leave together with the handshake."""
        properties = None
        if self.v5:
            properties = make_properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 0 if self._clean else self.config.session_expiry
            properties.ReceiveMaximum = self.config.receive_maximum
            if self.config.announce_limit:
                properties.MaximumPacketSize = self.config.max_packet
        self._paho.connect_async(
            "broker",  # paho wants a name; the transport knows better
            1,
            self._keep_alive,
            clean_start=self._clean if self.v5 else paho.MQTT_CLEAN_START_FIRST_ONLY,
            properties=properties,
        )
        try:
            self._paho.reconnect()
        except PAHO_ERRORS as error:
            raise BridgeError(ErrorCode.CONFIGURATION, f"cannot build CONNECT: {error}") from error
        self._socket.write = self.write

    def _will_properties(self, delay: int) -> Properties | None:
        if not self.v5:
            return None
        properties = make_properties(PacketTypes.WILLMESSAGE)
        properties.WillDelayInterval = delay
        return properties

    def _on_connect(
        self,
        _client: paho.Client,
        _userdata: None,
        flags: paho.ConnectFlags,
        _reason: ReasonCode,
        props: Properties | None,
    ) -> None:
        self.limits = Limits.read(props, window=self.config.window, v5=self.v5)
        self.session_present = flags.session_present
        if self.echoes is not None and not self.session_present:
            self.echoes.clear()
        self.connected = True
        self._connack.set_result(None)
        told = self.limits.server_keep_alive
        if told is not None:
            self._keep_alive = told
        self._keepalive.start(self.config.keepalive if told is None else told)
        if self._presence is not None:
            self._presence.attached(self)
        self._publishes.source_attached(self)
        self._acks.target_attached(self)

    # --- subscriptions --------------------------------------------------------------------------------------------

    async def subscribe(self, wanted: Sequence[Subscription]) -> dict[str, int]:
        """Subscribe; returns the reason code of each filter that the broker refused.

        With MQTT 5, No Local keeps our own publishes from coming back, and Retain As Published keeps the retain flag.
        Raises BridgeError when the broker does not answer.
        """
        refused: dict[str, int] = {}
        if not self.limits.wildcards:
            # Asking all the same may end the connection (MQTT 5, 3.2.2.3.11).
            refused = {item.topic_filter: _NO_WILDCARDS for item in wanted if has_wildcards(item.topic_filter)}
            wanted = [item for item in wanted if item.topic_filter not in refused]
        # A SUBSCRIBE has one identifier for all its filters.
        by_identifier: dict[int | None, list[Subscription]] = {}
        for item in wanted:
            by_identifier.setdefault(item.identifier, []).append(item)
        chunks = list(
            chain.from_iterable(
                _packets(group, lambda item: item.topic_filter, self.limits.max_packet)
                for group in by_identifier.values()
            )
        )
        answers = await self._ask("SUBSCRIBE", chunks, self._write_subscribe)
        for chunk, answer in zip(chunks, answers, strict=True):
            codes = chain(answer, repeat(_UNSPECIFIED))
            refused |= {item.topic_filter: code for item, code in zip(chunk, codes, strict=False) if code >= 0x80}
        return refused

    def _write_subscribe(self, chunk: list[Subscription]) -> int | None:
        if not self.v5:
            return self._paho.subscribe([(item.topic_filter, item.qos) for item in chunk])[1]
        filters = [(item.topic_filter, _options(item)) for item in chunk]
        return self._paho.subscribe(filters, properties=_subscribe_properties(chunk[0].identifier))[1]

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe filters. Raises BridgeError when the broker does not answer."""
        chunks = list(_packets(filters, str, self.limits.max_packet))
        await self._ask("UNSUBSCRIBE", chunks, lambda chunk: self._paho.unsubscribe(chunk)[1])

    async def _ask[T](self, what: str, questions: Iterable[T], write: Callable[[T], int | None]) -> list[list[int]]:
        """Write some packets, a few at a time, and return the answers in that order; they may come in any.

        A broker that takes long for each has as long for the next one from its answer on: it has them one by one.
        """
        answers: list[list[int]] = []
        waiting: deque[int] = deque()
        rest = iter(questions)
        try:
            while True:
                for question in islice(rest, _ASKED_AT_ONCE - len(waiting)):
                    waiting.append(self._asking(write(question), what))
                if not waiting:
                    return answers
                future = self._subacks[waiting[0]]
                answers.append(await self._keepalive.answer(future, _SUBACK_TIMEOUT))
                self._settled(waiting.popleft())
        except TimeoutError:
            raise BridgeError(
                ErrorCode.PROTOCOL_ERROR, f"the broker did not answer {what} within {_SUBACK_TIMEOUT:g} s"
            ) from None
        finally:
            for mid in waiting:
                self._settled(mid)

    def _asking(self, mid: int | None, what: str) -> int:
        if mid is None or not self.connected:
            raise BridgeError(ErrorCode.CLOSED_BY_BROKER, f"connection lost before {what}")
        self._subacks[mid] = self._loop.create_future()
        if self._keepalive.reading_paused:
            self.transport.resume_reading()
        return mid

    def _settled(self, mid: int) -> None:
        self._subacks.pop(mid).cancel()
        self.reserved.discard(mid)
        if self._keepalive.reading_paused and not self._subacks:
            self.transport.pause_reading()
        if self.connected:
            self._acks.target_writable()

    def _take_suback(self, header: int, packet: bytes) -> None:
        """Take a SUBACK or UNSUBACK. paho gives up on reason codes that it does not know."""
        mid, codes = codec.decode_suback(header, packet, v5=self.v5)
        self._answered(mid, codes)

    def _answered(self, mid: int, codes: list[int]) -> None:
        future = self._subacks.get(mid)
        if future is not None and not future.done():
            future.set_result(codes)

    def reserve_mid(self) -> int:
        """Return a free packet identifier, which is now in `reserved`.

        Counts down from the top: brokers, whose identifiers the forwarder keeps, count up from 1.
        """
        used = self._acks.target_mids()
        for _ in range(65_535):
            self._last_mid = self._last_mid - 1 or 65_535
            if self._last_mid not in used and self._last_mid not in self.reserved:
                break
        self.reserved.add(self._last_mid)
        return self._last_mid

    # --- what comes in ----------------------------------------------------------------------------------------------

    @override
    def data_received(self, data: bytes) -> None:
        self._keepalive.heard()
        max_payload = self.config.max_payload
        try:
            for first, header, packet, size in self._framer.feed(data):
                packet_type = first & 0xF0
                if not self.connected and packet_type in _NEEDS_CONNACK:
                    raise codec.MalformedPacketError(f"packet of type {first >> 4} before CONNACK")  # noqa: TRY301
                if packet_type == codec.PUBLISH:
                    if size == len(packet) and (
                        size <= max_payload or codec.payload_size(first, header, packet, v5=self.v5) <= max_payload
                    ):
                        self._publishes.source_publish(first, header, packet)
                    else:
                        self._publishes.source_oversized(first, header, packet, size)
                elif codec.PUBACK <= packet_type <= codec.PUBCOMP:
                    mid, reason = codec.decode_ack(header, packet)
                    if packet_type == codec.PUBREL:
                        self._publishes.source_release(mid)
                    else:
                        self._acks.target_ack(packet_type, mid, reason)
                else:
                    self._control_packet(packet_type, header, packet)
                if self._lost.done():
                    return
        except codec.MalformedPacketError as error:
            self.fail(BridgeError(ErrorCode.MALFORMED_PACKET, f"malformed packet from the broker: {error}"))
        except Exception as error:  # the supervisor's hand inside a callback: an await of its own cannot catch this
            _LOGGER.exception("Unexpected error while handling data from %s", self.config.host)
            self.fail(BridgeError(ErrorCode.INTERNAL, f"internal error: {error!r}"))

    def _control_packet(self, packet_type: int, header: int, packet: bytes) -> None:
        if packet_type == codec.PINGRESP:
            self._keepalive.answered()
            self._answered(_PINGRESP, [])
            self._look_for_overdue()
            return
        body = packet[header:]
        if packet_type == codec.DISCONNECT:
            self.fail(disconnect_error(body[0] if body else 0, reason_string(PacketTypes.DISCONNECT, body[1:])))
            return
        if packet_type == codec.CONNACK:
            if self.connected or len(body) < 2:
                raise codec.MalformedPacketError("second or short CONNACK")
            if body[1]:
                text = reason_string(PacketTypes.CONNACK, body[2:]) if self.v5 else ""
                self.fail(connack_error(body[1], text))
                return
            packet = readable_connack(header, packet) if self.v5 else packet
        elif packet_type in {codec.SUBACK, codec.UNSUBACK}:
            self._take_suback(header, packet)
            return
        else:
            raise codec.MalformedPacketError(f"packet of type {packet_type >> 4} from a broker")
        self._socket.feed(packet)
        try:
            result = self._paho.loop_read()
        except PAHO_ERRORS as error:
            raise codec.MalformedPacketError(f"packet of type {packet_type >> 4}: {error}") from error
        if result is not MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise codec.MalformedPacketError(f"packet of type {packet_type >> 4}: {result.name}")

    @override
    def connection_lost(self, error: BridgeError) -> None:
        if not self._lost.done():
            self._lost.set_result(stream_error(error) if self.v5 else error)
        self._end()

    def open_stream(self, receiver: StreamReceiver) -> ExtraStream | None:
        """Open a stream beside that of the session; None if there is none to be had, or no session."""
        return self.transport.open_stream(receiver) if self.connected else None

    def _look_for_overdue(self) -> None:
        """End a session in which the broker answers, but owes its word on a message (see overdue.py)."""
        now = self._loop.time()
        for word, overdue in (
            ("acknowledge", self._acks.target_overdue(now)),
            ("release", self._publishes.source_overdue(now)),
        ):
            if overdue:
                self.fail(BridgeError(ErrorCode.PROTOCOL_ERROR, f"the broker does not {word} a message for a minute"))

    # --- flow -------------------------------------------------------------------------------------------------------

    @property
    def retains(self) -> bool:
        """Whether the broker keeps retained messages."""
        return self.limits.retain

    @property
    def window(self) -> int:
        """QoS 1 and 2 messages that the forwarder may have under way to the broker at a time."""
        return self.limits.window - self.own

    @override
    def pause_writing(self) -> None:
        self.congested = True
        if self.connected:
            self._acks.target_congested()

    @override
    def resume_writing(self) -> None:
        self.congested = False
        if self.connected:
            self._acks.target_writable()

    def pause_reading(self) -> None:
        """Let the broker wait: nothing more is read until `resume_reading`, but answers that we wait for."""
        self._keepalive.reading_paused = True
        if not self._subacks:
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._keepalive.reading_paused = False
        self.transport.resume_reading()

    async def ping(self) -> float:
        """Return the seconds from a PINGREQ to its answer. Raises BridgeError when there is none."""
        began = self._loop.time()
        self._keepalive.ping()
        await self._ask("PINGREQ", [_PINGRESP], lambda mid: mid)
        return self._loop.time() - began


def _packets[T](items: Sequence[T], topic_filter: Callable[[T], str], limit: int) -> Iterator[list[T]]:
    """Divide what goes into SUBSCRIBE or UNSUBSCRIBE packets, none larger than the broker takes (MQTT 5, 3.2.2.3.6)."""
    packet: list[T] = []
    size = _SUBSCRIBE_HEAD
    for item in items:
        more = len(topic_filter(item).encode()) + _FILTER_OVERHEAD
        if packet and (len(packet) == _FILTERS_PER_SUBSCRIBE or size + more > limit):
            yield packet
            packet, size = [], _SUBSCRIBE_HEAD
        packet.append(item)
        size += more
    if packet:
        yield packet


def _subscribe_properties(identifier: int | None) -> Properties | None:
    if identifier is None:
        return None
    properties = make_properties(PacketTypes.SUBSCRIBE)
    properties.SubscriptionIdentifier = identifier
    return properties


def _options(subscription: Subscription) -> SubscribeOptions:
    return SubscribeOptions(
        qos=subscription.qos,
        noLocal=True,
        retainAsPublished=True,
        retainHandling=_RETAIN_HANDLING[subscription.retained],
    )
