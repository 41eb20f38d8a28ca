"""Setting up through the user interface, with real brokers behind every check."""

from io import BytesIO
import socket
import ssl
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

from homeassistant.config_entries import SOURCE_USER, ConfigEntryState, ConfigFlowResult
from homeassistant.core import HomeAssistant
from homeassistant.data_entry_flow import FlowResultType
import pytest
from pytest_homeassistant_custom_component.common import MockConfigEntry, get_schema_suggested_value
from pytest_homeassistant_custom_component.typing import ClientSessionGenerator

from custom_components.quic_bridge.const import DOMAIN
from custom_components.quic_bridge.flow_forms import clean_host

from .ha_helpers import (
    CLIENT_ID,
    bridge_entry,
    local_data,
    mqtt_entry,
    remote_data,
    set_up,
    state,
    wait_for_state,
    wait_running,
)
from .support.certs import Certificate, Certificates
from .support.mosquitto import Mosquitto, MosquittoOptions
from .support.processes import free_port, wait_until
from .support.quic_front import Front

type Input = dict[str, Any]

TOPICS: Input = {"send": ["up/#"], "receive": ["down/#"]}


def local_input(broker: Mosquitto, *, tls: Input | None = None, **fields: object) -> Input:
    """What is typed for a local broker."""
    return {
        "host": broker.host,
        "port": broker.port,
        "tls": {"use_tls": tls is not None, "verify": True, **(tls or {})},
        **fields,
    }


def remote_input(port: int, ca: str | None, *, client_id: str = CLIENT_ID, **fields: object) -> Input:
    """What is typed for the remote broker."""
    tls = {"verify": True} if ca is None else {"ca": ca, "verify": True}
    return {"host": "127.0.0.1", "port": port, "tls": tls, "advanced": {"client_id": client_id}, **fields}


async def begin(hass: HomeAssistant) -> ConfigFlowResult:
    """Start setting up."""
    return await hass.config_entries.flow.async_init(DOMAIN, context={"source": SOURCE_USER})


async def fill(hass: HomeAssistant, result: ConfigFlowResult, user_input: Input) -> ConfigFlowResult:
    """Fill in the form that is shown."""
    return await hass.config_entries.flow.async_configure(result["flow_id"], user_input)


async def reach_remote(hass: HomeAssistant, local: Mosquitto) -> ConfigFlowResult:
    """Get over the local broker."""
    result = await fill(hass, await begin(hass), local_input(local))
    assert result["step_id"] == "remote"
    return result


async def finish(hass: HomeAssistant, result: ConfigFlowResult) -> MockConfigEntry:
    """From the form of topics to a bridge that runs."""
    assert result["step_id"] == "topics", result
    result = await fill(hass, result, TOPICS)
    assert result["type"] is FlowResultType.CREATE_ENTRY
    entry: MockConfigEntry = result["result"]
    await wait_running(hass, entry)
    return entry


def suggested(result: ConfigFlowResult, *path: str) -> object:
    """Return what the form suggests for a field."""
    schema = result["data_schema"]
    for name in path[:-1]:
        assert schema is not None
        schema = schema.schema[name].schema
    assert schema is not None
    return get_schema_suggested_value(schema.schema, path[-1])


# --- setting up -------------------------------------------------------------------------------------------------------


async def test_other_local_broker(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """Without an MQTT integration there is nothing to choose, so the flow begins with the broker's address."""
    result = await begin(hass)
    assert (result["type"], result["step_id"]) == (FlowResultType.FORM, "local_custom")
    result = await fill(hass, result, local_input(local_broker))
    assert (result["type"], result["step_id"]) == (FlowResultType.FORM, "remote")
    client_id = suggested(result, "advanced", "client_id")
    assert isinstance(client_id, str)
    assert client_id.startswith("quic-bridge-")
    result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem, client_id=client_id))
    assert (result["type"], result["step_id"]) == (FlowResultType.FORM, "topics")
    result = await fill(hass, result, {"send": ["up/#", " both/# ", ""], "receive": ["down/#", "both/#"]})
    assert result["type"] is FlowResultType.CREATE_ENTRY
    entry = result["result"]
    assert entry.title == "127.0.0.1"
    assert entry.data == {
        "local": local_data(local_broker, client_id=f"{client_id}-local"),
        "remote": remote_data(quic_front.port, certs.ca_pem, client_id=client_id),
    }
    assert [(route.subentry_type, route.title, dict(route.data)) for route in entry.subentries.values()] == [
        ("route", "→ up/#", {"direction": "to_remote", "topic_filter": "up/#"}),
        ("route", "↔ both/#", {"direction": "both", "topic_filter": "both/#"}),
        ("route", "← down/#", {"direction": "to_local", "topic_filter": "down/#"}),
    ]
    await wait_until(lambda: hass.states.get("sensor.127_0_0_1_status").state == "running", what="running")  # type: ignore[union-attr] # else it fails
    assert [connect.client_id for connect in quic_front.stats.connects[-1:]] == [client_id]


