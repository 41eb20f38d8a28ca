"""Certificates: from PEM text or a file, what they say, and the pins of their keys.

Reading and parsing belong into the executor.
"""

import base64
import binascii
from datetime import datetime, timedelta
import hashlib
from pathlib import Path
import re
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization

from .errors import BridgeError, ErrorCode
from .status import CertificateStatus

MAX_FILE: Final = 1024 * 1024
"""Bytes; a bundle of all the authorities that browsers know is a quarter of this."""
NOTICE: Final = timedelta(days=30)
"""So long before a certificate runs out people are told, unless it lives so briefly that it is not due by then."""
_DUE: Final = 4
"""A certificate is due for renewal in the last fourth of its life; those that renew themselves do so before."""
_PIN: Final = re.compile(r'(?:pin-)?sha256(?:=|//?|:)"?([A-Za-z0-9+/]{43}=)"?')
"""As HPKP (RFC 7469) and curl (`--pinnedpubkey`) write it, and as this module does."""


def read_pem(source: str | Path, what: str) -> bytes:
    """Return the bytes of a PEM text or of a file; `what` names it in the error.

    Raises BridgeError CLIENT_CERTIFICATE_INVALID.
    """
    if isinstance(source, str):
        return source.encode()
    try:
        with source.open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise _invalid(f"The file {source} with the {what} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a null character in its path
        raise _invalid(f"The file {source} with the {what} cannot be read: {error}") from error
    if len(content) > MAX_FILE:
        raise _invalid(f"The file {source} with the {what} is larger than any certificate")
    return content


def load_certificates(source: str | Path, what: str) -> list[x509.Certificate]:
    """Return the certificates of a PEM text or of a file (PEM, or one in DER); `what` names them in the error.

    Raises BridgeError CLIENT_CERTIFICATE_INVALID.
    """
    content = read_pem(source, what)
    try:
        return parse_certificates(content)
    except ValueError as error:
        where = "" if isinstance(source, str) else f" in {source}"
        raise _invalid(f"The {what}{where} cannot be read as PEM: {error}") from error


def parse_certificates(content: bytes) -> list[x509.Certificate]:
    """Parse certificates, PEM or one in DER; what else a PEM text holds is passed over. Raises ValueError."""
    if b"-----BEGIN" in content or not content.startswith(b"\x30"):
        return x509.load_pem_x509_certificates(content)
    return [x509.load_der_x509_certificate(content)]


def parse_pin(text: str) -> str | None:
    """Return a pin of a public key as `sha256/BASE64`, whatever of the usual ways it is written; None if it is none."""
    match = _PIN.fullmatch(text.strip())
    if match is None:
        return None
    try:
        base64.b64decode(match[1], validate=True)
    except binascii.Error:
        return None
    return f"sha256/{match[1]}"


def public_key_pin(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate's SubjectPublicKeyInfo as `sha256/BASE64` (RFC 7469 section 2.4).

    Raises ValueError for a key of a kind that is not known here.
    """
    try:
        key = certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from error
    return f"sha256/{base64.b64encode(hashlib.sha256(key).digest()).decode()}"


def describe(certificate: x509.Certificate) -> CertificateStatus | None:
    """Return what a person wants to know of a certificate; None if it cannot be read."""
    try:
        return CertificateStatus(
            subject=certificate.subject.rfc4514_string(),
            issuer=certificate.issuer.rfc4514_string(),
            names=names(certificate),
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex(":").upper(),
            pin=public_key_pin(certificate),
            valid_from=certificate.not_valid_before_utc,
            valid_until=certificate.not_valid_after_utc,
        )
    except ValueError:
        return None  # cryptography parses most of a certificate only when it is read


def names(certificate: x509.Certificate) -> str:
    """List what a certificate is for, as far as a person wants to read."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    known = [str(name.value) for name in found if isinstance(name, x509.DNSName | x509.IPAddress)]
    return ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")


def is_due(valid_from: datetime, valid_until: datetime, now: datetime) -> bool:
    """Tell whether a certificate has to be renewed by now."""
    return now >= valid_until - min(NOTICE, (valid_until - valid_from) / _DUE)


def _invalid(text: str) -> BridgeError:
    return BridgeError(ErrorCode.CLIENT_CERTIFICATE_INVALID, text)
