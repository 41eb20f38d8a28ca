"""A target that is over its quota gets time: that passes, so nothing is dropped for it."""

import asyncio
from collections.abc import Callable
from typing import Final

from .message import Message

_REASONS: Final = (0x93, 0x97)
"""Receive Maximum exceeded, quota exceeded."""
_PAUSE: Final = 1.0
_TRIES: Final = 60


class Quota:
    """Notes refusals for want of room, and lets a pause pass after each."""

    def __init__(self, over: Callable[[], None]) -> None:
        """Begin without any; `over` is called when a pause is over."""
        self._over = over
        self._timer: asyncio.TimerHandle | None = None
        self.exceeded = False
        """The target has refused something; for others to take back."""

    @property
    def pausing(self) -> bool:
        """Whether nothing is to be sent now."""
        return self._timer is not None

    def passes(self, message: Message, reason: int) -> bool:
        """Take a refusal; True: it is for want of room, and the message is to be sent again after a pause."""
        if reason not in _REASONS or message.tries >= _TRIES:
            return False
        self.exceeded = True
        message.tries += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PAUSE, self._end)
        return True

    def cancel(self) -> None:
        """End the pause, without a word."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self._timer = None
        self._over()
