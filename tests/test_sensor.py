"""State, counters and figures, as Home Assistant sees them."""

from dataclasses import replace
from datetime import UTC, datetime

from homeassistant.const import STATE_UNKNOWN, EntityCategory
from homeassistant.core import HomeAssistant
from homeassistant.helpers import entity_registry as er
import pytest
from pytest_homeassistant_custom_component.common import MockConfigEntry

from custom_components.quic_bridge.bridge.errors import ErrorCode
from custom_components.quic_bridge.bridge.status import BridgeState

from .ha_helpers import bridge_entry, entity_id, local_data, remote_data, set_up, state, wait_for_state, wait_running
from .support.certs import Certificates
from .support.client import Client
from .support.mosquitto import Mosquitto
from .support.processes import free_port, wait_until
from .support.quic_front import Front


@pytest.fixture
def entry(local_broker: Mosquitto, quic_front: Front, certs: Certificates) -> MockConfigEntry:
    """A bridge between the two brokers."""
    return bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))


def attributes(hass: HomeAssistant, entry: MockConfigEntry, key: str) -> dict[str, object]:
    """Return the attributes of an entity."""
    found = hass.states.get(entity_id(hass, entry, key))
    assert found is not None
    return dict(found.attributes)


async def test_status_and_connection_history(
    hass: HomeAssistant, entry: MockConfigEntry, local_broker: Mosquitto, quic_front: Front
) -> None:
    began = datetime.now(UTC).replace(microsecond=0)
    await set_up(hass, entry)
    assert state(hass, entry, "remote_connected_since") == STATE_UNKNOWN
    await wait_running(hass, entry)
    connected = state(hass, entry, "remote_connected_since")
    assert began <= datetime.fromisoformat(connected) <= datetime.now(UTC)
    for side in ("local", "remote"):
        assert state(hass, entry, f"{side}_reconnects") == "0"
        assert state(hass, entry, f"{side}_last_error") == "none"
        assert "message" not in attributes(hass, entry, f"{side}_last_error")

    await quic_front.stop()
    await wait_for_state(hass, entry, "status", "remote_down")
    await wait_for_state(hass, entry, "remote_last_error", "closed_by_broker")
    error = attributes(hass, entry, "remote_last_error")
    assert "closed" in str(error["message"])
    assert isinstance(error["time"], datetime)
    assert state(hass, entry, "remote_connected_since") == STATE_UNKNOWN
    await wait_for_state(hass, entry, "remote_last_error", "refused")
    await local_broker.stop()
    await wait_for_state(hass, entry, "status", "down")

    await quic_front.start()
    await wait_for_state(hass, entry, "remote_reconnects", "1")
    await wait_for_state(hass, entry, "status", "local_down")
    await local_broker.start()
    await wait_running(hass, entry)
    assert state(hass, entry, "local_reconnects") == "1"
    assert datetime.fromisoformat(state(hass, entry, "remote_connected_since")) > datetime.fromisoformat(connected)
    # What went wrong last remains to be seen.
    assert state(hass, entry, "remote_last_error") == "refused"


@pytest.mark.usefixtures("entity_registry_enabled_by_default")
async def test_the_quic_connection(hass: HomeAssistant, entry: MockConfigEntry, quic_front: Front) -> None:
    quic_front.policy.tickets = True
    keys = ("remote_handshake", "remote_handshake_time", "remote_packet_loss")
    await set_up(hass, entry)
    assert [state(hass, entry, key) for key in keys] == [STATE_UNKNOWN] * 3
    await wait_running(hass, entry)
    assert state(hass, entry, "remote_handshake") == "full"
    assert 0 < float(state(hass, entry, "remote_handshake_time")) < 10_000
    found = attributes(hass, entry, "remote_handshake")
    assert (found["version"], found["cipher"]) == ("QUIC v1", "AES_256_GCM_SHA384")
    assert state(hass, entry, "remote_address_changes") == "0"
    quic_front.connection.close(0)
    await wait_for_state(hass, entry, "remote_handshake", "resumed")
    await wait_running(hass, entry)

    status = entry.runtime_data.bridge.status
    details = replace(status.remote.details, migrations=2, migration_ms=61.23, early_data=True)
    entry.runtime_data.async_set_updated_data(
        replace(status, remote=replace(status.remote, details=details, packet_loss=1.25))
    )
    assert state(hass, entry, "remote_packet_loss") == "1.25"
    assert state(hass, entry, "remote_address_changes") == "2"
    assert attributes(hass, entry, "remote_address_changes")["last_gap"] == 61.2
    assert state(hass, entry, "remote_handshake") == "early_data"


