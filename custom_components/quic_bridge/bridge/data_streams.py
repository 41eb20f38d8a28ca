"""QUIC streams for single routes, beside the one that carries the session (EMQX's data streams).

Large or unimportant messages of a route with a stream of its own cannot hold up the others: neither by a lost packet,
for which everything behind it on the same stream waits, nor by filling the way. What EMQX's data streams cannot do is
kept away from them (its documentation, "MQTT over QUIC"; emqx_quic_data_stream.erl):

- Their QoS 1 state is gone with the stream. What was not acknowledged is sent again on the session's own stream, and
  the route's next messages wait until that has been acknowledged: the order stays.
- A QoS 2 message repeated on another stream would not be recognised. QoS 2 never goes over one.
- A broker need not serve them, and QoS 0 would vanish unseen. So QoS 0 goes over one only after the broker has
  acknowledged something there, and its host all of QoS 0 that went over the session's own stream before.
"""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
import logging
from typing import Final, Protocol, override

from . import codec
from .config import TransportKind
from .message import Message
from .routes import Route
from .session import MqttSession
from .transport.base import ExtraStream, StreamReceiver

_LOGGER = logging.getLogger(__name__)

MAX_STREAMS: Final = 8
"""EMQX allows ten at a time, that of the session among them."""
ACK_TIMEOUT: Final = 15.0
"""Seconds without an acknowledgement, when all bytes have arrived, after which a stream counts as not served."""
_MAX_LOSSES: Final = 3
"""So often a stream is opened again in one session."""
_MAX_FAILURES: Final = 2
"""So often a broker may fail to serve one before no more are opened, until the bridge is started again."""
_LOOK_AGAIN: Final = 0.02
"""Seconds after which to look whether the broker's host has acknowledged what is waited for."""
_MAX_ACK: Final = 64 * 1024


class StreamOwner(Protocol):
    """The forwarder."""

    def send_on(self, stream: DataStream, message: Message) -> bool:
        """Write a message to its stream; False: not now."""

    def target_ack(self, packet_type: int, mid: int, reason: int) -> None:
        """Take an acknowledgement."""

    def target_writable(self) -> None:
        """Send what waits."""

    def take_back(self, under_way: Sequence[Message], waiting: Sequence[Message]) -> None:
        """Send what was under way on a stream that is no more on the session's own, and after that what waited."""

    def queued(self, size: int) -> None:
        """Count bytes that wait (or, negative, wait no more)."""


class DataStream(StreamReceiver):
    """The stream of one route in one session, and the messages that wait for it. It is opened when first used."""

    def __init__(self, route_id: str, session: MqttSession, streams: DataStreams, owner: StreamOwner) -> None:
        """Begin without a stream."""
        self.route_id = route_id
        self._session = session
        self._streams = streams
        self._owner = owner
        self._stream: ExtraStream | None = None
        self._framer = codec.Framer(_MAX_ACK)
        self._queue: deque[Message] = deque()
        self._flying: dict[int, Message] = {}
        self._repeated: set[Message] = set()
        """Messages of the route that are under way on the session's own stream; the next ones wait for them."""
        self._shared_to = 0
        """How many bytes of the session's own stream have QoS 0 messages of the route among them."""
        self._look: asyncio.TimerHandle | None = None
        self._losses = 0
        self._proven = False
        self._backlog = 0
        self._moved_at = 0.0
        self._watch: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def flying(self) -> int:
        """QoS 1 messages under way on this stream."""
        return len(self._flying)

    @property
    def proven(self) -> bool:
        """Whether the broker has acknowledged something here."""
        return self._proven

    @property
    def writable(self) -> bool:
        """Whether a message may be written now."""
        return not self._repeated and not (self._stream is not None and self._stream.congested)

    def may_follow(self, message: Message) -> bool:
        """Whether a message cannot pass earlier ones of the route that went over the session's own stream."""
        if message.mid or not self._shared_to:
            return True
        if self._session.transport.acknowledged >= self._shared_to:
            self._shared_to = 0
            return True
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(_LOOK_AGAIN, self._look_again)
        return False

    def _look_again(self) -> None:
        self._look = None
        self._owner.target_writable()

    def shared(self) -> None:
        """Note a QoS 0 message of the route that was written to the session's own stream."""
        self._shared_to = self._session.transport.written

    def take(self, message: Message) -> None:
        """Let a message wait for its turn on this stream."""
        if self._queue and message.number < self._queue[0].number:
            self._queue.appendleft(message)  # sent back over a quota
        else:
            self._queue.append(message)
        self._owner.queued(len(message.packet))

    def pump(self) -> None:
        """Send what waits, in order, as far as the stream takes it."""
        while self._queue and self._owner.send_on(self, self._queue[0]):
            self._owner.queued(-len(self._queue.popleft().packet))

    def open(self) -> bool:
        """Open the stream, if it is not open; False if the broker allows none, and then it is done without."""
        if self._stream is None:
            self._framer = codec.Framer(_MAX_ACK)
            self._stream = self._session.open_stream(self)
            if self._stream is None:
                self._fail("it allows no more streams")
        return self._stream is not None

    def write(self, packet: bytes) -> None:
        """Write a PUBLISH to the open stream."""
        if self._stream is not None:
            self._stream.write(packet)

    def sent(self, message: Message) -> None:
        """Note a QoS 1 message that was written here."""
        message.stream = self
        if not self._flying:
            self._moved()
            if self._watch is None:
                self._watch = asyncio.get_running_loop().call_later(ACK_TIMEOUT, self._check)
        self._flying[message.mid] = message

    def repeated(self, message: Message) -> None:
        """Note a QoS 1 message of the route that was written to the session's own stream."""
        message.stream = self
        self._repeated.add(message)

    def settled(self, message: Message) -> None:
        """Forget a message that is under way no more."""
        message.stream = None
        self._flying.pop(message.mid, None)
        self._repeated.discard(message)

    def release(self) -> list[Message]:
        """Let go of the stream; returns the messages that waited for it."""
        for timer in (self._watch, self._look):
            if timer is not None:
                timer.cancel()
        self._watch = self._look = None
        if self._stream is not None:
            self._stream.abort()
            self._stream = None
        return self._give_up_queue()

    def _give_up_queue(self) -> list[Message]:
        messages = list(self._queue)
        self._queue.clear()
        self._owner.queued(-sum(len(message.packet) for message in messages))
        return messages

    # What the stream says

    @override
    def stream_received(self, data: bytes) -> None:
        self._moved()
        try:
            for first, header, packet, _ in self._framer.feed(data):
                if first & 0xF0 == codec.PUBACK:
                    mid, reason = codec.decode_ack(header, packet)
                    if mid in self._flying:
                        self._proven = True
                        self._owner.target_ack(codec.PUBACK, mid, reason)
        except codec.MalformedPacketError as error:
            self._fail(f"it sent what is no MQTT there: {error}")

    @override
    def stream_writable(self) -> None:
        self._owner.target_writable()

    @override
    def stream_ended(self, how: str) -> None:
        self._stream = None
        self._losses += 1
        if not self._proven or self._losses >= _MAX_LOSSES:
            self._fail(f"it ended it ({how})")
            return
        _LOGGER.debug("The stream of a route was ended by the broker (%s); what was under way is sent again", how)
        # What waits for the stream must not be sent on the next one before what was under way is sent at all: the
        # session's own may be congested.
        self._owner.take_back(self._under_way(), self._give_up_queue())

    # Steps

    def _moved(self) -> None:
        self._moved_at = asyncio.get_running_loop().time()

    def _under_way(self) -> list[Message]:
        return sorted(self._flying.values(), key=lambda message: message.number)

    def _check(self) -> None:
        """Give up on a stream whose bytes arrive and are not acknowledged as messages."""
        self._watch = None
        if not self._flying or self._stream is None:
            return
        backlog = self._stream.backlog
        if backlog and backlog != self._backlog:
            self._moved()
        self._backlog = backlog
        loop = asyncio.get_running_loop()
        due = self._moved_at + ACK_TIMEOUT
        if loop.time() >= due and not backlog:
            self._fail(f"it acknowledged nothing there within {ACK_TIMEOUT:g} s")
        else:
            self._watch = loop.call_at(max(due, loop.time() + 1.0), self._check)

    def _fail(self, why: str) -> None:
        """Do without the stream for the rest of the session."""
        under_way = self._under_way()
        self._streams.failed(self, why)
        self._owner.take_back(under_way, self.release())


