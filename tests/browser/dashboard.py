"""The dashboard of the documentation, in a Home Assistant that has a week to show."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
import json
import math
from pathlib import Path
from typing import Final

from homeassistant.util.yaml import load_yaml_dict

from ..support.hass_api import TIMEOUT, HomeAssistantApi, Json

FILE: Final = Path(__file__).parents[2] / "docs" / "dashboard.yaml"
PATH: Final = "mqtt-bridge"
NOW: Final = datetime(2026, 10, 1, 12, tzinfo=UTC)
"""When the picture is taken, by the browser's clock: the same statistics are shown whenever the test runs."""

_HOURS: Final = 7 * 24


async def add_dashboard(api: HomeAssistantApi, entry_id: str) -> str:
    """Add it for a bridge, as its file says, and return the path of its view."""
    entities = await api.entities(entry_id)
    name = entities["status"].removeprefix("sensor.").removesuffix("_status")
    dashboard = json.loads(json.dumps(load_yaml_dict(str(FILE))).replace("broker_example_org", name))
    await api.command(
        "lovelace/dashboards/create",
        url_path=PATH,
        title="MQTT bridge",
        mode="storage",
        require_admin=False,
        show_in_sidebar=False,
    )
    await api.command("lovelace/config/save", url_path=PATH, config=dashboard)
    return f"/{PATH}/{dashboard['views'][0]['path']}"


async def add_history(api: HomeAssistantApi, entry_id: str) -> None:
    """Give the sensors that the dashboard draws a week of statistics: busy days, and one outage of three hours."""
    entities = await api.entities(entry_id)
    units = {
        state["entity_id"]: state["attributes"].get("unit_of_measurement") for state in await api.get("/api/states")
    }
    counts = {
        "messages_sent": [round(900 + 700 * math.cos(hour / 12 * math.pi)) for hour in range(_HOURS)],
        "messages_received": [round(250 + 150 * math.cos(hour / 12 * math.pi)) for hour in range(_HOURS)],
        "remote_reconnects": [int(hour % 31 == 0) + int(hour == _HOURS - 37) for hour in range(_HOURS)],
        "local_reconnects": [int(hour == 70) for hour in range(_HOURS)],
    }
    for key, values in counts.items():
        await _import(
            api, entities[key], units[entities[key]], [{"state": sum_, "sum": sum_} for sum_ in _sums(values)]
        )
    waiting = [0.0] * _HOURS
    waiting[-40:-37] = [640.0, 1370.0, 1910.0]
    peaks = [{"min": 0.0, "mean": peak / 2, "max": peak} for peak in waiting]
    await _import(api, entities["outbox_messages"], units[entities["outbox_messages"]], peaks)
    # They are written one after the other, behind the answers.
    imported = [entities[key] for key in (*counts, "outbox_messages")]
    begin = (NOW - timedelta(hours=_HOURS)).isoformat()
    async with asyncio.timeout(TIMEOUT):
        query = {"start_time": begin, "statistic_ids": imported, "period": "hour"}
        while True:
            if len(await api.command("recorder/statistics_during_period", **query)) == len(imported):
                return
            await asyncio.sleep(0.05)


def _sums(values: list[int]) -> Iterator[int]:
    total = 0
    for value in values:
        total += value
        yield total


async def _import(api: HomeAssistantApi, entity_id: str, unit: str, rows: list[dict[str, float]]) -> None:
    begin = NOW - timedelta(hours=len(rows))
    stats: list[Json] = [{"start": (begin + timedelta(hours=hour)).isoformat(), **row} for hour, row in enumerate(rows)]
    metadata = {
        "statistic_id": entity_id,
        "source": "recorder",
        "name": None,
        "unit_of_measurement": unit,
        "unit_class": None,
        "has_sum": "sum" in rows[0],
        "mean_type": int("mean" in rows[0]),
    }
    await api.command("recorder/import_statistics", metadata=metadata, stats=stats)