async def test_home_assistants_broker(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    mqtt_entry(local_broker).add_to_hass(hass)
    result = await begin(hass)
    assert result["step_id"] == "local"
    result = await fill(hass, result, {"mode": "home_assistant"})
    assert result["step_id"] == "remote"
    entry = await finish(hass, await fill(hass, result, remote_input(quic_front.port, certs.ca_pem)))
    # Nothing of the mqtt entry is copied.
    assert set(entry.data["local"]) == {"mode", "client_id"}


async def test_another_broker_than_home_assistants(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    mqtt_entry(local_broker, port=free_port()).add_to_hass(hass)
    result = await fill(hass, await begin(hass), {"mode": "custom"})
    assert result["step_id"] == "local_custom"
    result = await fill(hass, result, local_input(local_broker))
    await finish(hass, await fill(hass, result, remote_input(quic_front.port, certs.ca_pem)))


async def test_home_assistants_broker_cannot_be_used(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    mqtt = mqtt_entry(local_broker)
    mqtt.add_to_hass(hass)
    good = dict(mqtt.data)
    result = await begin(hass)
    for data, error in (
        ({**good, "port": free_port()}, "refused"),
        ({**good, "transport": "websockets"}, "configuration"),
        ({**good, "certificate": "auto"}, "tls_failed"),
    ):
        hass.config_entries.async_update_entry(mqtt, data=data)
        result = await fill(hass, result, {"mode": "home_assistant"})
        assert (result["step_id"], result["errors"]) == ("local", {"base": error})
    await hass.config_entries.async_remove(mqtt.entry_id)
    result = await fill(hass, result, {"mode": "home_assistant"})
    assert (result["step_id"], result["errors"]) == ("local", {"base": "local_entry_missing"})
    mqtt_entry(local_broker).add_to_hass(hass)
    result = await fill(hass, result, {"mode": "home_assistant"})
    await finish(hass, await fill(hass, result, remote_input(quic_front.port, certs.ca_pem)))


async def test_local_broker_with_password_and_tls(
    hass: HomeAssistant,
    socket_enabled: None,
    tmp_path_factory: pytest.TempPathFactory,
    quic_front: Front,
    certs: Certificates,
) -> None:
    options = MosquittoOptions(users={"bridge": "secret"}, tls=certs.server)
    async with Mosquitto(tmp_path_factory.mktemp("strict"), options) as broker:
        result = await begin(hass)

        result = await fill(hass, result, local_input(broker, username="bridge", password="wrong"))
        assert result["errors"] == {"username": "not_authorized"}
        assert "not authorized" in (result["description_placeholders"] or {})["detail"]
        # What was typed is still there.
        assert suggested(result, "host") == broker.host
        assert suggested(result, "username") == "bridge"

        credentials: Input = {"username": "bridge", "password": "secret", "port": broker.tls_port}
        result = await fill(hass, result, local_input(broker, **credentials))
        assert result["errors"] == {"base": "closed_by_broker"}

        result = await fill(hass, result, local_input(broker, tls={}, **credentials))
        assert result["errors"] == {"tls": "certificate_untrusted"}

        tls = {"ca": certs.ca_pem, "server_name": "other.example.org"}
        result = await fill(hass, result, local_input(broker, tls=tls, **credentials))
        assert result["errors"] == {"tls": "certificate_name"}
        assert suggested(result, "tls", "server_name") == "other.example.org"

        tls = {"ca": certs.ca_pem, "server_name": ""}
        result = await fill(hass, result, local_input(broker, tls=tls, **credentials))
        entry = await finish(hass, await fill(hass, result, remote_input(quic_front.port, certs.ca_pem)))
        assert entry.data["local"] == local_data(
            broker,
            port=broker.tls_port,
            username="bridge",
            password="secret",
            use_tls=True,
            ca=certs.ca_pem,
            client_id=entry.data["local"]["client_id"],
        )
        assert await hass.config_entries.async_unload(entry.entry_id)


async def test_remote_cannot_be_reached(
    hass: HomeAssistant,
    local_broker: Mosquitto,
    quic_front: Front,
    certs: Certificates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = await reach_remote(hass, local_broker)

    result = await fill(hass, result, remote_input(free_port(), certs.ca_pem))
    assert result["errors"] == {"port": "refused"}
    assert (result["description_placeholders"] or {})["protocol"] == "UDP"

    def not_found(host: str, *_args: object, **_kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with monkeypatch.context() as names:
        names.setattr(socket, "getaddrinfo", not_found)
        result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem, host="nowhere.example"))
    assert result["errors"] == {"host": "name_not_found"}

    await finish(hass, await fill(hass, result, remote_input(quic_front.port, certs.ca_pem)))


async def test_remote_is_not_mqtt_over_quic(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    result = await reach_remote(hass, local_broker)
    quic_front.policy.alpn = ("h3",)
    result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem))
    assert result["errors"] == {"port": "not_mqtt_quic"}
    quic_front.policy.alpn = ("mqtt",)
    await finish(hass, await fill(hass, result, remote_input(quic_front.port, certs.ca_pem)))


async def test_remote_wants_a_client_certificate(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    result = await reach_remote(hass, local_broker)
    quic_front.policy.client_ca_pem = certs.ca_pem
    result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem))
    assert result["errors"] == {"base": "client_certificate_required"}
    quic_front.policy.client_ca_pem = None
    await finish(hass, await fill(hass, result, remote_input(quic_front.port, certs.ca_pem)))


@pytest.mark.parametrize(
    ("certificate", "trusted", "error"),
    [
        ("server", False, "certificate_untrusted"),
        ("expired", True, "certificate_expired"),
        ("other_name", True, "certificate_name"),
    ],
)
async def test_remote_certificate_is_wrong(
    hass: HomeAssistant,
    local_broker: Mosquitto,
    remote_broker: Mosquitto,
    certs: Certificates,
    certificate: str,
    trusted: bool,
    error: str,
) -> None:
    result = await reach_remote(hass, local_broker)
    wrong: Certificate = getattr(certs, certificate)
    ca = certs.ca_pem if trusted else None
    async with Front(remote_broker.address, wrong.cert_file, wrong.key_file) as front:
        result = await fill(hass, result, remote_input(front.port, ca))
        assert result["errors"] == {"tls": error}
    async with Front(remote_broker.address, certs.server.cert_file, certs.server.key_file) as front:
        entry = await finish(hass, await fill(hass, result, remote_input(front.port, certs.ca_pem)))
        assert await hass.config_entries.async_unload(entry.entry_id)


async def test_remote_certificate_for_another_name_is_accepted_when_named(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, certs: Certificates
) -> None:
    result = await reach_remote(hass, local_broker)
    other = certs.other_name
    async with Front(remote_broker.address, other.cert_file, other.key_file) as front:
        tls = {"ca": certs.ca_pem, "server_name": " broker.example.org ", "verify": True}
        entry = await finish(hass, await fill(hass, result, {**remote_input(front.port, None), "tls": tls}))
        assert entry.data["remote"]["server_name"] == "broker.example.org"
        assert await hass.config_entries.async_unload(entry.entry_id)


async def test_remote_refuses_the_login(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    result = await reach_remote(hass, local_broker)
    await remote_broker.stop()
    remote_broker.options.users = {"bridge": "secret"}
    await remote_broker.start()
    result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem, username="bridge"))
    assert result["errors"] == {"username": "not_authorized"}
    user_input = remote_input(quic_front.port, certs.ca_pem, username="bridge", password="secret")
    entry = await finish(hass, await fill(hass, result, user_input))
    assert entry.data["remote"]["password"] == "secret"


