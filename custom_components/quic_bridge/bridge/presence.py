"""A retained topic at each broker that says whether messages cross to the other one: what mosquitto has as `state`.

Written at once when it changes and after each CONNACK before anything else, and never kept for later: a state that
waited in a queue would come after a newer one (mosquitto#2097). With QoS 0, so it needs neither a packet identifier nor
a place in the broker's window, and no broker queues it for an absent subscriber, to be delivered after what is true by
then; what is lost with the connection is said by the Will, or again after the next CONNACK.
"""

import logging
from typing import Final, Protocol

from . import codec
from .config import PresenceConfig
from .errors import BridgeError
from .status import Side

_LOGGER = logging.getLogger(__name__)

_FIRST_BYTE: Final = codec.PUBLISH | codec.RETAIN
_WILL_REFUSED: Final = frozenset({0x05, 0x87, 0x90, 0x9A})
"""Not authorised (3.1.1, 5), topic name invalid, retain not supported: what a broker may say of a Will."""


class PresenceSession(Protocol):
    """What the presence needs of a session."""

    @property
    def v5(self) -> bool:
        """Whether it is MQTT 5."""

    @property
    def retains(self) -> bool:
        """Whether the broker keeps retained messages."""

    def write(self, data: bytes, /) -> None:
        """Send a packet."""


def retained(topic: str, payload: str, *, v5: bool) -> bytes:
    """PUBLISH of a retained message with QoS 0; an empty payload takes the message away."""
    return codec.encode_publish(_FIRST_BYTE, topic.encode(), 0, b"" if v5 else None, payload.encode())


class Presence:
    """The topic at one broker."""

    def __init__(self, config: PresenceConfig, side: Side) -> None:
        """Prepare the topic at the broker of `side`; offline until told otherwise."""
        self.topic = config.local_topic if side is Side.LOCAL else config.remote_topic
        self.offline = config.offline
        self.will_delay = config.will_delay
        self.in_use = True
        """Whether the broker takes the topic: not if it refuses our Will."""
        self._side = side
        self._online = config.online
        self._farewell = config.offline
        self._crossing = False
        self._session: PresenceSession | None = None
        self._said: str | None = None
        self._acquitted = False
        """The broker refuses us without the Will just the same."""
        self._known = False
        """The broker has accepted a CONNECT."""

    def cross(self, crossing: bool) -> None:
        """Follow the state of the bridge: whether messages cross to the other broker."""
        if crossing is not self._crossing:
            self._crossing = crossing
            self._say(self._online if crossing else self.offline)

    def retire(self) -> None:
        """Take the topic away at the end of the session, as another takes its place, or none."""
        self._farewell = ""

    def attached(self, session: PresenceSession) -> None:
        """Write the state: the broker accepted our CONNECT, and published our Will perhaps."""
        self._session = session
        self._said = None
        self._known = True
        self._say(self._online if self._crossing else self.offline)
        if not self.in_use:
            _LOGGER.warning(
                "The %s broker does not take the bridge's status topic %s. Let its user publish there, or switch the"
                " topic off in the options",
                self._side,
                self.topic,
            )

    def leaving(self) -> None:
        """Say goodbye: DISCONNECT follows, after which there is no Will."""
        self._say(self._farewell)

    def lost(self) -> None:
        """The session is over."""
        self._session = None

    def refused(self, error: BridgeError) -> bool:
        """Note that a CONNECT was refused; True: try at once without the Will, which may be the reason.

        Only once, and never with a broker that has accepted it: wrong credentials look the same, and must not be
        tried twice as often.
        """
        if self._known or self._acquitted:
            return False
        suspect = error.reason_code in _WILL_REFUSED
        if self.in_use:
            self.in_use = not suspect
            return suspect
        self.in_use = True
        self._acquitted = suspect
        return False

    def _say(self, payload: str) -> None:
        session = self._session
        if session is not None and self.in_use and session.retains and payload != self._said:
            self._said = payload
            session.write(retained(self.topic, payload, v5=session.v5))
