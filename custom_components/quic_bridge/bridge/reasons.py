"""MQTT reason codes (MQTT 5, 2.4; MQTT 3.1.1, 3.2.2.3) as errors that a person understands."""

from typing import Final

from .errors import BridgeError, ErrorCode

_CONNACK_3_1_1: Final = {
    1: (ErrorCode.PROTOCOL_VERSION, "unacceptable protocol version"),
    2: (ErrorCode.CLIENT_ID_REFUSED, "identifier rejected"),
    3: (ErrorCode.OVERLOADED, "server unavailable"),
    4: (ErrorCode.BAD_CREDENTIALS, "bad user name or password"),
    5: (ErrorCode.NOT_AUTHORIZED, "not authorized"),
}
_REASONS: Final = {
    0x00: (ErrorCode.BROKER_DISCONNECT, "normal disconnection"),
    0x10: (None, "no matching subscribers"),
    0x80: (None, "unspecified error"),
    0x81: (ErrorCode.PROTOCOL_ERROR, "malformed packet"),
    0x82: (ErrorCode.PROTOCOL_ERROR, "protocol error"),
    0x83: (None, "implementation specific error"),
    0x84: (ErrorCode.PROTOCOL_VERSION, "unsupported protocol version"),
    0x85: (ErrorCode.CLIENT_ID_REFUSED, "client identifier not valid"),
    0x86: (ErrorCode.BAD_CREDENTIALS, "bad user name or password"),
    0x87: (ErrorCode.NOT_AUTHORIZED, "not authorized"),
    0x88: (ErrorCode.OVERLOADED, "server unavailable"),
    0x89: (ErrorCode.OVERLOADED, "server busy"),
    0x8A: (ErrorCode.BANNED, "banned"),
    0x8B: (ErrorCode.SHUTTING_DOWN, "server shutting down"),
    0x8C: (ErrorCode.BAD_CREDENTIALS, "bad authentication method"),
    0x8D: (ErrorCode.KEEPALIVE_TIMEOUT, "keep alive timeout"),
    0x8E: (ErrorCode.SESSION_TAKEN_OVER, "session taken over: another client uses the same client identifier"),
    0x8F: (ErrorCode.PROTOCOL_ERROR, "topic filter invalid"),
    0x90: (ErrorCode.PROTOCOL_ERROR, "topic name invalid"),
    0x91: (ErrorCode.PROTOCOL_ERROR, "packet identifier in use"),
    0x92: (ErrorCode.PROTOCOL_ERROR, "packet identifier not found"),
    0x93: (ErrorCode.PROTOCOL_ERROR, "receive maximum exceeded"),
    0x94: (ErrorCode.PROTOCOL_ERROR, "topic alias invalid"),
    0x95: (ErrorCode.PROTOCOL_ERROR, "packet too large"),
    0x96: (ErrorCode.OVERLOADED, "message rate too high"),
    0x97: (ErrorCode.OVERLOADED, "quota exceeded"),
    0x98: (ErrorCode.KICKED, "administrative action"),
    0x99: (ErrorCode.PROTOCOL_ERROR, "payload format invalid"),
    0x9A: (ErrorCode.PROTOCOL_ERROR, "retain not supported"),
    0x9B: (ErrorCode.PROTOCOL_ERROR, "QoS not supported"),
    0x9C: (None, "use another server"),
    0x9D: (None, "server moved"),
    0x9E: (ErrorCode.PROTOCOL_ERROR, "shared subscriptions not supported"),
    0x9F: (ErrorCode.OVERLOADED, "connection rate exceeded"),
    0xA0: (ErrorCode.BROKER_DISCONNECT, "maximum connect time"),
    0xA1: (ErrorCode.PROTOCOL_ERROR, "subscription identifiers not supported"),
    0xA2: (ErrorCode.PROTOCOL_ERROR, "wildcard subscriptions not supported"),
}
_KICKS: Final = (0x8E, 0x98)


def reason_text(code: int) -> str:
    """Name a reason code, with its number as the specification writes it."""
    known = _REASONS.get(code)
    return f"{known[1]} (0x{code:02X})" if known else f"reason 0x{code:02X}"


def connack_error(code: int, reason_string: str) -> BridgeError:
    """Explain a CONNACK that refuses; codes below 0x80 are those of 3.1.1."""
    known, text = _CONNACK_3_1_1.get(code) or _REASONS.get(code) or (None, "unknown reason")
    detail = f": {reason_string}" if reason_string else ""
    return BridgeError(
        known or ErrorCode.CONNECT_REFUSED,
        f"the broker refused the connection: {text} (0x{code:02X}){detail}",
        reason_code=code,
    )


def disconnect_error(code: int, reason_string: str) -> BridgeError:
    """Explain a DISCONNECT from the broker (MQTT 5)."""
    known, text = _REASONS.get(code, (None, "unknown reason"))
    detail = f": {reason_string}" if reason_string else ""
    return BridgeError(
        known or ErrorCode.BROKER_DISCONNECT,
        f"the broker disconnected us: {text} (0x{code:02X}){detail}",
        reason_code=code,
    )


def stream_error(error: BridgeError) -> BridgeError:
    """Explain the end of the QUIC stream, where its code is the reason code of a DISCONNECT that was lost on the way.

    EMQX follows a take-over's or a kick's DISCONNECT with STOP_SENDING of the same code (emqx_quic_stream.erl).
    """
    code = error.reason_code
    if error.code is not ErrorCode.CLOSED_BY_BROKER or code not in _KICKS:
        return error
    known, text = _REASONS[code]
    return BridgeError(known or error.code, f"{error.text}: {text} (0x{code:02X})", reason_code=code)
