"""Certificates, names, dates, keys and pins over QUIC and TLS/TCP: what connects, what is refused, with which words."""

import asyncio
from collections.abc import AsyncIterator, Callable
import contextlib
from dataclasses import dataclass, field, replace
from datetime import timedelta
import gc
from pathlib import Path
import shutil
import socket
import ssl
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
import pytest

from custom_components.quic_bridge.bridge.certificates import public_key_pin
from custom_components.quic_bridge.bridge.config import BrokerConfig, TlsConfig
from custom_components.quic_bridge.bridge.errors import BridgeError, ErrorCode
from custom_components.quic_bridge.bridge.transport import make_transport

from ..support.certs import Certificate, Certificates
from ..support.processes import wait_until
from ..support.quic_front import Front
from .tcp_transport_support import server_context
from .transport_support import Peer, Receiver, open_files, quic_config, tcp_config

pytestmark = pytest.mark.usefixtures("socket_enabled")

PASSWORD = "a key's password"


@dataclass
class Server:
    """A broker's end of TLS; what is written to it comes back."""

    broker: BrokerConfig
    names: list[str | None] = field(default_factory=list)
    """What clients asked for by SNI (TLS/TCP)."""

    async def attempt(self, tls: TlsConfig) -> BridgeError | None:
        """Connect, and return why that is impossible; None when bytes cross both ways."""
        transport = make_transport(replace(self.broker, tls=tls))
        receiver = Receiver()
        try:
            await transport.connect(receiver)
            transport.write(b"\0")
            await wait_until(lambda: receiver.data or receiver.lost, what="an answer")
        except BridgeError as error:
            return error
        finally:
            transport.abort()
        if not receiver.lost:
            assert transport.status.certificate is not None
            assert (transport.status.client_certificate is None) == (tls.certificate is None)
        return receiver.lost[0] if receiver.lost else None


def echo(listener: socket.socket, context: ssl.SSLContext) -> None:
    """Serve TLS, one connection after the other, until the listener is shut down.

    In a thread, and with the rest of what the client says taken: closed on unread bytes, the kernel resets the
    connection, and the alert is lost with it.
    """
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        sock.settimeout(5)
        session = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        with session, contextlib.suppress(OSError):
            try:
                session.do_handshake()
                while data := session.recv(100):
                    session.sendall(data)
            except ssl.SSLError:
                session.shutdown(socket.SHUT_WR)
                while session.recv(65536):
                    pass


@contextlib.asynccontextmanager
async def serve(way: str, certificate: Certificate, clients: Certificates | None = None) -> AsyncIterator[Server]:
    """Run a server; with `clients` it wants client certificates of their authority."""
    if way == "tcp":
        context = server_context(certificate, clients.ca_file if clients else None)
        names: list[str | None] = []
        context.sni_callback = lambda _session, name, _context: names.append(name)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.get_running_loop().run_in_executor(None, echo, listener, context)
            try:
                yield Server(tcp_config(listener.getsockname()), names)
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                await serving
        return
    peer = Peer(echo=True)
    await peer.start()
    try:
        async with Front(peer.address, certificate.cert_file, certificate.key_file) as front:
            front.policy.client_ca_pem = clients.ca_pem if clients else None
            yield Server(quic_config(front.address, None))
    finally:
        await peer.stop()


