"""The diagnostics download: all that helps, nothing that is private."""

from typing import Any

from cryptography import x509
from homeassistant.components.diagnostics import REDACTED
from homeassistant.core import HomeAssistant
import pytest
from pytest_homeassistant_custom_component.components.diagnostics import get_diagnostics_for_config_entry
from pytest_homeassistant_custom_component.typing import ClientSessionGenerator

from custom_components.quic_bridge.bridge.certificates import public_key_pin

from .ha_helpers import CLIENT_ID, bridge_entry, local_data, mqtt_entry, remote_data, route_data, set_up, wait_for_state
from .support.certs import Certificates
from .support.faults import refuse_filters
from .support.mosquitto import Mosquitto
from .support.quic_front import Front

PRIVATE = (
    "localhost",
    "127.0.0.1",
    "my-user",
    "my-password",
    CLIENT_ID,
    "my-home",
    "bedroom",
    "my-secret",
    "BEGIN ",
    "CN=",
    "sha256/",
)


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
    # Keys of a later version are private, too, at whatever depth.
    remote |= {"later": [{"name": "my-secret-topic"}]}
    remote |= {
        "certificate": certs.client.pem,
        "private_key": certs.client.key_pem,
        "private_key_password": "my-secret",
    }
    remote |= {"pins": [public_key_pin(x509.load_pem_x509_certificate(certs.server.pem.encode()))]}
    quic_front.add_rule(*refuse_filters({"my-home/+/bedroom/#": 0x87}))
    routes = [
        {"direction": "both", "topic_filter": "my-home/+/bedroom/#"},
        route_data("to_remote", "my-home/#", target="my-home/{1}", exclude=["bedroom/+"], enabled=False),
    ]
    entry = bridge_entry(local, remote, routes)
    await set_up(hass, entry)
    await wait_for_state(hass, entry, "status", "refused" if mode == "missing" else "running")

    await wait_for_state(hass, entry, "remote_connection", "on")
    await quic_front.stop()
    # An error whose text quotes the address.
    await wait_for_state(hass, entry, "remote_last_error", "refused")
    found: dict[str, Any] = await get_diagnostics_for_config_entry(hass, hass_client, entry)

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
        "tls": {"own_ca": True, "own_server_name": False, "verify": True, "pins": 1, "client_certificate": True},
    }
    assert found["entry"]["data"]["remote"]["later"] == [{"name": REDACTED}]
    assert found["paused"] is False
    assert ["refused", "*/+/*/#"] in found["route_problems"]
    status = found["status"]
    assert status["remote"]["failed_filters"] == [["*/+/*/#", "not authorized (0x87)"]]
    changes = [(change["state"], change["error"]) for change in found["history"] if change["side"] == "remote"]
    assert changes[:4] == [
        ("stopped", None),
        ("connecting", None),
        ("connected", None),
        ("waiting", "closed_by_broker"),
    ]
    assert "closed" in next(change["text"] for change in found["history"] if change["error"] == "closed_by_broker")
    assert ("refused_local_entry_missing" in found["issues"]) is (mode == "missing")
    assert "subscriptions_refused_remote" in found["issues"]
    assert status["state"] == ("refused" if mode == "missing" else "remote_down")
    assert status["remote"]["error"]["code"] == "refused"
    assert "refuse" in status["remote"]["error"]["text"]
    assert status["remote"]["details"]["handshake_ms"] is not None or status["remote"]["attempts"]
    assert status["outbound"]["forwarded"] == 0
    ours = x509.load_pem_x509_certificate(certs.client.pem.encode())
    told = status["remote"]["details"]["client_certificate"]
    assert (told["subject"], told["valid_until"][:10]) == (REDACTED, f"{ours.not_valid_after_utc:%Y-%m-%d}")


async def test_the_history_is_bounded(
    hass: HomeAssistant,
    local_broker: Mosquitto,
    quic_front: Front,
    certs: Certificates,
    hass_client: ClientSessionGenerator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("custom_components.quic_bridge.history.MAX_KEPT", 5)
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    for reconnects in range(3):
        await wait_for_state(hass, entry, "remote_reconnects", str(reconnects))
        await wait_for_state(hass, entry, "status", "running")
        entry.runtime_data.bridge.reconnect()
    await wait_for_state(hass, entry, "remote_reconnects", "3")
    found: dict[str, Any] = await get_diagnostics_for_config_entry(hass, hass_client, entry)
    assert len(found["history"]) == 5
    assert [change["at"] for change in found["history"]] == sorted(change["at"] for change in found["history"])
