"""Certificates for loopback: an authority, servers and clients, all on the curve P-256."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
import ipaddress
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate with its key, as PEM text and as files."""

    pem: str
    key_pem: str
    cert_file: Path
    key_file: Path

    @classmethod
    def write(cls, folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Self:
        """Write both files into the folder, the key readable by the owner alone."""
        pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
        key_pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        cert_file, key_file = folder / f"{name}.pem", folder / f"{name}.key"
        cert_file.write_text(pem)
        key_file.touch(mode=0o600)
        key_file.write_text(key_pem)
        return cls(pem, key_pem, cert_file, key_file)


def _names(names: Sequence[str]) -> x509.SubjectAlternativeName:
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(found)


class Authority:
    """A certificate authority of its own, which issues certificates into a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"quic_bridge test {name}")])
        now = datetime.now(UTC)
        certificate = (
            self._builder(self._subject, self._key, now - timedelta(days=400), now + timedelta(days=90))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    key_cert_sign=True,
                    crl_sign=True,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = Certificate.write(folder, name, certificate, self._key)

    @property
    def pem(self) -> str:
        """The authority's certificate, as a client trusts it."""
        return self.certificate.pem

    @property
    def file(self) -> Path:
        """The file of the authority's certificate."""
        return self.certificate.cert_file

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, start: datetime, end: datetime
    ) -> x509.CertificateBuilder:
        identifier = x509.SubjectKeyIdentifier.from_public_key
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(identifier(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier(self._key.public_key())),
                critical=False,
            )
        )

    def issue(
        self, name: str, *, names: Sequence[str] = LOOPBACK_NAMES, client: bool = False, days: int = 90
    ) -> Certificate:
        """Issue a server (or client) certificate into `name`.pem and `name`.key, valid for `days` more."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        end = now + timedelta(days=days)
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        builder = self._builder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, now - timedelta(days=365), end
        )
        if not client:
            builder = builder.add_extension(_names(names), critical=False)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Certificate.write(self._folder, name, certificate, key)

    def for_itself(self) -> Certificate:
        """Make a server certificate that is signed with its own key, as people do at home."""
        now = datetime.now(UTC)
        certificate = (
            self._builder(self._subject, self._key, now - timedelta(days=1), now + timedelta(days=90))
            .add_extension(_names(LOOPBACK_NAMES), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Certificate.write(self._folder, "self_signed", certificate, self._key)


class Certificates:
    """The set the tests use; made once a session in a few milliseconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.server = self.authority.issue("server")
        self.expired = self.authority.issue("expired", days=-1)
        self.expiring = self.authority.issue("expiring", days=10)
        self.expiring_client = self.authority.issue("expiring_client", client=True, days=10)
        self.other_name = self.authority.issue("other_name", names=("broker.example.org",))
        self.client = self.authority.issue("client", client=True)
        self.other_authority = Authority(folder, "other_ca")
        self.untrusted_server = self.other_authority.issue("untrusted_server")
        self.untrusted_client = self.other_authority.issue("untrusted_client", client=True)
        self.self_signed = Authority(folder, "self").for_itself()

    @property
    def ca_pem(self) -> str:
        """The authority of `server`, `expired`, `other_name` and `client`."""
        return self.authority.pem

    @property
    def ca_file(self) -> Path:
        """The same as a file."""
        return self.authority.file
