"""A network without UDP, as Home Assistant's user sees it: set-up, entities, events, diagnostics."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

from homeassistant.config_entries import SOURCE_RECONFIGURE, ConfigEntry, ConfigFlowContext, ConfigFlowResult
from homeassistant.core import Event, EventStateChangedData, HomeAssistant, callback
from homeassistant.data_entry_flow import FlowResultType
import pytest
from pytest_homeassistant_custom_component.common import MockConfigEntry
from pytest_homeassistant_custom_component.components.diagnostics import get_diagnostics_for_config_entry
from pytest_homeassistant_custom_component.typing import ClientSessionGenerator

from custom_components.quic_bridge.bridge.config import FailoverConfig
from custom_components.quic_bridge.const import DOMAIN

from .ha_flows import Input, fill, finish, reach_remote, remote_input, suggested
from .ha_helpers import (
    bridge_entry,
    entity_id,
    local_data,
    remote_data,
    set_up,
    state,
    wait_for_state,
    wait_running,
)
from .support.certs import Certificates
from .support.client import Client
from .support.mosquitto import Mosquitto, MosquittoOptions
from .support.processes import free_port, wait_until
from .support.quic_front import Front
from .test_services import call

SWIFT = partial(FailoverConfig, patience=0.1, probe_interval=0.05, hold_down=0.2)


@pytest.fixture
async def remote_broker(socket_enabled: None, tmp_path: Path, certs: Certificates) -> AsyncIterator[Mosquitto]:
    """The remote broker, with a listener for TLS, and a user."""
    options = MosquittoOptions(persistence=True, tls=certs.server, users={"bridge": "secret"})
    async with Mosquitto(tmp_path / "remote", options, name="remote") as broker:
        yield broker


@pytest.fixture
def swift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the bridge change sooner between QUIC and TLS/TCP."""
    monkeypatch.setattr("custom_components.quic_bridge.brokers.FailoverConfig", SWIFT)


def typed(front: Front, certs: Certificates, password: str = "secret", **fallback: Any) -> Input:  # noqa: ANN401
    """What is typed for the remote broker."""
    return remote_input(front.port, certs.ca_pem, username="bridge", password=password, fallback=fallback)


async def change(hass: HomeAssistant, entry: ConfigEntry) -> ConfigFlowResult:
    """Open the form of the remote broker."""
    context = ConfigFlowContext(source=SOURCE_RECONFIGURE, entry_id=entry.entry_id)
    return await fill(
        hass, await hass.config_entries.flow.async_init(DOMAIN, context=context), {"next_step_id": "remote"}
    )


# --- setting up, and changing -----------------------------------------------------------------------------------------