async def test_counters(
    hass: HomeAssistant, entry: MockConfigEntry, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front
) -> None:
    await set_up(hass, entry)
    await wait_running(hass, entry)
    assert [state(hass, entry, f"messages_{what}") for what in ("sent", "received", "waiting", "dropped")] == ["0"] * 4
    async with Client(*local_broker.address) as home, Client(*remote_broker.address) as away:
        await home.burst("up/lamp", (b"on" for _ in range(7)), 1)
        await away.burst("down/lamp", (b"on" for _ in range(5)), 2)
        await wait_for_state(hass, entry, "messages_sent", "7")
        await wait_for_state(hass, entry, "messages_received", "5")
        assert state(hass, entry, "messages_waiting") == "0"
        assert "rejected" not in attributes(hass, entry, "messages_dropped")

        await quic_front.stop()
        await wait_for_state(hass, entry, "remote_connection", "off")
        await home.publish("up/lamp", b"lost", 0)
        await wait_for_state(hass, entry, "messages_dropped", "1")
        assert attributes(hass, entry, "messages_dropped")["disconnected"] == 1


@pytest.mark.usefixtures("entity_registry_enabled_by_default")
async def test_rates_and_data(
    hass: HomeAssistant,
    entry: MockConfigEntry,
    local_broker: Mosquitto,
) -> None:
    """A rate falls to zero when nothing comes any more, and at once with a pause."""
    await set_up(hass, entry)
    await wait_running(hass, entry)
    keys = ("message_rate_sent", "message_rate_received", "data_sent", "data_received")
    assert [float(state(hass, entry, key)) for key in keys] == [0] * 4
    async with Client(*local_broker.address) as home:
        await home.burst("up/lamp", (bytes(1000) for _ in range(20)), 1)
        await wait_until(lambda: float(state(hass, entry, "message_rate_sent")) > 0, what="a rate")
        await wait_for_state(hass, entry, "messages_sent", "20")
        assert 0.02 < float(state(hass, entry, "data_sent")) < 0.021
        await wait_for_state(hass, entry, "message_rate_sent", "0.0")
        assert float(state(hass, entry, "data_received")) == 0

        await home.burst("up/lamp", (b"on" for _ in range(20)), 1)
        await wait_until(lambda: float(state(hass, entry, "message_rate_sent")) > 0, what="a rate")
        target = {"entity_id": entity_id(hass, entry, "enabled")}
        await hass.services.async_call("switch", "turn_off", target, blocking=True)
        assert state(hass, entry, "message_rate_sent") == "0.0"


async def test_outbox_of_a_bridge_that_starts_paused(
    hass: HomeAssistant, local_broker: Mosquitto, certs: Certificates
) -> None:
    """What waits in the file is not known before it was opened."""
    entry = bridge_entry(local_data(local_broker), remote_data(free_port(), certs.ca_pem))
    await set_up(hass, entry)
    await wait_for_state(hass, entry, "local_connection", "on")
    async with Client(*local_broker.address) as home:
        await home.publish("up/lamp", b"kept", 1)
        await wait_for_state(hass, entry, "outbox_messages", "1")
    target = {"entity_id": entity_id(hass, entry, "enabled")}
    await hass.services.async_call("switch", "turn_off", target, blocking=True)
    assert state(hass, entry, "outbox_messages") == "1"
    assert await hass.config_entries.async_reload(entry.entry_id)
    assert state(hass, entry, "outbox_messages") == STATE_UNKNOWN
    await hass.services.async_call("switch", "turn_on", target, blocking=True)
    await wait_for_state(hass, entry, "outbox_messages", "1")


