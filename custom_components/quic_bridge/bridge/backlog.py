"""Messages that wait in memory for the target, in order."""

from collections import deque
from collections.abc import Callable, Sequence

from .message import Message


class Backlog:
    """What the target has yet to be sent: a queue that knows its size, and the newest QoS 0 message of each topic."""

    def __init__(self) -> None:
        """Begin empty."""
        self.messages: deque[Message] = deque()
        """To look at; what changes it is here."""
        self.bytes = 0
        """Size of the packets that wait, those that wait for a stream of their own among them (see `Sender.queued`)."""
        self.qos_0 = 0
        """How many of the messages are QoS 0."""
        self._newest: dict[bytes, Message] = {}

    def __len__(self) -> int:
        return len(self.messages)

    def append(self, message: Message) -> None:
        """Let a message wait behind all others."""
        self.messages.append(message)
        self.bytes += len(message.packet)
        if not message.mid:
            self.qos_0 += 1
            self._newest[message.topic_name] = message

    def popleft(self, size: int) -> None:
        """Forget the first message; `size` is that of its packet when it waited."""
        message = self.messages.popleft()
        self.bytes -= size
        if not message.mid:
            self.qos_0 -= 1
            if self._newest.get(message.topic_name) is message:
                del self._newest[message.topic_name]

    def put_back(self, message: Message) -> None:
        """Let a QoS 1 or 2 message wait before all others."""
        self.messages.appendleft(message)
        self.bytes += len(message.packet)

    def put_in_front(self, sent: Sequence[Message], waiting: Sequence[Message]) -> None:
        """Let messages wait before all others; before these, by their order, what was sent before and comes again."""
        first = list(sent)
        while self.messages and self.messages[0].tries:
            first.append(self.messages.popleft())
        first.sort(key=lambda message: message.number)
        self.messages.extendleft(reversed((*first, *waiting)))
        self.bytes += sum(len(message.packet) for message in (*sent, *waiting))
        for message in reversed(waiting):
            if not message.mid:
                self.qos_0 += 1
                self._newest.setdefault(message.topic_name, message)

    def put_first(self, wanted: Callable[[Message], bool]) -> None:
        """Let the wanted messages pass all others."""
        self.messages = deque(sorted(self.messages, key=lambda message: not wanted(message)))

    def take_out(self, wanted: Callable[[Message], bool]) -> list[Message]:
        """Remove the wanted messages, and return them in their order."""
        taken = [message for message in self.messages if wanted(message)]
        kept = [message for message in self.messages if not wanted(message)]
        self.messages.clear()
        self.bytes = self.qos_0 = 0
        self._newest.clear()
        for message in kept:
            self.append(message)
        return taken

    def newest(self, topic: bytes) -> Message | None:
        """Return the newest QoS 0 message of a topic."""
        return self._newest.get(topic)

    def replace(self, older: Message, newer: Message) -> None:
        """Let a QoS 0 message wait in the place of the newest one of its topic."""
        newer.number = older.number
        self.messages[self.messages.index(older)] = newer
        self.bytes += len(newer.packet) - len(older.packet)
        self._newest[newer.topic_name] = newer
