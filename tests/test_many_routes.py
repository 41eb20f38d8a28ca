"""Hundreds of routes and thousands of topics in one entry, through Home Assistant and real brokers."""

import asyncio
from collections import Counter
from collections.abc import Sequence
import logging

from homeassistant.components.repairs import repairs_flow_manager
from homeassistant.config_entries import SOURCE_RECONFIGURE, SOURCE_USER
from homeassistant.const import STATE_ON
from homeassistant.core import HomeAssistant
from homeassistant.helpers.issue_registry import async_get as async_get_issues
from homeassistant.setup import async_setup_component
import pytest
from pytest_homeassistant_custom_component.common import MockConfigEntry

from custom_components.quic_bridge.const import DOMAIN

from .ha_helpers import CLIENT_ID, bridge_entry, entity_id, local_data, remote_data, set_up, wait_running
from .large_home import SITE, here, publish_all, routes_of_a_home, there, topics_of_a_home
from .support.certs import Certificates
from .support.client import Client
from .support.faults import refuse_filters
from .support.mosquitto import Mosquitto
from .support.packets import PacketType
from .support.quic_front import Front

ROUTES = 500
TOPICS = 10_000

_SECTIONS: dict[str, dict[str, object]] = {"selection": {}, "retained_messages": {}, "outage": {}, "transport": {}}


@pytest.fixture
def entry(local_broker: Mosquitto, quic_front: Front, certs: Certificates) -> MockConfigEntry:
    """A bridge of a large home."""
    return bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem), routes_of_a_home(ROUTES))


class Watch:
    """Counts the packets with which the bridge subscribes and unsubscribes."""

    def __init__(self, local: Mosquitto, front: Front) -> None:
        self._local = local
        self._front = front
        self._before = self._now()

    def _now(self) -> Counter[str]:
        log, remote = self._local.log, self._front.stats.from_client
        return Counter(
            {
                "subscribe here": log.count(f"Received SUBSCRIBE from {CLIENT_ID}-local"),
                "unsubscribe here": log.count(f"Received UNSUBSCRIBE from {CLIENT_ID}-local"),
                "subscribe there": remote[PacketType.SUBSCRIBE],
                "unsubscribe there": remote[PacketType.UNSUBSCRIBE],
            }
        )

    def seen(self) -> dict[str, int]:
        """Return how many there were since the last call."""
        now = self._now()
        seen, self._before = now - self._before, now
        return dict(seen)


def arrived(client: Client, topics: Sequence[str]) -> bool:
    """Whether exactly these topics have come, each once and with its message."""
    return sorted(message.topic for message in client.messages) == sorted(topics)


async def save(hass: HomeAssistant, entry: MockConfigEntry, typed: dict[str, object], route: str | None = None) -> None:
    """Add a route by its form, or change one."""
    flows, kind = hass.config_entries.subentries, (entry.entry_id, "route")
    if route is None:
        result = await flows.async_init(kind, context={"source": SOURCE_USER})
        result = await flows.async_configure(result["flow_id"], {"next_step_id": "custom"})
    else:
        result = await flows.async_init(kind, context={"source": SOURCE_RECONFIGURE, "subentry_id": route})
    result = await flows.async_configure(result["flow_id"], {**_SECTIONS, **typed})
    assert result["step_id"] == "confirm"
    await flows.async_configure(result["flow_id"], {"next_step_id": "save"})
    await hass.async_block_till_done()


