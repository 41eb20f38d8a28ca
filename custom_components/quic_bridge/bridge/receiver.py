"""The source's side of a direction: takes its messages, and acknowledges them when the target has.

What is owed to the source is in `_owed`, by packet identifier, from PUBLISH until PUBACK or PUBCOMP is written.
What becomes of a message meanwhile is the Sender's business.
"""

from typing import Final, override

from . import codec
from .copies import Copies
from .echoes import Echoes
from .message import Message, Stage
from .overdue import GIVEN_UP, OverdueWatch
from .routes import Plan, Router
from .sender import Sender, SenderOwner
from .session import MqttSession, PublishReceiver
from .status import DropReason

_NO_PLAN: Final = Plan(None)
_MAX_COMPLETED: Final = 1000


class Receiver(PublishReceiver, SenderOwner):
    """Is the receiver (MQTT 5, 4.3) of what the source publishes."""

    sender: Sender
    """Where the messages go. Set before the first session: each of the two needs the other."""

    def __init__(self, router: Router) -> None:
        """Begin without a source."""
        self.router = router
        self.paused = False
        self.copies = Copies()
        self._source: MqttSession | None = None
        self._owed: dict[int, Message] = {}
        self._completed: dict[int, int] = {}
        self._overdue = OverdueWatch()

    @property
    def owing(self) -> bool:
        """Whether the source waits for an acknowledgement."""
        return bool(self._owed)

    # --- what the source says -----------------------------------------------------------------------------------------

    @override
    def source_attached(self, session: MqttSession) -> None:
        self._source = session
        self.paused = False
        if not session.session_present:
            # The source has forgotten what we owe it. What it gave us is delivered all the same.
            for message in list(self._owed.values()):
                self._disown(message)
            self._completed.clear()
            self.copies.clear()
            self.sender.source_session_lost()
        self.copies.resume()
        self.sender.throttle()

    @override
    def source_lost(self) -> None:
        self._source = None
        for message in self._owed.values():
            message.heard = False

    @override
    def source_publish(self, first: int, header: int, packet: bytes) -> None:
        topic = codec.publish_topic(header, packet)
        plan = self.router.find(topic)
        source = self._source
        assert source is not None  # noqa: S101 - the session calls only while attached
        qos = first >> 1 & 3
        if qos == 3:
            raise codec.MalformedPacketError("PUBLISH with QoS 3")
        mid = codec.publish_mid(header, len(topic), packet) if qos else 0
        known = self._owed.get(mid)
        if known is not None:
            if first & codec.DUP or packet[1:] == known.packet[1:]:
                self._repeated(known)
                return
            self._disown(known)  # the source gave up that message (it expired) and uses its identifier anew
        message = Message(mid, first, header, packet, plan, v5=source.v5)
        if mid:
            self._owed[mid] = message
            completed = self._completed.pop(mid, None)
            if completed is not None and first & codec.DUP and completed == hash(packet[1:]):
                # mosquitto forgets our PUBREC when it could not write its PUBREL (database.c), and begins again.
                message.stage = Stage.DONE
                self.acknowledge(message)
                return
        if source.echoes is not None:
            crossed = self._is_echo(source.echoes, message)
        else:
            crossed = plan.copies > 1 and source.v5 and self.copies.take(first, header, packet, plan.copies)
        if crossed:
            self.sender.leave_out(message)
        else:
            self.sender.send(message)

    def _repeated(self, message: Message) -> None:
        """Answer a PUBLISH that we have already, after the source came back."""
        message.heard = True
        if message.stage is Stage.DONE or (message.stage >= Stage.RECEIVED and message.first & 0x04):
            self.acknowledge(message)

    @staticmethod
    def _is_echo(echoes: Echoes, message: Message) -> bool:
        """Whether it is what the other direction has sent to the source, which sends it back."""
        if message.first & codec.RETAIN:
            return False  # it is not the one just published, but the topic's last, sent for a subscription
        topic, _, _, payload = codec.split_publish(message.first, message.header, message.packet, v5=False)
        return echoes.take(topic, payload)

    @override
    def source_oversized(self, first: int, header: int, head: bytes, size: int) -> None:
        topic = codec.publish_topic(header, head)
        mid = codec.publish_mid(header, len(topic), head) if first >> 1 & 3 else 0
        message = Message(mid, first, header, b"", _NO_PLAN, v5=False)
        if mid in self._owed:
            self._disown(self._owed[mid])
        if mid:
            self._owed[mid] = message
        self.sender.drop(message, DropReason.TOO_LARGE, f"{topic.decode(errors='replace')}: {size} bytes")

    @override
    def source_release(self, mid: int) -> None:
        message = self._owed.get(mid)
        if message is None:
            # From before a restart of ours: the target knows more than we do.
            message = self._owed[mid] = Message(mid, codec.PUBLISH | 0x04, 0, b"", _NO_PLAN, v5=False)
            message.qos = 2
            message.stage = Stage.RECEIVED
            self.sender.take_release(message)
        message.released = True
        if message.stage is Stage.DONE:
            self._complete(message)
        else:
            self.sender.release(message)

    @override
    def source_overdue(self, now: float) -> bool:
        oldest = next(
            (
                item
                for item in self._owed.values()
                if item.stage is Stage.RECEIVED and item.heard and not (item.released or item.spooling)
                if item.strikes < GIVEN_UP
            ),
            None,
        )
        return self._source is not None and oldest is not None and self._overdue.look(self._source, oldest, now)

    def _disown(self, message: Message) -> None:
        """Owe the source nothing for a message any more; the target gets it all the same."""
        del self._owed[message.mid]
        message.owed = False
        self.sender.release(message)

    # --- what the Sender says -----------------------------------------------------------------------------------------

    @property
    @override
    def window(self) -> int | None:
        return self._source.config.receive_maximum if self._source is not None else None

    @override
    def pause(self, wanted: bool) -> None:
        if self._source is not None and wanted != self.paused:
            self.paused = wanted
            if wanted:
                self._source.pause_reading()
            else:
                self._source.resume_reading()

    @override
    def target_attached(self) -> None:
        self.copies.resume()

    @override
    def finish(self, message: Message) -> None:
        message.stage = Stage.DONE
        if not message.owed:
            return
        if message.first & 0x04 and message.released:
            self._complete(message)
        else:
            self.acknowledge(message)

    @override
    def acknowledge(self, message: Message) -> None:
        # A message from an earlier connection of the source is answered when the source has repeated it, as it must
        # (MQTT-4.4.0-1): sooner, a later message could be answered before it, and brokers that deliver QoS 2 on PUBREL
        # would deliver them in that order.
        source = self._source
        if source is None or not message.heard:
            return
        if message.first & 0x04:
            source.write(codec.encode_ack(codec.PUBREC, message.mid))
        else:
            source.write(codec.encode_ack(codec.PUBACK, message.mid))
            del self._owed[message.mid]

    @override
    def receipt_removed(self, mid: int) -> None:
        message = self._owed.get(mid)
        if message is not None and message.released and message.stage is Stage.DONE:
            self._complete(message)

    def _complete(self, message: Message) -> None:
        """Write PUBCOMP."""
        if self.sender.remove_receipt(message.mid):
            return  # `receipt_removed` follows
        if self._source is not None:
            self._source.write(codec.encode_ack(codec.PUBCOMP, message.mid))
            del self._owed[message.mid]
            if message.packet:
                self._completed[message.mid] = hash(message.packet[1:])
                if len(self._completed) > _MAX_COMPLETED:
                    del self._completed[next(iter(self._completed))]
