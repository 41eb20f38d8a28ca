"""Debug logging, as it is enabled in the user interface: it tells what happens, and no secret."""

from collections.abc import AsyncIterator
import logging
from pathlib import Path

from homeassistant.config_entries import SOURCE_RECONFIGURE, ConfigEntry, ConfigFlowContext
from homeassistant.core import HomeAssistant
from homeassistant.data_entry_flow import FlowResultType
from homeassistant.setup import async_setup_component
import pytest
from pytest_homeassistant_custom_component.components.diagnostics import get_diagnostics_for_config_entry
from pytest_homeassistant_custom_component.typing import ClientSessionGenerator, WebSocketGenerator

from custom_components.quic_bridge.const import DOMAIN

from .ha_flows import begin, fill, local_input, remote_input
from .ha_helpers import CLIENT_ID, entity_id, mqtt_entry, wait_for_state, wait_running
from .support.certs import Certificates
from .support.client import Client
from .support.faults import refuse_publish, rewrite_connack
from .support.mosquitto import Mosquitto, MosquittoOptions
from .support.packets import PacketType, Property, packet
from .support.processes import wait_until
from .support.quic_front import Front
from .test_trust_flow import PASSWORD as KEY_PASSWORD, encrypted

LOCAL_PASSWORD = "sesame-of-the-home"
REMOTE_PASSWORD = "sesame-of-the-cloud"
NEW_PASSWORD = "sesame-of-tomorrow"
WRONG_PASSWORD = "sesame-with-a-typo"
PAYLOAD = b"nobody-else-is-to-read-this"


