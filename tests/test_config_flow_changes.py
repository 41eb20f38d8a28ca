"""Changing a bridge through the user interface: brokers, refused credentials."""

from homeassistant.config_entries import ConfigEntryState, ConfigFlowResult
from homeassistant.core import HomeAssistant
from homeassistant.data_entry_flow import FlowResultType
from pytest_homeassistant_custom_component.common import MockConfigEntry

from .ha_flows import fill, local_input, remote_input, suggested
from .ha_helpers import (
    CLIENT_ID,
    bridge_entry,
    local_data,
    mqtt_entry,
    remote_data,
    set_up,
    state,
    wait_for_state,
    wait_running,
)
from .support.certs import Certificates
from .support.mosquitto import Mosquitto
from .support.processes import free_port, wait_until
from .support.quic_front import Front

# --- changing ---------------------------------------------------------------------------------------------------------


async def reconfigure(hass: HomeAssistant, entry: MockConfigEntry, side: str) -> ConfigFlowResult:
    """Open the form of one broker."""
    result = await entry.start_reconfigure_flow(hass)
    assert (result["type"], result["step_id"]) == (FlowResultType.MENU, "reconfigure")
    return await fill(hass, result, {"next_step_id": side})


async def test_change_the_remote_broker(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    await remote_broker.stop()
    remote_broker.options.users = {"bridge": "secret", "other": "hidden"}
    await remote_broker.start()
    remote = remote_data(quic_front.port, certs.ca_pem, username="bridge", password="secret", server_name="localhost")
    entry = bridge_entry(local_data(local_broker), remote)
    await set_up(hass, entry)
    await wait_running(hass, entry)

    result = await reconfigure(hass, entry, "remote")
    assert result["step_id"] == "remote"
    assert suggested(result, "username") == "bridge"
    assert suggested(result, "password") is None
    assert suggested(result, "tls", "server_name") == "localhost"
    assert suggested(result, "advanced", "client_id") == CLIENT_ID

    # Another user, and no password for it: that of the user before is not tried.
    result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem, username="other"))
    assert result["errors"] == {"username": "not_authorized"}
    # The same user: the password stays. The bridge which runs is not thrown out by the check.
    result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem, username="bridge", host="localhost"))
    assert (result["type"], result["reason"]) == (FlowResultType.ABORT, "reconfigure_successful")
    assert entry.data["remote"] == {**remote, "host": "localhost", "server_name": None}
    assert entry.title == "localhost"
    await hass.async_block_till_done()
    await wait_running(hass, entry)
    assert state(hass, entry, "remote_last_error") == "none"


async def test_change_nothing(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """Saving what is there already makes the bridge try again at once."""
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)
    hass.config_entries.async_update_entry(entry, title="My bridge")
    await hass.async_block_till_done()
    await wait_running(hass, entry)
    sessions = len(quic_front.stats.connects)
    result = await reconfigure(hass, entry, "remote")
    result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem))
    assert result["reason"] == "reconfigure_successful"
    await wait_until(lambda: len(quic_front.stats.connects) == sessions + 2, what="the check and a new session")
    await wait_for_state(hass, entry, "remote_last_error", "reconnect_requested")
    await wait_running(hass, entry)
    assert entry.title == "My bridge"


async def test_changes_are_tried_as_patiently_as_the_bridge_would(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """Behind a satellite what suits a home network would find every setting wrong."""
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    entry.add_to_hass(hass)
    hass.config_entries.async_update_entry(
        entry, options={"connection": {"profile": "custom", "handshake_timeout": 1, "keepalive": 17}}
    )
    result = await fill(
        hass, await reconfigure(hass, entry, "remote"), remote_input(quic_front.port, certs.ca_pem, host="localhost")
    )
    assert result["reason"] == "reconfigure_successful"
    assert quic_front.stats.connects[0].keepalive == 17


async def test_change_the_remote_to_one_in_use(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem)).add_to_hass(hass)
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem, client_id="second"))
    entry.add_to_hass(hass)
    result = await reconfigure(hass, entry, "remote")
    result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem))
    assert result["reason"] == "already_configured"
    assert entry.data["remote"]["client_id"] == "second"


