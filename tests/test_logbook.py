"""The logbook: what happens to a bridge as sentences, in Home Assistant's language."""

from datetime import UTC, datetime

from homeassistant.core import HomeAssistant
from homeassistant.helpers import device_registry as dr
from homeassistant.helpers.recorder import get_instance
from homeassistant.setup import async_setup_component
import pytest
from pytest_homeassistant_custom_component.typing import WebSocketGenerator

from custom_components.quic_bridge.const import DOMAIN

from .ha_fixtures import load_texts
from .ha_helpers import bridge_entry, entity_id, local_data, remote_data, set_up, wait_for_state, wait_running
from .support.certs import Certificates
from .support.client import Client
from .support.faults import refuse_connect
from .support.mosquitto import Mosquitto
from .support.quic_front import Front

TOLD = {
    "en": [
        "Local connection established",
        "Remote connection established",
        "Remote connection lost: Closed by the broker",
        "Messages for the remote broker dropped (1): Other broker away",
        "The remote broker refuses the bridge: Banned",
        "Local connection ended, as the bridge was paused",
    ],
    "zh-Hans": [
        "本地连接已建立",
        "远程连接已建立",
        "远程连接已断开：被代理关闭",
        "发往远程代理的消息被丢弃（1 条）：另一个代理离线",
        "远程代理拒绝了桥接：已被封禁",
        "因桥接暂停，本地连接已结束",
    ],
}


@pytest.mark.parametrize("language", TOLD)
async def test_sentences(
    recorder_mock: object,
    hass: HomeAssistant,
    hass_ws_client: WebSocketGenerator,
    local_broker: Mosquitto,
    quic_front: Front,
    certs: Certificates,
    language: str,
) -> None:
    began = datetime.now(UTC)
    hass.config.language = language
    assert await async_setup_component(hass, DOMAIN, {})
    assert await async_setup_component(hass, "logbook", {})
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)
    await quic_front.stop()
    await wait_for_state(hass, entry, "remote_connection", "off")
    async with Client(*local_broker.address) as home:
        await home.publish("up/lamp", b"lost", 0)
        await wait_for_state(hass, entry, "messages_dropped", "1")
    quic_front.add_rule(refuse_connect(0x8A))
    await quic_front.start()
    await wait_for_state(hass, entry, "status", "refused")
    events = entity_id(hass, entry, "events")
    await hass.services.async_call(
        "switch", "turn_off", {"entity_id": entity_id(hass, entry, "enabled")}, blocking=True
    )
    await hass.async_block_till_done()
    await get_instance(hass).async_block_till_done()

    device = dr.async_get(hass).async_get_device_by_identifier((DOMAIN, entry.entry_id), entry.entry_id)
    assert device is not None
    client = await hass_ws_client(hass)
    # As the page of the device asks.
    await client.send_json_auto_id(
        {"type": "logbook/get_events", "start_time": began.isoformat(), "device_ids": [device.id]}
    )
    found = (await client.receive_json())["result"]
    told = [item for item in found if item.get("domain") == DOMAIN]
    assert sorted(item["message"] for item in told) == sorted(TOLD[language])
    assert {(item["name"], item["entity_id"]) for item in told} == {("127.0.0.1", events)}


def test_all_sentences_are_there() -> None:
    what = ("connected", "disconnected", "paused", "refused", "dropped")
    expected = {f"common.logbook_{item}_{side}" for item in what for side in ("local", "remote")}
    # The local broker has no other endpoint.
    expected |= {"common.logbook_fallback_remote", "common.logbook_returned_remote"}
    assert {key for key in load_texts() if key.startswith("common.")} == expected
