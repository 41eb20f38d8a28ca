"""Repair issues: there while something is to be mended, gone when it is."""

from pathlib import Path
import shutil

from cryptography import x509
from homeassistant.components.repairs import FlowType, repairs_flow_manager
from homeassistant.const import STATE_OFF
from homeassistant.core import HomeAssistant
from homeassistant.data_entry_flow import FlowResultType
from homeassistant.helpers.issue_registry import IssueEntry, async_get as async_get_issues
from homeassistant.setup import async_setup_component
import pytest
from pytest_homeassistant_custom_component.common import MockConfigEntry

from custom_components.quic_bridge.bridge.certificates import public_key_pin
from custom_components.quic_bridge.bridge.status import Side
from custom_components.quic_bridge.const import DOMAIN

from .ha_flows import fill, remote_input
from .ha_helpers import (
    CLIENT_ID,
    bridge_entry,
    local_data,
    mqtt_entry,
    remote_data,
    route_data,
    set_up,
    state,
    wait_for_state,
    wait_running,
)
from .support.certs import Certificates
from .support.faults import refuse_connect, refuse_filters
from .support.mosquitto import Mosquitto, MosquittoOptions
from .support.processes import wait_until
from .support.quic_front import Front


def issue(hass: HomeAssistant, entry: MockConfigEntry, name: str) -> IssueEntry | None:
    """Return an issue of an entry."""
    return async_get_issues(hass).async_get_issue(DOMAIN, f"{name}_{entry.entry_id}")


def placeholders(hass: HomeAssistant, entry: MockConfigEntry, name: str) -> dict[str, str]:
    """Return what an issue says about an entry."""
    found = issue(hass, entry, name)
    assert found is not None
    return found.translation_placeholders or {}


async def test_outbox_that_does_not_work_is_an_issue(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    folder = Path(hass.config.path(".storage", DOMAIN))
    folder.parent.mkdir()  # a moment, in a test
    folder.write_text("not a folder")  # noqa: ASYNC240
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)
    assert placeholders(hass, entry, "outbox")["name"] == "127.0.0.1"

    folder.unlink()  # noqa: ASYNC240
    await wait_until(lambda: issue(hass, entry, "outbox") is None, what="the end of the issue")


async def test_refused_topics_are_an_issue(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """Named by their filters; the other routes work."""
    rules = refuse_filters({"down/#": 0x87, "secret/+": 0x80})
    quic_front.add_rule(*rules)
    routes = [route_data("to_local", topic_filter) for topic_filter in ("down/#", "secret/+", "fine")]
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem), routes)
    await set_up(hass, entry)
    await wait_running(hass, entry)
    name = "subscriptions_refused_remote"
    refusals = ["- `← down/#`: not authorized (0x87)", "- `← secret/+`: unspecified error (0x80)"]
    assert placeholders(hass, entry, name)["routes"] == "\n".join(refusals)
    assert issue(hass, entry, "subscriptions_refused_local") is None

    # One of the two is done without.
    secret = next(route for route in entry.subentries.values() if route.data["topic_filter"] == "secret/+")
    hass.config_entries.async_remove_subentry(entry, secret.subentry_id)
    await hass.async_block_till_done()
    assert placeholders(hass, entry, name)["routes"] == refusals[0]

    # The other one is allowed now.
    quic_front.remove_rule(*rules)
    entry.runtime_data.bridge.reconnect()
    await wait_until(lambda: issue(hass, entry, name) is None, what="the end of the issue")
    assert state(hass, entry, "route_problems") == STATE_OFF


async def test_many_refused_topics(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """The issue stays readable, and goes with the bridge."""
    filters = [f"down/{number}" for number in range(30)]
    quic_front.add_rule(*refuse_filters(dict.fromkeys(filters, 0x87)))
    routes = [route_data("to_local", topic_filter) for topic_filter in filters]
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem), routes)
    await set_up(hass, entry)
    await wait_running(hass, entry)
    name = "subscriptions_refused_remote"
    assert placeholders(hass, entry, name)["routes"].splitlines()[-2:] == [
        "- `← down/19`: not authorized (0x87)",
        "- … (+10)",
    ]
    assert await hass.config_entries.async_unload(entry.entry_id)
    assert issue(hass, entry, name) is None


# --- what a broker refuses, and the way out ---------------------------------------------------------------------------


