"""The diagnostics download: all that helps, nothing that is private."""

from homeassistant.core import HomeAssistant
import pytest
from pytest_homeassistant_custom_component.components.diagnostics import get_diagnostics_for_config_entry
from pytest_homeassistant_custom_component.typing import ClientSessionGenerator

from .ha_helpers import CLIENT_ID, bridge_entry, local_data, mqtt_entry, remote_data, route_data, set_up, wait_for_state
from .support.certs import Certificates
from .support.mosquitto import Mosquitto
from .support.quic_front import Front

PRIVATE = ("localhost", "127.0.0.1", "my-user", "my-password", CLIENT_ID, "my-home", "bedroom", "BEGIN CERTIFICATE")


@pytest.mark.parametrize("mode", ["home_assistant", "custom", "missing"])
async def test_diagnostics(
    hass: HomeAssistant,
    local_broker: Mosquitto,
    quic_front: Front,
    certs: Certificates,
    hass_client: ClientSessionGenerator,
    mode: str,
) -> None:
    credentials = {"username": "my-user", "password": "my-password"}
    if mode == "home_assistant":
        mqtt_entry(local_broker, **credentials).add_to_hass(hass)
    local = local_data(local_broker, **credentials) if mode == "custom" else local_data(None)
    remote = remote_data(quic_front.port, certs.ca_pem, **credentials, host="localhost")
    routes = [
        {"direction": "both", "topic_filter": "my-home/+/bedroom/#"},
        route_data("to_remote", "my-home/#", target="my-home/{1}", exclude=["bedroom/+"], enabled=False),
    ]
    entry = bridge_entry(local, remote, routes)
    await set_up(hass, entry)
    await wait_for_state(hass, entry, "status", "refused" if mode == "missing" else "running")

    await quic_front.stop()
    # An error whose text quotes the address.
    await wait_for_state(hass, entry, "remote_last_error", "refused")
    found = await get_diagnostics_for_config_entry(hass, hass_client, entry)

    for word in PRIVATE:
        assert word not in str(found), word
    assert found["entry"]["data"]["remote"]["port"] == quic_front.port
    assert found["entry"]["data"]["local"]["mode"] == ("custom" if mode == "custom" else "home_assistant")
    assert found["routes"] == [
        route_data("both", "*/+/*/#"),
        route_data("to_remote", "*/#", target="*/{1}", exclude=["*/+"], enabled=False),
    ]
    plain = {"port": local_broker.port, "transport": "tcp", "username": True, "password": True, "tls": None}
    assert found["local_broker"] == ({"error": "local_entry_missing"} if mode == "missing" else plain)
    assert found["remote_broker"] == {
        "port": quic_front.port,
        "transport": "quic",
        "username": True,
        "password": True,
        "tls": {"own_ca": True, "own_server_name": False, "verify": True, "client_certificate": False},
    }
    status = found["status"]
    assert status["state"] == ("refused" if mode == "missing" else "remote_down")
    assert status["remote"]["error"]["code"] == "refused"
    assert "refuse" in status["remote"]["error"]["text"]
    assert status["remote"]["details"]["handshake_ms"] is not None or status["remote"]["attempts"]
    assert status["outbound"]["forwarded"] == 0
