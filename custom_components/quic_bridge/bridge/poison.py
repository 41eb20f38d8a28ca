"""A message for which the target ends the connection each time, found so that it does not stop all others.

A broker that restarts looks the same. So it takes several losses in a row without any acknowledgement until messages
are sent one by one, and several more with the one that is alone then.
"""

from collections.abc import Sequence
from typing import Final

from .errors import BridgeError, ErrorCode
from .message import Message

_STRIKES: Final = 3
_STRIKES_ALONE: Final = 5
_THROWN_OUT: Final = frozenset(
    {
        ErrorCode.CLOSED_BY_BROKER,
        ErrorCode.BROKER_DISCONNECT,
        ErrorCode.PROTOCOL_ERROR,
        ErrorCode.NOT_AUTHORIZED,
        ErrorCode.KEEPALIVE_TIMEOUT,
    }
)
"""How a session ends when the broker does not like a message, or never waits until all of it has arrived."""


class Suspicion:
    """Counts how often the target threw us out without an acknowledgement."""

    def __init__(self) -> None:
        """Begin without any."""
        self.strikes = 0
        self.alone = False
        """Whether messages are to be sent one by one."""

    def clear(self) -> None:
        """Hear that the target has acknowledged something."""
        self.strikes = 0
        self.alone = False

    def lost(self, error: BridgeError, sent: Sequence[Message]) -> Message | None:
        """Take the end of a session with those messages under way that have no answer; returns the one to blame."""
        if error.code not in _THROWN_OUT or not sent:
            return None
        self.strikes += 1
        self.alone = self.strikes >= _STRIKES
        if self.strikes <= _STRIKES or len(sent) != 1:
            return None
        sent[0].strikes += 1
        return sent[0] if sent[0].strikes >= _STRIKES_ALONE else None
