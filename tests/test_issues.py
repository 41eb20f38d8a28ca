"""Repair issues: there while something is to be mended, gone when it is."""

from pathlib import Path

from homeassistant.core import HomeAssistant
from homeassistant.helpers.issue_registry import IssueEntry, async_get as async_get_issues
from pytest_homeassistant_custom_component.common import MockConfigEntry

from custom_components.quic_bridge.const import DOMAIN

from .ha_helpers import bridge_entry, entity_id, local_data, remote_data, route_data, set_up, state, wait_running
from .support.certs import Certificates
from .support.faults import refuse_filters
from .support.mosquitto import Mosquitto
from .support.processes import wait_until
from .support.quic_front import Front


def issue(hass: HomeAssistant, entry: MockConfigEntry, name: str) -> IssueEntry | None:
    """Return an issue of an entry."""
    return async_get_issues(hass).async_get_issue(DOMAIN, f"{name}_{entry.entry_id}")


def placeholders(hass: HomeAssistant, entry: MockConfigEntry, name: str) -> dict[str, str]:
    """Return what an issue says about an entry."""
    found = issue(hass, entry, name)
    assert found is not None
    return found.translation_placeholders or {}


async def test_outbox_that_does_not_work_is_an_issue(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    folder = Path(hass.config.path(".storage", DOMAIN))
    folder.parent.mkdir()  # a moment, in a test
    folder.write_text("not a folder")  # noqa: ASYNC240
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)
    assert placeholders(hass, entry, "outbox")["name"] == "127.0.0.1"

    folder.unlink()  # noqa: ASYNC240
    await wait_until(lambda: issue(hass, entry, "outbox") is None, 8, "the end of the issue")


async def test_refused_topics_are_an_issue(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """Named by their filters; the other routes work."""
    rules = refuse_filters({"down/#": 0x87, "secret/+": 0x80})
    quic_front.add_rule(*rules)
    routes = [route_data("to_local", topic_filter) for topic_filter in ("down/#", "secret/+", "fine")]
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem), routes)
    await set_up(hass, entry)
    await wait_running(hass, entry)
    name = "subscriptions_refused_remote"
    assert placeholders(hass, entry, name) == {"name": "127.0.0.1", "topics": "- `down/#`\n- `secret/+`"}
    assert issue(hass, entry, "subscriptions_refused_local") is None
    assert state(hass, entry, "subscriptions_refused") == "2"
    found = hass.states.get(entity_id(hass, entry, "subscriptions_refused"))
    assert found is not None
    assert (found.attributes["local"], found.attributes["remote"]) == ((), ("down/#", "secret/+"))

    # One of the two is done without.
    secret = next(route for route in entry.subentries.values() if route.data["topic_filter"] == "secret/+")
    hass.config_entries.async_remove_subentry(entry, secret.subentry_id)
    await hass.async_block_till_done()
    assert placeholders(hass, entry, name)["topics"] == "- `down/#`"

    # The other one is allowed now.
    quic_front.remove_rule(*rules)
    entry.runtime_data.bridge.reconnect()
    await wait_until(lambda: issue(hass, entry, name) is None, what="the end of the issue")
    assert state(hass, entry, "subscriptions_refused") == "0"


async def test_many_refused_topics(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """The issue stays readable, and goes with the bridge."""
    filters = [f"down/{number}" for number in range(30)]
    quic_front.add_rule(*refuse_filters(dict.fromkeys(filters, 0x87)))
    routes = [route_data("to_local", topic_filter) for topic_filter in filters]
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem), routes)
    await set_up(hass, entry)
    await wait_running(hass, entry)
    name = "subscriptions_refused_remote"
    assert placeholders(hass, entry, name)["topics"].splitlines()[-2:] == ["- `down/19`", "- ..."]
    assert await hass.config_entries.async_unload(entry.entry_id)
    assert issue(hass, entry, name) is None