@pytest.mark.parametrize("host", ["mqtts://broker", "broker:14567", "broker/mqtt", "my broker", "  ", "[::1]:14567"])
async def test_host_that_is_none(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates, host: str
) -> None:
    result = await reach_remote(hass, local_broker)
    result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem, host=host))
    assert result["errors"] == {"host": "invalid_host"}
    assert suggested(result, "host") == host
    await finish(hass, await fill(hass, result, remote_input(quic_front.port, certs.ca_pem)))


async def test_host_in_capitals(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    result = await reach_remote(hass, local_broker)
    user_input = remote_input(quic_front.port, certs.ca_pem, host=" LocalHost ")
    entry = await finish(hass, await fill(hass, result, user_input))
    assert entry.data["remote"]["host"] == "localhost"


@pytest.mark.parametrize(("typed", "host"), [("::1", "::1"), (" [2001:DB8::1] ", "2001:db8::1"), ("bröker", "bröker")])
def test_hosts_that_are_fine(typed: str, host: str) -> None:
    """Without a connection, as the harness allows 127.0.0.1 alone."""
    assert clean_host(typed) == host


async def test_client_id_is_empty(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    result = await reach_remote(hass, local_broker)
    result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem, client_id=" "))
    assert result["errors"] == {"advanced": "client_id_empty"}
    await finish(hass, await fill(hass, result, remote_input(quic_front.port, certs.ca_pem)))


