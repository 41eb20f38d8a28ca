"""TLS in the user interface: client certificates and keys, pins, files, and certificates that are not trusted."""

from io import BytesIO
from pathlib import Path
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from homeassistant.config_entries import SOURCE_RECONFIGURE, ConfigFlowContext, ConfigFlowResult
from homeassistant.core import HomeAssistant
from homeassistant.data_entry_flow import FlowResultType
from homeassistant.helpers import issue_registry as ir
import pytest
from pytest_homeassistant_custom_component.common import MockConfigEntry
from pytest_homeassistant_custom_component.typing import ClientSessionGenerator

from custom_components.quic_bridge import trust_flow
from custom_components.quic_bridge.bridge.certificates import public_key_pin
from custom_components.quic_bridge.bridge.check import show_certificate
from custom_components.quic_bridge.bridge.config import BrokerConfig
from custom_components.quic_bridge.bridge.status import CertificateStatus
from custom_components.quic_bridge.const import DOMAIN
from custom_components.quic_bridge.tls_forms import KEPT

from .ha_flows import Input, begin, fill, finish, local_input, reach_remote, remote_input, suggested
from .ha_helpers import bridge_entry, local_data, remote_data, set_up, state, wait_for_state, wait_running
from .support.certs import Certificate, Certificates
from .support.mosquitto import Mosquitto, MosquittoOptions
from .support.quic_front import Front

PASSWORD = "a key's password"


def tls_input(port: int, **tls: object) -> Input:
    """What is typed for the remote broker, with a TLS section."""
    return {**remote_input(port, None), "tls": {"verify": True, **tls}}


def pin(certificate: Certificate) -> str:
    return public_key_pin(x509.load_pem_x509_certificate(certificate.pem.encode()))


def encrypted(certificate: Certificate) -> str:
    """A certificate's key, encrypted."""
    key = serialization.load_pem_private_key(certificate.key_pem.encode(), None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(PASSWORD.encode()),
    ).decode()


async def upload(hass: HomeAssistant, hass_client: ClientSessionGenerator, content: bytes) -> str:
    """Upload a file as the frontend does."""
    response = await (await hass_client()).post("/api/file_upload", data={"file": BytesIO(content)})
    file_id: str = (await response.json())["file_id"]
    return file_id


def shown(result: ConfigFlowResult) -> str:
    """All that the browser gets."""
    schema = result["data_schema"]
    assert schema is not None
    markers = [*schema.schema, *schema.schema["tls"].schema.schema]
    return str([getattr(marker, "description", None) for marker in markers]) + str(result["description_placeholders"])


async def reconfigure(hass: HomeAssistant, entry: MockConfigEntry) -> ConfigFlowResult:
    """Open the form of the remote broker."""
    context = ConfigFlowContext(source=SOURCE_RECONFIGURE, entry_id=entry.entry_id)
    result = await hass.config_entries.flow.async_init(DOMAIN, context=context)
    return await fill(hass, result, {"next_step_id": "remote"})


# --- client certificates ----------------------------------------------------------------------------------------------


