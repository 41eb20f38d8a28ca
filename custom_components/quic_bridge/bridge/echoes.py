"""Our own messages as a broker of MQTT 3.1.1 sends them back: recognised, so that they do not go round.

MQTT 3.1.1 has no No Local. Where the broker does not take the bridge bit either (see link.py), a topic that is bridged
both ways comes back with every message. What is told from an echo by its content alone must not be lost (mqtt-lib
drops whatever was the same within a minute), so echoes are counted: for one message that we publish and are subscribed
to, one with the same topic and payload is taken for its echo. The next one is somebody else's.

A broker that takes the bridge bit may ignore it all the same. So there the echoes that should not come are watched for:
not one message is taken for an echo meanwhile, as somebody may just say the same, but when all that we publish comes
back, in order, the broker is asked without the bit, and then echoes are certain.
"""

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final

_PATIENCE: Final = 30.0
"""Seconds in which an echo comes, or never: the broker's access list may have swallowed the message without a word."""
_MOST: Final = 10_000
_PROMPT: Final = 10.0
"""Seconds in which a message has to come back to be a sign that the bridge bit is ignored."""
_PROOF: Final = 3
"""Different messages in a row that come back, none of those published between them left out ..."""
_PROOF_OF_LOOP: Final = 50
"""... or so many, however alike: a single message that goes round."""


class Echoes:
    """What one broker is to send back. An echo that is not expected any more crosses as a copy: better than a loss."""

    def __init__(self) -> None:
        """Expect nothing."""
        self._expected: dict[int, deque[float]] = {}
        """Until when the echoes of each content are waited for."""
        self._order: deque[tuple[float, int]] = deque()
        """All of them in order, and those among them that have come since."""
        self._unwanted: Callable[[], None] | None = None
        self._returned: list[int] = []
        """Contents that came back in a row although they should not."""

    def watch(self, unwanted: Callable[[], None] | None) -> None:
        """Take nothing for an echo, as the broker shall send none; `unwanted` hears if it does. None: it sends them."""
        if unwanted is not None or self._unwanted is not None:
            self.clear()
        self._unwanted = unwanted

    def expect(self, topic: bytes, payload: bytes) -> None:
        """Note that a message was published which the broker will send back."""
        now = monotonic()
        self._give_up(now)
        content = hash((topic, payload))
        deadline = now + (_PATIENCE if self._unwanted is None else _PROMPT)
        self._expected.setdefault(content, deque()).append(deadline)
        self._order.append((deadline, content))

    def take(self, topic: bytes, payload: bytes) -> bool:
        """Tell whether a message is an echo that was to come; it is not expected again then."""
        if not self._expected:
            return False
        self._give_up(monotonic())
        content = hash((topic, payload))
        if content not in self._expected:
            return False
        if self._unwanted is not None:
            self._came_back(content, self._unwanted)
            return False
        self._forget_oldest(content)
        return True

    def _came_back(self, content: int, unwanted: Callable[[], None]) -> None:
        """Note that what should not come back did, or that somebody else says the same."""
        while self._order[0] != (self._expected.get(self._order[0][1], (None,))[0], self._order[0][1]):
            self._order.popleft()  # came back before
        if self._order[0][1] != content:
            self._returned.clear()  # an earlier one did not come back
        self._forget_oldest(content)
        self._returned.append(content)
        if len(set(self._returned)) >= _PROOF or len(self._returned) >= _PROOF_OF_LOOP:
            self._returned.clear()
            unwanted()

    def clear(self) -> None:
        """Expect nothing any more: the broker's session is a new one."""
        self._expected.clear()
        self._order.clear()
        self._returned.clear()

    def _give_up(self, now: float) -> None:
        """Keep to the bounds of time and number."""
        while self._order and (self._order[0][0] <= now or len(self._order) >= _MOST):
            deadline, content = self._order.popleft()
            if content in self._expected and self._expected[content][0] == deadline:
                self._forget_oldest(content)
                self._returned.clear()

    def _forget_oldest(self, content: int) -> None:
        deadlines = self._expected[content]
        deadlines.popleft()
        if not deadlines:
            del self._expected[content]
