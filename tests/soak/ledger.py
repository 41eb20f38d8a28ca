"""What was published on one topic, what of it arrived, and what is wrong with that."""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

COPIED = "delivered twice"
UNORDERED = "out of order"
_COPIES_COUNTED = 255


def payload(number: int, size: int) -> bytes:
    """Make the payload of a message: its number, over and over."""
    head = number.to_bytes(8)
    return (head * (size // 8 + 1))[: max(size, 8)]


def number_of(data: bytes) -> int:
    """Read the number back; raises ValueError for a payload that is not as it was made."""
    number = int.from_bytes(data[:8])
    if data != payload(number, len(data)):
        raise ValueError(f"damaged payload of {len(data)} bytes")
    return number


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that must not happen, to a run of messages of one stream."""

    stream: str
    what: str
    first: int
    last: int
    begin: float
    """When these were published."""
    end: float


class Stream:
    """The messages of one topic and QoS from one broker to the other."""

    def __init__(self, topic: str, qos: int, *, may_fall: bool = False, may_come_twice: bool = False) -> None:
        self.topic = topic
        self.qos = qos
        self._may_come_twice = may_come_twice or qos == 1
        self.may_fall = may_fall
        """The bridge may drop some, as long as it counts them: its route or the Outbox has bounds."""
        self._times = array("d")
        self._copies = bytearray()
        self._doubtful: set[int] = set()
        """Published, but the publisher's broker went before it acknowledged: they may arrive or not."""
        self._unrouted: set[int] = set()
        """Published while their route was away, or under way when it went: they may arrive or not."""
        self._routed = True
        self._routed_from: int | None = None
        """The route is back; the first of these numbers that arrives says that the broker knows it."""
        self._open = 0
        """Numbers from here on are not acknowledged yet."""
        self._complete = 0
        """All numbers below have arrived (or need not)."""
        self._highest = -1
        self._unordered: list[int] = []
        self._repeated: set[int] = set()
        self.damaged: list[str] = []
        self.arrived = 0
        """Different messages."""
        self.repeats = 0
        self.unasked = 0
        """QoS 0 messages that did not arrive, as they may."""
        self.fallen = 0
        """Messages that did not arrive, where they may fall."""
        self.uncertain = 0
        """Messages that did not arrive, of which nobody knows whether they should."""

    @property
    def published(self) -> int:
        """Messages that were published, or tried."""
        return len(self._times)

    def publish(self, count: int, now: float) -> range:
        """Take note of messages that are going to be published, in the order of their numbers."""
        numbers = range(len(self._times), len(self._times) + count)
        self._times.extend([now] * count)
        self._copies.extend(bytes(count))
        if not self.certain:
            self._unrouted.update(numbers)
        return numbers

    def settle(self, numbers: range, *, acknowledged: bool) -> None:
        """Take note that the broker has them (all of them), or that nobody knows."""
        self._open = numbers.stop
        if not acknowledged:
            self._doubtful.update(numbers)

    @property
    def certain(self) -> bool:
        """Whether it is known that what is published now must arrive."""
        return self._routed and self._routed_from is None

    def route_goes(self) -> None:
        """Take note that the route will be away from now on."""
        self._routed, self._routed_from = False, None
        self._unrouted.update(number for number in range(self._complete, self.published) if not self._copies[number])

    def route_is_back(self) -> None:
        """Take note that the bridge follows the route again, though the broker may still be away."""
        self._routed, self._routed_from = True, self.published

    def arrive(self, data: bytes) -> None:
        """Take note of a message that came out at the other end."""
        try:
            number = number_of(data)
            copies = self._copies[number]
        except (ValueError, IndexError) as error:
            self.damaged.append(str(error))
            return
        if copies:
            self.repeats += 1
            if not self._may_come_twice:
                self._repeated.add(number)
        else:
            self.arrived += 1
            # QoS 1 that was dropped while its route was away, and whose PUBACK got lost, is repeated by its broker, and
            # may cross when the route is back, among those that were published since.
            if number < self._highest and not (self.qos == 1 and number in self._unrouted):
                self._unordered.append(number)
            self._highest = max(self._highest, number)
            if self._routed_from is not None and number >= self._routed_from:
                self._unrouted.difference_update(range(number + 1, self.published))
                self._routed_from = None
        self._copies[number] = min(copies + 1, _COPIES_COUNTED)

    def _missing(self) -> Iterator[int]:
        number = self._copies.find(0, self._complete)
        while 0 <= number < self._open:
            if number not in self._doubtful and number not in self._unrouted:
                yield number
            number = self._copies.find(0, number + 1)

    @property
    def complete(self) -> bool:
        """Whether everything that must arrive has arrived."""
        if not self.qos or self.may_fall:
            return True
        first = next(self._missing(), None)
        if first is not None:
            self._complete = first
        elif self.certain:
            self._complete = self._open
        return first is None

    def problems(self) -> list[Problem]:
        """Say what is wrong, now that everything is over that was under way; the next call tells only what is new."""
        found: list[Problem] = []
        missing = list(self._missing())
        self.uncertain += self._copies.count(0, self._complete, self._open) - len(missing)
        self._complete = self._open
        if self.qos and self.may_fall:
            self.fallen += len(missing)
        elif self.qos:
            found += self._runs("lost", missing)
        else:
            self.unasked += len(missing)
        found += self._runs(UNORDERED, self._unordered)
        found += self._runs(COPIED, self._repeated)
        found += [Problem(self.topic, text, 0, 0, 0.0, 0.0) for text in self.damaged]
        self._unordered.clear()
        self._repeated.clear()
        self.damaged.clear()
        return found

    def _runs(self, what: str, numbers: Iterable[int]) -> Iterator[Problem]:
        """Put neighbours together."""
        for _, group in groupby(enumerate(sorted(numbers)), lambda item: item[1] - item[0]):
            run = [number for _, number in group]
            yield Problem(self.topic, what, run[0], run[-1], self._times[run[0]], self._times[run[-1]])


class Mirror:
    """A topic that is bridged both ways, where it is published: a message that comes twice there went round."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self._seen: set[int] = set()
        self._twice: set[int] = set()

    def arrive(self, data: bytes) -> None:
        """Take note of a message as its own broker delivers it."""
        number = number_of(data)
        (self._twice if number in self._seen else self._seen).add(number)

    def problems(self) -> list[Problem]:
        """Say what came twice since the last call."""
        found = [Problem(self.topic, COPIED, number, number, 0.0, 0.0) for number in sorted(self._twice)]
        self._twice.clear()
        return found
