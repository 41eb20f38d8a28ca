"""What can go wrong with a broker connection, named once for logs, status, config flow and repairs."""

from enum import StrEnum
from typing import override


class ErrorCode(StrEnum):
    """Why a connection could not be made, or ended.

    The value is stable: it is the translation key of the error in Home Assistant.
    """

    # Reaching the broker
    NAME_NOT_FOUND = "name_not_found"
    NO_ANSWER = "no_answer"
    """Nothing came back within the handshake's deadline."""
    REFUSED = "refused"
    """The host answered that nothing listens on that port (TCP RST, ICMP port unreachable)."""
    UNREACHABLE = "unreachable"
    """No route to the host or network."""

    # TLS and the QUIC handshake
    NOT_MQTT_QUIC = "not_mqtt_quic"
    """A QUIC listener, but not one for MQTT (TLS alert 120, CRYPTO_ERROR 0x178)."""
    CERTIFICATE_UNTRUSTED = "certificate_untrusted"
    CERTIFICATE_NAME = "certificate_name"
    CERTIFICATE_EXPIRED = "certificate_expired"
    CERTIFICATE_PIN = "certificate_pin"
    """The certificate has a public key that is not among those pinned."""
    CLIENT_CERTIFICATE_REQUIRED = "client_certificate_required"
    CLIENT_CERTIFICATE_REFUSED = "client_certificate_refused"
    CLIENT_CERTIFICATE_INVALID = "client_certificate_invalid"
    """Our own certificate, key or CA text cannot be read."""
    TLS_FAILED = "tls_failed"
    OVERLOADED = "overloaded"
    """The server is shedding load (EMQX: CRYPTO_ERROR 0x15A; MQTT 0x89, 0x97)."""

    # The MQTT CONNECT
    NO_CONNACK = "no_connack"
    BAD_CREDENTIALS = "bad_credentials"
    NOT_AUTHORIZED = "not_authorized"
    CLIENT_ID_REFUSED = "client_id_refused"
    BANNED = "banned"
    PROTOCOL_VERSION = "protocol_version"
    CONNECT_REFUSED = "connect_refused"

    # Losing an established session
    CLOSED_BY_BROKER = "closed_by_broker"
    """FIN, RESET, TCP close or CONNECTION_CLOSE without an MQTT reason: a broker that restarts looks like this."""
    BROKER_DISCONNECT = "broker_disconnect"
    """MQTT DISCONNECT with a reason that has no code of its own here."""
    SESSION_TAKEN_OVER = "session_taken_over"
    """Another client uses the same client identifier (MQTT 0x8E)."""
    KICKED = "kicked"
    """Administrative action (MQTT 0x98)."""
    SHUTTING_DOWN = "shutting_down"
    KEEPALIVE_TIMEOUT = "keepalive_timeout"
    """The broker says that it did not hear from us (MQTT 0x8D)."""
    PING_TIMEOUT = "ping_timeout"
    """The broker or the network stopped answering."""
    IDLE_TIMEOUT = "idle_timeout"
    MALFORMED_PACKET = "malformed_packet"
    """The broker sent bytes that are not MQTT."""
    PROTOCOL_ERROR = "protocol_error"
    """The broker says that we broke the protocol, or broke it itself (MQTT 0x81, 0x82, 0x93, 0x95; QUIC errors)."""

    # Our own side
    CONFIGURATION = "configuration"
    """The settings for this side cannot be used; the text says which."""
    LOCAL_ENTRY_MISSING = "local_entry_missing"
    """Home Assistant's own MQTT integration is not set up (any more)."""
    RECONNECT_REQUESTED = "reconnect_requested"
    INTERNAL = "internal"


AUTHENTICATION_ERRORS = frozenset(
    {ErrorCode.BAD_CREDENTIALS, ErrorCode.NOT_AUTHORIZED, ErrorCode.BANNED, ErrorCode.CLIENT_ID_REFUSED}
)
"""Errors that new credentials (or another client identifier) can cure."""

CERTIFICATE_ERRORS = frozenset(
    {ErrorCode.CERTIFICATE_UNTRUSTED, ErrorCode.CERTIFICATE_NAME, ErrorCode.CERTIFICATE_EXPIRED}
)
"""Errors of a broker's certificate that pinning its key can cure. (Not another key than that pinned: that is no cure
for a warning.)"""

REFUSED_ERRORS = AUTHENTICATION_ERRORS | {
    ErrorCode.NOT_MQTT_QUIC,
    ErrorCode.CERTIFICATE_UNTRUSTED,
    ErrorCode.CERTIFICATE_NAME,
    ErrorCode.CERTIFICATE_EXPIRED,
    ErrorCode.CERTIFICATE_PIN,
    ErrorCode.CLIENT_CERTIFICATE_REQUIRED,
    ErrorCode.CLIENT_CERTIFICATE_REFUSED,
    ErrorCode.CLIENT_CERTIFICATE_INVALID,
    ErrorCode.PROTOCOL_VERSION,
    ErrorCode.CONNECT_REFUSED,
    ErrorCode.CONFIGURATION,
    ErrorCode.LOCAL_ENTRY_MISSING,
}
"""Errors that a quick retry cannot cure: the link is `refused` and tries again slowly."""

TRANSPORT_ERRORS = frozenset(
    {
        ErrorCode.NAME_NOT_FOUND,
        ErrorCode.NO_ANSWER,
        ErrorCode.REFUSED,
        ErrorCode.UNREACHABLE,
        ErrorCode.NOT_MQTT_QUIC,
        ErrorCode.TLS_FAILED,
        ErrorCode.NO_CONNACK,
        ErrorCode.CLOSED_BY_BROKER,
        ErrorCode.PING_TIMEOUT,
        ErrorCode.IDLE_TIMEOUT,
        ErrorCode.KEEPALIVE_TIMEOUT,
    }
)
"""What another transport may cure. Refusals by the broker itself are the same whatever carries them."""

SERVER_ERRORS = (
    TRANSPORT_ERRORS | CERTIFICATE_ERRORS | {ErrorCode.CERTIFICATE_PIN, ErrorCode.OVERLOADED, ErrorCode.SHUTTING_DOWN}
)
"""What another server of the same cluster may cure."""


class BridgeError(Exception):
    """A connection failed or ended.

    `code` says what kind, `text` says in English what happened and what the other end said,
    `reason_code` is the MQTT reason code or QUIC error code where there was one.
    """

    def __init__(self, code: ErrorCode, text: str, *, reason_code: int | None = None) -> None:
        """Make the error; `text` must not hold a password, a key or a payload."""
        super().__init__(text)
        self.code = code
        self.text = text
        self.reason_code = reason_code

    @override
    def __str__(self) -> str:
        return self.text
