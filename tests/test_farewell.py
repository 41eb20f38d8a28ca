"""Sessions that a bridge does not come back to after its settings were changed."""

import logging

from homeassistant.core import HomeAssistant
import pytest
from pytest_homeassistant_custom_component.common import MockConfigEntry

from .ha_helpers import CLIENT_ID, bridge_entry, local_data, remote_data, set_up, wait_for_state, wait_running
from .support.certs import Certificates
from .support.client import Client
from .support.faults import refuse_connect
from .support.mosquitto import Mosquitto, MosquittoOptions
from .support.processes import wait_until
from .support.quic_front import Front

LOGGER = "custom_components.quic_bridge"


@pytest.fixture
async def entry(
    hass: HomeAssistant,
    local_broker: Mosquitto,
    quic_front: Front,
    certs: Certificates,
    caplog: pytest.LogCaptureFixture,
) -> MockConfigEntry:
    """A bridge between the two brokers that runs."""
    caplog.set_level(logging.DEBUG, LOGGER)
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)
    return entry


def change(hass: HomeAssistant, entry: MockConfigEntry, side: str, **data: object) -> None:
    """Change a broker, as the form does when it was tried."""
    hass.config_entries.async_update_entry(entry, data={**entry.data, side: {**entry.data[side], **data}})


async def session_present(broker: Mosquitto, client_id: str) -> bool:
    """Tell whether a broker has a session; whoever uses it is thrown out."""
    async with Client(*broker.address, client_id=client_id, clean=False) as client:
        assert client.connack is not None
        return client.connack.session_present


async def told(caplog: pytest.LogCaptureFixture, *parts: str) -> None:
    """Wait for a line of the log at info or, if it is not for people, debug."""
    await wait_until(lambda: any(all(part in line for part in parts) for line in caplog.messages), what=f"{parts}")


async def test_another_client_identifier(
    hass: HomeAssistant,
    entry: MockConfigEntry,
    local_broker: Mosquitto,
    remote_broker: Mosquitto,
    quic_front: Front,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The former session ends, and what the bridge had taken over by then arrives."""
    quic_front.outgoing.delay = 0.05
    async with Client(*local_broker.address) as home, Client(*remote_broker.address) as away:
        await away.subscribe("up/#", qos=1)
        await home.burst("up/lamp", (b"%d" % number for number in range(300)), 1)
        change(hass, entry, "local", client_id="home-2")
        await told(caplog, "local broker", f"has ended the session of {CLIENT_ID}-local")
        await wait_running(hass, entry)
        await home.publish("up/lamp", b"300", 1)
        await away.wait_for(301)
        assert away.payloads == [b"%d" % number for number in range(301)]
        change(hass, entry, "remote", client_id="away-2")
        await told(caplog, "remote broker", f"has ended the session of {CLIENT_ID}")
    assert [record.levelname for record in caplog.records if "has ended" in record.message] == ["INFO", "INFO"]
    assert not await session_present(local_broker, f"{CLIENT_ID}-local")
    assert not await session_present(remote_broker, CLIENT_ID)
    assert await hass.config_entries.async_unload(entry.entry_id)
    assert await session_present(local_broker, "home-2")
    assert await session_present(remote_broker, "away-2")


async def test_another_broker(
    hass: HomeAssistant,
    entry: MockConfigEntry,
    local_broker: Mosquitto,
    caplog: pytest.LogCaptureFixture,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Only when the new one lets the bridge in: until then the settings may be changed back."""
    async with Mosquitto(tmp_path_factory.mktemp("other"), MosquittoOptions()) as other:
        await other.stop()
        change(hass, entry, "local", port=other.port)
        await wait_for_state(hass, entry, "local_last_error", "refused")
        change(hass, entry, "local", port=local_broker.port)
        await wait_running(hass, entry)
        assert entry.runtime_data.data.local.session_present

        await other.start()
        change(hass, entry, "local", port=other.port)
        await told(caplog, f"local broker 127.0.0.1:{local_broker.port} has ended the session")
        assert not await session_present(local_broker, f"{CLIENT_ID}-local")
        assert await hass.config_entries.async_unload(entry.entry_id)


async def test_the_same_broker_under_another_name(
    hass: HomeAssistant,
    entry: MockConfigEntry,
    remote_broker: Mosquitto,
    quic_front: Front,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The session is the one that the bridge goes on with."""
    change(hass, entry, "remote", host="localhost")
    await told(caplog, "The remote broker is the same as before")
    await wait_running(hass, entry)
    assert len(quic_front.stats.connects) == 2
    assert await hass.config_entries.async_unload(entry.entry_id)
    assert await session_present(remote_broker, CLIENT_ID)


async def test_messages_wait_in_the_former_session(
    hass: HomeAssistant,
    entry: MockConfigEntry,
    local_broker: Mosquitto,
    remote_broker: Mosquitto,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then it stays, and a bridge that comes back has them."""
    monkeypatch.setattr("custom_components.quic_bridge.bridge.link._EMPTY_TIMEOUT", 0.3)
    await local_broker.stop()
    async with Client(*remote_broker.address) as away:
        await away.publish("down/lamp", b"on", 1)
    change(hass, entry, "remote", client_id="away-2")
    await told(caplog, f"keeps the session of {CLIENT_ID} until 20", "messages wait in it")
    await wait_for_state(hass, entry, "remote_connection", "on")
    await local_broker.start()
    async with Client(*local_broker.address) as home:
        await home.subscribe("down/#", qos=1)
        change(hass, entry, "remote", client_id=CLIENT_ID)
        await home.wait_for(1)


async def test_a_session_that_another_client_uses(
    hass: HomeAssistant,
    entry: MockConfigEntry,
    remote_broker: Mosquitto,
    quic_front: Front,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A copy of this Home Assistant, say, which goes on with it."""
    quic_front.connection.kick(0x8E)
    await wait_for_state(hass, entry, "remote_last_error", "session_taken_over")
    entry.runtime_data.async_reconnect()
    await wait_running(hass, entry)
    change(hass, entry, "remote", client_id="away-2")
    await told(caplog, f"keeps the session of {CLIENT_ID}", "another client uses it")
    await wait_running(hass, entry)
    assert await session_present(remote_broker, CLIENT_ID)


async def test_a_copy_of_a_home_assistant_is_removed(
    hass: HomeAssistant,
    entry: MockConfigEntry,
    local_broker: Mosquitto,
    remote_broker: Mosquitto,
    quic_front: Front,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The other one keeps its session, with all that waits in it."""
    quic_front.connection.kick(0x8E)
    await wait_for_state(hass, entry, "remote_last_error", "session_taken_over")
    await hass.config_entries.async_remove(entry.entry_id)
    await told(caplog, f"keeps the session of {CLIENT_ID}", "another client uses it")
    assert await session_present(remote_broker, CLIENT_ID)
    assert not await session_present(local_broker, f"{CLIENT_ID}-local")


async def test_a_broker_that_cannot_be_told(
    hass: HomeAssistant, entry: MockConfigEntry, quic_front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    """The bridge runs all the same."""
    quic_front.add_rule(refuse_connect(0x87, but={"away-2"}))
    change(hass, entry, "remote", client_id="away-2")
    await told(caplog, f"keeps the session of {CLIENT_ID} until 20", "not authorized")
    await wait_running(hass, entry)
    await quic_front.stop()
    await wait_for_state(hass, entry, "remote_connection", "off")
    change(hass, entry, "remote", client_id="away-3")
    await told(caplog, "keeps the session of away-2 until 20", "was not connected")