async def test_refusal_is_an_issue_until_it_is_mended(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """From the issue to the settings, and to a bridge that runs."""
    assert await async_setup_component(hass, "repairs", {})
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, None))
    await set_up(hass, entry)
    await wait_until(lambda: issue(hass, entry, "refused_remote"), what="the issue")
    found = issue(hass, entry, "refused_remote")
    assert found is not None
    assert (found.translation_key, found.is_fixable) == ("refused_certificate_untrusted", True)
    said = placeholders(hass, entry, "refused_remote")
    assert (said["host"], said["port"]) == ("127.0.0.1", str(quic_front.port))
    assert "certificate" in said["detail"]

    manager = repairs_flow_manager(hass)
    assert manager is not None
    result = await manager.async_init(DOMAIN, data={"issue_id": found.issue_id})
    assert (result["type"], result["step_id"]) == (FlowResultType.FORM, "confirm")
    result = await manager.async_configure(result["flow_id"], {})
    assert result["type"] is FlowResultType.ABORT
    kind, flow_id = result["next_flow"]
    assert kind is FlowType.CONFIG_FLOW
    # Opening the settings mends nothing yet.
    assert issue(hass, entry, "refused_remote") is not None

    settings = await hass.config_entries.flow.async_configure(flow_id)
    assert (settings["type"], settings["step_id"]) == (FlowResultType.FORM, "remote")
    settings = await fill(hass, settings, remote_input(quic_front.port, certs.ca_pem))
    assert settings["reason"] == "reconfigure_successful"
    await hass.async_block_till_done()
    await wait_running(hass, entry)
    assert issue(hass, entry, "refused_remote") is None


