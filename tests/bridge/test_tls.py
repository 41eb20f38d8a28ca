"""TLS material: what is read, what is refused, and with which words."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
import ssl
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID
import pytest

from custom_components.quic_bridge.bridge.config import BrokerConfig, TlsConfig
from custom_components.quic_bridge.bridge.errors import BridgeError, ErrorCode
from custom_components.quic_bridge.bridge.tls import (
    CertificateVerifier,
    ClientIdentity,
    certificate_error,
    make_ssl_context,
    server_name,
    ssl_error,
)

from ..support.certs import Certificates


def load(pem: str) -> x509.Certificate:
    """Parse one certificate."""
    return x509.load_pem_x509_certificate(pem.encode())


def self_signed(key: CertificateIssuerPrivateKeyTypes, *names: str, days: int = 10) -> str:
    """Make a certificate as a person does at home: no authority, no extension but the names."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "home.example")])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days - 10))
        .not_valid_after(now + timedelta(days=days))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM).decode()


def key_pem(key: CertificateIssuerPrivateKeyTypes, password: str | None = None, *, old: bool = False) -> str:
    """Write a key as PEM, `old`: as OpenSSL did before PKCS8."""
    encryption: serialization.KeySerializationEncryption = (
        serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    )
    form = serialization.PrivateFormat.TraditionalOpenSSL if old else serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, encryption).decode()


# Our own identity


def test_no_identity() -> None:
    assert ClientIdentity.load(TlsConfig()) is None


def test_an_identity_with_its_chain(certs: Certificates) -> None:
    tls = TlsConfig(certificate=certs.client.pem + certs.ca_pem, private_key=certs.client.key_pem)
    identity = ClientIdentity.load(tls)
    assert identity is not None
    assert identity.certificate == load(certs.client.pem)
    assert identity.chain == [load(certs.ca_pem)]
    identity.require_quic()


