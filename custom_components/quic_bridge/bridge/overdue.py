"""Finds a message on which a broker that answers otherwise has not said its next word.

Brokers have lost acknowledgements: aedes one PUBREL of several PUBRECs that come together. Such a message keeps its
place in the window for as long as the connection lasts, and with all places taken nothing would cross any more. MQTT
lets nobody repeat it in the same connection (MQTT 5, 4.4), so a new one is the cure.
"""

from typing import Final

from .message import Message, Stage
from .session import MqttSession

OVERDUE: Final = 60.0
"""Seconds after which the word is overdue, if the broker has answered two PINGREQs meanwhile: it has read all that was
sent before the second. Brokers acknowledge within milliseconds, or seconds where they write to a slow disk."""

GIVEN_UP: Final = 5
"""Connections ended for one message, after which no more are."""


class OverdueWatch:
    """Looks at each PINGRESP whether the oldest message that waits for the broker is still the same."""

    def __init__(self) -> None:
        """Begin with none."""
        self._seen: tuple[MqttSession, int, Stage] | None = None
        self._since = 0.0

    def look(self, session: MqttSession, message: Message, now: float) -> bool:
        """Take the oldest message that waits; True: its word is overdue. Counts that as a strike."""
        seen = session, message.number, message.stage
        if seen != self._seen:
            self._seen = seen
            self._since = now
            return False
        if now - self._since < OVERDUE:
            return False
        self._seen = None
        message.strikes += 1
        return True
