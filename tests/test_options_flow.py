"""Options in the user interface: what is stored, what is refused, and what reaches the brokers."""

import asyncio
from dataclasses import replace
from pathlib import Path

from homeassistant.config_entries import ConfigFlowResult
from homeassistant.core import HomeAssistant
from homeassistant.data_entry_flow import FlowResultType, InvalidData
import pytest
from pytest_homeassistant_custom_component.common import MockConfigEntry

from custom_components.quic_bridge.bridge.config import (
    BackoffConfig,
    BridgeConfig,
    PresenceConfig,
    QuicConfig,
    QuicLogConfig,
)
from custom_components.quic_bridge.bridge.guard import GuardMode, LoopGuard
from custom_components.quic_bridge.bridge.outbox_model import OutboxLimits
from custom_components.quic_bridge.brokers import bridge_config, quic_log_folder, remote_broker, tickets_path
from custom_components.quic_bridge.options import status_topic

from .ha_flows import Input, suggested
from .ha_helpers import CLIENT_ID, bridge_entry, local_data, mqtt_entry, remote_data, set_up, state, wait_running
from .support.certs import Certificates
from .support.client import Client
from .support.mosquitto import Mosquitto
from .support.packets import Property
from .support.processes import wait_until
from .support.quic_front import Front

MIB = 1024 * 1024


async def open_page(hass: HomeAssistant, entry: MockConfigEntry, page: str) -> ConfigFlowResult:
    """Choose a page in the menu."""
    result = await hass.config_entries.options.async_init(entry.entry_id)
    assert (result["type"], result["step_id"]) == (FlowResultType.MENU, "init")
    return await fill(hass, result, {"next_step_id": page})


async def fill(hass: HomeAssistant, result: ConfigFlowResult, user_input: Input) -> ConfigFlowResult:
    """Fill in the form that is shown."""
    return await hass.config_entries.options.async_configure(result["flow_id"], user_input)


def stored_entry(hass: HomeAssistant) -> MockConfigEntry:
    """Return an entry that is not set up."""
    entry = bridge_entry(local_data(None), remote_data(14567, None))
    entry.add_to_hass(hass)
    return entry


def seen(hass: HomeAssistant, entry: MockConfigEntry) -> BridgeConfig:
    """What the bridge would be told."""
    return bridge_config(hass, entry)


async def test_messages(hass: HomeAssistant) -> None:
    entry = stored_entry(hass)
    assert seen(hass, entry).remote.max_payload == 10 * MIB
    result = await open_page(hass, entry, "messages")
    assert result["step_id"] == "messages"
    placeholders = result["description_placeholders"] or {}
    assert (placeholders["max_payload"], placeholders["outbox_days"]) == ("10", "7")
    assert suggested(result, "max_payload") is None

    typed = {"max_payload": 0.5, "outbox": {"outbox_messages": 500, "outbox_size": 2, "outbox_days": 1}}
    result = await fill(hass, result, typed)
    assert result["type"] is FlowResultType.CREATE_ENTRY
    assert entry.options == {
        "messages": {"max_payload": 0.5, "outbox_messages": 500, "outbox_size": 2, "outbox_days": 1}
    }
    config = seen(hass, entry)
    assert config.remote.max_payload == MIB // 2
    assert config.outbox is not None
    assert config.outbox.limits == OutboxLimits(messages=500, bytes=2 * MIB, age=24 * 3600)

    # What is stored is there to be changed; an empty field is back to its default.
    result = await open_page(hass, entry, "messages")
    assert suggested(result, "max_payload") == 0.5
    assert suggested(result, "outbox", "outbox_size") == 2
    await fill(hass, result, {"outbox": {"outbox_days": 3}})
    assert entry.options == {"messages": {"outbox_days": 3}}
    config = seen(hass, entry)
    assert config.remote.max_payload == 10 * MIB
    assert config.outbox is not None
    assert config.outbox.limits == OutboxLimits(age=3 * 24 * 3600)
    await fill(hass, await open_page(hass, entry, "messages"), {"outbox": {}})
    assert entry.options == {}