async def test_unexpected_error(
    hass: HomeAssistant,
    local_broker: Mosquitto,
    quic_front: Front,
    certs: Certificates,
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = await reach_remote(hass, local_broker)
    with patch("custom_components.quic_bridge.config_flow.check_broker", side_effect=RuntimeError("boom")):
        result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem))
    assert result["errors"] == {"base": "unknown"}
    assert caplog.text.count("RuntimeError: boom") == 1
    await finish(hass, await fill(hass, result, remote_input(quic_front.port, certs.ca_pem)))


async def test_same_identity_at_the_same_remote(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem)).add_to_hass(hass)
    result = await reach_remote(hass, local_broker)
    aborted = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem))
    assert (aborted["type"], aborted["reason"]) == (FlowResultType.ABORT, "already_configured")
    result = await reach_remote(hass, local_broker)
    await finish(hass, await fill(hass, result, remote_input(quic_front.port, certs.ca_pem, client_id="another")))


@pytest.mark.parametrize(
    ("topics", "errors"),
    [
        ({}, {"base": "no_topics"}),
        ({"send": ["", " "]}, {"base": "no_topics"}),
        ({"send": ["home/#/state"]}, {"send": "filter_hash"}),
        ({"send": ["home/#"], "receive": ["home/+x"]}, {"receive": "filter_plus"}),
        ({"receive": ["$share/group/home/#"]}, {"receive": "filter_shared"}),
        ({"receive": ["x" * 65536]}, {"receive": "filter_invalid"}),
    ],
)
async def test_topics_that_cannot_be(
    hass: HomeAssistant,
    local_broker: Mosquitto,
    quic_front: Front,
    certs: Certificates,
    topics: Input,
    errors: dict[str, str],
) -> None:
    result = await reach_remote(hass, local_broker)
    result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem))
    result = await fill(hass, result, topics)
    assert (result["step_id"], result["errors"]) == ("topics", errors)
    await finish(hass, result)


# --- CA certificates --------------------------------------------------------------------------------------------------


async def upload(hass: HomeAssistant, hass_client: ClientSessionGenerator, content: bytes) -> str:
    """Upload a file as the frontend does."""
    client = await hass_client()
    response = await client.post("/api/file_upload", data={"file": BytesIO(content)})
    assert response.status == 200
    file_id: str = (await response.json())["file_id"]
    return file_id