async def test_five_hundred_routes_and_ten_thousand_topics(
    hass: HomeAssistant, entry: MockConfigEntry, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front
) -> None:
    """Subscribed with few packets; a change changes the subscriptions that differ, while messages cross."""
    watch = Watch(local_broker, quic_front)
    await set_up(hass, entry)
    await wait_running(hass, entry)
    assert watch.seen() == {"subscribe here": 4, "subscribe there": 2}

    out, back = topics_of_a_home(ROUTES, TOPICS)
    async with Client(*local_broker.address) as home, Client(*remote_broker.address) as away:
        # Of each client what it does not publish itself.
        await home.subscribe(*(f"{here(index)}/state/+" for index in range(ROUTES) if 6 <= index % 10 < 9), qos=2)
        await away.subscribe(*(f"{there(index)}/state/+" for index in range(ROUTES) if not 6 <= index % 10 < 9), qos=2)
        await asyncio.gather(publish_all(home, list(out)), publish_all(away, list(back)))
        await home.wait_for(len(back))
        await away.wait_for(len(out))
        assert {message.topic: message.payload.decode() for message in away.messages} == {
            name: topic for topic, name in out.items()
        }
        assert {message.topic: message.payload.decode() for message in home.messages} == {
            name: topic for topic, name in back.items()
        }
        assert (len(home.messages), len(away.messages)) == (len(back), len(out))
        home.messages.clear()
        away.messages.clear()

        # One by one, by the forms.
        await save(hass, entry, {"direction": "to_local", "topic_filter": "new/#"})
        assert watch.seen() == {"subscribe there": 1}
        new = list(entry.subentries)[-1]
        await save(hass, entry, {"enabled": True, "direction": "to_local", "topic_filter": "newer/#"}, new)
        assert watch.seen() == {"subscribe there": 1, "unsubscribe there": 1}
        await save(hass, entry, {"enabled": False, "direction": "to_local", "topic_filter": "newer/#"}, new)
        assert watch.seen() == {"unsubscribe there": 1}
        first = next(iter(entry.subentries))
        hass.config_entries.async_remove_subentry(entry, first)
        await hass.async_block_till_done()
        assert watch.seen() == {"unsubscribe here": 1}

        # Many in one go, which is what a repair does, while messages of the others cross.
        routes = list(entry.subentries.values())[:199]  # those numbered 1 to 199
        out, back = topics_of_a_home(ROUTES, 2000)
        others = [topic for number, topic in enumerate(out) if int(topic.rpartition("/")[2]) % ROUTES >= 200]
        told: list[float] = []
        crossing = asyncio.create_task(publish_all(home, others))
        await away.wait_for(20)
        entry.runtime_data.async_add_listener(lambda: told.append(hass.loop.time()))
        for route in routes:
            hass.config_entries.async_update_subentry(entry, route, data={**route.data, "enabled": False})
        await hass.async_block_till_done()
        assert watch.seen() == {"unsubscribe here": 2, "unsubscribe there": 1}
        assert len(told) < len(routes) / 2  # not each time for each of them
        await crossing
        await away.wait_for(len(others))
        assert arrived(away, [out[topic] for topic in others])
    assert len(quic_front.stats.connects) == 1
    assert local_broker.log.count(f"as {CLIENT_ID}-local") == 1


async def test_two_hundred_topics_are_refused(
    hass: HomeAssistant,
    entry: MockConfigEntry,
    local_broker: Mosquitto,
    remote_broker: Mosquitto,
    quic_front: Front,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One issue, one line of the log, one sensor; the others work; one click puts that direction of all out of use."""
    assert await async_setup_component(hass, "repairs", {})
    names = [f"{there(index)}/#" for index in range(ROUTES) if index % 10 >= 6]
    quic_front.add_rule(*refuse_filters(dict.fromkeys(names, 0x87)))
    watch = Watch(local_broker, quic_front)
    with caplog.at_level(logging.WARNING, "custom_components.quic_bridge"):
        await set_up(hass, entry)
        await wait_running(hass, entry)
    assert watch.seen() == {"subscribe here": 4, "subscribe there": 2}
    (warning,) = [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("custom_components.quic_bridge") and record.levelno == logging.WARNING
    ]
    assert warning.count("not authorized") == 10
    assert warning.endswith(", and 190 more")

    (issue,) = [issue for issue in async_get_issues(hass).issues.values() if issue.domain == DOMAIN]
    assert issue.translation_key == "subscriptions_refused_remote"
    lines = (issue.translation_placeholders or {})["routes"].splitlines()
    assert (len(lines), lines[-1]) == (21, "- … (+180)")
    sensor = hass.states.get(entity_id(hass, entry, "route_problems"))
    assert sensor is not None
    assert (sensor.state, len(sensor.attributes["refused"])) == (STATE_ON, 50)

    # What goes the other way is not touched.
    out, _ = topics_of_a_home(ROUTES, ROUTES)
    async with Client(*local_broker.address) as home, Client(*remote_broker.address) as away:
        await away.subscribe(f"{SITE}/#", qos=2)
        await publish_all(home, list(out))
        await away.wait_for(len(out))
        assert arrived(away, list(out.values()))

    manager = repairs_flow_manager(hass)
    assert manager is not None
    result = await manager.async_init(DOMAIN, context={"issue_id": issue.issue_id})
    await manager.async_configure(result["flow_id"], {"next_step_id": "disable"})
    await hass.async_block_till_done()
    # The routes both ways go on with what comes from home.
    assert sum(not route.data["enabled"] for route in entry.subentries.values()) == 150
    assert sum(route.data["direction"] == "both" for route in entry.subentries.values()) == 0
    assert async_get_issues(hass).async_get_issue(DOMAIN, issue.issue_id) is None
    assert watch.seen() == {}
    assert len(quic_front.stats.connects) == 1
