"""Several bridges in one Home Assistant: what happens to one of them is nothing to the others."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homeassistant.components.repairs import repairs_flow_manager
from homeassistant.const import STATE_OFF
from homeassistant.core import HomeAssistant
from homeassistant.exceptions import ServiceValidationError
from homeassistant.helpers.issue_registry import async_get as async_get_issues
from homeassistant.setup import async_setup_component
import pytest
from pytest_homeassistant_custom_component.common import MockConfigEntry

from custom_components.quic_bridge.const import DOMAIN

from .ha_helpers import (
    bridge_entry,
    local_data,
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
from .support.processes import wait_until
from .support.quic_front import Front


@dataclass(frozen=True, slots=True)
class Place:
    """A remote broker, and the bridge from home to it."""

    name: str
    broker: Mosquitto
    front: Front
    entry: MockConfigEntry
    client: Client
    """At the broker; gets all that comes from home."""

    @property
    def received(self) -> list[str]:
        """Return the messages that came from home."""
        return [message.payload.decode() for message in self.client.messages]


@pytest.fixture
async def places(
    hass: HomeAssistant, local_broker: Mosquitto, certs: Certificates, tmp_path: Path
) -> AsyncIterator[list[Place]]:
    """Four bridges that run, from one local broker to four remote ones, all with the same topics."""
    async with AsyncExitStack() as stack:
        found = []
        for name in ("north", "east", "south", "west"):
            options = MosquittoOptions(persistence=True, max_queued_messages=0)
            broker = await stack.enter_async_context(Mosquitto(tmp_path / name, options, name=name))
            front = await stack.enter_async_context(
                Front(broker.address, certs.server.cert_file, certs.server.key_file)
            )
            entry = bridge_entry(
                local_data(local_broker, client_id=f"{name}-local"),
                remote_data(front.port, certs.ca_pem, client_id=name),
                [route_data("to_remote", "up/#"), route_data("to_local", "down/#", target=f"from/{name}/{{1}}")],
                title=name,
            )
            client = await stack.enter_async_context(Client(*broker.address))
            await client.subscribe("up/#", qos=2)
            await set_up(hass, entry)
            found.append(Place(name, broker, front, entry, client))
        for place in found:
            await wait_running(hass, place.entry)
        yield found
        for place in found:
            if hass.config_entries.async_get_entry(place.entry.entry_id) is not None:
                await hass.config_entries.async_unload(place.entry.entry_id)


async def call(hass: HomeAssistant, action: str, **data: object) -> dict[str, Any]:
    """Call an action that answers."""
    answer = await hass.services.async_call(DOMAIN, action, data, blocking=True, return_response=True)
    assert isinstance(answer, dict)
    return answer


async def retained(broker: Mosquitto) -> dict[str, str]:
    """Return the retained messages of a broker."""
    async with Client(*broker.address) as client:
        await client.subscribe("#")
        await client.ping()
        return {message.topic: message.payload.decode() for message in client.messages if message.retain}


async def test_four_bridges_from_one_broker(hass: HomeAssistant, local_broker: Mosquitto, places: list[Place]) -> None:
    """Messages, actions, status topics, reload, outage, Outbox, removal: each is one bridge's own."""
    north, *others = places
    assert await retained(local_broker) == {f"quic_bridge/{place.name}-local/state": "online" for place in places}
    async with Client(*local_broker.address) as home:
        await home.subscribe("from/#", qos=1)
        await home.publish("up/lamp", "all", 2)
        for place in places:
            await place.client.publish("down/lamp", place.name, 1)
            await place.client.wait_for(1)
        await home.wait_for(4)
        assert {message.topic: message.payload.decode() for message in home.messages} == {
            f"from/{place.name}/lamp": place.name for place in places
        }

        # Actions are for the bridge that is named; without a name there is no telling.
        await call(hass, "publish", config_entry_id=north.entry.entry_id, topic="up/action", payload="one", qos="1")
        await north.client.wait_for(2)
        with pytest.raises(ServiceValidationError):
            await call(hass, "publish", topic="up/action", payload="whose?")
        answer = await call(hass, "get_status", config_entry_id=north.entry.entry_id)
        assert answer["outbound"]["forwarded"] == 1

        # One starts afresh, and gets what came meanwhile.
        assert await hass.config_entries.async_unload(north.entry.entry_id)
        await home.publish("up/lamp", "without north", 2)
        for place in others:
            await place.client.wait_for(2)
        assert await hass.config_entries.async_setup(north.entry.entry_id)
        await wait_running(hass, north.entry)
        await north.client.wait_for(3)
        assert north.received == ["all", "one", "without north"]

        # One remote is away: only its messages wait.
        await north.front.stop()
        await wait_for_state(hass, north.entry, "remote_connection", STATE_OFF)
        await home.burst("up/lamp", (b"%d" % number for number in range(20)), 2)
        await wait_for_state(hass, north.entry, "outbox_messages", "20")
        for place in others:
            await place.client.wait_for(22)
            assert state(hass, place.entry, "outbox_messages") == "0"
            assert state(hass, place.entry, "status") == "running"

        # One is removed, with what is its own: files, status topics.
        folder = Path(hass.config.path(".storage", DOMAIN))
        files = {place.name: folder / f"{place.entry.entry_id}.db" for place in places}
        assert all([await hass.async_add_executor_job(file.exists) for file in files.values()])
        await hass.config_entries.async_remove(north.entry.entry_id)
        there = {name: await hass.async_add_executor_job(file.exists) for name, file in files.items()}
        assert there == {place.name: place is not north for place in places}
        assert await retained(local_broker) == {f"quic_bridge/{place.name}-local/state": "online" for place in others}
        await home.publish("up/lamp", "last", 2)
        for place in others:
            await place.client.wait_for(23)
            assert place.received == ["all", "without north", *map(str, range(20)), "last"]
            # None of them was disturbed by any of this.
            assert [connect.client_id for connect in place.front.stats.connects] == [place.name]
            assert local_broker.log.count(f"as {place.name}-local ") == 1


async def test_one_client_identifier_at_one_broker(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """Under two names of one host nobody can see it beforehand. They throw each other out; that is told, and mended."""
    assert await async_setup_component(hass, "repairs", {})
    entries = [
        bridge_entry(
            local_data(local_broker, client_id=f"{title}-local"),
            remote_data(quic_front.port, certs.ca_pem, host=host),
            [route_data("to_remote", "up/#")],
            title=title,
        )
        for title, host in (("one", "127.0.0.1"), ("other", "localhost"))
    ]
    for entry in entries:
        await set_up(hass, entry)

    issues = async_get_issues(hass)
    names = [f"taken_over_remote_{entry.entry_id}" for entry in entries]
    await wait_until(lambda: any(issues.async_get_issue(DOMAIN, name) for name in names), what="the issue of one")
    name = next(name for name in names if issues.async_get_issue(DOMAIN, name))
    manager = repairs_flow_manager(hass)
    assert manager is not None
    result = await manager.async_init(DOMAIN, context={"issue_id": name})
    await manager.async_configure(result["flow_id"], {"next_step_id": "new_client_id"})
    await hass.async_block_till_done()
    for entry in entries:
        await wait_for_state(hass, entry, "status", "running")
    # Each has its messages, and each its place.
    assert len({entry.data["remote"]["client_id"] for entry in entries}) == 2
    await wait_until(lambda: len(quic_front.live) == 2, what="both connections")
