"""All that users and maintainers see of a bridge that runs, as it was last looked at.

`scripts/test --snapshots` renews what is expected; look at the difference before it is committed.
"""

from datetime import datetime
import re
from typing import Any

from homeassistant.core import HomeAssistant, State
from homeassistant.helpers import device_registry as dr, entity_registry as er
import pytest
from pytest_homeassistant_custom_component.common import MockConfigEntry
from pytest_homeassistant_custom_component.components.diagnostics import get_diagnostics_for_config_entry
from pytest_homeassistant_custom_component.syrupy import HomeAssistantSnapshotExtension
from pytest_homeassistant_custom_component.typing import ClientSessionGenerator
from syrupy.assertion import SnapshotAssertion

from custom_components.quic_bridge.const import DOMAIN

from .ha_helpers import bridge_entry, local_data, remote_data, route_data, set_up, wait_for_state, wait_running
from .support.certs import Certificates
from .support.client import Client
from .support.mosquitto import Mosquitto
from .support.quic_front import Front

COUNTED = ("messages_", "outbox_", "data_", "local_reconnects", "remote_reconnects")
"""Keys of the numbers that are the same in each run; all others depend on the machine."""
MEASURED_LATER = "packet_loss"
"""Unknown until there are two samples, which a slow machine may have taken already."""
LISTED = {"options", "event_types"}


@pytest.fixture
def snapshot(snapshot: SnapshotAssertion) -> SnapshotAssertion:
    """As Home Assistant's own tests have them, in the folder `snapshots`."""
    return snapshot.use_extension(HomeAssistantSnapshotExtension)


@pytest.fixture
async def entry(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> MockConfigEntry:
    """A bridge over which two messages have gone one way, and one the other way."""
    entry = bridge_entry(
        local_data(local_broker),
        remote_data(quic_front.port, certs.ca_pem),
        [
            route_data("both", "home/#", target="site/7/home/{1}", exclude=["home/private/#"]),
            route_data("to_remote", "home/lamp"),
        ],
        title="broker.example.org",
        entry_id="0123456789ABCDEFGHJKMNPQRS",
    )
    await set_up(hass, entry)
    await wait_running(hass, entry)
    async with Client(*local_broker.address) as home, Client(*remote_broker.address) as away:
        for _ in range(2):
            await home.publish("home/lamp", b"on", 1)
        await away.publish("site/7/home/door", b"open", 2)
        await wait_for_state(hass, entry, "messages_sent", "2")
        await wait_for_state(hass, entry, "messages_received", "1")
        await wait_for_state(hass, entry, "messages_waiting", "0")
    return entry


def stable(value: Any, key: str = "") -> Any:  # noqa: ANN401 # whatever is in attributes and diagnostics
    """Replace what is another in each run: times, ports, and figures of the machine and the network."""
    if isinstance(value, dict):
        return {name: stable(item, name if key != "details" else key) for name, item in value.items()}
    if isinstance(value, (list, tuple)) and key not in LISTED:
        return [stable(item, key) for item in value]
    if isinstance(value, datetime) or (isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.+Z-]+", value)):
        return "<time>"
    if key == "port":
        return "<port>"
    if key.endswith(MEASURED_LATER):
        return "<figure>"
    if isinstance(value, float) or (key == "details" and type(value) is int):
        return "<figure>"
    return value


def stable_state(state: State, key: str) -> State:
    """Return a state without what is another in each run."""
    value = stable(state.state)
    if key.endswith(MEASURED_LATER) or (re.fullmatch(r"-?\d+(\.\d+)?", value) and not key.startswith(COUNTED)):
        value = "<figure>"
    attributes = stable(dict(state.attributes))
    if key == "events":
        attributes["side"] = "<side>"  # the one that connected last
    return State(state.entity_id, value, attributes)


@pytest.mark.usefixtures("entity_registry_enabled_by_default")
async def test_entities(hass: HomeAssistant, entry: MockConfigEntry, snapshot: SnapshotAssertion) -> None:
    """Also those that are disabled by default."""
    entities = er.async_entries_for_config_entry(er.async_get(hass), entry.entry_id)
    for entity in sorted(entities, key=lambda entity: entity.entity_id):
        state = hass.states.get(entity.entity_id)
        assert state is not None
        assert entity == snapshot(name=f"{entity.entity_id}-entry")
        key = entity.unique_id.removeprefix(f"{entry.entry_id}_")
        assert stable_state(state, key) == snapshot(name=f"{entity.entity_id}-state")


async def test_device(hass: HomeAssistant, entry: MockConfigEntry, snapshot: SnapshotAssertion) -> None:
    device = dr.async_get(hass).async_get_device_by_identifier((DOMAIN, entry.entry_id), entry.entry_id)
    assert device == snapshot


async def test_which_entities_are_enabled(
    hass: HomeAssistant, entry: MockConfigEntry, snapshot: SnapshotAssertion
) -> None:
    entities = er.async_entries_for_config_entry(er.async_get(hass), entry.entry_id)
    assert {entity.entity_id: not entity.disabled for entity in sorted(entities, key=lambda e: e.entity_id)} == snapshot


async def test_diagnostics(
    hass: HomeAssistant, entry: MockConfigEntry, hass_client: ClientSessionGenerator, snapshot: SnapshotAssertion
) -> None:
    found: dict[str, Any] = await get_diagnostics_for_config_entry(hass, hass_client, entry)
    # The two sides connect at the same time, in any order.
    found["history"].sort(key=lambda change: change["side"])
    assert stable(found) == snapshot