async def test_how_far_messages_go(hass: HomeAssistant) -> None:
    entry = stored_entry(hass)
    assert seen(hass, entry).guard == LoopGuard()
    result = await open_page(hass, entry, "messages")
    assert (result["description_placeholders"] or {})["most_bridges"] == "4"
    await fill(hass, result, {"loop_guard": "one_bridge", "outbox": {}})
    assert seen(hass, entry).guard.mode is GuardMode.ONE_BRIDGE
    await fill(hass, await open_page(hass, entry, "messages"), {"loop_guard": "count", "most_bridges": 7, "outbox": {}})
    assert entry.options == {"messages": {"loop_guard": "count", "most_bridges": 7}}
    assert seen(hass, entry).guard == LoopGuard(mode=GuardMode.COUNT, limit=7)


@pytest.mark.parametrize(
    "typed",
    [
        {"loop_guard": "none", "outbox": {}},
        {"most_bridges": 0, "outbox": {}},
        {"max_payload": 0, "outbox": {}},
        {"max_payload": 256, "outbox": {}},
        {"outbox": {"outbox_messages": 0}},
        {"outbox": {"outbox_size": 0}},
        {"outbox": {"outbox_days": 0}},
        {"outbox": {"outbox_days": "long"}},
    ],
)
async def test_messages_out_of_range(hass: HomeAssistant, typed: Input) -> None:
    """No bound can be taken away."""
    entry = stored_entry(hass)
    with pytest.raises(InvalidData):
        await fill(hass, await open_page(hass, entry, "messages"), typed)
    assert entry.options == {}


async def test_messages_that_do_not_go_together(hass: HomeAssistant) -> None:
    entry = stored_entry(hass)
    result = await open_page(hass, entry, "messages")
    result = await fill(hass, result, {"max_payload": 20, "outbox": {"outbox_size": 19}})
    assert result["errors"] == {"outbox": "outbox_smaller_than_message"}
    # What was typed is still there.
    assert suggested(result, "max_payload") == 20
    assert suggested(result, "outbox", "outbox_size") == 19
    result = await fill(hass, result, {"max_payload": 20, "outbox": {"outbox_size": 20}})
    assert result["type"] is FlowResultType.CREATE_ENTRY


async def test_profiles(hass: HomeAssistant) -> None:
    entry = stored_entry(hass)
    default = seen(hass, entry)
    assert (default.remote.quic, default.backoff) == (QuicConfig(), BackoffConfig())
    result = await open_page(hass, entry, "connection")
    assert result["step_id"] == "connection"
    await fill(hass, result, {"profile": "satellite"})
    assert entry.options == {"connection": {"profile": "satellite"}}
    config = seen(hass, entry)
    assert config.remote.quic.initial_rtt == 1.0
    assert config.remote.quic.congestion_control == "cubic"
    assert config.remote.quic.flow_window == 2 * MIB
    assert config.backoff == BackoffConfig(base=2, cap=120, stable=60)
    # The broker at home is not behind the satellite.
    assert config.local_backoff == BackoffConfig()
    result = await open_page(hass, entry, "connection")
    assert suggested(result, "profile") == "satellite"
    await fill(hass, result, {"profile": "normal"})
    assert seen(hass, entry) == default


CUSTOM: Input = {
    "keepalive": 25,
    "ping_interval": 11,
    "ping_timeout": 12,
    "idle_timeout": 40,
    "handshake_timeout": 13,
    "connack_timeout": 14,
    "initial_rtt": 150,
    "max_datagram_size": 1300,
    "backoff_base": 0.7,
    "backoff_cap": 15,
    "backoff_stable": 16,
    "session_expiry": 17,
    "send_window": 18,
    "receive_window": 19,
    "flow_window": 512,
    "congestion_control": "cubic",
}


