"""Setting up, unloading and stopping, with real brokers."""

import asyncio
import logging
from pathlib import Path
import re
import time
from types import MappingProxyType

from homeassistant.config_entries import ConfigEntryDisabler, ConfigEntryState, ConfigSubentry
from homeassistant.const import STATE_OFF, STATE_ON
from homeassistant.core import HomeAssistant, callback
from homeassistant.helpers import entity_registry as er
import pytest

from custom_components.quic_bridge.bridge.routes import Direction
from custom_components.quic_bridge.const import DOMAIN

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
from .support.client import Client
from .support.mosquitto import Mosquitto, MosquittoOptions
from .support.processes import AT_ONCE, free_port, wait_until
from .support.quic_front import Front


async def test_messages_cross(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)
    async with Client(*local_broker.address) as home, Client(*remote_broker.address) as away:
        await home.subscribe("down/#", qos=1)
        await away.subscribe("up/#", qos=1)
        await home.publish("up/lamp", b"on", 1)
        await away.publish("down/lamp", b"off", 1)
        await home.wait_for(1)
        await away.wait_for(1)
        assert (home.messages[0].topic, home.messages[0].payload) == ("down/lamp", b"off")
        assert (away.messages[0].topic, away.messages[0].payload) == ("up/lamp", b"on")
    assert [connect.client_id for connect in quic_front.stats.connects] == [CLIENT_ID]


async def test_set_up_without_brokers_returns_promptly_and_connects_later(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, certs: Certificates
) -> None:
    port = free_port()
    entry = bridge_entry(local_data(local_broker), remote_data(port, certs.ca_pem))
    began = time.monotonic()
    await set_up(hass, entry)
    assert time.monotonic() - began < AT_ONCE
    await wait_for_state(hass, entry, "local_connection", STATE_ON)
    await wait_for_state(hass, entry, "remote_connection", STATE_OFF)
    async with Front(remote_broker.address, certs.server.cert_file, certs.server.key_file, port=port):
        await wait_running(hass, entry)
        assert state(hass, entry, "remote_connection") == STATE_ON
        assert await hass.config_entries.async_unload(entry.entry_id)


async def test_unload_says_goodbye(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)
    began = time.monotonic()
    assert await hass.config_entries.async_unload(entry.entry_id)
    assert time.monotonic() - began < AT_ONCE
    assert entry.state is ConfigEntryState.NOT_LOADED
    await wait_until(lambda: quic_front.stats.disconnects and quic_front.stats.closes, what="DISCONNECT and close")
    await wait_until(lambda: f"Received DISCONNECT from {CLIENT_ID}-local" in local_broker.log, what="local DISCONNECT")


async def test_unload_while_nothing_answers(hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front) -> None:
    """Unloading does not wait for handshakes: neither broker says a word here."""
    quic_front.freeze()
    local_broker.freeze()
    try:
        entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, None))
        await set_up(hass, entry)
        began = time.monotonic()
        assert await hass.config_entries.async_unload(entry.entry_id)
        assert time.monotonic() - began < AT_ONCE
    finally:
        local_broker.thaw()


async def test_home_assistant_stop_says_goodbye_and_leaves_the_states(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """Entries are not unloaded then. An alarm for a broker that is away must not go off at each restart."""
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)
    changes: list[str] = []

    @callback
    def note(event: object) -> None:
        changes.append(str(event))

    hass.bus.async_listen("state_changed", note)
    await hass.async_stop(force=True)
    await wait_until(lambda: quic_front.stats.disconnects and quic_front.stats.closes, what="DISCONNECT and close")
    assert f"Received DISCONNECT from {CLIENT_ID}-local" in local_broker.log
    assert not changes
    assert state(hass, entry, "remote_connection") == STATE_ON