@pytest.fixture
async def home(socket_enabled: None, certs: Certificates, tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """A broker with passwords and client certificates."""
    options = MosquittoOptions(
        users={"home": LOCAL_PASSWORD}, tls=certs.server, client_ca_file=certs.ca_file, persistence=True
    )
    async with Mosquitto(tmp_path / "home", options) as broker:
        yield broker


async def enable_debug_logging(hass: HomeAssistant, hass_ws_client: WebSocketGenerator) -> None:
    """Do as the button on the integration's page does."""
    for component in (DOMAIN, "logger", "diagnostics"):
        assert await async_setup_component(hass, component, {})
    client = await hass_ws_client(hass)
    await client.send_json_auto_id(
        {"type": "logger/integration_log_level", "integration": DOMAIN, "level": "DEBUG", "persistence": "none"}
    )
    assert (await client.receive_json())["success"]
    for name in ("custom_components.quic_bridge.bridge.link", "quic", "paho.mqtt.client"):
        assert logging.getLogger(name).isEnabledFor(logging.DEBUG), name


def traces(records: list[logging.LogRecord], secrets: dict[str, str]) -> list[str]:
    """Find secrets in what was logged: the text, what it was made of, and tracebacks."""
    found = []
    for record in records:
        said = [record.getMessage(), repr(record.args), record.exc_text or "", repr(record.exc_info)]
        found += [
            f"{name} in {record.name}: {record.getMessage()[:200]}"
            for name, secret in secrets.items()
            if any(secret in text for text in said)
        ]
    return found


async def test_no_secret_is_logged(
    hass: HomeAssistant,
    home: Mosquitto,
    remote_broker: Mosquitto,
    quic_front: Front,
    certs: Certificates,
    hass_ws_client: WebSocketGenerator,
    hass_client: ClientSessionGenerator,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Through set-up, refusals, messages that are and are not wanted, outages, TLS errors, and changes of settings."""
    caplog.set_level(logging.DEBUG)
    await enable_debug_logging(hass, hass_ws_client)
    remote_broker.options.users = {"cloud": REMOTE_PASSWORD}
    await remote_broker.restart()
    mqtt_entry(
        home,
        port=home.tls_port,
        username="home",
        password=LOCAL_PASSWORD,
        certificate=certs.ca_pem,
        client_cert=certs.client.pem,
        client_key=certs.client.key_pem,
    ).add_to_hass(hass)

    # Set up, with what goes wrong on the way.
    result = await fill(hass, await begin(hass), {"mode": "home_assistant"})
    typed = remote_input(quic_front.port, certs.other_authority.pem, username="cloud", password=WRONG_PASSWORD)
    result = await fill(hass, result, typed)
    assert result["step_id"] == "certificate"
    result = await fill(hass, result, {"next_step_id": "back"})
    assert result["step_id"] == "remote"
    typed = remote_input(quic_front.port, certs.ca_pem, username="cloud", password=WRONG_PASSWORD)
    result = await fill(hass, result, typed)
    assert result["errors"] == {"username": "not_authorized"}
    result = await fill(hass, result, {**typed, "password": REMOTE_PASSWORD})
    result = await fill(hass, result, {"send": ["up/#"], "receive": ["down/#"]})
    assert result["type"] is FlowResultType.CREATE_ENTRY
    entry: ConfigEntry = result["result"]
    await wait_running(hass, entry)

    # Messages: wanted, too large, refused, malformed.
    async with (
        Client(*home.address, username="home", password=LOCAL_PASSWORD) as here,
        Client(*remote_broker.address, username="cloud", password=REMOTE_PASSWORD) as away,
    ):
        await here.subscribe("down/#", qos=2)
        for qos in range(3):
            await here.publish("up/lamp", PAYLOAD, qos, retain=True)
            await away.publish("down/lamp", PAYLOAD, qos)
        await here.wait_for(3)
        quic_front.add_rule(refuse_publish(0x99, topic="up/refused"))
        await here.publish("up/refused", PAYLOAD, 1)
        await wait_for_state(hass, entry, "messages_dropped", "1")
        rule = rewrite_connack({Property.MAXIMUM_PACKET_SIZE: 200})
        quic_front.add_rule(rule)
        for malformed in (
            packet(PacketType.PUBLISH << 4 | 6, PAYLOAD),
            packet(PacketType.PUBLISH << 4 | 2, b"\xff\xff" + PAYLOAD),
            packet(PacketType.SUBACK << 4, b""),
            packet(PacketType.CONNACK << 4, PAYLOAD),
            packet(PacketType.AUTH << 4, PAYLOAD),
            packet(PacketType.DISCONNECT << 4, PAYLOAD),
            packet(0, PAYLOAD),
        ):
            quic_front.connection.send(malformed)
            await wait_for_state(hass, entry, "remote_connection", "off")
            entry.runtime_data.bridge.reconnect()
            await wait_running(hass, entry)
        await here.publish("up/large", PAYLOAD * 10, 1)
        await wait_for_state(hass, entry, "messages_dropped", "2")
        quic_front.remove_rule(rule)

        # An outage, and an Outbox that is damaged in it.
        await quic_front.stop()
        await wait_for_state(hass, entry, "remote_connection", "off")
        for qos in range(3):
            await here.publish("up/lamp", PAYLOAD, qos)
        await wait_for_state(hass, entry, "outbox_messages", "2")
        switch = {"entity_id": entity_id(hass, entry, "enabled")}
        await hass.services.async_call("switch", "turn_off", switch, blocking=True)
        [path] = Path(hass.config.path(".storage", DOMAIN)).glob("*.db")  # noqa: ASYNC240 # a moment, in a test
        content = path.read_bytes()
        assert PAYLOAD in content
        path.write_bytes(b"damaged " * 64 + content[512:])
        await hass.services.async_call("switch", "turn_on", switch, blocking=True)
        await quic_front.start()
        entry.runtime_data.bridge.reconnect()
        await wait_running(hass, entry)
    assert "The Outbox file was damaged" in caplog.text

    # Credentials that are refused later, with the form that asks for new ones; diagnostics, actions.
    await remote_broker.stop()
    remote_broker.options.users = {"cloud": NEW_PASSWORD}
    await remote_broker.start()
    entry.runtime_data.bridge.reconnect()
    await wait_until(hass.config_entries.flow.async_progress, what="a reauth flow")
    answer = await hass.services.async_call(DOMAIN, "test_connection", {}, blocking=True, return_response=True)
    assert answer is not None
    await hass.services.async_call(DOMAIN, "get_status", {}, blocking=True, return_response=True)
    await get_diagnostics_for_config_entry(hass, hass_client, entry)
    [flow] = hass.config_entries.flow.async_progress()
    result = await hass.config_entries.flow.async_configure(flow["flow_id"])
    typed = {"username": "cloud", "password": WRONG_PASSWORD, "advanced": {"client_id": CLIENT_ID}}
    result = await fill(hass, result, typed)
    assert result["errors"] == {"username": "not_authorized"}
    result = await fill(hass, result, {**typed, "password": NEW_PASSWORD})
    assert result["reason"] == "reauth_successful"
    await hass.async_block_till_done()
    await wait_running(hass, entry)

    # A client certificate with an encrypted key, and logs for experts, early data and a fallback that answers not.
    context: ConfigFlowContext = {"source": SOURCE_RECONFIGURE, "entry_id": entry.entry_id}
    result = await hass.config_entries.flow.async_init(DOMAIN, context=context)
    result = await fill(hass, result, {"next_step_id": "remote"})
    quic_front.policy.client_ca_pem = certs.ca_pem
    mine = {"ca": certs.ca_pem, "verify": True, "certificate": certs.client.pem, "private_key": encrypted(certs.client)}
    for password, error in ((WRONG_PASSWORD, "client_certificate_invalid"), (KEY_PASSWORD, None)):
        typed = remote_input(quic_front.port, None, username="cloud", tls={**mine, "private_key_password": password})
        result = await fill(hass, result, typed)
        assert result.get("errors") == (None if error is None else {"tls": error})
    assert result["reason"] == "reconfigure_successful"
    options = {"expert": {"early_data": True, "qlog": True, "key_log": True}}
    hass.config_entries.async_update_entry(entry, options=options)
    await hass.async_block_till_done()
    await wait_running(hass, entry)
    entry.runtime_data.bridge.reconnect()
    await wait_for_state(hass, entry, "remote_reconnects", "1")
    await wait_running(hass, entry)

    # Another local broker, with its password in the entry.
    result = await hass.config_entries.flow.async_init(DOMAIN, context=context)
    result = await fill(hass, result, {"next_step_id": "local"})
    result = await fill(hass, result, {"mode": "custom"})
    result = await fill(hass, result, local_input(home, username="home", password=LOCAL_PASSWORD))
    assert result["reason"] == "reconfigure_successful"
    await hass.async_block_till_done()
    await wait_running(hass, entry)
    key_logs = list(Path(hass.config.path()).rglob("*key*log*"))  # noqa: ASYNC240 # a moment, in a test
    tls_secrets = {line.split()[-1] for path in key_logs if path.is_file() for line in path.read_text().splitlines()}
    assert tls_secrets
    assert await hass.config_entries.async_remove(entry.entry_id)

    # It does tell what happens, beneath too.
    assert {"custom_components.quic_bridge.bridge.link", "quic"} <= {record.name for record in caplog.records}
    secrets = {
        "local password": LOCAL_PASSWORD,
        "remote password": REMOTE_PASSWORD,
        "new password": NEW_PASSWORD,
        "wrong password": WRONG_PASSWORD,
        "payload": PAYLOAD.decode(),
        "private key": certs.client.key_pem.splitlines()[1],
        "encrypted key": str(mine["private_key"]).splitlines()[1],
        "its password": KEY_PASSWORD,
        **{f"secret of TLS {number}": secret for number, secret in enumerate(tls_secrets)},
    }
    assert not traces(caplog.records, secrets)