async def test_change_the_local_broker(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    mqtt_entry(local_broker).add_to_hass(hass)
    entry = bridge_entry(local_data(None), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)

    result = await reconfigure(hass, entry, "local")
    assert (result["step_id"], suggested(result, "mode")) == ("local", "home_assistant")
    result = await fill(hass, result, {"mode": "custom"})
    assert result["step_id"] == "local_custom"
    result = await fill(hass, result, local_input(local_broker, port=free_port()))
    assert result["errors"] == {"port": "refused"}
    result = await fill(hass, result, local_input(local_broker))
    assert result["reason"] == "reconfigure_successful"
    assert entry.data["local"] == local_data(local_broker)
    await hass.async_block_till_done()
    await wait_running(hass, entry)

    result = await reconfigure(hass, entry, "local")
    assert suggested(result, "mode") == "custom"
    result = await fill(hass, result, {"mode": "home_assistant"})
    assert result["reason"] == "reconfigure_successful"
    assert entry.data["local"] == local_data(None)
    await hass.async_block_till_done()
    await wait_running(hass, entry)


# --- credentials that are refused -------------------------------------------------------------------------------------


async def reauth_form(hass: HomeAssistant) -> ConfigFlowResult:
    """Wait for the bridge to ask for credentials, and open the form as the frontend does."""
    await wait_until(hass.config_entries.flow.async_progress, what="a reauth flow")
    (flow,) = hass.config_entries.flow.async_progress()
    assert (flow["context"]["source"], flow["step_id"]) == ("reauth", "reauth_confirm")
    return await hass.config_entries.flow.async_configure(flow["flow_id"])


async def test_remote_refuses_credentials(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    entry = bridge_entry(
        local_data(local_broker), remote_data(quic_front.port, certs.ca_pem, username="bridge", password="old")
    )
    await set_up(hass, entry)
    await wait_running(hass, entry)
    await remote_broker.stop()
    remote_broker.options.users = {"bridge": "new"}
    await remote_broker.start()

    result = await reauth_form(hass)
    assert entry.state is ConfigEntryState.LOADED
    await wait_for_state(hass, entry, "status", "refused")
    assert (suggested(result, "username"), suggested(result, "password")) == ("bridge", None)
    user_input = {"username": "bridge", "advanced": {"client_id": CLIENT_ID}}
    result = await fill(hass, result, {**user_input, "password": "wrong"})
    assert (result["step_id"], result["errors"]) == ("reauth_confirm", {"username": "not_authorized"})
    result = await fill(hass, result, {**user_input, "advanced": {"client_id": ""}})
    assert result["errors"] == {"advanced": "client_id_empty"}
    result = await fill(hass, result, {**user_input, "password": "new"})
    assert (result["type"], result["reason"]) == (FlowResultType.ABORT, "reauth_successful")
    assert entry.data["remote"]["password"] == "new"
    await hass.async_block_till_done()
    await wait_running(hass, entry)
    assert not hass.config_entries.flow.async_progress()


async def test_credentials_are_right_again(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """The broker was mended, not the credentials: confirming them makes the bridge try at once, not minutes later."""
    remote_broker.options.users = {"bridge": "other"}
    await remote_broker.restart()
    entry = bridge_entry(
        local_data(local_broker), remote_data(quic_front.port, certs.ca_pem, username="bridge", password="secret")
    )
    await set_up(hass, entry)
    result = await reauth_form(hass)
    await remote_broker.stop()
    remote_broker.options.users = {"bridge": "secret"}
    await remote_broker.start()
    result = await fill(hass, result, {"username": "bridge", "advanced": {"client_id": CLIENT_ID}})
    assert result["reason"] == "reauth_successful"
    await wait_running(hass, entry)


async def test_credentials_are_asked_for_once(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    remote_broker.options.users = {"bridge": "secret"}
    await remote_broker.restart()
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    result = await reauth_form(hass)
    # Dismissed; refused again; and not asked for again.
    hass.config_entries.flow.async_abort(result["flow_id"])
    bridge = entry.runtime_data.bridge
    refused_at = bridge.status.remote.error.at
    bridge.reconnect()
    await wait_until(lambda: bridge.status.remote.error.at > refused_at, what="another refusal")
    await wait_for_state(hass, entry, "status", "refused")
    assert not hass.config_entries.flow.async_progress()
    # Let in, and refused again: asked for again.
    await remote_broker.stop()
    remote_broker.options.users = None
    await remote_broker.start()
    bridge.reconnect()
    await wait_running(hass, entry)
    await remote_broker.stop()
    remote_broker.options.users = {"bridge": "secret"}
    await remote_broker.start()
    await reauth_form(hass)


async def test_local_broker_refuses_credentials(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    local_broker.options.users = {"bridge": "secret"}
    await local_broker.restart()
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    result = await reauth_form(hass)
    assert (result["description_placeholders"] or {})["port"] == str(local_broker.port)
    user_input = {"username": "bridge", "password": "secret", "advanced": {"client_id": f"{CLIENT_ID}-local"}}
    result = await fill(hass, result, user_input)
    assert result["reason"] == "reauth_successful"
    assert entry.data["local"]["username"] == "bridge"
    await hass.async_block_till_done()
    await wait_running(hass, entry)


async def test_home_assistants_broker_refuses_credentials(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """They are for the mqtt integration to ask for."""
    local_broker.options.users = {"bridge": "secret"}
    await local_broker.restart()
    mqtt_entry(local_broker).add_to_hass(hass)
    entry = bridge_entry(local_data(None), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_for_state(hass, entry, "status", "refused")
    assert not hass.config_entries.flow.async_progress()


async def test_new_client_id_is_in_use(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem, client_id="second")).add_to_hass(
        hass
    )
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    entry.add_to_hass(hass)
    result = await entry.start_reauth_flow(hass)
    result = await fill(hass, result, {"advanced": {"client_id": "second"}})
    assert (result["type"], result["reason"]) == (FlowResultType.ABORT, "already_configured")