@pytest.fixture(params=["quic", "tcp"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def pin(certificate: Certificate) -> str:
    return public_key_pin(x509.load_pem_x509_certificate(certificate.pem.encode()))


type Settings = Callable[[Certificates], TlsConfig]


def own(**changes: Any) -> Settings:  # noqa: ANN401
    """Settings with the test's authority."""
    return lambda certs: TlsConfig(ca=certs.ca_pem, **changes)


@pytest.mark.parametrize(
    ("server", "settings", "refused"),
    [
        pytest.param("server", own(), None, id="own-authority"),
        pytest.param("server", lambda certs: TlsConfig(ca=certs.ca_file), None, id="own-authority-in-a-file"),
        pytest.param("server", lambda _: TlsConfig(), ErrorCode.CERTIFICATE_UNTRUSTED, id="usual-authorities"),
        pytest.param("untrusted_server", own(), ErrorCode.CERTIFICATE_UNTRUSTED, id="other-authority"),
        pytest.param("self_signed", lambda _: TlsConfig(), ErrorCode.CERTIFICATE_UNTRUSTED, id="self-signed"),
        pytest.param("self_signed", lambda certs: TlsConfig(ca=certs.self_signed.pem), None, id="trusted-itself"),
        pytest.param("self_signed", lambda _: TlsConfig(verify=False), None, id="verification-off"),
        pytest.param("other_name", own(), ErrorCode.CERTIFICATE_NAME, id="other-name"),
        pytest.param("other_name", own(server_name="broker.example.org"), None, id="other-name-that-is-asked-for"),
        pytest.param("other_name", own(check_name=False), None, id="any-name"),
        pytest.param("expired", own(), ErrorCode.CERTIFICATE_EXPIRED, id="expired"),
        # Pins: also without verification, then alone; never instead of it.
        pytest.param(
            "self_signed",
            lambda certs: TlsConfig(verify=False, pins=(pin(certs.self_signed),)),
            None,
            id="pinned",
        ),
        pytest.param(
            "self_signed",
            lambda certs: TlsConfig(verify=False, pins=(pin(certs.server),)),
            ErrorCode.CERTIFICATE_PIN,
            id="other-pin",
        ),
        pytest.param(
            "self_signed",
            lambda certs: TlsConfig(verify=False, pins=(pin(certs.server), pin(certs.self_signed))),
            None,
            id="one-of-two-pins",
        ),
        pytest.param("server", lambda certs: own(pins=(pin(certs.server),))(certs), None, id="verified-and-pinned"),
        pytest.param(
            "server",
            lambda certs: own(pins=(pin(certs.self_signed),))(certs),
            ErrorCode.CERTIFICATE_PIN,
            id="verified-but-other-pin",
        ),
        pytest.param(
            "self_signed",
            lambda certs: TlsConfig(pins=(pin(certs.self_signed),)),
            ErrorCode.CERTIFICATE_UNTRUSTED,
            id="pinned-but-not-trusted",
        ),
        pytest.param(
            "expired",
            lambda certs: TlsConfig(verify=False, pins=(pin(certs.expired),)),
            None,
            id="pinned-and-expired",
        ),
    ],
)
async def test_certificates_of_the_broker(
    certs: Certificates, way: str, server: str, settings: Settings, refused: ErrorCode | None
) -> None:
    async with serve(way, getattr(certs, server)) as running:
        error = await running.attempt(settings(certs))
        assert (error and error.code) is refused
        if refused is ErrorCode.CERTIFICATE_PIN:
            assert error is not None
            assert pin(getattr(certs, server)) in error.text


async def test_the_systems_authorities(certs: Certificates, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certs.ca_file))
    async with serve(way, certs.server) as running:
        assert await running.attempt(TlsConfig()) is None


async def test_hosts_by_address(certs: Certificates, way: str) -> None:
    """An address has to be in the certificate as an address."""
    async with serve(way, certs.server) as running:
        assert await running.attempt(TlsConfig(ca=certs.ca_pem)) is None
        error = await running.attempt(TlsConfig(ca=certs.ca_pem, server_name="192.0.2.1"))
        assert error is not None
        assert error.code is ErrorCode.CERTIFICATE_NAME


async def test_the_name_is_asked_for(certs: Certificates) -> None:
    """Servers of many names, as EMQX Serverless, choose by SNI; addresses are not names (RFC 6066 section 3)."""
    async with serve("tcp", certs.other_name) as running:
        assert await running.attempt(TlsConfig(ca=certs.ca_pem, server_name="broker.example.org")) is None
        await running.attempt(TlsConfig(ca=certs.ca_pem))
        assert running.names == ["broker.example.org", None]


@pytest.mark.parametrize(
    ("settings", "refused", "says"),
    [
        ({}, ErrorCode.CLIENT_CERTIFICATE_REQUIRED, "wants a client certificate"),
        ({"certificate": "client", "private_key": "client"}, None, ""),
        (
            {"certificate": "untrusted_client", "private_key": "untrusted_client"},
            ErrorCode.CLIENT_CERTIFICATE_REFUSED,
            "does not accept",
        ),
        ({"certificate": "client", "private_key": "server"}, ErrorCode.CLIENT_CERTIFICATE_INVALID, "does not belong"),
        ({"certificate": "client"}, ErrorCode.CLIENT_CERTIFICATE_INVALID, "no private key"),
        ({"private_key": "client"}, ErrorCode.CLIENT_CERTIFICATE_INVALID, "no client certificate"),
    ],
    ids=["missing", "good", "of-another-authority", "other-key", "no-key", "no-certificate"],
)
@pytest.mark.parametrize("files", [False, True], ids=["text", "files"])
async def test_client_certificates(
    certs: Certificates, way: str, settings: dict[str, str], refused: ErrorCode | None, says: str, files: bool
) -> None:
    tls = TlsConfig(ca=certs.ca_pem)
    if name := settings.get("certificate"):
        mine: Certificate = getattr(certs, name)
        tls = replace(tls, certificate=mine.cert_file if files else mine.pem)
    if name := settings.get("private_key"):
        mine = getattr(certs, name)
        tls = replace(tls, private_key=mine.key_file if files else mine.key_pem)
    async with serve(way, certs.server, certs) as running:
        error = await running.attempt(tls)
        assert (error and error.code) is refused
        if error is not None:
            assert says in error.text


@pytest.mark.parametrize(
    ("password", "says"), [(PASSWORD, None), ("wrong", "is the password right?"), (None, "there is no password")]
)
@pytest.mark.parametrize("files", [False, True], ids=["text", "file"])
async def test_encrypted_keys(
    certs: Certificates, tmp_path: Path, way: str, password: str | None, says: str | None, files: bool
) -> None:
    key = serialization.load_pem_private_key(certs.client.key_pem.encode(), None)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(PASSWORD.encode()),
    ).decode()
    file = tmp_path / "client.key"
    file.write_text(pem)
    tls = TlsConfig(
        ca=certs.ca_pem,
        certificate=certs.client.pem,
        private_key=file if files else pem,
        private_key_password=password,
    )
    async with serve(way, certs.server, certs) as running:
        error = await running.attempt(tls)
    if says is None:
        assert error is None
        return
    assert error is not None
    assert error.code is ErrorCode.CLIENT_CERTIFICATE_INVALID
    assert says in error.text
    assert (str(file) in error.text) == files
    assert PASSWORD not in error.text


