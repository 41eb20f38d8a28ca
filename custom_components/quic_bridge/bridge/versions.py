"""Which MQTT to speak with a broker: 5, or 3.1.1 as a bridge, or 3.1.1 as any client."""

from typing import Final

from .errors import BridgeError, ErrorCode
from .paho_client import MQTT_3_1_1, MQTT_5

UNANSWERED: Final = frozenset({ErrorCode.CLOSED_BY_BROKER, ErrorCode.NO_CONNACK})
"""What becomes of a CONNECT that a broker does not understand and does not refuse in words."""

_GUESS_EVERY: Final = 3
"""Of so many connections in a row in which a broker did not answer CONNECT, the last is tried with MQTT 3.1.1."""


class VersionChoice:
    """What one broker was found to speak.

    Some brokers say that they do not speak MQTT 5 (reason 0x84, or 1 from a 3.1.1 broker). Some just close the
    connection, but so does a broker, or a proxy in front of it, that is being restarted. Some say nothing at all: amqtt
    takes the properties for the client identifier and waits for the rest of it. So does a broker that hangs. Then 3.1.1
    is tried now and then, and a session got in that way does not commit us, as one without MQTT 5 does less.

    With 3.1.1 the bridge bit (0x80 in the protocol level, as in mosquitto's try_private) asks for what MQTT 5 has as No
    Local and Retain As Published. mosquitto and EMQX take it; strict brokers refuse the CONNECT, and are asked without.
    So are those that take it and send our messages back all the same (see echoes.py).
    """

    def __init__(self) -> None:
        """Begin with MQTT 5."""
        self.protocol = MQTT_5
        self.bridge_bit = False
        self._told_3_1_1 = False
        self._speaks_5 = False
        self._refuses_bit = False
        self._ignores_bit = False
        self._unanswered = 0

    def choose(self) -> None:
        """Set `protocol` and `bridge_bit` for the next attempt."""
        guess = not self._speaks_5 and self._unanswered % _GUESS_EVERY == _GUESS_EVERY - 1
        self.protocol = MQTT_3_1_1 if self._told_3_1_1 or guess else MQTT_5
        self.bridge_bit = self.protocol == MQTT_3_1_1 and not self._refuses_bit and not self._ignores_bit

    def accepted(self) -> None:
        """Note that the broker accepted the CONNECT."""
        self._unanswered = 0
        self._speaks_5 = self.protocol == MQTT_5

    def bit_ignored(self) -> None:
        """Note that the broker takes the bridge bit and does nothing of what it asks for."""
        self._ignores_bit = True

    def failed(self, error: BridgeError, *, unanswered: bool) -> bool:
        """Note what the broker says of the version; True: try another one at once.

        `unanswered`: it said nothing after CONNECT, see UNANSWERED.
        """
        refused = error.code is ErrorCode.PROTOCOL_VERSION
        if self.bridge_bit and (refused or unanswered):
            self._refuses_bit = True
            return True
        if unanswered:
            self._unanswered += 1
            if self.protocol == MQTT_3_1_1:
                self._refuses_bit = False  # it was not because of the bit
        if refused:
            self._told_3_1_1 = self.protocol == MQTT_5
        return refused and self._told_3_1_1
