"""Statistics of the bridge's entities."""

from datetime import timedelta

from homeassistant.components.recorder.core import Recorder
from homeassistant.components.recorder.models import StatisticData, StatisticMeanType, StatisticMetaData
from homeassistant.components.recorder.statistics import async_import_statistics
from homeassistant.core import HomeAssistant
from homeassistant.setup import async_setup_component
from homeassistant.util import dt as dt_util
from pytest_homeassistant_custom_component.components.recorder.common import async_wait_recording_done
from pytest_homeassistant_custom_component.typing import WebSocketGenerator

from .ha_helpers import bridge_entry, entity_id, local_data, remote_data, set_up
from .support.processes import free_port


async def test_statistics_of_counters_that_had_a_unit_go_on(
    recorder_mock: Recorder, hass: HomeAssistant, socket_enabled: None, hass_ws_client: WebSocketGenerator
) -> None:
    assert await async_setup_component(hass, "sensor", {})
    entry = bridge_entry(local_data(None), remote_data(free_port(), None))
    await set_up(hass, entry)
    hour = dt_util.utcnow().replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    for key, unit in (("messages_sent", "messages"), ("remote_reconnects", "reconnects")):
        metadata = StatisticMetaData(
            source="recorder",
            statistic_id=entity_id(hass, entry, key),
            name=None,
            unit_class=None,
            unit_of_measurement=unit,
            has_sum=True,
            mean_type=StatisticMeanType.NONE,
        )
        async_import_statistics(hass, metadata, [StatisticData(start=hour, state=5, sum=5)])
    await async_wait_recording_done(hass)
    client = await hass_ws_client()
    await client.send_json_auto_id({"type": "recorder/validate_statistics"})
    answer = await client.receive_json()
    assert answer["success"]
    assert answer["result"] == {}
