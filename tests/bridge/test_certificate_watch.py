"""Certificates of a connection that lasts: looked at anew now and then, without touching it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
import shutil

import pytest

from custom_components.quic_bridge.bridge import certificate_watch
from custom_components.quic_bridge.bridge.config import TlsConfig

from ..support.certs import Certificates
from ..support.processes import wait_until
from .link_support import Scene, make_scene

pytestmark = pytest.mark.usefixtures("socket_enabled")


@pytest.fixture
async def scene(
    socket_enabled: None, certs: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Scene]:
    monkeypatch.setattr(certificate_watch, "LOOK_INTERVAL", 0.1)
    monkeypatch.setattr(certificate_watch, "FIRST_LOOK", 0.1)
    async with make_scene(certs, tmp_path) as scene:
        yield scene


async def test_renewed_certificates_are_seen_without_a_reconnect(
    scene: Scene, certs: Certificates, tmp_path: Path
) -> None:
    scene.front.policy.client_ca_pem = certs.ca_pem
    file, key = tmp_path / "client.pem", tmp_path / "client.key"
    shutil.copy(certs.expiring_client.cert_file, file)
    shutil.copy(certs.expiring_client.key_file, key)
    scene.remote_config = replace(
        scene.remote_config, tls=TlsConfig(ca=certs.ca_pem, certificate=file, private_key=key)
    )
    scene.front.renew(certs.expiring.cert_file, certs.expiring.key_file)
    await scene.running()
    link = scene.link
    assert link.certificate is not None
    assert link.client_certificate is not None
    assert (link.certificate.subject, link.client_certificate.subject) == ("CN=expiring", "CN=expiring_client")

    scene.front.renew(certs.server.cert_file, certs.server.key_file)
    shutil.copy(certs.client.cert_file, file)
    shutil.copy(certs.client.key_file, key)
    await scene.until(
        lambda status: status.remote.certificate is not None and status.remote.certificate.subject == "CN=server",
        "the new certificate",
    )
    ours = scene.link.client_certificate
    assert ours is not None
    assert ours.subject == "CN=client"
    # The connection is the one that it was, and nobody else has logged in.
    assert scene.link.reconnects == 0
    assert len(scene.front.stats.connects) == 1
    # Nothing is known of the local broker, which has no TLS.
    assert scene.bridge.status.local.certificate is None


async def test_a_look_that_fails_changes_nothing(scene: Scene) -> None:
    await scene.running()
    handshakes = scene.front.stats.handshakes
    await wait_until(lambda: scene.front.stats.handshakes > handshakes, what="a look")
    known = scene.link.certificate
    assert known is not None
    scene.front.policy.alpn = ("h3",)
    closes = len(scene.front.stats.closes)
    await wait_until(lambda: scene.front.stats.connections > handshakes + 2, what="looks that fail")
    assert scene.link.certificate == known
    assert scene.link.reconnects == 0
    assert len(scene.front.stats.closes) >= closes