@pytest.mark.parametrize("old", [False, True])
def test_an_encrypted_key(certs: Certificates, old: bool) -> None:
    key = serialization.load_pem_private_key(certs.client.key_pem.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    tls = TlsConfig(certificate=certs.client.pem, private_key=key_pem(key, "secret", old=old))
    for password, text in ((None, "there is no password"), ("", "there is no password"), ("wrong", "is the password")):
        with pytest.raises(BridgeError, match=text) as refused:
            ClientIdentity.load(replace(tls, private_key_password=password))
        assert refused.value.code is ErrorCode.CLIENT_CERTIFICATE_INVALID
        assert "wrong" not in refused.value.text
    assert ClientIdentity.load(replace(tls, private_key_password="secret")) is not None
    # A password that is not needed does no harm.
    assert ClientIdentity.load(replace(tls, private_key=certs.client.key_pem, private_key_password="secret"))


def test_identities_that_cannot_be(certs: Certificates) -> None:
    good = TlsConfig(certificate=certs.client.pem, private_key=certs.client.key_pem)
    for tls, text in (
        (replace(good, private_key=None), "no private key"),
        (replace(good, certificate=None), "no client certificate"),
        (replace(good, private_key=certs.server.key_pem), "does not belong"),
        (replace(good, certificate="-----BEGIN CERTIFICATE-----\nrubbish\n-----END CERTIFICATE-----"), "as PEM"),
        (replace(good, certificate=""), "as PEM"),
        (replace(good, private_key="rubbish"), "as PEM"),
        (replace(good, private_key="é"), "as PEM"),
    ):
        with pytest.raises(BridgeError, match=text) as refused:
            ClientIdentity.load(tls)
        assert refused.value.code is ErrorCode.CLIENT_CERTIFICATE_INVALID


def test_keys_that_aioquic_cannot_use() -> None:
    for key, good in (
        (ec.generate_private_key(ec.SECP384R1()), True),
        (ed25519.Ed25519PrivateKey.generate(), True),
        (rsa.generate_private_key(65537, 2048), True),
        (ec.generate_private_key(ec.SECP521R1()), False),
    ):
        tls = TlsConfig(certificate=self_signed(key), private_key=key_pem(key))
        identity = ClientIdentity.load(tls)
        assert identity is not None
        make_ssl_context(tls, ClientIdentity.load(tls))  # TCP takes them all
        if good:
            identity.require_quic()
        else:
            with pytest.raises(BridgeError, match="P-256"):
                identity.require_quic()


# The broker's certificate


def refused(tls: TlsConfig, name: str, pem: str, *chain: str) -> BridgeError:
    """Return why a certificate is not accepted."""
    with pytest.raises(BridgeError) as error:
        CertificateVerifier(tls, name).verify(load(pem), [load(link) for link in chain])
    return error.value


def test_good_certificates(certs: Certificates) -> None:
    tls = TlsConfig(ca=certs.ca_pem)
    for name in ("localhost", "127.0.0.1", "::1"):
        CertificateVerifier(tls, name).verify(load(certs.server.pem), [])
    CertificateVerifier(tls, "broker.example.org").verify(load(certs.other_name.pem), [load(certs.ca_pem)])
    # Several authorities, with text around them.
    tls = TlsConfig(ca=f"# ours\n{certs.other_authority.pem}\n# theirs\n{certs.ca_pem}")
    CertificateVerifier(tls, "localhost").verify(load(certs.server.pem), [])


def test_the_brokers_own_certificate_can_be_trusted_directly(certs: Certificates) -> None:
    CertificateVerifier(TlsConfig(ca=certs.server.pem), "localhost").verify(load(certs.server.pem), [])
    home = self_signed(ec.generate_private_key(ec.SECP256R1()), "home.example")
    CertificateVerifier(TlsConfig(ca=home), "home.example").verify(load(home), [])
    assert refused(TlsConfig(ca=certs.ca_pem), "home.example", home).code is ErrorCode.CERTIFICATE_UNTRUSTED


def test_wrong_names(certs: Certificates) -> None:
    tls = TlsConfig(ca=certs.ca_pem)
    error = refused(tls, "broker.example.com", certs.other_name.pem)
    assert error.code is ErrorCode.CERTIFICATE_NAME
    assert "'broker.example.com' (broker.example.org)" in error.text
    error = refused(tls, "192.0.2.1", certs.server.pem)
    assert error.code is ErrorCode.CERTIFICATE_NAME
    assert "localhost, 127.0.0.1, ::1" in error.text
    nameless = self_signed(ec.generate_private_key(ec.SECP256R1()))
    error = refused(TlsConfig(ca=nameless), "home.example", nameless)
    assert error.code is ErrorCode.CERTIFICATE_NAME
    assert "no name at all" in error.text
    many = self_signed(ec.generate_private_key(ec.SECP256R1()), *(f"host{number}.example" for number in range(99)))
    error = refused(TlsConfig(ca=many), "home.example", many)
    assert "host4.example, ..." in error.text
    assert len(error.text) < 300


@pytest.mark.parametrize("days", [-1, 100])
def test_wrong_dates(days: int) -> None:
    pem = self_signed(ec.generate_private_key(ec.SECP256R1()), "home.example", days=days)
    error = refused(TlsConfig(ca=pem), "home.example", pem)
    assert error.code is ErrorCode.CERTIFICATE_EXPIRED
    assert ("expired" if days < 0 else "not yet valid") in error.text


def test_untrusted(certs: Certificates) -> None:
    error = refused(TlsConfig(ca=certs.ca_pem), "localhost", certs.untrusted_server.pem, certs.other_authority.pem)
    assert error.code is ErrorCode.CERTIFICATE_UNTRUSTED
    assert "the configured CA certificate" in error.text
    error = refused(TlsConfig(), "localhost", certs.server.pem)
    assert error.code is ErrorCode.CERTIFICATE_UNTRUSTED
    assert "the usual authorities" in error.text


def test_a_clients_certificate_is_no_servers(certs: Certificates) -> None:
    error = refused(TlsConfig(ca=certs.ca_pem), "client", certs.client.pem)
    assert error.code is ErrorCode.CERTIFICATE_UNTRUSTED
    assert "serverAuth" in error.text


def test_authorities_that_cannot_be_read() -> None:
    for text in ("", "rubbish", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with pytest.raises(BridgeError, match="CA certificate") as error:
            CertificateVerifier(TlsConfig(ca=text), "localhost")
        assert error.value.code is ErrorCode.CLIENT_CERTIFICATE_INVALID
        with pytest.raises(BridgeError, match="CA certificate"):
            make_ssl_context(TlsConfig(ca=text), None)


def test_home_assistants_own_bundle_is_the_default(certs: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certs.ca_file))
    CertificateVerifier(TlsConfig(), "localhost").verify(load(certs.server.pem), [])
    assert make_ssl_context(TlsConfig(), None).get_ca_certs(binary_form=True) == [
        load(certs.ca_pem).public_bytes(serialization.Encoding.DER)
    ]


# Names


@pytest.mark.parametrize(
    ("host", "name", "expected"),
    [
        ("broker.example", None, "broker.example"),
        ("broker.example.", None, "broker.example"),
        ("192.0.2.1", None, "192.0.2.1"),
        ("192.0.2.1", "broker.example", "broker.example"),
        ("[2001:db8::1]", None, "2001:db8::1"),
        ("fe80::1%eth0", None, "fe80::1"),
        ("bücher.example", None, "xn--bcher-kva.example"),
    ],
)
def test_server_names(host: str, name: str | None, expected: str) -> None:
    tls = TlsConfig(server_name=name) if name else None
    assert server_name(BrokerConfig(host=host, port=1, client_id="x", tls=tls)) == expected


@pytest.mark.parametrize("name", ["ü" * 80, "*.example.org", "two words", ".example", "a\0b", "7", "x" * 254, "host:1"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(BridgeError) as error:
        server_name(BrokerConfig(host="localhost", port=1, client_id="x", tls=TlsConfig(server_name=name)))
    assert error.value.code is ErrorCode.CONFIGURATION
    assert repr(name) in error.value.text


# TLS over TCP


def test_context(certs: Certificates) -> None:
    context = make_ssl_context(TlsConfig(ca=certs.ca_pem), None)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert len(context.get_ca_certs()) == 1
    context = make_ssl_context(TlsConfig(verify=False), None)
    assert context.verify_mode is ssl.CERT_NONE
    assert not context.check_hostname
    assert len(make_ssl_context(TlsConfig(), None).get_ca_certs()) > 50


def test_the_key_is_never_on_the_disk_in_clear(
    certs: Certificates, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[tuple[str, int, int]] = []
    real = ssl.SSLContext.load_cert_chain

    def look(self: ssl.SSLContext, file: Path, password: str) -> None:
        seen.append((file.read_text(), file.parent.stat().st_mode & 0o777, len(password)))
        real(self, file, password=password)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", look)
    tls = TlsConfig(certificate=certs.client.pem, private_key=certs.client.key_pem)
    make_ssl_context(tls, ClientIdentity.load(tls))
    ((text, mode, length),) = seen
    assert "ENCRYPTED PRIVATE KEY" in text
    assert "BEGIN PRIVATE KEY" not in text
    assert (mode, length) == (0o700, 32)
    assert not list(tmp_path.iterdir())


def test_names_of_ssl_errors(certs: Certificates) -> None:
    def name(reason: str, tls: TlsConfig) -> ErrorCode:
        error = ssl.SSLError(1, reason)
        error.reason = reason
        return ssl_error(error, "localhost", tls).code

    ours = TlsConfig(certificate=certs.client.pem, private_key=certs.client.key_pem)
    none = TlsConfig()
    assert name("TLSV13_ALERT_CERTIFICATE_REQUIRED", none) is ErrorCode.CLIENT_CERTIFICATE_REQUIRED
    assert name("SSLV3_ALERT_BAD_CERTIFICATE", none) is ErrorCode.CLIENT_CERTIFICATE_REQUIRED
    assert name("SSLV3_ALERT_BAD_CERTIFICATE", ours) is ErrorCode.CLIENT_CERTIFICATE_REFUSED
    assert name("TLSV1_ALERT_UNKNOWN_CA", ours) is ErrorCode.CLIENT_CERTIFICATE_REFUSED
    assert name("WRONG_VERSION_NUMBER", ours) is ErrorCode.TLS_FAILED
    assert name("TLSV1_ALERT_PROTOCOL_VERSION", ours) is ErrorCode.TLS_FAILED
    assert ssl_error(ssl.SSLError(1, "odd"), "localhost", none).text.endswith(": odd")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (9, ErrorCode.CERTIFICATE_EXPIRED),
        (10, ErrorCode.CERTIFICATE_EXPIRED),
        (62, ErrorCode.CERTIFICATE_NAME),
        (64, ErrorCode.CERTIFICATE_NAME),
        (18, ErrorCode.CERTIFICATE_UNTRUSTED),
        (20, ErrorCode.CERTIFICATE_UNTRUSTED),
        (23, ErrorCode.CERTIFICATE_UNTRUSTED),
    ],
)
def test_codes_of_openssl(code: int, expected: ErrorCode) -> None:
    for own in (True, False):
        error = certificate_error(code, "the reason", "localhost", own_authority=own)
        assert error.code is expected
        assert "the reason" in error.text