async def test_client_certificate_with_an_encrypted_key(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """The key never comes back to the browser; it is kept, and goes with its certificate."""
    quic_front.policy.client_ca_pem = certs.ca_pem
    mine = certs.client
    key = encrypted(mine)
    given = {"ca": certs.ca_pem, "certificate": mine.pem, "private_key": key}
    result = await reach_remote(hass, local_broker)
    result = await fill(hass, result, tls_input(quic_front.port, **given))
    assert result["errors"] == {"tls": "client_certificate_invalid"}
    assert "no password" in (result["description_placeholders"] or {})["detail"]
    assert suggested(result, "tls", "private_key") == KEPT
    assert suggested(result, "tls", "certificate") == mine.pem
    given["private_key"] = KEPT
    result = await fill(hass, result, tls_input(quic_front.port, **given, private_key_password="wrong"))
    assert result["errors"] == {"tls": "client_certificate_invalid"}
    assert suggested(result, "tls", "private_key_password") is None
    assert "PRIVATE KEY" not in shown(result)
    assert "wrong" not in shown(result)
    result = await fill(hass, result, tls_input(quic_front.port, **given, private_key_password=PASSWORD))
    entry = await finish(hass, result)
    stored = entry.data["remote"]
    assert (stored["certificate"], stored["private_key"]) == (mine.pem, key)
    assert stored["private_key_password"] == PASSWORD

    # Changed later: nothing of it is shown, all of it is kept.
    result = await reconfigure(hass, entry)
    assert suggested(result, "tls", "private_key") == KEPT
    assert suggested(result, "tls", "private_key_password") is None
    assert "PRIVATE KEY" not in shown(result)
    result = await fill(hass, result, tls_input(quic_front.port, **given))
    assert result["reason"] == "reconfigure_successful"
    assert entry.data["remote"] == stored
    await hass.async_block_till_done()

    # Another key: the password is not its.
    result = await reconfigure(hass, entry)
    result = await fill(hass, result, tls_input(quic_front.port, **{**given, "private_key": mine.key_pem}))
    assert result["reason"] == "reconfigure_successful"
    assert entry.data["remote"]["private_key"] == mine.key_pem
    assert "private_key_password" not in entry.data["remote"]
    await hass.async_block_till_done()

    # Removed: the key goes with the certificate.
    quic_front.policy.client_ca_pem = None
    result = await reconfigure(hass, entry)
    result = await fill(hass, result, tls_input(quic_front.port, ca=certs.ca_pem, private_key=KEPT))
    assert result["reason"] == "reconfigure_successful"
    assert not {"certificate", "private_key", "private_key_password"} & set(entry.data["remote"])
    await hass.async_block_till_done()
    await wait_running(hass, entry)


@pytest.mark.parametrize("kind", ["two files", "one file", "DER"])
async def test_client_certificate_uploaded(
    hass: HomeAssistant,
    local_broker: Mosquitto,
    quic_front: Front,
    certs: Certificates,
    hass_client: ClientSessionGenerator,
    kind: str,
) -> None:
    quic_front.policy.client_ca_pem = certs.ca_pem
    mine = certs.client
    result = await reach_remote(hass, local_broker)
    content = ssl.PEM_cert_to_DER_cert(mine.pem) if kind == "DER" else mine.pem.encode()
    if kind == "one file":
        content += mine.key_pem.encode()
    files = {"certificate_file": await upload(hass, hass_client, content)}
    if kind != "one file":
        files["private_key_file"] = await upload(hass, hass_client, mine.key_pem.encode())
    # Something else is wrong at first: the files are gone, what was in them is not.
    result = await fill(hass, result, tls_input(quic_front.port, ca=certs.other_authority.pem, **files))
    result = await fill(hass, result, {"next_step_id": "back"})
    assert result["errors"] == {"tls": "certificate_untrusted"}
    assert suggested(result, "tls", "private_key") == KEPT
    assert suggested(result, "tls", "certificate") == mine.pem
    assert suggested(result, "tls", "certificate_file") is None
    given = {"ca": certs.ca_pem, "certificate": mine.pem, "private_key": KEPT}
    entry = await finish(hass, await fill(hass, result, tls_input(quic_front.port, **given)))
    assert entry.data["remote"]["private_key"] == mine.key_pem


@pytest.mark.parametrize(
    ("tls", "error"),
    [
        ({"certificate": "rubbish", "private_key": "x"}, "certificate_invalid"),
        ({"private_key": "rubbish"}, "key_invalid"),
        ({"private_key_file": "0" * 32}, "key_invalid"),
        ({"pins": ["sha256/short"]}, "pin_invalid"),
        ({"certificate": "/no/such/file.pem", "private_key": "/no/such/file.key"}, "client_certificate_invalid"),
        ({"ca": "/no/such/ca.pem"}, "client_certificate_invalid"),
        ({"ca": "/no\0file"}, "client_certificate_invalid"),
    ],
)
async def test_tls_that_cannot_be_used(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates, tls: Input, error: str
) -> None:
    result = await reach_remote(hass, local_broker)
    result = await fill(hass, result, tls_input(quic_front.port, **tls))
    assert result["errors"] == {"tls": error}
    placeholders = result["description_placeholders"] or {}
    if str(tls.get("ca", tls.get("certificate", ""))).startswith("/"):
        assert str(tls.get("ca", tls.get("certificate"))) in placeholders["detail"]
    await finish(hass, await fill(hass, result, remote_input(quic_front.port, certs.ca_pem)))


async def test_files_are_read_at_each_connection(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates, tmp_path: Path
) -> None:
    quic_front.policy.client_ca_pem = certs.ca_pem
    mine = certs.client
    ca = tmp_path / "ca.pem"
    ca.write_text(certs.ca_pem)
    given = {"ca": str(ca), "certificate": str(mine.cert_file), "private_key": str(mine.key_file)}
    result = await reach_remote(hass, local_broker)
    entry = await finish(hass, await fill(hass, result, tls_input(quic_front.port, **given)))
    assert {key: entry.data["remote"][key] for key in given} == given
    result = await reconfigure(hass, entry)
    assert suggested(result, "tls", "private_key") == str(mine.key_file)
    hass.config_entries.flow.async_abort(result["flow_id"])

    # Replaced by that of another authority: refused from the next connection on, until it is right again.
    ca.write_text(certs.other_authority.pem)
    bridge = entry.runtime_data.bridge
    bridge.reconnect()
    await wait_refused(hass, entry)
    assert state(hass, entry, "remote_last_error") == "certificate_untrusted"
    ca.write_text(certs.ca_pem)
    bridge.reconnect()
    await wait_running(hass, entry)


async def wait_refused(hass: HomeAssistant, entry: MockConfigEntry) -> None:
    """Wait until the remote broker's certificate is refused."""
    await wait_for_state(hass, entry, "status", "refused")


async def test_client_certificate_for_the_local_broker(
    hass: HomeAssistant, quic_front: Front, certs: Certificates, tmp_path: Path
) -> None:
    options = MosquittoOptions(tls=certs.server, client_ca_file=certs.ca_file)
    async with Mosquitto(tmp_path, options) as broker:
        tls = {"use_tls": True, "ca": certs.ca_pem}
        result = await fill(hass, await begin(hass), local_input(broker, tls=tls, port=broker.tls_port))
        assert result["errors"] == {"tls": "client_certificate_required"}
        tls |= {"certificate": certs.client.pem, "private_key": certs.client.key_pem}
        result = await fill(hass, result, local_input(broker, tls=tls, port=broker.tls_port))
        assert result["step_id"] == "remote"
        entry = await finish(hass, await fill(hass, result, remote_input(quic_front.port, certs.ca_pem)))
        assert entry.data["local"]["private_key"] == certs.client.key_pem
        assert await hass.config_entries.async_unload(entry.entry_id)


# --- certificates that are not trusted --------------------------------------------------------------------------------


async def test_trust_a_certificate(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, certs: Certificates
) -> None:
    """It is shown, its key pinned by choice; a broker with another key is refused from then on."""
    own = certs.self_signed
    async with Front(remote_broker.address, own.cert_file, own.key_file) as front:
        result = await reach_remote(hass, local_broker)
        result = await fill(hass, result, remote_input(front.port, None))
        assert (result["type"], result["step_id"]) == (FlowResultType.MENU, "certificate")
        assert result["menu_options"] == ["back", "trust"]
        parsed = x509.load_pem_x509_certificate(own.pem.encode())
        placeholders = result["description_placeholders"] or {}
        assert placeholders["pin"] == f"`{pin(own)}`"
        assert placeholders["valid_until"] == f"{parsed.not_valid_after_utc:%Y-%m-%d}"
        assert "quic_bridge test self" in placeholders["subject"]
        assert "not trusted" in placeholders["detail"]
        # A page that was reloaded shows it once more.
        again = await hass.config_entries.flow.async_configure(result["flow_id"])
        assert again["step_id"] == "certificate"
        # Nobody has logged in so far.
        assert not front.stats.connects
        entry = await finish(hass, await fill(hass, result, {"next_step_id": "trust"}))
        assert entry.data["remote"]["pins"] == [pin(own)]
        assert entry.data["remote"]["verify"] is False
        port = front.port
        result = await reconfigure(hass, entry)
        assert suggested(result, "tls", "pins") == [pin(own)]
        hass.config_entries.flow.async_abort(result["flow_id"])
    other = certs.server
    async with Front(remote_broker.address, other.cert_file, other.key_file, port=port) as front:
        await wait_refused(hass, entry)
        assert state(hass, entry, "remote_last_error") == "certificate_pin"
        assert not front.stats.connects
        # The form says so, and pins no other key without a thought.
        result = await fill(hass, await reconfigure(hass, entry), tls_input(port, verify=False, pins=[pin(own), " "]))
        assert result["errors"] == {"tls": "certificate_pin"}
        assert pin(other) in (result["description_placeholders"] or {})["detail"]
        result = await fill(hass, result, tls_input(port, verify=False, pins=[f"sha256//{pin(other)[7:]}"]))
        assert result["reason"] == "reconfigure_successful"
        assert entry.data["remote"]["pins"] == [pin(other)]
        await hass.async_block_till_done()
        await wait_running(hass, entry)
        assert await hass.config_entries.async_unload(entry.entry_id)


async def test_a_certificate_that_cannot_be_shown(
    hass: HomeAssistant,
    local_broker: Mosquitto,
    remote_broker: Mosquitto,
    certs: Certificates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broker goes away before its certificate is looked at: the form has the error that was first."""
    wrong = certs.untrusted_server
    async with Front(remote_broker.address, wrong.cert_file, wrong.key_file) as front:

        async def too_late(config: BrokerConfig) -> CertificateStatus:
            await front.stop()
            return await show_certificate(config)

        monkeypatch.setattr(trust_flow, "show_certificate", too_late)
        result = await reach_remote(hass, local_broker)
        result = await fill(hass, result, remote_input(front.port, certs.ca_pem))
        assert (result["step_id"], result["errors"]) == ("remote", {"tls": "certificate_untrusted"})


async def test_verification_off_is_a_choice_with_an_issue(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """Not so with a pin, which is as good."""
    registry = ir.async_get(hass)
    for pins, issue in ([pin(certs.server)], False), ([], True):
        remote = remote_data(quic_front.port, None, verify=False, pins=pins)
        entry = bridge_entry(local_data(local_broker), remote)
        await set_up(hass, entry)
        await wait_running(hass, entry)
        found = registry.async_get_issue("quic_bridge", f"verification_off_remote_{entry.entry_id}")
        assert (found is not None) == issue
        assert await hass.config_entries.async_unload(entry.entry_id)
