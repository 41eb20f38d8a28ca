"""Pins as people write them, and when a certificate is due."""

from datetime import UTC, datetime, timedelta
import subprocess

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
import pytest

from custom_components.quic_bridge.bridge.certificates import is_due, parse_certificates, parse_pin, public_key_pin

from ..support.certs import Certificates

DIGEST = "YhKJKSzoTt2b5FP18fvpHo7fJYqQCjAa3HWY3tvRMwE="


@pytest.mark.parametrize(
    "text",
    [
        f"sha256/{DIGEST}",
        f"sha256//{DIGEST}",  # curl --pinnedpubkey
        f'pin-sha256="{DIGEST}"',  # HPKP
        f"  sha256/{DIGEST}\n",
    ],
)
def test_pins(text: str) -> None:
    assert parse_pin(text) == f"sha256/{DIGEST}"


@pytest.mark.parametrize(
    "text",
    ["", DIGEST, "sha256/", f"sha1/{DIGEST}", f"sha256/{DIGEST[:-1]}", f"sha256/{DIGEST}=", f"sha256/*{DIGEST[1:]}"],
)
def test_no_pins(text: str) -> None:
    assert parse_pin(text) is None


def test_a_pin_is_what_openssl_makes_of_it(certs: Certificates) -> None:
    """The command that docs/security.md gives."""
    command = (
        f"openssl x509 -in {certs.server.cert_file} -pubkey -noout | openssl pkey -pubin -outform der "
        "| openssl dgst -sha256 -binary | openssl enc -base64"
    )
    digest = subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout.strip()
    (certificate,) = parse_certificates(certs.server.cert_file.read_bytes())
    assert public_key_pin(certificate) == parse_pin(f"sha256/{digest}")


def test_certificates_in_either_encoding(certs: Certificates) -> None:
    certificate = x509.load_pem_x509_certificate(certs.server.pem.encode())
    assert parse_certificates(certificate.public_bytes(Encoding.DER)) == [certificate]
    # A key in the same file is passed over.
    assert parse_certificates(f"{certs.server.key_pem}{certs.server.pem}{certs.ca_pem}".encode())[0] == certificate
    for content in (b"", b"\x30\x03abc", b"-----BEGIN nothing", certs.server.key_pem.encode()):
        with pytest.raises(ValueError, match=r"."):
            parse_certificates(content)


@pytest.mark.parametrize(
    ("life", "left", "due"),
    [
        (365, 31, False),
        (365, 29, True),
        (365, -1, True),
        # Certificates that renew themselves do so with a third of their life left: 90 days, 45 days, 6 days.
        (90, 30, False),
        (90, 22, True),
        (45, 15, False),
        (6, 2, False),
        (6, 1, True),
    ],
)
def test_due(life: int, left: int, due: bool) -> None:
    now = datetime.now(UTC)
    until = now + timedelta(days=left)
    assert is_due(until - timedelta(days=life), until, now) is due