@pytest.mark.parametrize("der", [False, True], ids=["PEM", "DER"])
async def test_ca_from_a_file(
    hass: HomeAssistant,
    local_broker: Mosquitto,
    quic_front: Front,
    certs: Certificates,
    hass_client: ClientSessionGenerator,
    der: bool,
) -> None:
    result = await reach_remote(hass, local_broker)
    content = certs.ca_pem.encode()
    if der:
        content = ssl.PEM_cert_to_DER_cert(certs.ca_pem)
    file_id = await upload(hass, hass_client, content)
    tls = {"ca": "the file takes its place", "ca_file": file_id, "verify": True}
    user_input = {**remote_input(free_port(), None), "tls": tls}
    result = await fill(hass, result, user_input)
    assert result["errors"] == {"port": "refused"}
    # The file is gone, but its text stays in the form.
    assert suggested(result, "tls", "ca") == certs.ca_pem
    assert suggested(result, "tls", "ca_file") is None
    tls = {"ca": certs.ca_pem, "verify": True}
    entry = await finish(hass, await fill(hass, result, {**remote_input(quic_front.port, None), "tls": tls}))
    assert entry.data["remote"]["ca"] == certs.ca_pem


async def test_ca_that_cannot_be_read(
    hass: HomeAssistant,
    local_broker: Mosquitto,
    quic_front: Front,
    certs: Certificates,
    hass_client: ClientSessionGenerator,
) -> None:
    result = await reach_remote(hass, local_broker)
    garbage = await upload(hass, hass_client, b"\x30\x82garbage")
    for tls in (
        {"ca": "not a certificate"},
        {"ca": "-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----"},
        {"ca_file": garbage},
        {"ca_file": garbage},  # read before, hence gone
        {"ca": certs.server.key_pem},
    ):
        user_input = {**remote_input(quic_front.port, None), "tls": {"verify": True, **tls}}
        result = await fill(hass, result, user_input)
        assert result["errors"] == {"tls": "ca_invalid"}, tls
    entry = await finish(
        hass, await fill(hass, result, remote_input(quic_front.port, certs.ca_pem + certs.server.key_pem))
    )
    # A private key that came along is not kept.
    assert entry.data["remote"]["ca"] == certs.ca_pem


# --- changing ---------------------------------------------------------------------------------------------------------


async def reconfigure(hass: HomeAssistant, entry: MockConfigEntry, side: str) -> ConfigFlowResult:
    """Open the form of one broker."""
    result = await entry.start_reconfigure_flow(hass)
    assert (result["type"], result["step_id"]) == (FlowResultType.MENU, "reconfigure")
    return await fill(hass, result, {"next_step_id": side})


async def test_change_the_remote_broker(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    await remote_broker.stop()
    remote_broker.options.users = {"bridge": "secret", "other": "hidden"}
    await remote_broker.start()
    remote = remote_data(quic_front.port, certs.ca_pem, username="bridge", password="secret", server_name="localhost")
    entry = bridge_entry(local_data(local_broker), remote)
    await set_up(hass, entry)
    await wait_running(hass, entry)

    result = await reconfigure(hass, entry, "remote")
    assert result["step_id"] == "remote"
    assert suggested(result, "username") == "bridge"
    assert suggested(result, "password") is None
    assert suggested(result, "tls", "server_name") == "localhost"
    assert suggested(result, "advanced", "client_id") == CLIENT_ID

    # Another user, and no password for it: that of the user before is not tried.
    result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem, username="other"))
    assert result["errors"] == {"username": "not_authorized"}
    # The same user: the password stays. The bridge which runs is not thrown out by the check.
    result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem, username="bridge", host="localhost"))
    assert (result["type"], result["reason"]) == (FlowResultType.ABORT, "reconfigure_successful")
    assert entry.data["remote"] == {**remote, "host": "localhost", "server_name": None}
    assert entry.title == "localhost"
    await hass.async_block_till_done()
    await wait_running(hass, entry)
    assert state(hass, entry, "remote_last_error") == "none"


async def test_change_nothing(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """Saving what is there already makes the bridge try again at once."""
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)
    hass.config_entries.async_update_entry(entry, title="My bridge")
    await hass.async_block_till_done()
    await wait_running(hass, entry)
    sessions = len(quic_front.stats.connects)
    result = await reconfigure(hass, entry, "remote")
    result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem))
    assert result["reason"] == "reconfigure_successful"
    await wait_until(lambda: len(quic_front.stats.connects) == sessions + 2, what="the check and a new session")
    await wait_for_state(hass, entry, "remote_last_error", "reconnect_requested")
    await wait_running(hass, entry)
    assert entry.title == "My bridge"


