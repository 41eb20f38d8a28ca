"""Bringing a bridge over from a configuration file, through the user interface and to brokers that are there."""

from pathlib import Path

from homeassistant.config_entries import ConfigFlowResult
from homeassistant.core import HomeAssistant
from homeassistant.data_entry_flow import FlowResultType
from homeassistant.setup import async_setup_component
import pytest
from pytest_homeassistant_custom_component.typing import ClientSessionGenerator

from .ha_fixtures import load_texts
from .ha_flows import choose, fill, finish, local_input, menu, remote_input, suggested
from .ha_helpers import mqtt_entry, remote_data, wait_running
from .support.certs import Certificates
from .support.client import Client
from .support.mosquitto import Mosquitto, MosquittoOptions
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
        assert "  - `address 127.0.0.1`" in texts["notes"]
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
        ("listener 1883", "import_unreadable"),
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
