"""What is under way to the target, and whether it has a place for more."""

from collections.abc import Iterator

from .message import Message
from .session import MqttSession


class InFlight:
    """Messages for which the target has something to say, by packet identifier, in the order they were sent."""

    def __init__(self) -> None:
        """Begin with none."""
        self.messages: dict[int, Message] = {}
        """To look at; what changes it is here."""
        self.qos_2 = 0
        """How many of them are of QoS 2."""
        self._from_before: Message | None = None
        """The last one sent of the QoS 2 messages that the target may have from before a restart of ours."""

    def __len__(self) -> int:
        return len(self.messages)

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages.values())

    def add(self, message: Message) -> None:
        """Note that a message was sent; its `qos` is final by now."""
        if message.mid in self.messages:
            self.remove(message.mid)
        self.messages[message.mid] = message
        self.qos_2 += message.qos == 2
        if message.from_before:
            self._from_before = message

    def remove(self, mid: int) -> None:
        """Forget a message, if it is here."""
        message = self.messages.pop(mid, None)
        if message is not None:
            self.qos_2 -= message.qos == 2
            if message.stream is not None:
                message.stream.settled(message)

    def has_place(self, target: MqttSession, message: Message, window: int) -> bool:
        """Whether a window of the target's has a place for a message, and its packet identifier is free there."""
        mid = message.mid
        if mid in self.messages or mid in target.reserved:
            return False
        if not target.v5 and self.qos_2 and (message.from_before or self._in_last_place()):
            # A broker of MQTT 3.1.1 that has no place for a message cannot say so: mosquitto answers PUBREC and forgets
            # it, or PUBACK and hangs up. It may hold a window of messages, less one, of which we know nothing since our
            # restart.
            return False
        # QoS 2 never takes the last place: brokers settle QoS 1 at once, but hold a QoS 2 message until its PUBREL.
        # With all places held after a restart of ours, the source would repeat an older QoS 1 message first, and
        # mosquitto closes a connection over its quota: for ever.
        return len(self.messages) < window and (message.source_qos != 2 or self.qos_2 < max(1, window - 1))

    def _in_last_place(self) -> bool:
        """Whether a QoS 2 message from before a restart of ours is under way, which may have the last place there."""
        message = self._from_before
        return message is not None and self.messages.get(message.mid) is message
