"""Messages of our own for a broker, beside those that the forwarder brings there.

They are not queued for an absent broker, neither here nor in the Outbox: whoever publishes waits for the broker's
answer, and hears what became of the message. Their packet identifiers are reserved in the session, so that the
forwarder, which keeps those of the source, waits with a message of the same one; and they take their places in the
send window like all others.
"""

import asyncio
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
import time
from typing import Final, override

from paho.mqtt.packettypes import PacketTypes

from . import codec
from .errors import BridgeError
from .paho_client import PAHO_ERRORS, make_properties
from .reasons import reason_text
from .session import AckReceiver, MqttSession
from .topics import valid_topic

PUBLISH_TIMEOUT: Final = 10.0
"""Seconds for a broker to acknowledge a message, the wait for its turn included."""

_MAX_WAITING: Final = 100
_MAX_SENT: Final = 16
_PACKET_IDENTIFIER_IN_USE: Final = 0x91
_IDENTIFIER_TRIES: Final = 3
_LONGEST: Final = 65_535
"""Bytes of a text or of binary data (MQTT 5, 1.5.4 and 1.5.6)."""
_LATEST: Final = 2**32 - 1
"""Seconds of an expiry interval (1.5.3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A message to publish. The properties are those of MQTT 5 (3.3.2.3)."""

    topic: str
    payload: bytes = field(default=b"", repr=False)
    qos: int = 0
    retain: bool = False
    payload_is_text: bool = False
    """Payload Format Indicator: the payload is UTF-8."""
    message_expiry: int | None = None
    """Seconds after which the broker drops the message if nobody has taken it."""
    content_type: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = field(default=None, repr=False)
    user_properties: tuple[tuple[str, str], ...] = ()

    @property
    def has_properties(self) -> bool:
        """Whether it takes MQTT 5 to carry it whole."""
        return bool(
            self.payload_is_text
            or self.user_properties
            or any(
                value is not None
                for value in (self.message_expiry, self.content_type, self.response_topic, self.correlation_data)
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What the broker said to a message that it took."""

    reason_code: int | None
    """Of its PUBACK or PUBREC: 0 for success, 0x10 if nobody has subscribed; None: QoS 0 has no answer."""
    seconds: float
    """From the call to the answer, or until a message with QoS 0 was written."""

    @property
    def reason(self) -> str | None:
        """The reason code in words."""
        if self.reason_code is None:
            return None
        return reason_text(self.reason_code) if self.reason_code else "success"


class PublishFault(StrEnum):
    """Why a message was not published, or may not have been.

    The value is stable: it is part of the translation key of the error in Home Assistant.
    """

    INVALID_TOPIC = "invalid_topic"
    INVALID_PROPERTY = "invalid_property"
    NOT_CONNECTED = "not_connected"
    NO_PROPERTIES = "no_properties"
    """The broker speaks MQTT 3.1.1, which has no properties."""
    QOS = "qos"
    """The broker does not take that quality of service."""
    RETAIN = "retain"
    """The broker does not retain messages."""
    TOO_LARGE = "too_large"
    BUSY = "busy"
    """It was not sent: too many messages waited before it."""
    REFUSED = "refused"
    """The broker acknowledged it with an error."""
    CONNECTION_LOST = "connection_lost"
    """It was sent, and the connection ended before the acknowledgement: it may have arrived."""
    TIMED_OUT = "timed_out"
    """It was sent, and not acknowledged in time: it may have arrived, or arrive later."""


class PublishError(Exception):
    """A message was not published, or may not have been; `text` says more (English, never the payload)."""

    def __init__(self, fault: PublishFault, text: str) -> None:
        """Make the error."""
        super().__init__(f"{fault}: {text}")
        self.fault = fault
        self.text = text


class _Delivery:
    """One message on its way."""

    def __init__(self, topic: bytes, properties: bytes | None, message: Publication) -> None:
        self.topic = topic
        self.properties = properties
        self.message = message
        self.done: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self.sent = False
        self.released = False
        """PUBREL was written (QoS 2)."""
        self.reason = 0
        self.tries = 0

    def encode(self, mid: int) -> bytes:
        first = codec.PUBLISH | self.message.qos << 1 | (codec.RETAIN if self.message.retain else 0)
        return codec.encode_publish(first, self.topic, mid, self.properties, self.message.payload)

    def settle(self, reason: int | None) -> None:
        if self.done.done():
            return
        if reason is not None and reason >= 0x80:
            self.done.set_exception(PublishError(PublishFault.REFUSED, reason_text(reason)))
        else:
            self.done.set_result(reason)

    def fail(self, fault: PublishFault, text: str) -> None:
        if not self.done.done():
            self.done.set_exception(PublishError(fault, text))


class Publisher(AckReceiver):
    """Publishes messages of our own to a broker; stands before the forwarder, which gets all that is not about them."""

    def __init__(self, forwarder: AckReceiver) -> None:
        """Begin without a session."""
        self._forwarder = forwarder
        self._session: MqttSession | None = None
        self._waiting: deque[_Delivery] = deque()
        self._sent: dict[int, _Delivery] = {}
        """By packet identifier: those for which the broker has something to say, also when nobody waits any more."""

    async def publish(self, message: Publication, timeout: float = PUBLISH_TIMEOUT) -> Receipt:  # noqa: ASYNC109 - the error says how far it came
        """Publish a message and wait for PUBACK or PUBCOMP. Raises PublishError."""
        began = time.perf_counter()
        delivery = self._prepare(message)
        if len(self._waiting) >= _MAX_WAITING:
            raise PublishError(PublishFault.BUSY, f"{_MAX_WAITING} messages wait")
        self._waiting.append(delivery)
        self._pump()
        try:
            async with asyncio.timeout(timeout):
                reason = await delivery.done
        except TimeoutError:
            fault = PublishFault.TIMED_OUT if delivery.sent else PublishFault.BUSY
            raise PublishError(fault, f"not {'acknowledged' if delivery.sent else 'sent'} in {timeout:g} s") from None
        finally:
            if not delivery.sent and delivery in self._waiting:
                self._waiting.remove(delivery)
                self._pump()
        return Receipt(reason_code=reason, seconds=time.perf_counter() - began)

    def _prepare(self, message: Publication) -> _Delivery:
        """Check all that can be known without asking the broker. Raises PublishError."""
        try:
            topic = message.topic.encode()
        except UnicodeEncodeError:
            topic = b""
        if not valid_topic(topic) or topic.startswith(b"$share/"):
            raise PublishError(PublishFault.INVALID_TOPIC, message.topic)
        properties = encode_properties(message)
        session = self._session
        if session is None:
            raise PublishError(PublishFault.NOT_CONNECTED, "the broker is not connected")
        limits = session.limits
        if message.has_properties and not session.v5:
            raise PublishError(PublishFault.NO_PROPERTIES, "the broker speaks MQTT 3.1.1")
        if message.qos > limits.max_qos:
            raise PublishError(PublishFault.QOS, str(limits.max_qos))
        if message.retain and not limits.retain:
            raise PublishError(PublishFault.RETAIN, "the broker does not retain messages")
        delivery = _Delivery(topic, properties if session.v5 else None, message)
        if (size := len(delivery.encode(1))) > limits.max_packet:
            raise PublishError(PublishFault.TOO_LARGE, f"{size} bytes, the broker takes {limits.max_packet}")
        return delivery

    # --- to the broker ------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Send what waits, as far as the broker lets us."""
        session = self._session
        if session is None:
            return
        while self._waiting and not session.congested and self._has_place(session, self._waiting[0]):
            delivery = self._waiting.popleft()
            delivery.sent = True
            if delivery.message.qos:
                self._send(session, delivery)
            else:
                session.write(delivery.encode(0))
                delivery.settle(None)
        # The next in turn claims the place that becomes free first: the forwarder would take it under load.
        claims = bool(self._waiting and self._waiting[0].message.qos and len(self._sent) < _most(session))
        session.own = len(self._sent) + claims

    def _has_place(self, session: MqttSession, delivery: _Delivery) -> bool:
        if not delivery.message.qos:
            return True
        taken = len(self._sent)
        return taken < _most(session) and taken + len(self._forwarder.target_mids()) < session.limits.window

    def _send(self, session: MqttSession, delivery: _Delivery) -> None:
        mid = session.reserve_mid()
        self._sent[mid] = delivery
        session.write(delivery.encode(mid))

    # --- what the broker says -----------------------------------------------------------------------------------------

    @override
    def target_attached(self, session: MqttSession) -> None:
        self._session = session
        if not session.session_present:
            self._sent.clear()
        # A QoS 2 message whose acknowledgement was lost would keep its place at the broker for ever.
        taken = self._forwarder.target_mids()
        self._sent = {mid: delivery for mid, delivery in self._sent.items() if mid not in taken}
        session.reserved.update(self._sent)
        for mid, delivery in self._sent.items():
            delivery.released = True
            session.write(codec.encode_ack(codec.PUBREL, mid))
        self._pump()
        self._forwarder.target_attached(session)

    @override
    def target_lost(self, error: BridgeError | None) -> None:
        self._session = None
        text = error.text if error is not None else "the bridge was stopped"
        for delivery in self._sent.values():
            delivery.fail(PublishFault.CONNECTION_LOST, text)
        self._sent = {mid: delivery for mid, delivery in self._sent.items() if delivery.message.qos == 2}
        for delivery in self._waiting:
            delivery.fail(PublishFault.NOT_CONNECTED, text)
        self._waiting.clear()
        self._forwarder.target_lost(error)

    @override
    def target_ack(self, packet_type: int, mid: int, reason: int) -> None:
        delivery = self._sent.get(mid)
        if delivery is None:
            self._forwarder.target_ack(packet_type, mid, reason)
        elif packet_type == codec.PUBACK:
            if not delivery.released:  # of QoS 2, too: RabbitMQ takes that as QoS 1
                self._settled(mid, delivery, reason)
        elif delivery.message.qos != 2:
            return
        elif packet_type == codec.PUBREC:
            self._received(mid, delivery, reason)
        elif delivery.released:
            self._settled(mid, delivery, delivery.reason)
        if self._waiting:
            self._pump()

    def _received(self, mid: int, delivery: _Delivery, reason: int) -> None:
        """Take a PUBREC."""
        session = self._session
        assert session is not None  # noqa: S101 - the session calls only while attached
        if reason == _PACKET_IDENTIFIER_IN_USE and not delivery.released and delivery.tries < _IDENTIFIER_TRIES:
            # Left over at the broker from before a restart of ours. What it is about is not ours to release.
            delivery.tries += 1
            self._forget(mid)
            self._send(session, delivery)
        elif reason >= 0x80 and not delivery.released:
            self._settled(mid, delivery, reason)
        else:
            delivery.reason = delivery.reason if delivery.released else reason
            delivery.released = True
            session.write(codec.encode_ack(codec.PUBREL, mid))

    def _settled(self, mid: int, delivery: _Delivery, reason: int) -> None:
        delivery.settle(reason)
        self._forget(mid)
        self._pump()
        self._forwarder.target_writable()  # a place and an identifier are free

    def _forget(self, mid: int) -> None:
        del self._sent[mid]
        if self._session is not None:
            self._session.reserved.discard(mid)

    @override
    def target_writable(self) -> None:
        self._pump()
        self._forwarder.target_writable()

    @override
    def target_congested(self) -> None:
        self._forwarder.target_congested()

    @override
    def target_mids(self) -> Collection[int]:
        return self._forwarder.target_mids()

    @override
    def target_overdue(self, now: float) -> bool:
        return self._forwarder.target_overdue(now)


def _most(session: MqttSession) -> int:
    """Messages of our own under way at a time: never more than half of what the broker takes."""
    return min(_MAX_SENT, max(1, session.limits.window // 2))


def encode_properties(message: Publication) -> bytes:
    """Encode a message's properties, without their length. Raises PublishError."""
    properties = make_properties(PacketTypes.PUBLISH)
    texts = [message.content_type or "", *(text for pair in message.user_properties for text in pair)]
    try:
        if any("\0" in text for text in texts):
            raise PublishError(PublishFault.INVALID_PROPERTY, "a text with a null character")
        if max(len(text) for text in (*(text.encode() for text in texts), message.correlation_data or b"")) > _LONGEST:
            raise PublishError(PublishFault.INVALID_PROPERTY, f"one of more than {_LONGEST} bytes")
        if message.message_expiry is not None and message.message_expiry > _LATEST:
            raise PublishError(PublishFault.INVALID_PROPERTY, f"an expiry of more than {_LATEST} seconds")
        if message.response_topic is not None and not valid_topic(message.response_topic.encode()):
            raise PublishError(PublishFault.INVALID_PROPERTY, "the response topic is not a topic name")
        if message.payload_is_text:
            try:
                message.payload.decode()
            except UnicodeDecodeError:
                raise PublishError(PublishFault.INVALID_PROPERTY, "the payload is said to be text and is not") from None
            properties.PayloadFormatIndicator = 1
        if message.message_expiry is not None:
            properties.MessageExpiryInterval = message.message_expiry
        if message.content_type is not None:
            properties.ContentType = message.content_type
        if message.response_topic is not None:
            properties.ResponseTopic = message.response_topic
        if message.correlation_data is not None:
            properties.CorrelationData = message.correlation_data
        if message.user_properties:
            properties.UserProperty = list(message.user_properties)
        block: bytes = properties.pack()  # type: ignore[no-untyped-call]
    except PAHO_ERRORS as error:
        raise PublishError(PublishFault.INVALID_PROPERTY, str(error)) from None
    return block[codec.decode_length(block, 0)[1] :]
