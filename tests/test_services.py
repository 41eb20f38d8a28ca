"""The actions, called as automations do."""

from datetime import datetime
import json
from typing import Any

from homeassistant.core import HomeAssistant
from homeassistant.exceptions import ServiceValidationError
from homeassistant.setup import async_setup_component
import pytest
from pytest_homeassistant_custom_component.common import MockConfigEntry

from custom_components.quic_bridge.const import DOMAIN

from .ha_helpers import CLIENT_ID, bridge_entry, local_data, remote_data, set_up, wait_for_state, wait_running
from .support.certs import Certificates
from .support.client import Client
from .support.mosquitto import Mosquitto
from .support.quic_front import Front


@pytest.fixture
def entry(local_broker: Mosquitto, quic_front: Front, certs: Certificates) -> MockConfigEntry:
    """A bridge between the two brokers."""
    data = remote_data(quic_front.port, certs.ca_pem, username="my-user", password="my-password")
    return bridge_entry(local_data(local_broker), data)


async def call(hass: HomeAssistant, action: str, **data: object) -> dict[str, Any]:
    """Call an action that answers."""
    answer = await hass.services.async_call(DOMAIN, action, data, blocking=True, return_response=True)
    # Scripts and other programs get it as JSON.
    assert json.loads(json.dumps(answer)) == answer
    assert isinstance(answer, dict)
    return answer


async def test_reconnect(
    hass: HomeAssistant, entry: MockConfigEntry, local_broker: Mosquitto, quic_front: Front
) -> None:
    await set_up(hass, entry)
    await wait_running(hass, entry)
    data = {"config_entry_id": entry.entry_id, "side": "remote"}
    await hass.services.async_call(DOMAIN, "reconnect", data, blocking=True)
    await wait_for_state(hass, entry, "remote_reconnects", "1")
    assert local_broker.log.count(f"as {CLIENT_ID}-local") == 1
    # Both, and of the only bridge.
    await hass.services.async_call(DOMAIN, "reconnect", blocking=True)
    await wait_for_state(hass, entry, "remote_reconnects", "2")
    await wait_for_state(hass, entry, "local_reconnects", "1")


async def test_get_status(
    hass: HomeAssistant, entry: MockConfigEntry, local_broker: Mosquitto, quic_front: Front
) -> None:
    await set_up(hass, entry)
    await wait_running(hass, entry)
    async with Client(*local_broker.address) as home:
        await home.publish("up/lamp", b"on", 1)
        await wait_for_state(hass, entry, "messages_sent", "1")
        await quic_front.stop()
        await wait_for_state(hass, entry, "remote_last_error", "refused")
        await home.publish("up/lamp", b"lost", 0)
        await wait_for_state(hass, entry, "messages_dropped", "1")
    status = await call(hass, "get_status", config_entry_id=entry.entry_id)
    assert (status["paused"], status["state"]) == (False, "remote_down")
    assert (status["local"]["state"], status["local"]["protocol"]) == ("connected", "5")
    assert datetime.fromisoformat(status["local"]["connected_at"]).tzinfo is not None
    assert status["remote"]["error"]["code"] == "refused"
    assert status["remote"]["connected_at"] is None
    assert (status["outbound"]["forwarded"], status["outbound"]["dropped"]) == (1, {"disconnected": 1})
    assert status["outbox"]["messages"] == 0
    assert "my-password" not in str(status)


async def test_test_connection(
    hass: HomeAssistant, entry: MockConfigEntry, remote_broker: Mosquitto, quic_front: Front
) -> None:
    await set_up(hass, entry)
    await wait_running(hass, entry)
    answer = await call(hass, "test_connection")
    for side in ("local", "remote"):
        assert answer[side]["ok"] is True
        assert "error" not in answer[side]
        assert 0 < answer[side]["duration_ms"] < 5000
        assert 0 < answer[side]["ping_ms"] < answer[side]["duration_ms"]
        assert 0 < answer[side]["login_ms"] < answer[side]["duration_ms"]
        assert answer[side]["protocol"] == "5"
        # mosquitto's defaults, which it does not announce but for one.
        assert answer[side]["allows"] == {
            "receive_maximum": 20,
            "maximum_packet_size": 268_435_455,
            "maximum_qos": 2,
            "retain": True,
            "wildcard_subscriptions": True,
            "shared_subscriptions": True,
            "subscription_identifiers": True,
            "topic_alias_maximum": 10,
            "server_keep_alive": None,
            "session_expiry_interval": None,
        }
    assert answer["remote"]["address"] == f"127.0.0.1:{quic_front.port}"
    assert answer["remote"]["encryption"] == "QUIC v1"
    assert 0 < answer["remote"]["handshake_ms"] < answer["remote"]["login_ms"]
    assert answer["remote"]["round_trip_ms"] > 0
    # The bridge was not disturbed.
    assert entry.runtime_data.bridge.status.remote.reconnects == 0

    await remote_broker.stop()
    remote_broker.options.users = {"other": "password"}
    await remote_broker.start()
    answer = await call(hass, "test_connection")
    assert answer["local"]["ok"] is True
    assert (answer["remote"]["ok"], answer["remote"]["error"]) == (False, "not_authorized")
    assert "not authorized" in answer["remote"]["text"].lower()


async def test_which_bridge(hass: HomeAssistant, entry: MockConfigEntry) -> None:
    """The actions are there without a bridge, and say so."""
    assert await async_setup_component(hass, DOMAIN, {})
    with pytest.raises(ServiceValidationError) as raised:
        await call(hass, "get_status")
    assert raised.value.translation_key == "service_found_no_config_entry_for_domain"
    with pytest.raises(ServiceValidationError) as raised:
        await call(hass, "get_status", config_entry_id="nobody")
    assert raised.value.translation_key == "service_config_entry_not_found"
    entry.add_to_hass(hass)
    with pytest.raises(ServiceValidationError) as raised:
        await call(hass, "test_connection", config_entry_id=entry.entry_id)
    assert raised.value.translation_key == "service_config_entry_not_loaded"


async def test_local_broker_that_is_not_set_up(hass: HomeAssistant, quic_front: Front, certs: Certificates) -> None:
    entry = bridge_entry(local_data(None), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    answer = await call(hass, "test_connection")
    assert (answer["local"]["ok"], answer["local"]["error"]) == (False, "local_entry_missing")
    assert "handshake_ms" not in answer["local"]
    assert answer["remote"]["ok"] is True
