"""A message for which the target ends the connection each time, found so that it does not stop all others.

A broker that restarts looks the same. So it takes several losses in a row without any acknowledgement until messages
are sent one by one, and several more with the one that is alone then.
"""

from collections.abc import Iterable
from typing import Final

from .errors import BridgeError, ErrorCode
from .message import Message, Stage
from .session import MqttSession

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
_SILENT: Final = frozenset({ErrorCode.PING_TIMEOUT, ErrorCode.PROTOCOL_ERROR})
_SILENCES: Final = 3


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

    def lost(self, error: BridgeError, under_way: Iterable[Message]) -> Message | None:
        """Take the end of a session with messages under way; returns the one to blame."""
        sent = [message for message in under_way if message.stage is Stage.SENT]
        if error.code not in _THROWN_OUT or not sent:
            return None
        self.strikes += 1
        self.alone = self.strikes >= _STRIKES
        if self.strikes <= _STRIKES or len(sent) != 1:
            return None
        sent[0].strikes += 1
        return sent[0] if sent[0].strikes >= _STRIKES_ALONE else None


def vain_releases(under_way: Iterable[Message], target: MqttSession, error: BridgeError) -> list[Message]:
    """Return PUBRELs from before a restart of ours after which a broker of MQTT 3.1.1 says nothing any more.

    RabbitMQ does so each time. It takes QoS 2 as QoS 1, so it has the message, and no part in its release.
    """
    if target.v5 or error.code not in _SILENT:
        return []
    releases = [message for message in under_way if message.stage is Stage.RELEASED and not message.packet]
    for message in releases:
        message.strikes += 1
    return [message for message in releases if message.strikes >= _SILENCES]
