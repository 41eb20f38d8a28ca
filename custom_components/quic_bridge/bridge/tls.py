"""TLS material: from PEM text to what aioquic and `ssl` take, and the check of a broker's certificate.

Everything here but `CertificateVerifier.verify` parses text or reads files, so it belongs into the executor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import ipaddress
import os
from pathlib import Path
import re
import secrets
import ssl
import tempfile
from typing import Final, Self

import certifi
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto
import service_identity
from service_identity.cryptography import verify_certificate_hostname, verify_certificate_ip_address

from .certificates import load_certificates, names, public_key_pin, read_pem
from .config import BrokerConfig, TlsConfig
from .errors import BridgeError, ErrorCode

_EXPIRED_ERRORS: Final = frozenset({9, 10})
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""
_NAME_ERRORS: Final = frozenset({62, 63, 64})
"""X509_V_ERR_HOSTNAME_MISMATCH, EMAIL_MISMATCH and IP_ADDRESS_MISMATCH."""
_SELF_SIGNED_ERRORS: Final = frozenset({18, 19})
_SERVER_NAME: Final = re.compile(r"(?![.]|\d+$)[A-Za-z0-9._-]{1,253}")
"""What both `ssl` and service_identity take for a host name: underscores, too, but no wildcard and no mere number."""

_MISSING_CERTIFICATE_ALERTS: Final = frozenset(
    {"TLSV13_ALERT_CERTIFICATE_REQUIRED", "TLSV1_ALERT_CERTIFICATE_REQUIRED"}
)
_CERTIFICATE_ALERTS: Final = frozenset(
    {
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "TLSV1_ALERT_UNKNOWN_CA",
        "TLSV1_ALERT_ACCESS_DENIED",
        "TLSV1_ALERT_DECRYPT_ERROR",
    }
)


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """Our own certificate, its chain and its key."""

    certificate: x509.Certificate
    chain: list[x509.Certificate]
    private_key: PrivateKeyTypes

    @classmethod
    def load(cls, tls: TlsConfig) -> Self | None:
        """Parse the client certificate and its key; None without one.

        Raises BridgeError CLIENT_CERTIFICATE_INVALID.
        """
        if tls.certificate is None and tls.private_key is None:
            return None
        if tls.certificate is None:
            raise _invalid("There is a private key, but no client certificate that belongs to it")
        if tls.private_key is None:
            raise _invalid("There is a client certificate, but no private key that belongs to it")
        certificates = load_certificates(tls.certificate, "client certificate")
        key = _load_key(tls.private_key, tls.private_key_password)
        if certificates[0].public_key() != key.public_key():
            raise _invalid("The private key does not belong to the (first) client certificate")
        return cls(certificates[0], certificates[1:], key)

    def require_quic(self) -> None:
        """Raise CLIENT_CERTIFICATE_INVALID for a key that aioquic cannot sign with (it would silently send none)."""
        key = self.private_key
        if isinstance(key, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
            return
        if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
            return
        raise _invalid("QUIC needs a client key of type RSA, Ed25519, Ed448 or EC on the curve P-256 or P-384")


class CertificateVerifier:
    """Checks a broker's certificate: chain and dates with OpenSSL, as `ssl` does, then purpose, name and pins.

    aioquic's own check builds its store in the event loop at every handshake (6 to 37 ms with the default
    authorities) and reports most causes with one alert. Here the store is built beforehand, in the executor,
    and the cause is known by its code.
    """

    def __init__(self, tls: TlsConfig, server_name: str) -> None:
        """Build the store; blocking. Raises BridgeError CLIENT_CERTIFICATE_INVALID if the CA text is unreadable."""
        self._server_name = server_name
        self._check_name = tls.check_name
        self._own_authority = tls.ca is not None
        self._pins = tls.pins
        self._verify = tls.verify
        if not tls.verify:
            return
        self._store = crypto.X509Store()
        # A pasted certificate is an anchor also when it is not self-signed: an intermediate, or the broker's own.
        self._store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        if tls.ca is None:
            self._store.load_locations(default_authorities())
            return
        for certificate in load_certificates(tls.ca, "CA certificate"):
            self._store.add_cert(crypto.X509.from_cryptography(certificate))

    def verify(self, certificate: x509.Certificate, chain: Sequence[x509.Certificate]) -> None:
        """Return if the certificate is good for the server's name (0.2 to 1 ms, no I/O).

        Raises BridgeError CERTIFICATE_UNTRUSTED, CERTIFICATE_EXPIRED, CERTIFICATE_NAME or CERTIFICATE_PIN.
        """
        if self._verify:
            self._verify_chain(certificate, chain)
        check_pins(certificate, self._pins)

    def _verify_chain(self, certificate: x509.Certificate, chain: Sequence[x509.Certificate]) -> None:
        try:
            crypto.X509StoreContext(
                self._store,
                crypto.X509.from_cryptography(certificate),
                [crypto.X509.from_cryptography(link) for link in chain],
            ).verify_certificate()
        except crypto.X509StoreContextError as error:
            code, _, message = error.errors
            raise certificate_error(code, message, self._server_name, own_authority=self._own_authority) from error
        try:
            self._verify_purpose(certificate)
            if self._check_name:
                self._verify_name(certificate)
        except ValueError as error:
            # cryptography parses a certificate's extensions only when they are read.
            raise BridgeError(
                ErrorCode.CERTIFICATE_UNTRUSTED, f"The broker's certificate cannot be read: {error}"
            ) from error

    @staticmethod
    def _verify_purpose(certificate: x509.Certificate) -> None:
        """Refuse a certificate that was issued for something else, as `ssl` does and aioquic does not."""
        try:
            usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except x509.ExtensionNotFound:
            return
        allowed = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
        if allowed.isdisjoint(usage):
            raise BridgeError(
                ErrorCode.CERTIFICATE_UNTRUSTED,
                "The broker's certificate was not issued for a server (extended key usage without serverAuth)",
            )

    def _verify_name(self, certificate: x509.Certificate) -> None:
        try:
            if _is_ip_address(self._server_name):
                verify_certificate_ip_address(certificate, self._server_name)
            else:
                verify_certificate_hostname(certificate, self._server_name)
        except (service_identity.VerificationError, service_identity.CertificateError) as error:
            raise BridgeError(
                ErrorCode.CERTIFICATE_NAME, _name_text(self._server_name, names(certificate) or "no name at all")
            ) from error


def server_name(config: BrokerConfig) -> str:
    """Return the name for SNI and for the certificate check, in ASCII.

    Raises BridgeError CONFIGURATION for a name that no certificate can hold.
    """
    name = (config.tls.server_name if config.tls else None) or config.host
    name = name.strip("[]").rstrip(".").partition("%")[0]
    if _is_ip_address(name):
        return name
    try:
        ascii_name = name if name.isascii() else name.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise BridgeError(ErrorCode.CONFIGURATION, f"{name!r} is not a host name: {error}") from error
    if _SERVER_NAME.fullmatch(ascii_name) is None:
        raise BridgeError(ErrorCode.CONFIGURATION, f"The server name {name!r} is none that a certificate can be for")
    return ascii_name


def check_pins(certificate: x509.Certificate, pins: Sequence[str]) -> None:
    """Return if the certificate's public key is among those pinned, or none are. Raises BridgeError CERTIFICATE_PIN."""
    if not pins:
        return
    try:
        pin = public_key_pin(certificate)
    except ValueError as error:
        raise BridgeError(
            ErrorCode.CERTIFICATE_PIN, f"The public key of the broker's certificate cannot be read: {error}"
        ) from error
    if pin not in pins:
        raise BridgeError(
            ErrorCode.CERTIFICATE_PIN,
            f"The broker's certificate has another public key than the one pinned, {pin}; "
            "if the broker got a new key on purpose, pin that one; if not, somebody may be listening in",
        )