async def test_change_the_remote_to_one_in_use(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem)).add_to_hass(hass)
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem, client_id="second"))
    entry.add_to_hass(hass)
    result = await reconfigure(hass, entry, "remote")
    result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem))
    assert result["reason"] == "already_configured"
    assert entry.data["remote"]["client_id"] == "second"


async def test_change_the_local_broker(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    mqtt_entry(local_broker).add_to_hass(hass)
    entry = bridge_entry(local_data(None), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)

    result = await reconfigure(hass, entry, "local")
    assert (result["step_id"], suggested(result, "mode")) == ("local", "home_assistant")
    result = await fill(hass, result, {"mode": "custom"})
    assert result["step_id"] == "local_custom"
    result = await fill(hass, result, local_input(local_broker, port=free_port()))
    assert result["errors"] == {"port": "refused"}
    result = await fill(hass, result, local_input(local_broker))
    assert result["reason"] == "reconfigure_successful"
    assert entry.data["local"] == local_data(local_broker)
    await hass.async_block_till_done()
    await wait_running(hass, entry)

    result = await reconfigure(hass, entry, "local")
    assert suggested(result, "mode") == "custom"
    result = await fill(hass, result, {"mode": "home_assistant"})
    assert result["reason"] == "reconfigure_successful"
    assert entry.data["local"] == local_data(None)
    await hass.async_block_till_done()
    await wait_running(hass, entry)


# --- credentials that are refused -------------------------------------------------------------------------------------


async def reauth_form(hass: HomeAssistant) -> ConfigFlowResult:
    """Wait for the bridge to ask for credentials, and open the form as the frontend does."""
    await wait_until(hass.config_entries.flow.async_progress, what="a reauth flow")
    (flow,) = hass.config_entries.flow.async_progress()
    assert (flow["context"]["source"], flow["step_id"]) == ("reauth", "reauth_confirm")
    return await hass.config_entries.flow.async_configure(flow["flow_id"])


async def test_remote_refuses_credentials(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    entry = bridge_entry(
        local_data(local_broker), remote_data(quic_front.port, certs.ca_pem, username="bridge", password="old")
    )
    await set_up(hass, entry)
    await wait_running(hass, entry)
    await remote_broker.stop()
    remote_broker.options.users = {"bridge": "new"}
    await remote_broker.start()

    result = await reauth_form(hass)
    assert entry.state is ConfigEntryState.LOADED
    await wait_for_state(hass, entry, "status", "refused")
    assert (suggested(result, "username"), suggested(result, "password")) == ("bridge", None)
    user_input = {"username": "bridge", "advanced": {"client_id": CLIENT_ID}}
    result = await fill(hass, result, {**user_input, "password": "wrong"})
    assert (result["step_id"], result["errors"]) == ("reauth_confirm", {"username": "not_authorized"})
    result = await fill(hass, result, {**user_input, "advanced": {"client_id": ""}})
    assert result["errors"] == {"advanced": "client_id_empty"}
    result = await fill(hass, result, {**user_input, "password": "new"})
    assert (result["type"], result["reason"]) == (FlowResultType.ABORT, "reauth_successful")
    assert entry.data["remote"]["password"] == "new"
    await hass.async_block_till_done()
    await wait_running(hass, entry)
    assert not hass.config_entries.flow.async_progress()


async def test_credentials_are_right_again(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """The broker was mended, not the credentials: confirming them makes the bridge try at once, not minutes later."""
    remote_broker.options.users = {"bridge": "other"}
    await remote_broker.restart()
    entry = bridge_entry(
        local_data(local_broker), remote_data(quic_front.port, certs.ca_pem, username="bridge", password="secret")
    )
    await set_up(hass, entry)
    result = await reauth_form(hass)
    await remote_broker.stop()
    remote_broker.options.users = {"bridge": "secret"}
    await remote_broker.start()
    result = await fill(hass, result, {"username": "bridge", "advanced": {"client_id": CLIENT_ID}})
    assert result["reason"] == "reauth_successful"
    await wait_running(hass, entry)


async def test_credentials_are_asked_for_once(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    remote_broker.options.users = {"bridge": "secret"}
    await remote_broker.restart()
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    result = await reauth_form(hass)
    # Dismissed; refused again; and not asked for again.
    hass.config_entries.flow.async_abort(result["flow_id"])
    bridge = entry.runtime_data.bridge
    refused_at = bridge.status.remote.error.at
    bridge.reconnect()
    await wait_until(lambda: bridge.status.remote.error.at > refused_at, what="another refusal")
    await wait_for_state(hass, entry, "status", "refused")
    assert not hass.config_entries.flow.async_progress()
    # Let in, and refused again: asked for again.
    await remote_broker.stop()
    remote_broker.options.users = None
    await remote_broker.start()
    bridge.reconnect()
    await wait_running(hass, entry)
    await remote_broker.stop()
    remote_broker.options.users = {"bridge": "secret"}
    await remote_broker.start()
    await reauth_form(hass)


async def test_local_broker_refuses_credentials(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    local_broker.options.users = {"bridge": "secret"}
    await local_broker.restart()
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    result = await reauth_form(hass)
    assert (result["description_placeholders"] or {})["port"] == str(local_broker.port)
    user_input = {"username": "bridge", "password": "secret", "advanced": {"client_id": f"{CLIENT_ID}-local"}}
    result = await fill(hass, result, user_input)
    assert result["reason"] == "reauth_successful"
    assert entry.data["local"]["username"] == "bridge"
    await hass.async_block_till_done()
    await wait_running(hass, entry)


async def test_home_assistants_broker_refuses_credentials(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """They are for the mqtt integration to ask for."""
    local_broker.options.users = {"bridge": "secret"}
    await local_broker.restart()
    mqtt_entry(local_broker).add_to_hass(hass)
    entry = bridge_entry(local_data(None), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_for_state(hass, entry, "status", "refused")
    assert not hass.config_entries.flow.async_progress()


async def test_new_client_id_is_in_use(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem, client_id="second")).add_to_hass(
        hass
    )
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    entry.add_to_hass(hass)
    result = await entry.start_reauth_flow(hass)
    result = await fill(hass, result, {"advanced": {"client_id": "second"}})
    assert (result["type"], result["reason"]) == (FlowResultType.ABORT, "already_configured")


# --- routes -----------------------------------------------------------------------------------------------------------


async def test_add_a_route(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    flows = hass.config_entries.subentries
    result = await flows.async_init((entry.entry_id, "route"), context={"source": SOURCE_USER})
    assert (result["type"], result["step_id"]) == (FlowResultType.FORM, "user")
    for topic_filter, direction, error in (
        (" ", "to_local", "filter_empty"),
        ("a#", "to_local", "filter_hash"),
        ("up/#", "to_remote", "route_exists"),
        ("up/#", "both", "route_exists"),
    ):
        user_input = {"topic_filter": topic_filter, "direction": direction}
        result = await flows.async_configure(result["flow_id"], user_input)
        assert result["errors"] == {"topic_filter": error}
    # The other direction is another route.
    result = await flows.async_configure(result["flow_id"], {"topic_filter": " up/# ", "direction": "to_local"})
    assert result["type"] is FlowResultType.CREATE_ENTRY
    route = list(entry.subentries.values())[-1]
    assert (route.title, dict(route.data)) == ("← up/#", {"topic_filter": "up/#", "direction": "to_local"})
    await hass.async_block_till_done()
    await wait_running(hass, entry)


async def test_change_a_route(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    route, other = entry.subentries.values()
    flows = hass.config_entries.subentries
    result = await flows.async_init(
        (entry.entry_id, "route"), context={"source": "reconfigure", "subentry_id": route.subentry_id}
    )
    assert (result["type"], result["step_id"]) == (FlowResultType.FORM, "reconfigure")
    result = await flows.async_configure(
        result["flow_id"], {"topic_filter": other.data["topic_filter"], "direction": "both"}
    )
    assert result["errors"] == {"topic_filter": "route_exists"}
    result = await flows.async_configure(result["flow_id"], {"topic_filter": "up/#", "direction": "both"})
    assert (result["type"], result["reason"]) == (FlowResultType.ABORT, "reconfigure_successful")
    changed = entry.subentries[route.subentry_id]
    assert changed.title == "↔ up/#"
    assert changed.data == MappingProxyType({"topic_filter": "up/#", "direction": "both"})
    await hass.async_block_till_done()
    await wait_running(hass, entry)