async def test_custom(hass: HomeAssistant) -> None:
    entry = stored_entry(hass)
    await fill(hass, await open_page(hass, entry, "connection"), {"profile": "mobile"})
    result = await fill(hass, await open_page(hass, entry, "connection"), {"profile": "custom"})
    assert result["step_id"] == "custom"
    # The profile that was in use is what to begin with.
    assert suggested(result, "ping_interval") == 20
    assert suggested(result, "send_window") is None
    assert (result["description_placeholders"] or {})["send_window"] == "1000"

    result = await fill(hass, result, CUSTOM)
    assert result["type"] is FlowResultType.CREATE_ENTRY
    assert entry.options == {"connection": {"profile": "custom", **CUSTOM}}
    config = seen(hass, entry)
    remote = remote_broker(entry.data["remote"])
    assert config.remote == replace(
        remote,
        keepalive=25,
        connack_timeout=14,
        connect_timeout=13,
        session_expiry=17 * 3600,
        window=18,
        receive_maximum=19,
        quic=QuicConfig(
            handshake_timeout=13,
            ping_interval=11,
            ping_timeout=12,
            idle_timeout=40,
            initial_rtt=0.15,
            congestion_control="cubic",
            max_datagram_size=1300,
            flow_window=512 * 1024,
        ),
    )
    assert config.backoff == BackoffConfig(base=0.7, cap=15, stable=16)

    result = await fill(hass, await open_page(hass, entry, "connection"), {"profile": "custom"})
    assert suggested(result, "ping_interval") == 11
    await fill(hass, result, {"congestion_control": "reno"})
    assert replace(seen(hass, entry), backoff=BackoffConfig()).remote == remote


@pytest.mark.parametrize(
    ("typed", "field", "key", "low", "high"),
    [
        ({"ping_interval": 26}, "idle_timeout", "ping_over_idle_timeout", "31", "30"),
        ({"keepalive": 31}, "keepalive", "keepalive_over_idle_timeout", "31", "30"),
        ({"initial_rtt": 1500, "handshake_timeout": 4}, "handshake_timeout", "rtt_over_handshake_timeout", "4.5", "4"),
        ({"initial_rtt": 1000, "ping_timeout": 1.5}, "ping_timeout", "rtt_over_ping_timeout", "2", "1.5"),
        ({"connack_timeout": 4}, "connack_timeout", "connack_timeout_short", "5", "4"),
        ({"backoff_base": 31}, "backoff_base", "backoff_base_over_cap", "31", "30"),
    ],
)
async def test_timers_that_do_not_go_together(
    hass: HomeAssistant, typed: Input, field: str, key: str, low: str, high: str
) -> None:
    """What is wrong is said at a field, with both values; nothing typed is lost."""
    entry = stored_entry(hass)
    result = await fill(hass, await open_page(hass, entry, "connection"), {"profile": "custom"})
    result = await fill(hass, result, {"congestion_control": "reno", **typed})
    assert (result["step_id"], result["errors"]) == ("custom", {field: key})
    placeholders = result["description_placeholders"] or {}
    assert (placeholders["low"], placeholders["high"]) == (low, high)
    assert {name: suggested(result, name) for name in typed} == typed
    assert entry.options == {}