async def test_a_second_entry_is_independent(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    first = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    second = bridge_entry(
        local_data(local_broker, client_id="second-local"),
        remote_data(quic_front.port, certs.ca_pem, client_id="second"),
        {"other/#": Direction.BOTH},
    )
    await set_up(hass, first)
    await set_up(hass, second)
    await wait_running(hass, first)
    await wait_running(hass, second)
    assert await hass.config_entries.async_unload(first.entry_id)
    assert state(hass, second, "status") == "running"
    assert len(quic_front.live) == 1


async def test_changed_routes_take_effect_without_a_reconnect(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)
    up, down = entry.subentries.values()
    async with Client(*local_broker.address) as home, Client(*remote_broker.address) as away:
        await home.subscribe("#", qos=1)
        await away.subscribe("#", qos=1)
        # One changed, one removed, one added.
        hass.config_entries.async_update_subentry(entry, up, data={"direction": "to_remote", "topic_filter": "new/#"})
        hass.config_entries.async_remove_subentry(entry, down.subentry_id)
        hass.config_entries.async_add_subentry(
            entry,
            ConfigSubentry(
                data=MappingProxyType({"direction": "both", "topic_filter": "both"}),
                subentry_type="route",
                title="",
                unique_id=None,
            ),
        )
        await hass.async_block_till_done()
        for topic in ("up/lamp", "new/lamp", "both"):
            await home.publish(topic, b"home", 1)
        for topic in ("down/lamp", "both"):
            await away.publish(topic, b"away", 1)
        # Four each, and the retained status.
        await wait_until(lambda: len(home.messages) == 5 and len(away.messages) == 5, what="what is routed")
        assert {message.topic for message in home.messages if message.payload == b"away"} == {"both"}
        assert {message.topic for message in away.messages if message.payload == b"home"} == {"new/lamp", "both"}
    assert len(quic_front.stats.connects) == 1
    assert local_broker.log.count(f"as {CLIENT_ID}-local") == 1


async def test_a_route_that_is_added_during_the_set_up(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    entry.add_to_hass(hass)
    setting_up = hass.async_create_task(hass.config_entries.async_setup(entry.entry_id))
    await wait_until(lambda: hasattr(entry, "runtime_data"))
    assert entry.state is ConfigEntryState.SETUP_IN_PROGRESS
    data = route_data("to_remote", "late/#")
    route = ConfigSubentry(data=MappingProxyType(data), subentry_type="route", title="late/#", unique_id=None)
    hass.config_entries.async_add_subentry(entry, route)
    await setting_up
    await wait_running(hass, entry)
    async with Client(*local_broker.address) as home, Client(*remote_broker.address) as away:
        await away.subscribe("late/#", qos=1)
        await home.publish("late/lamp", b"on", qos=1)
        await away.wait_for(1)


async def test_entities_of_another_version_go(hass: HomeAssistant, socket_enabled: None, certs: Certificates) -> None:
    """After a downgrade, say; those that are there keep what a person has made of them."""
    entry = bridge_entry(local_data(None), remote_data(free_port(), certs.ca_pem))
    entry.add_to_hass(hass)
    registry = er.async_get(hass)
    later = registry.async_get_or_create("sensor", DOMAIN, f"{entry.entry_id}_of_later", config_entry=entry)
    ours = registry.async_get_or_create(
        "sensor", DOMAIN, f"{entry.entry_id}_status", config_entry=entry, disabled_by=er.RegistryEntryDisabler.USER
    )
    registry.async_update_entity(ours.entity_id, name="My bridge")
    assert await hass.config_entries.async_setup(entry.entry_id)
    assert registry.async_get(later.entity_id) is None
    kept = registry.async_get(ours.entity_id)
    assert kept is not None
    assert (kept.name, kept.disabled_by) == ("My bridge", er.RegistryEntryDisabler.USER)


async def test_removed_entry_is_forgotten_by_the_brokers(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """They would keep messages for it for a week."""
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)
    assert await hass.config_entries.async_unload(entry.entry_id)
    sides = ((local_broker, f"{CLIENT_ID}-local"), (remote_broker, CLIENT_ID))
    for broker, client_id in sides:
        async with Client(*broker.address, client_id=client_id, clean=False) as client:
            assert client.connack is not None
            assert client.connack.session_present
    await hass.config_entries.async_remove(entry.entry_id)
    for broker, client_id in sides:
        async with Client(*broker.address, client_id=client_id, clean=False) as client:
            assert client.connack is not None
            assert not client.connack.session_present


async def test_removing_does_not_wait_for_brokers_that_are_away(
    hass: HomeAssistant, quic_front: Front, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("custom_components.quic_bridge.farewell.FAREWELL_TIMEOUT", 0.2)
    monkeypatch.setattr("custom_components.quic_bridge.farewell.FAREWELL_PATIENCE", 0.5)
    quic_front.freeze()
    addresses = [{"host": "127.0.0.1", "port": quic_front.port}] * 50
    entry = bridge_entry(local_data(None), remote_data(quic_front.port, None, addresses=addresses))
    entry.add_to_hass(hass)
    began = time.monotonic()
    with caplog.at_level(logging.INFO, "custom_components.quic_bridge"):
        await hass.config_entries.async_remove(entry.entry_id)
    assert time.monotonic() - began < AT_ONCE
    assert re.search("The remote broker .* keeps the session of .* until 20", caplog.text)


@pytest.mark.parametrize("expected_lingering_timers", [True])  # one that the mqtt integration leaves
async def test_local_broker_follows_the_mqtt_entry(
    hass: HomeAssistant,
    local_broker: Mosquitto,
    quic_front: Front,
    certs: Certificates,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """With the real mqtt integration running."""
    mqtt = mqtt_entry(local_broker)
    await set_up(hass, mqtt)
    entry = bridge_entry(local_data(None), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)

    # A change that says nothing about the broker leaves the connection alone.
    hass.config_entries.async_update_entry(mqtt, title="Another name", options={"discovery": False})
    await asyncio.sleep(0)
    assert state(hass, entry, "local_connection") == STATE_ON

    options = MosquittoOptions(users={"homeassistant": "rotated"}, tls=certs.server)
    async with Mosquitto(tmp_path_factory.mktemp("moved"), options) as moved:
        hass.config_entries.async_update_entry(
            mqtt,
            data={
                "broker": "localhost",
                "port": moved.tls_port,
                "username": "homeassistant",
                "password": "rotated",
                "certificate": certs.ca_pem,
            },
        )
        await wait_until(lambda: f"as {CLIENT_ID}-local" in moved.log, what="connection to the new broker")
        await wait_running(hass, entry)

        await hass.config_entries.async_set_disabled_by(mqtt.entry_id, ConfigEntryDisabler.USER)
        await wait_for_state(hass, entry, "local_last_error", "local_entry_missing")
        assert state(hass, entry, "local_connection") == STATE_OFF

        # Back again: no wait for the next attempt, which would be half a minute or more away.
        await hass.config_entries.async_set_disabled_by(mqtt.entry_id, None)
        await wait_running(hass, entry)
        await hass.config_entries.async_remove(mqtt.entry_id)
        await wait_for_state(hass, entry, "status", "refused")


async def test_home_assistants_broker_with_certificates(
    hass: HomeAssistant, quic_front: Front, certs: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its own CA, a client certificate, and a server certificate for another name that is let pass."""
    options = MosquittoOptions(tls=certs.other_name, client_ca_file=certs.ca_file)
    async with Mosquitto(tmp_path_factory.mktemp("strict"), options) as broker:
        data = {
            "port": broker.tls_port,
            "certificate": certs.ca_pem,
            "client_cert": certs.client.pem,
            "client_key": certs.client.key_pem,
        }
        mqtt = mqtt_entry(broker, **data)
        mqtt.add_to_hass(hass)
        entry = bridge_entry(local_data(None), remote_data(quic_front.port, certs.ca_pem))
        await set_up(hass, entry)
        await wait_for_state(hass, entry, "local_last_error", "certificate_name")
        hass.config_entries.async_update_entry(mqtt, data={**mqtt.data, "tls_insecure": True})
        await wait_running(hass, entry)
        # The name alone is let pass, not just any certificate.
        hass.config_entries.async_update_entry(mqtt, data={**mqtt.data, "certificate": "auto"})
        await wait_for_state(hass, entry, "local_last_error", "certificate_untrusted")
        assert await hass.config_entries.async_unload(entry.entry_id)


async def test_local_broker_over_websockets_is_refused(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    mqtt_entry(local_broker, transport="websockets").add_to_hass(hass)
    entry = bridge_entry(local_data(None), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_for_state(hass, entry, "local_last_error", "configuration")
    await wait_for_state(hass, entry, "status", "refused")
    assert not hass.config_entries.flow.async_progress()


async def test_outbox_bridges_an_outage_and_goes_with_the_entry(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)
    file = Path(hass.config.path(".storage", DOMAIN, f"{entry.entry_id}.db"))
    async with Client(*local_broker.address) as home, Client(*remote_broker.address) as away:
        await away.subscribe("up/#", qos=1)
        await quic_front.stop()
        await wait_for_state(hass, entry, "remote_connection", STATE_OFF)
        await home.burst("up/lamp", (b"%d" % number for number in range(20)), 1)
        await wait_for_state(hass, entry, "outbox_messages", "20")
        assert file.exists()  # noqa: ASYNC240 # a moment, in a test
        await quic_front.start()
        await away.wait_for(20)
        assert away.payloads == [b"%d" % number for number in range(20)]
        await wait_for_state(hass, entry, "outbox_messages", "0")
    assert await hass.config_entries.async_remove(entry.entry_id)
    assert not list(file.parent.glob("*"))  # a moment, in a test


async def test_outbox_that_cannot_be_deleted(
    hass: HomeAssistant, socket_enabled: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The entry goes all the same."""
    entry = bridge_entry(local_data(None), remote_data(free_port(), None))
    entry.add_to_hass(hass)
    Path(hass.config.path(".storage", DOMAIN, f"{entry.entry_id}.db")).mkdir(parents=True)  # noqa: ASYNC240 # a moment
    await hass.config_entries.async_remove(entry.entry_id)
    assert "could not be deleted" in caplog.text
    assert not hass.config_entries.async_entries(DOMAIN)
