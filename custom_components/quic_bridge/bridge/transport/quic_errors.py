"""What the end of a QUIC connection means to a person: codes of RFC 9000, TLS alerts, EMQX's own."""

from typing import Final

from aioquic.quic.events import ConnectionTerminated
from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import AlertDescription

from ..errors import BridgeError, ErrorCode
from .aioquic_internals import is_idle_timeout

CRYPTO_ERROR: Final = 0x100
"""... plus the TLS alert (RFC 9001 section 4.8)."""

_CERTIFICATE_ALERTS: Final = frozenset(
    {
        AlertDescription.bad_certificate,
        AlertDescription.unsupported_certificate,
        AlertDescription.certificate_revoked,
        AlertDescription.certificate_expired,
        AlertDescription.certificate_unknown,
        AlertDescription.unknown_ca,
        AlertDescription.access_denied,
        AlertDescription.decrypt_error,
    }
)
_APPLICATION_CODES: Final = {0: "no error", 1: "control stream down", 2: "overloaded"}
"""EMQX's codes (apps/emqx/include/emqx_quic.hrl)."""
_BROKER_TROUBLE: Final = frozenset(
    {QuicErrorCode.NO_ERROR, QuicErrorCode.INTERNAL_ERROR, QuicErrorCode.APPLICATION_ERROR}
)


def closed_by_peer(event: ConnectionTerminated, *, has_certificate: bool) -> BridgeError:
    """Name the CONNECTION_CLOSE that the broker sent; `has_certificate`: we are configured to present one."""
    code, said = int(event.error_code), f", it said: {event.reason_phrase!r}" if event.reason_phrase else ""
    if event.frame_type is None:
        meaning = _APPLICATION_CODES.get(code)
        return BridgeError(
            ErrorCode.CLOSED_BY_BROKER,
            f"The broker closed the QUIC connection with code {code}{f' ({meaning})' if meaning else ''}{said}",
            reason_code=code,
        )
    if CRYPTO_ERROR <= code < CRYPTO_ERROR + 0x100:
        return _alert(code, said, has_certificate=has_certificate)
    name = _name(code)
    if code == QuicErrorCode.CONNECTION_REFUSED:
        return BridgeError(
            ErrorCode.OVERLOADED,
            f"The broker takes no new QUIC connections now ({name}){said}",
            reason_code=code,
        )
    if code in _BROKER_TROUBLE:
        return BridgeError(
            ErrorCode.CLOSED_BY_BROKER, f"The broker closed the QUIC connection: {name}{said}", reason_code=code
        )
    return BridgeError(
        ErrorCode.PROTOCOL_ERROR,
        f"The broker closed the QUIC connection over a breach of the protocol: {name}{said}",
        reason_code=code,
    )


def closed_by_us(event: ConnectionTerminated) -> BridgeError:
    """Name the end that aioquic found necessary: something the broker did, or did not do."""
    code = int(event.error_code)
    if is_idle_timeout(event):
        return BridgeError(
            ErrorCode.IDLE_TIMEOUT, "Nothing came from the broker until the idle timeout of the QUIC connection"
        )
    if event.reason_phrase == "Could not find a common protocol version":
        return BridgeError(ErrorCode.NOT_MQTT_QUIC, "The server speaks QUIC, but not version 1", reason_code=code)
    if code == CRYPTO_ERROR + AlertDescription.no_application_protocol:
        return _not_mqtt(code)
    if CRYPTO_ERROR <= code < CRYPTO_ERROR + 0x100:
        detail = f": {event.reason_phrase}" if event.reason_phrase else ""
        return BridgeError(
            ErrorCode.TLS_FAILED, f"The TLS handshake with the broker failed ({_name(code)}){detail}", reason_code=code
        )
    return BridgeError(
        ErrorCode.PROTOCOL_ERROR,
        f"The broker broke the QUIC protocol: {_name(code)}, {event.reason_phrase}",
        reason_code=code,
    )


def stream_ended(how: str, code: int | None = None) -> BridgeError:
    """Name the end of the stream, which is the end of the session: `how` is FIN, RESET_STREAM or STOP_SENDING."""
    detail = "" if code is None else f" with code {code} ({code:#x})"
    return BridgeError(
        ErrorCode.CLOSED_BY_BROKER, f"The broker ended the MQTT stream ({how}{detail})", reason_code=code
    )


def _alert(code: int, said: str, *, has_certificate: bool) -> BridgeError:
    alert = code - CRYPTO_ERROR
    name = _name(code)
    if alert == AlertDescription.no_application_protocol:
        return _not_mqtt(code)
    if alert == AlertDescription.user_canceled:
        return BridgeError(
            ErrorCode.OVERLOADED,
            f"The broker is overloaded and takes no new connections now ({name}){said}",
            reason_code=code,
        )
    if alert == AlertDescription.certificate_required or (alert in _CERTIFICATE_ALERTS and not has_certificate):
        return BridgeError(
            ErrorCode.CLIENT_CERTIFICATE_REQUIRED,
            f"The broker wants a client certificate ({name}){said}; "
            + ("it got none that it can use" if has_certificate else "configure one"),
            reason_code=code,
        )
    if alert in _CERTIFICATE_ALERTS:
        return BridgeError(
            ErrorCode.CLIENT_CERTIFICATE_REFUSED,
            f"The broker does not accept our client certificate ({name}){said}",
            reason_code=code,
        )
    return BridgeError(ErrorCode.TLS_FAILED, f"The broker refused the TLS handshake ({name}){said}", reason_code=code)


def _not_mqtt(code: int) -> BridgeError:
    return BridgeError(
        ErrorCode.NOT_MQTT_QUIC,
        f"A QUIC server answered, but it does not offer MQTT ({_name(code)}); "
        "check the port, and that the broker's listener is for MQTT over QUIC",
        reason_code=code,
    )


def _name(code: int) -> str:
    if CRYPTO_ERROR <= code < CRYPTO_ERROR + 0x100:
        try:
            return f"TLS alert {AlertDescription(code - CRYPTO_ERROR).name}, {code:#x}"
        except ValueError:
            return f"TLS alert {code - CRYPTO_ERROR}, {code:#x}"
    try:
        return f"{QuicErrorCode(code).name}, {code:#x}"
    except ValueError:
        return f"error {code:#x}"