async def test_each_knob_reaches_the_wire(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    entry.add_to_hass(hass)
    hass.config_entries.async_update_entry(entry, options={"connection": {"profile": "custom", **CUSTOM}})
    await set_up(hass, entry)
    await wait_running(hass, entry)
    connect = quic_front.stats.connects[-1]
    assert connect.keepalive == 25
    assert (connect.properties[Property.SESSION_EXPIRY], connect.properties[Property.RECEIVE_MAXIMUM]) == (
        17 * 3600,
        19,
    )
    front = quic_front.connection.quic
    assert front._remote_max_idle_timeout == 40
    assert (front._remote_max_data, front._remote_max_stream_data_bidi_local) == (512 * 1024, 512 * 1024)
    session = entry.runtime_data.bridge._remote._session
    assert session.limits.window == 18
    driver = session.transport._driver
    assert driver._liveness._interval == 11
    assert driver.connection._loss._rtt_initial == 0.15
    assert type(driver.connection._loss._cc).__name__ == "CubicCongestionControl"
    sizes: list[int] = []

    def measure(data: bytes) -> bool:
        sizes.append(len(data))
        return False

    quic_front.incoming.drop = measure
    async with Client(local_broker.host, local_broker.port) as home:
        await home.publish("up/large", bytes(10_000), 1)
        await wait_until(lambda: sum(sizes) > 10_000, what="the message")
    assert max(sizes) == 1300


async def test_presence(hass: HomeAssistant) -> None:
    entry = stored_entry(hass)
    assert seen(hass, entry).presence == PresenceConfig(
        local_topic=f"quic_bridge/{CLIENT_ID}-local/state", remote_topic=f"quic_bridge/{CLIENT_ID}/state"
    )
    result = await open_page(hass, entry, "presence")
    assert (result["description_placeholders"] or {})["status_topic"] == "quic_bridge/{client_id}/state"
    typed = {"announce": True, "status_topic": "home/7", "payload_online": "1", "payload_offline": " 0 "}
    await fill(hass, result, typed)
    assert seen(hass, entry).presence == PresenceConfig(
        local_topic="home/7", remote_topic="home/7", online="1", offline="0"
    )
    assert suggested(await open_page(hass, entry, "presence"), "status_topic") == "home/7"
    await fill(hass, await open_page(hass, entry, "presence"), {"announce": False})
    assert seen(hass, entry).presence is None


def test_a_client_id_that_is_no_part_of_a_topic() -> None:
    assert status_topic({"status_topic": "x/{client_id}/y"}, "a/b+c#d") == "x/a_b_c_d/y"


@pytest.mark.parametrize(
    ("typed", "errors"),
    [
        ({"status_topic": "home/#"}, {"status_topic": "status_topic_invalid"}),
        ({"status_topic": "$SYS/bridge"}, {"status_topic": "status_topic_invalid"}),
        ({"status_topic": "x" * 1001}, {"status_topic": "status_topic_invalid"}),
        ({"payload_online": "offline"}, {"payload_offline": "payloads_equal"}),
        ({"payload_online": "x" * 1001}, {"payload_online": "payload_too_long"}),
        ({"payload_offline": "x" * 1001}, {"payload_offline": "payload_too_long"}),
    ],
)
async def test_presence_that_cannot_be(hass: HomeAssistant, typed: Input, errors: dict[str, str]) -> None:
    entry = stored_entry(hass)
    result = await fill(hass, await open_page(hass, entry, "presence"), {"announce": True, **typed})
    assert result["errors"] == errors
    assert entry.options == {}


async def test_a_status_topic_that_another_bridge_has(hass: HomeAssistant) -> None:
    """At the same broker: each of them would undo what the other says."""
    mqtt_entry(Mosquitto(Path(), port=1883)).add_to_hass(hass)
    entry = stored_entry(hass)
    other = bridge_entry(local_data(None, client_id="b-local"), remote_data(14568, None, client_id="b"), title="Cabin")
    other.add_to_hass(hass)
    typed = {"announce": True, "status_topic": "home/state"}
    await fill(hass, await open_page(hass, other, "presence"), typed)
    result = await fill(hass, await open_page(hass, entry, "presence"), typed)
    assert result["errors"] == {"status_topic": "status_topic_in_use"}
    assert (result["description_placeholders"] or {})["bridge"] == "Cabin"
    await fill(hass, result, {**typed, "status_topic": "home/{client_id}"})
    assert entry.options["presence"]["status_topic"] == "home/{client_id}"

    # Each may have it at a broker of its own, and so may one that stopped using it.
    await fill(hass, await open_page(hass, other, "presence"), {"announce": False})
    await fill(hass, await open_page(hass, entry, "presence"), typed)
    assert entry.options["presence"]["status_topic"] == "home/state"


async def test_another_status_topic_takes_the_place_of_the_old_one(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """Nothing is left behind at either broker: not by another topic, nor by the end of the entry."""
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)
    brokers = {local_broker: f"quic_bridge/{CLIENT_ID}-local/state", remote_broker: f"quic_bridge/{CLIENT_ID}/state"}
    for broker, topic in brokers.items():
        await wait_retained(broker, {topic: b"online"})
    await fill(hass, await open_page(hass, entry, "presence"), {"announce": True, "status_topic": "home/7"})
    await hass.async_block_till_done()
    await wait_running(hass, entry)
    for broker in brokers:
        await wait_retained(broker, {"home/7": b"online"})
    assert await hass.config_entries.async_unload(entry.entry_id)
    for broker in brokers:
        await wait_retained(broker, {"home/7": b"offline"})
    await hass.config_entries.async_remove(entry.entry_id)
    for broker in brokers:
        await wait_retained(broker, {})


async def test_for_experts(hass: HomeAssistant) -> None:
    """All off by default, and whoever switches something on is told where and what it means."""
    entry = stored_entry(hass)
    assert not seen(hass, entry).remote.quic.early_data
    assert seen(hass, entry).quic_logs is None
    result = await open_page(hass, entry, "expert")
    folder = Path(hass.config.path("quic_bridge", entry.entry_id))
    assert (result["description_placeholders"] or {})["folder"] == str(folder)
    await fill(hass, result, {"early_data": True, "qlog": False, "key_log": False})
    assert seen(hass, entry).remote.quic.early_data
    assert seen(hass, entry).quic_logs is None
    result = await open_page(hass, entry, "expert")
    assert suggested(result, "early_data") is True
    await fill(hass, result, {"qlog": True})
    config = seen(hass, entry)
    assert not config.remote.quic.early_data
    assert config.quic_logs == QuicLogConfig(folder=folder, qlog=True)
    await fill(hass, await open_page(hass, entry, "expert"), {"key_log": True})
    assert seen(hass, entry).quic_logs == QuicLogConfig(folder=folder, key_log=True)


async def test_tickets_and_logs_go_with_the_bridge(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """A reload resumes the connection, CONNECT in the first flight; nothing is left of a bridge that is removed."""
    quic_front.policy.tickets = True
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)
    await fill(hass, await open_page(hass, entry, "expert"), {"early_data": True, "qlog": True, "key_log": True})
    await hass.async_block_till_done()
    await wait_running(hass, entry)
    details = entry.runtime_data.bridge.status.remote.details
    assert (details.resumed, details.early_data) == (True, True)
    assert await hass.config_entries.async_unload(entry.entry_id)
    files = [tickets_path(hass, entry), quic_log_folder(hass, entry)]
    assert await hass.async_add_executor_job(lambda: all(path.exists() for path in files))
    await hass.config_entries.async_remove(entry.entry_id)
    assert not await hass.async_add_executor_job(lambda: any(path.exists() for path in files))


async def wait_retained(broker: Mosquitto, wanted: dict[str, bytes]) -> None:
    """Wait until a broker has these retained messages and no others."""
    async with asyncio.timeout(10):
        while True:
            async with Client(*broker.address) as client:
                await client.subscribe("#")
                await client.ping()
                if {message.topic: message.payload for message in client.messages if message.retain} == wanted:
                    return


async def test_changed_options_start_the_bridge_afresh(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)
    bridge = entry.runtime_data.bridge
    await fill(hass, await open_page(hass, entry, "messages"), {"max_payload": 0.1, "outbox": {}})
    await hass.async_block_till_done()
    assert entry.runtime_data.bridge is not bridge
    await wait_running(hass, entry)

    async with (
        Client(local_broker.host, local_broker.port) as home,
        Client(remote_broker.host, remote_broker.port) as away,
    ):
        await away.subscribe("up/#", qos=1)
        await home.publish("up/large", bytes(MIB // 10 + 1), 1)
        await home.publish("up/small", b"x", 1)
        await away.wait_for(1)
        assert away.payloads == [b"x"]
    status = entry.runtime_data.bridge.status
    assert status.outbound.dropped == {"too_large": 1}
    await wait_until(lambda: state(hass, entry, "messages_dropped") == "1", what="the sensor")

    # Nothing has changed: the bridge goes on.
    bridge = entry.runtime_data.bridge
    await fill(hass, await open_page(hass, entry, "messages"), {"max_payload": 0.1, "outbox": {}})
    await hass.async_block_till_done()
    assert entry.runtime_data.bridge is bridge
