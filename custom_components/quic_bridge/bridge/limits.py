"""What a broker allows, as its CONNACK says (MQTT 5, 3.2.2.3)."""

from dataclasses import dataclass
from typing import Final, Self

from paho.mqtt.properties import Properties

from . import codec
from .paho_client import number

# A 3.1.1 broker announces no limit; mosquitto's default of QoS 2 messages it takes at a time.
_DEFAULT_WINDOW_3_1_1: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the broker's CONNACK allows."""

    window: int
    """QoS 1 and 2 messages under way at a time: the smaller of our own wish and the broker's Receive Maximum."""
    receive_maximum: int = 65_535
    max_packet: int = codec.MAX_REMAINING_LENGTH + 5
    """Bytes."""
    max_qos: int = 2
    retain: bool = True
    wildcards: bool = True
    """Whether topic filters may have wildcards."""
    shared_subscriptions: bool = True
    subscription_identifiers: bool = True
    topic_alias_maximum: int = 0
    server_keep_alive: int | None = None
    """Seconds; None: the broker takes ours."""
    session_expiry: int | None = None
    """Seconds; None: the broker takes ours."""

    @classmethod
    def read(cls, properties: Properties | None, *, window: int, v5: bool) -> Self:
        """Read the properties of a CONNACK; `window` is what we wish. A broker of MQTT 3.1.1 announces nothing."""

        def optional(name: str) -> int | None:
            value = number(properties, name, -1)
            return None if value < 0 else value

        receive_maximum = number(properties, "ReceiveMaximum", 65_535 if v5 else _DEFAULT_WINDOW_3_1_1)
        return cls(
            window=min(window, receive_maximum),
            receive_maximum=receive_maximum,
            max_packet=number(properties, "MaximumPacketSize", codec.MAX_REMAINING_LENGTH + 5),
            max_qos=number(properties, "MaximumQoS", 2),
            retain=bool(number(properties, "RetainAvailable", 1)),
            wildcards=bool(number(properties, "WildcardSubscriptionAvailable", 1)),
            shared_subscriptions=bool(number(properties, "SharedSubscriptionAvailable", 1)),
            subscription_identifiers=bool(number(properties, "SubscriptionIdentifierAvailable", 1)),
            topic_alias_maximum=number(properties, "TopicAliasMaximum", 0),
            server_keep_alive=optional("ServerKeepAlive"),
            session_expiry=optional("SessionExpiryInterval"),
        )
