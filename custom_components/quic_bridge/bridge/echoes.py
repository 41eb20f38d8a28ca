"""Our own messages as a broker of MQTT 3.1.1 sends them back: recognised, so that they do not go round.

MQTT 3.1.1 has no No Local. Where the broker does not take the bridge bit either (see link.py), a topic that is bridged
both ways comes back with every message. What is told from an echo by its content alone must not be lost (mqtt-lib
drops whatever was the same within a minute), so echoes are counted: for one message that we publish and are subscribed
to, one with the same topic and payload is taken for its echo. The next one is somebody else's.
"""

from collections import deque
from time import monotonic
from typing import Final

_PATIENCE: Final = 30.0
"""Seconds in which an echo comes, or never: the broker's access list may have swallowed the message without a word."""
_MOST: Final = 10_000


class Echoes:
    """What one broker is to send back. An echo that is not expected any more crosses as a copy: better than a loss."""

    def __init__(self) -> None:
        """Expect nothing."""
        self._expected: dict[int, deque[float]] = {}
        """Until when the echoes of each content are waited for."""
        self._order: deque[tuple[float, int]] = deque()
        """All of them in order, and those among them that have come since."""

    def expect(self, topic: bytes, payload: bytes) -> None:
        """Note that a message was published which the broker will send back."""
        now = monotonic()
        self._give_up(now)
        content = hash((topic, payload))
        self._expected.setdefault(content, deque()).append(now + _PATIENCE)
        self._order.append((now + _PATIENCE, content))

    def take(self, topic: bytes, payload: bytes) -> bool:
        """Tell whether a message is an echo that was to come; it is not expected again then."""
        if not self._expected:
            return False
        self._give_up(monotonic())
        content = hash((topic, payload))
        if content not in self._expected:
            return False
        self._forget_oldest(content)
        return True

    def clear(self) -> None:
        """Expect nothing any more: the broker's session is a new one."""
        self._expected.clear()
        self._order.clear()

    def _give_up(self, now: float) -> None:
        """Keep to the bounds of time and number."""
        while self._order and (self._order[0][0] <= now or len(self._order) >= _MOST):
            deadline, content = self._order.popleft()
            if content in self._expected and self._expected[content][0] == deadline:
                self._forget_oldest(content)

    def _forget_oldest(self, content: int) -> None:
        deadlines = self._expected[content]
        deadlines.popleft()
        if not deadlines:
            del self._expected[content]