def make_ssl_context(tls: TlsConfig, identity: ClientIdentity | None) -> ssl.SSLContext:
    """Make the context for TLS over TCP; blocking. Pins are not its business, see `check_pins`.

    Raises BridgeError CLIENT_CERTIFICATE_INVALID if a certificate or the key cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = tls.verify and tls.check_name
    if not tls.verify:
        context.verify_mode = ssl.CERT_NONE
    elif tls.ca is None:
        context.load_verify_locations(cafile=default_authorities())
    else:
        authorities = load_certificates(tls.ca, "CA certificate")
        context.load_verify_locations(cadata=b"".join(_der(certificate) for certificate in authorities))
    if identity is not None:
        _load_cert_chain(context, identity)
    return context


def ssl_error(error: ssl.SSLError, server_name: str, tls: TlsConfig) -> BridgeError:
    """Name what went wrong with TLS over TCP."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return certificate_error(error.verify_code, error.verify_message, server_name, own_authority=tls.ca is not None)
    # Errors that are raised in Python have none.
    reason: str = getattr(error, "reason", None) or str(error)
    if reason in _MISSING_CERTIFICATE_ALERTS or (reason in _CERTIFICATE_ALERTS and tls.certificate is None):
        return BridgeError(
            ErrorCode.CLIENT_CERTIFICATE_REQUIRED,
            f"The broker wants a client certificate, and none is configured ({reason})",
        )
    if reason in _CERTIFICATE_ALERTS:
        return BridgeError(
            ErrorCode.CLIENT_CERTIFICATE_REFUSED, f"The broker does not accept our client certificate ({reason})"
        )
    if reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"}:
        return BridgeError(
            ErrorCode.TLS_FAILED, f"What listens on this port does not speak TLS ({reason}); is it the plain MQTT port?"
        )
    return BridgeError(ErrorCode.TLS_FAILED, f"The TLS handshake failed: {reason}")


