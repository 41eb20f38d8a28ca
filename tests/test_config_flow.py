"""Setting up through the user interface, with real brokers behind every check."""

from io import BytesIO
import socket
import ssl
from unittest.mock import patch

from homeassistant.core import HomeAssistant
from homeassistant.data_entry_flow import FlowResultType
import pytest
from pytest_homeassistant_custom_component.typing import ClientSessionGenerator

from custom_components.quic_bridge.endpoint_forms import clean_host

from .ha_flows import TOPICS, Input, begin, fill, finish, local_input, reach_remote, remote_input, suggested
from .ha_helpers import (
    bridge_entry,
    local_data,
    mqtt_entry,
    remote_data,
    route_data,
)
from .support.certs import Certificate, Certificates
from .support.mosquitto import Mosquitto, MosquittoOptions
from .support.processes import free_port, wait_until
from .support.quic_front import Front


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
        ("route", "→ up/#", route_data("to_remote", "up/#")),
        ("route", "↔ both/#", route_data("both", "both/#")),
        ("route", "← down/#", route_data("to_local", "down/#")),
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
        assert result["step_id"] == "certificate"
        result = await fill(hass, result, {"next_step_id": "back"})
        assert result["errors"] == {"tls": "certificate_untrusted"}

        tls = {"ca": certs.ca_pem, "server_name": "other.example.org"}
        result = await fill(hass, result, local_input(broker, tls=tls, **credentials))
        result = await fill(hass, result, {"next_step_id": "back"})
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
    assert result["errors"] == {"tls": "client_certificate_required"}
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
        assert (result["type"], result["step_id"]) == (FlowResultType.MENU, "certificate")
        result = await fill(hass, result, {"next_step_id": "back"})
        assert (result["step_id"], result["errors"]) == ("remote", {"tls": error})
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


async def test_link_local_address_without_its_interface(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """Which link is meant? The system would say no more than that the argument is invalid."""
    result = await reach_remote(hass, local_broker)
    for host in ("fe80::1", "[FE80::1]"):
        result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem, host=host))
        assert result["errors"] == {"host": "zone_missing"}
        placeholders = result["description_placeholders"]
        assert placeholders is not None
        assert placeholders["address"] == "fe80::1"
        assert placeholders["interfaces"]
    fallback = {"addresses": ["[fe80::1]:14567"]}
    result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem, fallback=fallback))
    assert result["errors"] == {"fallback": "zone_missing"}
    # Names of interfaces go by case, and one that is not there is named.
    result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem, host="FE80::1%NoNe0"))
    assert result["errors"] == {"host": "name_not_found"}
    placeholders = result["description_placeholders"]
    assert placeholders is not None
    assert "no network interface 'NoNe0' here" in placeholders["detail"]
    await finish(hass, await fill(hass, result, remote_input(quic_front.port, certs.ca_pem)))


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
    with patch("custom_components.quic_bridge.config_flow.check_settings", side_effect=RuntimeError("boom")):
        result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem))
    assert result["errors"] == {"base": "unknown"}
    # What it is called, and not its text, which may hold anything.
    assert result["description_placeholders"] == {"detail": "RuntimeError"}
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


async def test_same_identity_in_two_windows(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """Neither knows of the other while they are filled in."""
    remote = remote_input(quic_front.port, certs.ca_pem)
    first, second = [await fill(hass, await reach_remote(hass, local_broker), remote) for _ in range(2)]
    await finish(hass, first)
    result = await fill(hass, second, TOPICS)
    assert (result["type"], result["reason"]) == (FlowResultType.ABORT, "already_configured")


@pytest.mark.parametrize(
    ("topics", "errors"),
    [
        ({}, {"base": "no_topics"}),
        ({"send": ["", " "]}, {"base": "no_topics"}),
        ({"send": ["home/#/state"]}, {"send": "filter_hash"}),
        ({"send": ["home/#"], "receive": ["home/+x"]}, {"receive": "filter_plus"}),
        ({"receive": ["$share/group/home/#"]}, {"receive": "filter_shared"}),
        ({"receive": ["x" * 65536]}, {"receive": "filter_invalid"}),
        ({"receive": ["$SYS/#"]}, {"receive": "filter_sys"}),
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