async def test_set_up_where_udp_is_blocked(
    hass: HomeAssistant,
    local_broker: Mosquitto,
    remote_broker: Mosquitto,
    quic_front: Front,
    certs: Certificates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody has asked for a fallback, but there is one at the usual port: the flow says so, and the user chooses."""
    monkeypatch.setattr("custom_components.quic_bridge.config_flow.DEFAULT_TLS_PORT", remote_broker.tls_port)
    result = await reach_remote(hass, local_broker)
    quic_front.die()
    # What is wrong over TLS would be wrong over QUIC as well.
    result = await fill(hass, result, typed(quic_front, certs, "wrong"))
    assert result["errors"] == {"username": "not_authorized"}

    menu = await fill(hass, result, typed(quic_front, certs))
    assert (menu["type"], menu["step_id"]) == (FlowResultType.MENU, "no_quic")
    placeholders = menu["description_placeholders"] or {}
    assert placeholders["port"] == str(quic_front.port)
    assert (placeholders["fallback_host"], placeholders["fallback_port"]) == ("127.0.0.1", str(remote_broker.tls_port))
    assert "refused" in placeholders["detail"]

    result = await fill(hass, menu, {"next_step_id": "remote"})
    assert (result["type"], result["step_id"]) == (FlowResultType.FORM, "remote")
    assert suggested(result, "port") == quic_front.port
    assert suggested(result, "username") == "bridge"

    menu = await fill(hass, result, typed(quic_front, certs))
    entry = await finish(hass, await fill(hass, menu, {"next_step_id": "use_fallback"}))
    assert entry.data["remote"]["fallback"] == {"host": None, "port": remote_broker.tls_port}
    assert state(hass, entry, "remote_transport") == "tcp"


async def test_nothing_gets_through(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates, remote_broker: Mosquitto
) -> None:
    """The error is QUIC's, with the fallback on or off; what an answer over TLS says goes before."""
    result = await reach_remote(hass, local_broker)
    quic_front.die()
    fallbacks: list[Input] = [{}, {"use_fallback": True, "fallback_port": free_port()}]
    for fallback in fallbacks:
        result = await fill(hass, result, typed(quic_front, certs, **fallback))
        assert result["errors"] == {"port": "refused"}
        assert (result["description_placeholders"] or {})["protocol"] == "UDP"
    user_input = typed(quic_front, certs, use_fallback=True, fallback_port=remote_broker.tls_port)
    menu = await fill(hass, result, {**user_input, "tls": {"verify": True}})
    assert (menu["type"], menu["step_id"]) == (FlowResultType.MENU, "certificate")
    result = await fill(hass, menu, {"next_step_id": "back"})
    assert result["errors"] == {"tls": "certificate_untrusted"}
    await quic_front.restart()
    await finish(hass, await fill(hass, result, typed(quic_front, certs)))


async def test_a_fallback_is_tried_before_it_is_needed(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    result = await reach_remote(hass, local_broker)
    closed = free_port()
    for fields, errors in (
        ({"fallback_port": closed}, {"fallback": "refused"}),
        ({"fallback_port": remote_broker.port}, {"fallback": "tls_failed"}),
        ({"fallback_host": "mqtts://broker"}, {"fallback": "invalid_address"}),
        ({"fallback_host": "localhost.localdomain:8883"}, {"fallback": "invalid_address"}),
    ):
        result = await fill(hass, result, typed(quic_front, certs, use_fallback=True, **fields))
        assert result["errors"] == errors, fields
    assert suggested(result, "fallback", "fallback_host") == "localhost.localdomain:8883"
    user_input = typed(
        quic_front, certs, use_fallback=True, fallback_host=" LocalHost ", fallback_port=remote_broker.tls_port
    )
    entry = await finish(hass, await fill(hass, result, user_input))
    assert entry.data["remote"]["fallback"] == {"host": "localhost", "port": remote_broker.tls_port}
    assert state(hass, entry, "remote_transport") == "quic"

    # What is stored is shown, and can be changed also while QUIC does not get through.
    result = await change(hass, entry)
    assert suggested(result, "fallback", "use_fallback") is True
    assert suggested(result, "fallback", "fallback_host") == "localhost"
    assert suggested(result, "fallback", "fallback_port") == remote_broker.tls_port
    user_input = typed(quic_front, certs, use_fallback=True, fallback_port=remote_broker.tls_port)
    quic_front.die()
    menu = await fill(hass, result, user_input)
    result = await fill(hass, menu, {"next_step_id": "use_fallback"})
    assert (result["type"], result["reason"]) == (FlowResultType.ABORT, "reconfigure_successful")
    assert entry.data["remote"]["fallback"] == {"host": None, "port": remote_broker.tls_port}
    assert suggested(await change(hass, entry), "fallback", "fallback_host") is None


async def test_a_fallback_that_refuses_what_quic_accepts(
    hass: HomeAssistant,
    local_broker: Mosquitto,
    remote_broker: Mosquitto,
    quic_front: Front,
    certs: Certificates,
    tmp_path: Path,
) -> None:
    """A broker that answers there in its own words is quoted at the field it speaks of, not at the fallback's."""
    result = await reach_remote(hass, local_broker)
    options = MosquittoOptions(tls=certs.server, users={"bridge": "another"})
    async with Mosquitto(tmp_path / "stranger", options, name="stranger") as stranger:
        result = await fill(hass, result, typed(quic_front, certs, use_fallback=True, fallback_port=stranger.tls_port))
        assert result["errors"] == {"username": "not_authorized"}
    user_input = typed(quic_front, certs, use_fallback=True, fallback_port=remote_broker.tls_port)
    await finish(hass, await fill(hass, result, user_input))


@pytest.mark.parametrize("text", ["mqtts://broker", "broker:", "broker:0", "broker:65536", "broker:x", "my broker:1"])
async def test_further_addresses_that_are_none(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates, text: str
) -> None:
    result = await reach_remote(hass, local_broker)
    result = await fill(hass, result, typed(quic_front, certs, addresses=["broker2:1", text]))
    assert result["errors"] == {"fallback": "invalid_address"}
    assert (result["description_placeholders"] or {})["address"].strip() in text
    assert suggested(result, "fallback", "addresses") == ["broker2:1", text]
    await finish(hass, await fill(hass, result, typed(quic_front, certs)))


async def test_further_addresses(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """Without a port they have that of the first; doubles, and the first itself, are left out."""
    result = await reach_remote(hass, local_broker)
    addresses = ["Broker2", " broker3:99 ", "", "::1", "[::1]:7", "broker3:99", f"127.0.0.1:{quic_front.port}", "[::2]"]
    entry = await finish(hass, await fill(hass, result, typed(quic_front, certs, addresses=addresses)))
    port = quic_front.port
    expected = [("broker2", port), ("broker3", 99), ("::1", port), ("::1", 7), ("::2", port)]
    assert [(item["host"], item["port"]) for item in entry.data["remote"]["addresses"]] == expected
    result = await change(hass, entry)
    shown = [f"broker2:{port}", "broker3:99", f"[::1]:{port}", "[::1]:7", f"[::2]:{port}"]
    assert suggested(result, "fallback", "addresses") == shown


async def test_set_up_while_the_first_address_is_down(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """A further address that lets us in will do; the flow says so, and the user chooses."""
    result = await reach_remote(hass, local_broker)
    addresses = [f"127.0.0.1:{free_port()}", f"localhost:{quic_front.port}"]

    def typed_with(password: str, **fallback: Any) -> Input:  # noqa: ANN401
        return {**typed(quic_front, certs, password, addresses=addresses, **fallback), "port": free_port()}

    # What one of them says of us, the others would say as well.
    result = await fill(hass, result, typed_with("wrong"))
    assert result["errors"] == {"username": "not_authorized"}
    # A fallback is tried all the same, before it is needed.
    result = await fill(hass, result, typed_with("secret", use_fallback=True, fallback_port=free_port()))
    assert result["errors"] == {"fallback": "refused"}

    menu = await fill(hass, result, typed_with("secret"))
    assert (menu["type"], menu["step_id"]) == (FlowResultType.MENU, "other_address")
    placeholders = menu["description_placeholders"] or {}
    assert (placeholders["host"], placeholders["fallback_host"]) == ("127.0.0.1", "localhost")
    assert placeholders["fallback_port"] == str(quic_front.port)
    result = await fill(hass, menu, {"next_step_id": "remote"})
    assert suggested(result, "fallback", "addresses") == addresses

    menu = await fill(hass, result, typed_with("secret"))
    entry = await finish(hass, await fill(hass, menu, {"next_step_id": "use_fallback"}))
    assert [item["port"] for item in entry.data["remote"]["addresses"]][1] == quic_front.port
    assert entry.data["remote"]["fallback"] is None
    assert state(hass, entry, "remote_transport") == "quic"


async def test_new_credentials_where_udp_is_blocked(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """The form that asks for credentials accepts what the broker accepts by the fallback."""
    fallback = {"host": None, "port": remote_broker.tls_port}
    remote = remote_data(quic_front.port, certs.ca_pem, username="bridge", password="old", fallback=fallback)
    entry = bridge_entry(local_data(local_broker), remote)
    quic_front.die()
    await set_up(hass, entry)
    await wait_until(hass.config_entries.flow.async_progress, what="a form")
    [flow] = hass.config_entries.flow.async_progress()
    user_input = {"username": "bridge", "password": "wrong", "advanced": {"client_id": remote["client_id"]}}
    result = await hass.config_entries.flow.async_configure(flow["flow_id"], user_input)
    assert result["errors"] == {"username": "not_authorized"}
    result = await hass.config_entries.flow.async_configure(flow["flow_id"], {**user_input, "password": "secret"})
    assert result["reason"] == "reauth_successful"
    assert entry.data["remote"] == {**remote, "password": "secret"}
    await wait_running(hass, entry)


async def test_new_credentials_while_nothing_answers(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    remote = remote_data(quic_front.port, certs.ca_pem, username="bridge", password="old")
    await set_up(hass, bridge_entry(local_data(local_broker), remote))
    await wait_until(hass.config_entries.flow.async_progress, what="a form")
    [flow] = hass.config_entries.flow.async_progress()
    quic_front.die()
    user_input = {"username": "bridge", "password": "secret", "advanced": {"client_id": remote["client_id"]}}
    result = await hass.config_entries.flow.async_configure(flow["flow_id"], user_input)
    assert result["errors"] == {"base": "refused"}


# --- entities, events, diagnostics ------------------------------------------------------------------------------------


@pytest.fixture
def entry(
    swift: None, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> MockConfigEntry:
    """A bridge with a fallback."""
    remote = remote_data(
        quic_front.port,
        certs.ca_pem,
        username="bridge",
        password="secret",
        fallback={"host": "localhost", "port": remote_broker.tls_port},
    )
    return bridge_entry(local_data(local_broker), remote)


async def test_there_and_back(
    hass: HomeAssistant,
    entry: MockConfigEntry,
    quic_front: Front,
    local_broker: Mosquitto,
    remote_broker: Mosquitto,
    hass_client: ClientSessionGenerator,
) -> None:
    seen: list[dict[str, Any]] = []

    @callback
    def note(event: Event[EventStateChangedData]) -> None:
        new = event.data["new_state"]
        if new is not None and new.attributes.get("event_type") in {"fallback", "returned"}:
            seen.append(dict(new.attributes))

    hass.bus.async_listen("state_changed", note)
    quic_front.linger = True
    await set_up(hass, entry)
    assert state(hass, entry, "remote_transport") == "unknown"
    await wait_running(hass, entry)
    sensor = entity_id(hass, entry, "remote_transport")

    def attributes() -> dict[str, Any]:
        found = hass.states.get(sensor)
        assert found is not None
        return dict(found.attributes)

    async with Client(*remote_broker.address, username="bridge", password="secret") as away:
        await away.subscribe("up/#", qos=2)
        async with Client(*local_broker.address) as home:
            assert state(hass, entry, "remote_transport") == "quic"
            assert attributes()["preferred"] is True
            assert attributes()["address"] == f"127.0.0.1:{quic_front.port}"
            assert "message" not in attributes()
            await home.publish("up/lamp", b"1", 1)
            quic_front.die()
            await wait_for_state(hass, entry, "remote_transport", "tcp")
            assert attributes()["preferred"] is False
            assert attributes()["address"] == f"localhost:{remote_broker.tls_port}"
            assert "refused" in attributes()["message"]
            await home.publish("up/lamp", b"2", 1)
            await away.wait_for(2)

            answer = await call(hass, "test_connection")
            assert answer["remote"]["error"] == "refused"
            [tried] = answer["other_endpoints"]
            assert tried["ok"] is True
            assert (tried["host"], tried["port"], tried["transport"]) == ("localhost", remote_broker.tls_port, "tcp")

            found = await get_diagnostics_for_config_entry(hass, hass_client, entry)
            assert found["other_endpoints"] == [{"port": remote_broker.tls_port, "transport": "tcp"}]
            assert found["status"]["remote"]["endpoint"]["preferred"] is False
            assert found["status"]["remote"]["endpoint"]["diverted"]["code"] == "refused"
            for word in ("localhost", "127.0.0.1", "secret"):
                assert word not in str(found)

            await quic_front.restart()
            await wait_for_state(hass, entry, "remote_transport", "quic")
            assert attributes()["preferred"] is True
            await home.publish("up/lamp", b"3", 1)
            await away.wait_for(3)
    there, back = seen
    assert (there["event_type"], there["side"], there["reason"]) == ("fallback", "remote", "refused")
    assert there["address"] == f"localhost:{remote_broker.tls_port}"
    assert "refused" in there["text"]
    assert (back["event_type"], back["side"], back["reason"]) == ("returned", "remote", "answers_again")
    assert back["address"] == f"127.0.0.1:{quic_front.port}"


async def test_removed_where_udp_is_blocked(
    hass: HomeAssistant, entry: MockConfigEntry, quic_front: Front, remote_broker: Mosquitto
) -> None:
    """The remote broker is told, by the fallback, to forget the session."""
    quic_front.die()
    await set_up(hass, entry)
    await wait_running(hass, entry)
    await hass.config_entries.async_remove(entry.entry_id)
    assert "(p5, c1, k30" in remote_broker.log