def certificate_error(code: int, message: str, server_name: str, *, own_authority: bool) -> BridgeError:
    """Turn OpenSSL's verification code (X509_V_ERR_*) and text into an error."""
    if code in _EXPIRED_ERRORS:
        return BridgeError(
            ErrorCode.CERTIFICATE_EXPIRED,
            f"The broker's certificate, or one it was signed with, is out of date: {message}. "
            "Renew it, or set the clock of this host",
        )
    if code in _NAME_ERRORS:
        return BridgeError(ErrorCode.CERTIFICATE_NAME, _name_text(server_name, message))
    trusted = "the configured CA certificate" if own_authority else "the usual authorities"
    advice = (
        "configure the broker's own certificate, or its authority's, as CA certificate"
        if code in _SELF_SIGNED_ERRORS or not own_authority
        else "configure the certificate of the authority that signed it"
    )
    return BridgeError(
        ErrorCode.CERTIFICATE_UNTRUSTED,
        f"The broker's certificate is not trusted by {trusted}: {message}; {advice}",
    )


def _name_text(server_name: str, found: str) -> str:
    return (
        f"The broker's certificate is not for {server_name!r} ({found}); "
        "use a host name from the certificate, or set the server name to one"
    )


def default_authorities() -> str:
    """Return the file of trusted certificates that Home Assistant itself uses."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or certifi.where()


def _is_ip_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _invalid(text: str) -> BridgeError:
    return BridgeError(ErrorCode.CLIENT_CERTIFICATE_INVALID, text)


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def _load_key(source: str | Path, password: str | None) -> PrivateKeyTypes:
    pem = read_pem(source, "private key")
    where = "" if isinstance(source, str) else f" in {source}"
    # A password for a key that needs none is not worth an error.
    encrypted = b"ENCRYPTED" in pem
    if encrypted and not password:
        raise _invalid(f"The private key{where} is encrypted, and there is no password for it")
    secret = password.encode() if encrypted and password else None
    try:
        return serialization.load_pem_private_key(pem, password=secret)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if encrypted:
            raise _invalid(f"The private key{where} cannot be decrypted; is the password right? ({error})") from error
        raise _invalid(f"The private key{where} cannot be read as PEM: {error}") from error


def _load_cert_chain(context: ssl.SSLContext, identity: ClientIdentity) -> None:
    """Hand the identity to `ssl`, which takes files only; the key is never on the disk unencrypted."""
    password = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="quic_bridge_") as folder:  # mode 0700
        file = Path(folder) / "identity.pem"
        certificates = [identity.certificate, *identity.chain]
        key = identity.private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password.encode()),
        )
        file.write_bytes(key + b"".join(cert.public_bytes(serialization.Encoding.PEM) for cert in certificates))
        try:
            context.load_cert_chain(file, password=password)
        except ssl.SSLError as error:
            raise _invalid(f"The client certificate cannot be used: {error.reason or error}") from error