async def test_round_trip_time(hass: HomeAssistant, entry: MockConfigEntry, quic_front: Front) -> None:
    """Off by default; unknown while there is no connection."""
    await set_up(hass, entry)
    name = entity_id(hass, entry, "remote_round_trip_time")
    assert hass.states.get(name) is None
    er.async_get(hass).async_update_entity(name, disabled_by=None)
    await hass.config_entries.async_reload(entry.entry_id)
    await wait_running(hass, entry)
    found = hass.states.get(name)
    assert found is not None
    assert found.attributes["unit_of_measurement"] == "ms"
    assert 0 < float(found.state) < 1000
    await quic_front.stop()
    await wait_for_state(hass, entry, "remote_round_trip_time", STATE_UNKNOWN)


async def test_refused(hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front) -> None:
    """The certificate is not trusted: a person must act, but there is nothing to ask credentials for."""
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, None))
    await set_up(hass, entry)
    await wait_for_state(hass, entry, "status", "refused")
    assert state(hass, entry, "remote_last_error") == "certificate_untrusted"
    assert not hass.config_entries.flow.async_progress()


async def test_descriptions(hass: HomeAssistant, socket_enabled: None) -> None:
    """Names, units, classes and categories of all sensors."""
    entry = bridge_entry(local_data(None), remote_data(free_port(), None))
    await set_up(hass, entry)
    registry = er.async_get(hass)
    diagnostic = EntityCategory.DIAGNOSTIC
    total = "total_increasing"
    expected = {
        "status": ("Status", None, "enum", None, None),
        "messages_sent": ("Messages sent", None, None, total, None),
        "messages_received": ("Messages received", None, None, total, None),
        "message_rate_sent": ("Message rate sent", diagnostic, None, "measurement", "messages/min"),
        "message_rate_received": ("Message rate received", diagnostic, None, "measurement", "messages/min"),
        "data_sent": ("Data sent", diagnostic, "data_size", total, "MB"),
        "data_received": ("Data received", diagnostic, "data_size", total, "MB"),
        "messages_waiting": ("Messages waiting", diagnostic, None, "measurement", None),
        "outbox_messages": ("Messages in outbox", diagnostic, None, "measurement", None),
        "outbox_oldest": ("Oldest message in outbox", diagnostic, "timestamp", None, None),
        "messages_dropped": ("Messages dropped", diagnostic, None, total, None),
        "remote_transport": ("Remote transport", diagnostic, "enum", None, None),
        "remote_round_trip_time": ("Remote round-trip time", diagnostic, "duration", "measurement", "ms"),
        "remote_packet_loss": ("Remote packet loss", diagnostic, None, "measurement", "%"),
        "remote_handshake_time": ("Remote handshake time", diagnostic, "duration", "measurement", "ms"),
        "remote_handshake": ("Remote handshake", diagnostic, "enum", None, None),
        "remote_address_changes": ("Remote address changes survived", diagnostic, None, total, None),
        "remote_reconnects": ("Remote reconnects", diagnostic, None, total, None),
        "remote_connected_since": ("Remote connection uptime", diagnostic, "uptime", None, None),
        "remote_certificate_expires": ("Remote certificate valid until", diagnostic, "timestamp", None, None),
        "remote_client_certificate_expires": (
            "Remote client certificate valid until",
            diagnostic,
            "timestamp",
            None,
            None,
        ),
        "remote_last_error": ("Remote last error", diagnostic, "enum", None, None),
        "local_reconnects": ("Local reconnects", diagnostic, None, total, None),
        "local_connected_since": ("Local connection uptime", diagnostic, "uptime", None, None),
        "local_certificate_expires": ("Local certificate valid until", diagnostic, "timestamp", None, None),
        "local_client_certificate_expires": (
            "Local client certificate valid until",
            diagnostic,
            "timestamp",
            None,
            None,
        ),
        "local_last_error": ("Local last error", diagnostic, "enum", None, None),
    }
    found = {}
    options = {}
    for entity in er.async_entries_for_config_entry(registry, entry.entry_id):
        if entity.domain == "sensor":
            capabilities = entity.capabilities or {}
            key = entity.unique_id.removeprefix(f"{entry.entry_id}_")
            options[key] = capabilities.get("options")
            found[key] = (
                entity.original_name,
                entity.entity_category,
                entity.original_device_class,
                capabilities.get("state_class"),
                entity.unit_of_measurement,
            )
    assert found == expected
    assert options["status"] == [value.value for value in BridgeState]
    for side in ("local", "remote"):
        assert options[f"{side}_last_error"] == ["none", *(code.value for code in ErrorCode)]