async def test_refusal_of_another_kind_takes_its_place(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    quic_front.policy.alpn = ("h3",)
    await set_up(hass, entry)

    def key() -> str | None:
        found = issue(hass, entry, "refused_remote")
        return found.translation_key if found is not None else None

    await wait_until(lambda: key() == "refused_not_mqtt_quic", what="the first issue")
    quic_front.policy.alpn = ("mqtt",)
    refusal = refuse_connect(0x83)
    quic_front.add_rule(refusal)
    bridge = entry.runtime_data.bridge
    bridge.reconnect()
    await wait_until(lambda: key() == "refused_connect_refused", what="the second issue")
    # Other credentials may help here, and are asked for: no issue of ours.
    quic_front.remove_rule(refusal)
    refusal = refuse_connect(0x86)
    quic_front.add_rule(refusal)
    bridge.reconnect()
    await wait_until(hass.config_entries.flow.async_progress, what="a reauth flow")
    assert key() is None
    # A broker that is just away is none either.
    await quic_front.stop()
    bridge.reconnect()
    await wait_for_state(hass, entry, "status", "remote_down")
    assert key() is None


async def test_refusals_by_home_assistants_broker(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """Its credentials are the MQTT integration's to ask for, but that may be content with them."""
    entry = bridge_entry(local_data(None), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_until(lambda: issue(hass, entry, "refused_local"), what="the issue")
    found = issue(hass, entry, "refused_local")
    assert found is not None
    assert found.translation_key == "refused_local_entry_missing"
    assert placeholders(hass, entry, "refused_local")["host"] == ""

    local_broker.options.users = {"bridge": "secret"}
    await local_broker.restart()
    mqtt_entry(local_broker).add_to_hass(hass)
    entry.runtime_data.bridge.reconnect()
    await wait_for_state(hass, entry, "local_last_error", "not_authorized")
    found = issue(hass, entry, "refused_local")
    assert found is not None
    assert found.translation_key == "refused_mqtt_credentials"
    assert placeholders(hass, entry, "refused_local")["port"] == str(local_broker.port)


async def test_another_client_with_our_identifier(
    hass: HomeAssistant,
    local_broker: Mosquitto,
    quic_front: Front,
    certs: Certificates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("custom_components.quic_bridge.issues.SHOWN_AFTER", 3.0)
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)
    bridge = entry.runtime_data.bridge
    for reconnects in (0, 1):
        await wait_for_state(hass, entry, "remote_reconnects", str(reconnects))
        quic_front.connection.kick(0x8E)
        await wait_for_state(hass, entry, "remote_connection", "off")
        await wait_for_state(hass, entry, "remote_last_error", "session_taken_over")
        said = placeholders(hass, entry, "taken_over_remote")
        assert (said["client_id"], said["port"]) == (f"`{CLIENT_ID}`", str(quic_front.port))
        bridge.reconnect(Side.REMOTE)
        await wait_running(hass, entry)
        # It may come back.
        assert issue(hass, entry, "taken_over_remote") is not None
    await wait_until(lambda: issue(hass, entry, "taken_over_remote") is None, what="the end of the issue")

    # It goes with the bridge, too.
    monkeypatch.setattr("custom_components.quic_bridge.issues.SHOWN_AFTER", 600.0)
    quic_front.connection.kick(0x8E)
    await wait_until(lambda: issue(hass, entry, "taken_over_remote"), what="the issue")
    assert await hass.config_entries.async_unload(entry.entry_id)
    assert issue(hass, entry, "taken_over_remote") is None


async def test_verification_that_is_off(
    hass: HomeAssistant, quic_front: Front, certs: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with Mosquitto(tmp_path_factory.mktemp("tls"), MosquittoOptions(tls=certs.untrusted_server)) as broker:
        local = local_data(broker, port=broker.tls_port, use_tls=True, verify=False)
        remote = remote_data(quic_front.port, None, verify=False)
        entry = bridge_entry(local, remote)
        await set_up(hass, entry)
        await wait_running(hass, entry)
        assert placeholders(hass, entry, "verification_off_local")["port"] == str(broker.tls_port)
        assert placeholders(hass, entry, "verification_off_remote")["port"] == str(quic_front.port)
        remote = remote_data(quic_front.port, certs.ca_pem)
        hass.config_entries.async_update_entry(entry, data={"local": local, "remote": remote})
        await hass.async_block_till_done()
        await wait_running(hass, entry)
        assert issue(hass, entry, "verification_off_local") is not None
        assert issue(hass, entry, "verification_off_remote") is None
        assert await hass.config_entries.async_unload(entry.entry_id)
        assert issue(hass, entry, "verification_off_local") is None


# --- certificates that run out ----------------------------------------------------------------------------------------


async def test_certificates_that_run_out(
    hass: HomeAssistant,
    local_broker: Mosquitto,
    quic_front: Front,
    certs: Certificates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    entity_registry_enabled_by_default: None,
) -> None:
    """Told of in time, with the date and what to do; over when they are renewed, without a reconnect."""
    monkeypatch.setattr("custom_components.quic_bridge.bridge.certificate_watch.LOOK_INTERVAL", 0.2)
    quic_front.policy.client_ca_pem = certs.ca_pem
    quic_front.renew(certs.expiring.cert_file, certs.expiring.key_file)
    file, key = tmp_path / "client.pem", tmp_path / "client.key"
    shutil.copy(certs.expiring_client.cert_file, file)
    shutil.copy(certs.expiring_client.key_file, key)
    remote = remote_data(quic_front.port, certs.ca_pem, certificate=str(file), private_key=str(key))
    entry = bridge_entry(local_data(local_broker), remote)
    await set_up(hass, entry)
    await wait_running(hass, entry)

    certificate = x509.load_pem_x509_certificate(certs.expiring.pem.encode())
    until = certificate.not_valid_after_utc
    said = placeholders(hass, entry, "certificate_expires_remote")
    assert (said["date"], said["subject"]) == (f"{until:%Y-%m-%d}", "`CN=expiring`")
    assert placeholders(hass, entry, "client_certificate_expires_remote")["subject"] == "`CN=expiring_client`"
    found = issue(hass, entry, "certificate_expires_remote")
    assert found is not None
    assert not found.is_fixable
    found = issue(hass, entry, "client_certificate_expires_remote")
    assert found is not None
    assert found.is_fixable
    assert state(hass, entry, "remote_certificate_expires") == until.isoformat()
    assert state(hass, entry, "remote_client_certificate_expires") != "unknown"
    assert state(hass, entry, "local_certificate_expires") == "unknown"

    quic_front.renew(certs.server.cert_file, certs.server.key_file)
    shutil.copy(certs.client.cert_file, file)
    shutil.copy(certs.client.key_file, key)
    await wait_until(
        lambda: (
            issue(hass, entry, "certificate_expires_remote") is None
            and issue(hass, entry, "client_certificate_expires_remote") is None
        ),
        what="the end of both issues",
    )
    assert state(hass, entry, "remote_reconnects") == "0"


async def test_a_pinned_certificate_may_run_out(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    certificate = x509.load_pem_x509_certificate(certs.expiring.pem.encode())
    quic_front.renew(certs.expiring.cert_file, certs.expiring.key_file)
    remote = remote_data(quic_front.port, None, verify=False, pins=[public_key_pin(certificate)])
    entry = bridge_entry(local_data(local_broker), remote)
    await set_up(hass, entry)
    await wait_running(hass, entry)
    assert state(hass, entry, "remote_certificate_expires") == certificate.not_valid_after_utc.isoformat()
    assert issue(hass, entry, "certificate_expires_remote") is None