async def test_renewed_files_count_at_the_next_connect(certs: Certificates, tmp_path: Path, way: str) -> None:
    ca, certificate, key = tmp_path / "ca.pem", tmp_path / "client.pem", tmp_path / "client.key"
    tls = TlsConfig(ca=ca, certificate=certificate, private_key=key)

    def renew(authority: Certificate, client: Certificate) -> None:
        shutil.copy(authority.cert_file, ca)
        shutil.copy(client.cert_file, certificate)
        shutil.copy(client.key_file, key)

    async with serve(way, certs.server, certs) as running:
        error = await running.attempt(tls)
        assert error is not None
        assert (error.code, str(certificate) in error.text) == (ErrorCode.CLIENT_CERTIFICATE_INVALID, True)
        assert "No such file" in error.text
        for authority, client, code in (
            (certs.other_authority, certs.client, ErrorCode.CERTIFICATE_UNTRUSTED),
            (certs.authority, certs.untrusted_client, ErrorCode.CLIENT_CERTIFICATE_REFUSED),
            (certs.authority, certs.client, None),
        ):
            renew(authority.certificate, client)
            error = await running.attempt(tls)
            assert (error and error.code) is code
        ca.write_text("not a certificate")
        error = await running.attempt(tls)
        assert error is not None
        assert f"The CA certificate in {ca} cannot be read" in error.text
        ca.write_bytes(bytes(2 * 1024 * 1024))
        error = await running.attempt(tls)
        assert error is not None
        assert "larger than any certificate" in error.text


async def test_what_is_told_of_certificates(certs: Certificates, way: str) -> None:
    async with serve(way, certs.server, certs) as running:
        tls = TlsConfig(ca=certs.ca_pem, certificate=certs.client.pem, private_key=certs.client.key_pem)
        transport = make_transport(replace(running.broker, tls=tls))
        await transport.connect(Receiver())
        status = transport.status
        transport.abort()
    theirs, ours = status.certificate, status.client_certificate
    assert theirs is not None
    assert ours is not None
    parsed = x509.load_pem_x509_certificate(certs.server.pem.encode())
    assert (theirs.subject, theirs.names) == ("CN=server", "localhost, 127.0.0.1, ::1")
    assert (theirs.valid_from, theirs.valid_until) == (parsed.not_valid_before_utc, parsed.not_valid_after_utc)
    assert theirs.valid_until - theirs.valid_from > timedelta(days=300)
    assert theirs.pin == pin(certs.server)
    assert len(theirs.fingerprint.split(":")) == 32
    assert ours.subject == "CN=client"


@pytest.mark.parametrize(
    ("server", "settings", "refused"),
    [
        ("untrusted_server", own(), ErrorCode.CERTIFICATE_UNTRUSTED),
        ("expired", own(), ErrorCode.CERTIFICATE_EXPIRED),
        ("server", own(pins=("sha256/" + "A" * 43 + "=",)), ErrorCode.CERTIFICATE_PIN),
    ],
)
async def test_a_hundred_refused_certificates_leave_nothing(
    certs: Certificates, way: str, server: str, settings: Settings, refused: ErrorCode
) -> None:
    """No socket, and no object of a connection (NanoMQ kept on using a certificate that it had freed)."""

    def connections() -> int:
        gc.collect()
        kinds = {"ClientConnection", "TlsStream", "QuicDriver", "CertificateVerifier", "QuicTransport", "TcpTransport"}
        return sum(type(item).__name__ in kinds for item in gc.get_objects())

    async with serve(way, getattr(certs, server)) as running:
        tls = settings(certs)
        error = await running.attempt(tls)
        assert error is not None
        del error
        files, objects = None, connections()
        for _ in range(100):
            error = await running.attempt(tls)
            assert error is not None
            assert error.code is refused
            del error
            files = files or len(open_files())
        assert connections() <= objects
        await wait_until(lambda: len(open_files()) <= (files or 0) + 2, what="closed sockets")