class DataStreams:
    """The streams of all routes that have their own."""

    def __init__(self, owner: StreamOwner) -> None:
        """Begin without a session."""
        self._owner = owner
        self._session: MqttSession | None = None
        self._streams: dict[str, DataStream | None] = {}
        """By route; None: the route does without."""
        self.in_use = False
        """Whether a route has a stream in this session."""
        self._failures = 0

    def __iter__(self) -> Iterator[DataStream]:
        return (stream for stream in self._streams.values() if stream is not None)

    @property
    def waiting(self) -> int:
        """Messages that wait for a stream."""
        return sum(len(stream) for stream in self)

    def attached(self, session: MqttSession) -> None:
        """Open streams in this session from now on, if its transport has any."""
        self._session = session if session.transport.kind is TransportKind.QUIC else None

    def lost(self) -> list[Message]:
        """Forget all streams, as the session is over; returns the messages that waited for them, by their order."""
        self._session = None
        if any(stream.flying and not stream.proven for stream in self):
            self._failed_once("it ended the connection when one was first used")
        messages = [message for stream in self for message in stream.release()]
        self._streams.clear()
        self.in_use = False
        return sorted(messages, key=lambda message: message.number)

    def find(self, message: Message, route: Route) -> DataStream | None:
        """Return the stream of a message's route that wants one; None if there is none, or it cannot carry it."""
        session = self._session
        if session is None or message.again or not message.packet:
            return None
        qos = message.qos_at(session, route)
        stream = self._of(route.id, session)
        if stream is None or qos == 2 or (qos == 0 and not stream.proven):
            return None
        return stream

    def went_elsewhere(self, message: Message, route: Route) -> None:
        """Note a message that was written to the session's own stream although its route may have another."""
        session = self._session
        if session is None or message.qos == 2:
            return
        stream = self._of(route.id, session)
        if stream is None:
            return
        if message.qos:
            stream.repeated(message)
        else:
            stream.shared()

    def pump(self) -> None:
        """Send what waits for streams."""
        for stream in list(self):
            stream.pump()

    def failed(self, stream: DataStream, why: str) -> None:
        """Do without a route's stream until the next session."""
        self._streams[stream.route_id] = None
        self._failed_once(why)

    def _of(self, route_id: str, session: MqttSession) -> DataStream | None:
        if route_id not in self._streams:
            if self._failures >= _MAX_FAILURES or sum(1 for _ in self) >= MAX_STREAMS:
                return None
            self._streams[route_id] = DataStream(route_id, session, self, self._owner)
            self.in_use = True
        return self._streams[route_id]

    def _failed_once(self, why: str) -> None:
        self._failures += 1
        _LOGGER.log(
            logging.WARNING if self._failures == _MAX_FAILURES else logging.DEBUG,
            "The remote broker does not serve a stream of a route's own: %s. "
            "Such routes share the common stream until the bridge is started again",
            why,
        )
