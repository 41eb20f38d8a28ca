"""Copies of one message that the source sends for overlapping subscriptions (see overlaps.py): only one crosses.

The copies have different Subscription Identifiers, and all else in common. There is no number of the message in them,
so a message that came through one identifier is known by its content, and each that crosses stands for one more of each
other identifier: of publishes with the same content at least as many cross as came through any one identifier. Which
copy comes first does not matter, nor how far one identifier is ahead of another (between the nodes of a cluster, EMQX
sends each filter's messages on a connection of its own).

Where that is not enough to be sure, a copy crosses: better than a loss. So a copy is one of the latest message with its
content, what came a while before another message has no more copies to come once that has, and all is forgotten in the
end. A message can still be missed where the broker itself loses a copy of each of two publishes with the same content,
shortly one after the other, and of the second not the one that it lost of the first.
"""

from collections import deque
from itertools import count
from time import monotonic
from typing import Final

from . import codec

_PATIENCE: Final = 30.0
"""Seconds in which the copies of a message come, while both brokers are there."""
_DISORDER: Final = 1.0
"""Seconds by which a message may overtake others: mosquitto 2.0 sends some late after a reconnect."""
_MOST: Final = 10_000
_MOST_OF_TOPIC: Final = 1000


class _Crossed:
    """A message that crossed, until all of its copies have come."""

    __slots__ = ("at", "content", "identifiers", "number")

    def __init__(self, number: int, content: int, identifiers: frozenset[int], at: float) -> None:
        self.number = number
        self.content = content
        self.identifiers = identifiers
        """Those through which it came."""
        self.at = at


class _Topic:
    """What crossed of one topic and quality of service: between these, order is not promised (MQTT 5, 4.6)."""

    __slots__ = ("crossed", "passed")

    def __init__(self) -> None:
        self.crossed: deque[_Crossed] = deque()
        self.passed: dict[int, int] = {}
        """Up to which number each identifier has no more copies to bring."""

    def find(self, content: int, identifiers: frozenset[int]) -> _Crossed | None:
        """Return the latest message of that content that none of the identifiers has brought or passed."""
        passed = max(self.passed.get(identifier, -1) for identifier in identifiers)
        for message in reversed(self.crossed):
            if message.number <= passed:
                break
            if message.content == content and identifiers.isdisjoint(message.identifiers):
                return message
        return None

    def brought(self, identifiers: frozenset[int], message: _Crossed, *, new: bool) -> None:
        """Note that identifiers have brought a message, and what they will not bring any more."""
        number = message.number
        if not new:
            message.identifiers |= identifiers
            number = next((other.number for other in self.crossed if other.at > message.at - _DISORDER), number) - 1
        for identifier in identifiers:
            self.passed[identifier] = max(number, self.passed.get(identifier, -1))


class Copies:
    """What one source has sent of which it may send copies."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._topics: dict[tuple[bytes, int], _Topic] = {}
        self._counter = count()
        self._size = 0
        self.left_out = 0
        """How many copies there were."""

    def take(self, first: int, header: int, packet: bytes, expected: int) -> bool:
        """Tell whether a PUBLISH (MQTT 5) is a copy of what crossed; if not, it is to cross now.

        `expected` is how many times the source may send it.
        """
        position = codec.properties_position(first, header, packet)
        if packet[position : position + 1] == b"\0":
            return False  # no properties at all
        try:
            name, _, properties, payload = codec.split_publish(first, header, packet, v5=True)
            identifiers, common = codec.take_identifiers(properties)
        except codec.MalformedPacketError:
            return False  # it goes no further anyhow
        if not identifiers:
            return False
        key = name, first & ~codec.DUP
        topic = self._topics.setdefault(key, _Topic())
        now = monotonic()
        while topic.crossed and topic.crossed[0].at + _PATIENCE <= now:
            self._forget(topic, topic.crossed[0])
        content = hash((common, payload))
        message = topic.find(content, identifiers)
        is_copy = message is not None
        if message is None:
            message = _Crossed(next(self._counter), content, identifiers, now)
            topic.crossed.append(message)
            self._size += 1
        topic.brought(identifiers, message, new=not is_copy)
        if len(message.identifiers) >= expected:
            self._forget(topic, message)
        elif len(topic.crossed) > _MOST_OF_TOPIC:
            self._forget(topic, topic.crossed[0])
        if not topic.crossed:
            del self._topics[key]
        while self._size > _MOST:
            self._size -= len(self._topics.pop(next(iter(self._topics))).crossed)
        self.left_out += is_copy
        return is_copy

    def resume(self) -> None:
        """Hear that a broker is back: what could not come while it was away may come now."""
        now = monotonic()
        for topic in self._topics.values():
            for message in topic.crossed:
                message.at = now

    def clear(self) -> None:
        """Forget everything: the source's session is a new one, in which no copies are left."""
        self._topics.clear()
        self._size = 0

    def _forget(self, topic: _Topic, message: _Crossed) -> None:
        topic.crossed.remove(message)
        self._size -= 1
