"""Bringing a bridge over from a configuration file, through the user interface and to brokers that are there."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from homeassistant.config_entries import ConfigFlowResult
from homeassistant.core import HomeAssistant
from homeassistant.data_entry_flow import FlowResultType
from homeassistant.setup import async_setup_component
import pytest
from pytest_homeassistant_custom_component.typing import ClientSessionGenerator

from custom_components.quic_bridge.bridge.config import FailoverConfig

from .ha_fixtures import load_texts
from .ha_flows import TOPICS, choose, fill, finish, local_input, menu, remote_input, suggested
from .ha_helpers import mqtt_entry, remote_data, wait_for_state, wait_running
from .support.certs import Certificates
from .support.client import Client
from .support.mosquitto import Mosquitto, MosquittoOptions
from .support.processes import free_port
from .support.quic_front import Front
from .test_config_flow import upload

FILES = Path(__file__).parent / "importer" / "files"

NANOMQ = """
bridges.mqtt.cloud {{
    server = "mqtt-quic://127.0.0.1:{port}"
    clientid = "old"
    forwards = [
        {{
            local_topic = "up/#"
            remote_topic = ""
            prefix = "site/7/"
        }}
    ]
    subscription = [
        {{
            remote_topic = "cmd/7/#"
            local_topic = "7/#"
            qos = 1
        }}
    ]
}}
"""
MOSQUITTO = """
connection cloud
address 127.0.0.1
remote_username user
remote_password secret
local_username home
local_password key
bridge_cafile /etc/ca.crt
topic # both 1 up/ site/7/up/
"""


async def review(hass: HomeAssistant, text: str) -> ConfigFlowResult:
    """Paste a configuration."""
    form = await choose(hass, await menu(hass), "import_file")
    assert (form["type"], form["step_id"]) == (FlowResultType.FORM, "import_file")
    return await fill(hass, form, {"config_text": text})


def shown(result: ConfigFlowResult) -> dict[str, str]:
    """What the review says."""
    assert (result["type"], result["step_id"]) == (FlowResultType.MENU, "import_review"), result
    return dict(result["description_placeholders"] or {})


async def test_a_file_that_says_everything(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """What is said in the file is not asked for; what turns out to be missing is."""
    mqtt_entry(local_broker).add_to_hass(hass)
    result = await review(hass, NANOMQ.format(port=quic_front.port))
    texts = shown(result)
    assert texts["bridge"] == "`cloud`"
    assert texts["server"] == f"`127.0.0.1:{quic_front.port}`"
    assert texts["client_id"] == "`old`"
    assert texts["routes"] == ("- `up/lamp` → `site/7/up/lamp`\n- `7/lamp` ← `cmd/7/lamp`")
    assert texts["notes"] == (
        "- The certificate of the remote broker was not checked, and now is; give its authority with the broker's "
        "settings if it is not a public one\n  - `ssl`"
    )
    result = await choose(hass, result, "local")
    assert result["step_id"] == "local"
    # The remote broker was tried with what is in the file, and the authority of its certificate is missing.
    result = await fill(hass, result, {"mode": "home_assistant"})
    assert result["step_id"] == "certificate"
    result = await choose(hass, result, "back")
    assert (result["step_id"], result["errors"]) == ("remote", {"tls": "certificate_untrusted"})
    assert suggested(result, "advanced", "client_id") == "old"
    result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem, client_id="old"))
    assert result["type"] is FlowResultType.CREATE_ENTRY
    entry = result["result"]
    assert [route.title for route in entry.subentries.values()] == ["up/# → site/7/up/{1}", "7/{1} ← cmd/7/#"]
    await wait_running(hass, entry)
    async with Client(*local_broker.address) as home, Client(*quic_front.broker) as away:
        await away.subscribe("site/#")
        await home.publish("up/lamp", b"on", 1)
        await away.wait_for(1)
        assert away.messages[0].topic == "site/7/up/lamp"


async def test_nothing_is_asked_that_the_file_says(
    hass: HomeAssistant,
    local_broker: Mosquitto,
    quic_front: Front,
    certs: Certificates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certs.ca_file))  # those whom everybody trusts
    mqtt_entry(local_broker).add_to_hass(hass)
    text = NANOMQ.format(port=quic_front.port).replace(
        "clientid", "enable = false, username = a, password = b, clientid"
    )
    result = await choose(hass, await review(hass, text), "local")
    result = await fill(hass, result, {"mode": "home_assistant"})
    assert result["type"] is FlowResultType.CREATE_ENTRY
    entry = result["result"]
    assert entry.data["remote"] == remote_data(quic_front.port, None, username="a", password="b", client_id="old")
    # It was switched off in the file.
    assert entry.options == {"paused": True}
    await hass.async_block_till_done()
    assert quic_front.stats.connects[-1].client_id.startswith("old-check-")


async def test_mosquitto(
    hass: HomeAssistant,
    socket_enabled: None,
    tmp_path: Path,
    quic_front: Front,
    certs: Certificates,
    hass_client: ClientSessionGenerator,
) -> None:
    """A bridge over TCP with a file that is not here: what is missing is asked for, what is known is filled in."""
    assert await async_setup_component(hass, "file_upload", {})
    options = MosquittoOptions(users={"home": "key"})
    async with Mosquitto(tmp_path / "strict", options) as home_broker:
        form = await choose(hass, await menu(hass), "import_file")
        file_id = await upload(hass, hass_client, MOSQUITTO.encode())
        result = await fill(hass, form, {"config_file": file_id, "config_text": "the file goes first"})
        texts = shown(result)
        assert texts["client_id"] == "–"  # noqa: RUF001
        assert texts["routes"] == "- `up/lamp` ↔ `site/7/up/lamp`"
        assert "  - `address 127.0.0.1:1883`" in texts["notes"]
        assert "  - `bridge_cafile /etc/ca.crt`" in texts["notes"]
        assert "secret" not in str(texts)
        assert "key" not in str(texts).replace("keys", "")
        result = await choose(hass, result, "local")
        assert (result["step_id"], suggested(result, "username")) == ("local_custom", "home")
        # The password is in the file.
        result = await fill(hass, result, local_input(home_broker, username="home"))
        assert (result["step_id"], result["errors"]) == ("remote", None)
        assert (suggested(result, "port"), suggested(result, "username")) == (14567, "user")
        client_id = suggested(result, "advanced", "client_id")
        assert isinstance(client_id, str)
        fields = remote_input(quic_front.port, certs.ca_pem, client_id=client_id, username="user")
        result = await fill(hass, result, fields)
        assert result["type"] is FlowResultType.CREATE_ENTRY
        entry = result["result"]
        assert entry.data["local"]["password"] == "key"
        assert entry.data["remote"]["password"] == "secret"
        assert entry.options == {}
        await wait_running(hass, entry)
        assert await hass.config_entries.async_unload(entry.entry_id)


HYBRID = """
bridges.mqtt.cloud {{
    server = "mqtt-quic://127.0.0.1:{port}"
    clientid = "old"
    keepalive = 45s
    quic_handshake_timeout = 2s
    quic_keepalive = 120s
    hybrid_bridging = true
    hybrid_servers = ["{second}"]
    forwards = [{{ local_topic = "up/#", remote_topic = "" }}]
}}
bridges.mqtt.cache {{
    disk_cache_size = 5000
}}
"""
HYBRID_OPTIONS = {
    "connection": {"profile": "custom", "keepalive": 45, "idle_timeout": 45, "handshake_timeout": 2},
    "messages": {"outbox_messages": 5000},
}


@pytest.fixture
async def encrypted_broker(socket_enabled: None, tmp_path: Path, certs: Certificates) -> AsyncIterator[Mosquitto]:
    """A remote broker with a listener for TLS."""
    async with Mosquitto(tmp_path / "encrypted", MosquittoOptions(tls=certs.server), name="encrypted") as broker:
        yield broker


@pytest.fixture
def swift(certs: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the bridge change sooner to another endpoint, and everybody trust the brokers' authority."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certs.ca_file))
    failover = partial(FailoverConfig, patience=0.1, probe_interval=60)
    monkeypatch.setattr("custom_components.quic_bridge.brokers.FailoverConfig", failover)


async def test_the_fallback_of_the_file_stands_in(
    hass: HomeAssistant, local_broker: Mosquitto, encrypted_broker: Mosquitto, swift: None
) -> None:
    """Where nothing answers over QUIC, from the first attempt on."""
    mqtt_entry(local_broker).add_to_hass(hass)
    port, tls_port = free_port(), encrypted_broker.tls_port
    result = await review(hass, HYBRID.format(port=port, second=f"tls+mqtt-tcp://localhost:{tls_port}"))
    texts = shown(result)
    assert (texts["addresses"], texts["fallback"]) == ("–", f"`localhost:{tls_port}`")  # noqa: RUF001
    assert texts["options"].splitlines() == [
        "- MQTT keepalive: 45 s",
        "- Handshake timeout: 2 s",
        "- QUIC idle timeout: 45 s",
        "- Outbox, Messages: 5000 messages",
    ]
    result = await fill(hass, await choose(hass, result, "local"), {"mode": "home_assistant"})
    assert result["step_id"] == "no_quic"
    result = await choose(hass, result, "use_fallback")
    assert result["type"] is FlowResultType.CREATE_ENTRY
    entry = result["result"]
    assert entry.data["remote"]["fallback"] == {"host": "localhost", "port": tls_port}
    assert entry.options == HYBRID_OPTIONS
    await wait_for_state(hass, entry, "remote_transport", "tcp")
    await wait_running(hass, entry)
    async with Client(*local_broker.address) as home, Client(*encrypted_broker.address) as away:
        await away.subscribe("up/#")
        await home.publish("up/lamp", b"on", 1)
        await away.wait_for(1)
    assert " k45" in encrypted_broker.log


async def test_the_second_address_of_the_file_stands_in(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, swift: None
) -> None:
    """Where the first is dead from the first attempt on."""
    mqtt_entry(local_broker).add_to_hass(hass)
    text = HYBRID.format(port=free_port(), second=f"mqtt-quic://localhost:{quic_front.port}")
    result = await review(hass, text)
    texts = shown(result)
    assert (texts["addresses"], texts["fallback"]) == (f"`localhost:{quic_front.port}`", "–")  # noqa: RUF001
    result = await fill(hass, await choose(hass, result, "local"), {"mode": "home_assistant"})
    assert result["step_id"] == "other_address"
    result = await choose(hass, result, "use_fallback")
    assert result["type"] is FlowResultType.CREATE_ENTRY
    entry = result["result"]
    assert entry.data["remote"]["addresses"] == [{"host": "localhost", "port": quic_front.port}]
    assert entry.options == HYBRID_OPTIONS
    await wait_running(hass, entry)
    async with Client(*local_broker.address) as home, Client(*remote_broker.address) as away:
        await away.subscribe("up/#")
        await home.publish("up/lamp", b"on", 1)
        await away.wait_for(1)
    assert quic_front.stats.connects[-1].client_id == "old"
    assert await hass.config_entries.async_unload(entry.entry_id)


async def test_addresses_whose_quic_port_is_not_known(
    hass: HomeAssistant, local_broker: Mosquitto, encrypted_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """The form has them, with what worked so far as the fallback; without a port they have the one that is entered."""
    mqtt_entry(local_broker).add_to_hass(hass)
    tls_port = encrypted_broker.tls_port
    text = f"connection x\naddress 127.0.0.1:{tls_port} spare:8883\nbridge_cafile ca.crt\ntopic up/# out 1"
    result = await review(hass, text)
    assert shown(result)["addresses"] == "`spare`"
    result = await fill(hass, await choose(hass, result, "local"), {"mode": "home_assistant"})
    assert result["step_id"] == "remote"
    assert (suggested(result, "host"), suggested(result, "port")) == ("127.0.0.1", 14567)
    assert suggested(result, "fallback", "addresses") == ["spare"]
    assert suggested(result, "fallback", "use_fallback") is True
    assert suggested(result, "fallback", "fallback_host") is None
    assert suggested(result, "fallback", "fallback_port") == tls_port
    fallback = {"use_fallback": True, "fallback_port": tls_port, "addresses": ["spare"]}
    result = await fill(hass, result, remote_input(quic_front.port, certs.ca_pem, fallback=fallback))
    assert result["type"] is FlowResultType.CREATE_ENTRY
    remote = result["result"].data["remote"]
    assert remote["addresses"] == [{"host": "spare", "port": quic_front.port}]
    assert remote["fallback"] == {"host": None, "port": tls_port}
    await wait_running(hass, result["result"])


async def test_options_are_shown_as_their_forms_have_them(hass: HomeAssistant) -> None:
    text = "connection x\naddress y\nnotification_topic home/state\nnotifications false\nkeepalive_interval 20"
    texts = shown(await review(hass, text))
    assert texts["options"].splitlines() == [
        "- Topic: `home/state`",
        "- Message when messages cross: `1`",
        "- Message when they do not: `0`",
        "- Use status topics: ✗",
        "- MQTT keepalive: 20 s",
    ]
    hass.config.language = "zh-Hans"
    text = "connection x\naddress y\nbridge_session_expiry_interval 3600"
    expected = load_texts("zh-Hans")["options.step.custom.data.session_expiry"]
    unit = load_texts("zh-Hans")["selector.unit.unit_of_measurement.hours"]
    assert shown(await review(hass, text))["options"] == f"- {expected}: 1 {unit}"


async def test_without_a_route_it_is_paused_all_the_same(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, swift: None
) -> None:
    mqtt_entry(local_broker).add_to_hass(hass)
    text = f'bridges.mqtt.x {{ server = "mqtt-quic://127.0.0.1:{quic_front.port}", enable = false, keepalive = 20s }}'
    result = await fill(hass, await choose(hass, await review(hass, text), "local"), {"mode": "home_assistant"})
    assert result["step_id"] == "topics"
    result = await fill(hass, result, TOPICS)
    assert result["type"] is FlowResultType.CREATE_ENTRY
    assert result["result"].options == {"paused": True, "connection": {"profile": "custom", "keepalive": 20}}
    await hass.async_block_till_done()


async def test_files_with_several_bridges(hass: HomeAssistant) -> None:
    """One is chosen; what was chosen first leaves nothing behind."""
    text = (FILES / "mosquitto.conf").read_text()
    result = await review(hass, text)
    assert (result["type"], result["step_id"]) == (FlowResultType.FORM, "import_bridge")
    assert result["data_schema"] is not None
    (selector,) = result["data_schema"].schema.values()
    assert [option["label"] for option in selector.config["options"]] == [
        "office (broker.example.org:8883)",
        "cloud ([2001:db8::7]:1883)",
    ]
    result = await fill(hass, result, {"bridge": "1"})
    assert shown(result)["client_id"] == "`old-name`"
    result = await choose(hass, result, "import_file")
    result = await fill(hass, result, {"config_text": MOSQUITTO})
    assert shown(result)["bridge"] == "`cloud`"
    result = await choose(hass, result, "local")
    assert suggested(result, "username") == "home"


async def test_long_lists_are_cut_short(hass: HomeAssistant) -> None:
    topics = "".join(f"topic t{number}\n" for number in range(100))
    texts = shown(await review(hass, f"connection x\naddress y\n{topics}"))
    assert texts["routes"].splitlines()[-2:] == ["- `t29` → `t29`", "- … (+70)"]
    assert "topic t29" in texts["notes"]
    assert "topic t30" not in texts["notes"]


async def test_without_a_route_the_topics_are_asked_for(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    mqtt_entry(local_broker).add_to_hass(hass)
    result = await review(hass, "connection x\naddress y\ntopic $SYS/# in")
    texts = shown(result)
    assert texts["routes"] == "–"  # noqa: RUF001
    assert "What a broker tells of itself ($SYS) never crosses" in texts["notes"]
    result = await fill(hass, await choose(hass, result, "local"), {"mode": "home_assistant"})
    await finish(hass, await fill(hass, result, remote_input(quic_front.port, certs.ca_pem)))


async def test_the_texts_are_in_home_assistants_language(hass: HomeAssistant) -> None:
    hass.config.language = "zh-Hans"
    texts = shown(await review(hass, "connection x\naddress y"))
    assert load_texts("zh-Hans")["selector.import_reason.options.tcp"] in texts["notes"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "import_no_bridge"),
        ("listener 1883", "import_no_bridge"),
        ("connection x", "import_unreadable"),
        ("a = ${HOME}", "import_substitution"),
        ("bridge.mqtt.emqx.address=mqtt-tcp://192.0.2.1:1883", "import_old_format"),
        ("#" * 300_000, "import_too_large"),
    ],
)
async def test_texts_that_are_no_configuration(hass: HomeAssistant, text: str, error: str) -> None:
    result = await review(hass, text)
    assert (result["step_id"], result["errors"]) == ("import_file", {"config_text": error})
    assert suggested(result, "config_text") == text
    shown(await fill(hass, result, {"config_text": "connection x\naddress y"}))


async def test_files_that_are_no_configuration(hass: HomeAssistant, hass_client: ClientSessionGenerator) -> None:
    assert await async_setup_component(hass, "file_upload", {})
    result = await choose(hass, await menu(hass), "import_file")
    file_id = await upload(hass, hass_client, b"\xff\xfe")
    for content in (file_id, file_id):  # read before, hence gone
        result = await fill(hass, result, {"config_file": content})
        assert result["errors"] == {"config_file": "import_unreadable"}
        assert suggested(result, "config_file") is None
