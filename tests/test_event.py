"""Events: each transition once, with its reason."""

from typing import Any

from homeassistant.core import Event, EventStateChangedData, HomeAssistant, callback
import pytest
from pytest_homeassistant_custom_component.common import MockConfigEntry

from .ha_helpers import bridge_entry, entity_id, local_data, remote_data, set_up, state, wait_for_state, wait_running
from .support.certs import Certificates
from .support.client import Client
from .support.faults import refuse_connect
from .support.mosquitto import Mosquitto
from .support.processes import wait_until
from .support.quic_front import Front

type Seen = tuple[object, ...]


@pytest.fixture
def entry(local_broker: Mosquitto, quic_front: Front, certs: Certificates) -> MockConfigEntry:
    """A bridge between the two brokers."""
    return bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))


@pytest.fixture
def events(hass: HomeAssistant, entry: MockConfigEntry) -> list[dict[str, Any]]:
    """The attributes of all events of the bridge, as they come."""
    seen: list[dict[str, Any]] = []

    @callback
    def note(event: Event[EventStateChangedData]) -> None:
        new = event.data["new_state"]
        if new is not None and new.domain == "event" and new.attributes.get("event_type") is not None:
            names = ("event_type", "side", "reason", "text", "count", "address")
            seen.append({name: new.attributes.get(name) for name in names})

    hass.bus.async_listen("state_changed", note)
    return seen


def brief(events: list[dict[str, Any]], side: str = "remote") -> list[tuple[str, str | None]]:
    """Return types and reasons of the events of one side."""
    return [(event["event_type"], event["reason"]) for event in events if event["side"] == side]


async def test_connections(
    hass: HomeAssistant, entry: MockConfigEntry, events: list[dict[str, Any]], quic_front: Front
) -> None:
    await set_up(hass, entry)
    await wait_running(hass, entry)
    assert brief(events) == brief(events, "local") == [("connected", None)]
    events.clear()

    await quic_front.stop()
    # Some attempts that fail: no event each.
    await wait_for_state(hass, entry, "remote_last_error", "refused")
    await quic_front.start()
    await wait_running(hass, entry)
    assert brief(events) == [("disconnected", "closed_by_broker"), ("connected", None)]
    assert "closed" in events[0]["text"]
    assert not brief(events, "local")
    events.clear()

    target = {"entity_id": entity_id(hass, entry, "enabled")}
    await hass.services.async_call("switch", "turn_off", target, blocking=True)
    assert brief(events) == brief(events, "local") == [("disconnected", "paused")]
    # A restart of Home Assistant is none.
    await hass.services.async_call("switch", "turn_on", target, blocking=True)
    await wait_running(hass, entry)
    events.clear()
    assert await hass.config_entries.async_unload(entry.entry_id)
    assert not brief(events)


async def test_refusals(
    hass: HomeAssistant, entry: MockConfigEntry, events: list[dict[str, Any]], quic_front: Front
) -> None:
    """One for each reason, however often the broker is asked."""
    banned, unauthorized = refuse_connect(0x8A), refuse_connect(0x87)
    quic_front.add_rule(banned)
    await set_up(hass, entry)
    await wait_for_state(hass, entry, "remote_last_error", "banned")
    bridge = entry.runtime_data.bridge
    asked = len(quic_front.stats.connects)
    bridge.reconnect()
    await wait_until(lambda: len(quic_front.stats.connects) > asked, what="another attempt")
    await wait_for_state(hass, entry, "status", "refused")
    quic_front.remove_rule(banned)
    quic_front.add_rule(unauthorized)
    bridge.reconnect()
    await wait_for_state(hass, entry, "remote_last_error", "not_authorized")
    assert brief(events) == [("refused", "banned"), ("refused", "not_authorized")]
    quic_front.remove_rule(unauthorized)
    bridge.reconnect()
    await wait_running(hass, entry)
    assert brief(events)[2:] == [("connected", None)]
    # Anew after a success.
    events.clear()
    quic_front.add_rule(banned)
    bridge.reconnect()
    await wait_until(lambda: len(brief(events)) == 2, what="two events")
    assert brief(events) == [("disconnected", "reconnect_requested"), ("refused", "banned")]


async def test_dropped_messages(
    hass: HomeAssistant,
    entry: MockConfigEntry,
    events: list[dict[str, Any]],
    local_broker: Mosquitto,
    quic_front: Front,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not an event each, which an outage could bring thousands of."""
    await set_up(hass, entry)
    await wait_running(hass, entry)
    await quic_front.stop()
    await wait_for_state(hass, entry, "remote_connection", "off")
    events.clear()

    def dropped() -> list[Seen]:
        return [
            (event["side"], event["reason"], event["count"]) for event in events if event["event_type"] == "dropped"
        ]

    async with Client(*local_broker.address) as home:
        await home.publish("up/lamp", b"lost", 0)
        await wait_until(dropped, what="an event")
        assert dropped() == [("remote", "disconnected", 1)]
        for _ in range(2):
            await home.publish("up/lamp", b"lost", 0)
        await wait_for_state(hass, entry, "messages_dropped", "3")
        assert len(dropped()) == 1
        monkeypatch.setattr("custom_components.quic_bridge.event.DROPPED_INTERVAL", 0.0)
        await home.publish("up/lamp", b"lost", 0)
        await wait_until(lambda: len(dropped()) == 2, what="another event")
        assert sum(int(str(event[2])) for event in dropped()) == int(state(hass, entry, "messages_dropped"))

        # The counters of a bridge that was paused begin anew.
        target = {"entity_id": entity_id(hass, entry, "enabled")}
        for to in ("off", "on"):
            await hass.services.async_call("switch", f"turn_{to}", target, blocking=True)
        await wait_for_state(hass, entry, "local_connection", "on")
        await home.publish("up/lamp", b"lost", 0)
        await wait_until(lambda: len(dropped()) == 3, what="one more event")
        assert dropped()[2] == ("remote", "disconnected", 1)
