"""The action that publishes to the remote broker, called as automations do."""

from typing import Any

from homeassistant.auth.models import User
from homeassistant.core import Context, HomeAssistant
from homeassistant.exceptions import HomeAssistantError, ServiceValidationError, Unauthorized
from homeassistant.helpers.template import Template
import probatio
import pytest
from pytest_homeassistant_custom_component.common import MockConfigEntry

from custom_components.quic_bridge.const import DOMAIN

from .ha_fixtures import load_texts, placeholders
from .ha_helpers import bridge_entry, entity_id, local_data, remote_data, set_up, wait_for_state, wait_running
from .support.certs import Certificates
from .support.client import Client
from .support.faults import refuse_publish, swallow
from .support.front_policy import Direction
from .support.mosquitto import Mosquitto
from .support.packets import PacketType, Property
from .support.quic_front import Front


@pytest.fixture
async def entry(
    hass: HomeAssistant, local_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> MockConfigEntry:
    """A bridge that runs."""
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem))
    await set_up(hass, entry)
    await wait_running(hass, entry)
    return entry


async def publish(hass: HomeAssistant, **data: object) -> dict[str, Any]:
    """Call the action and return its answer."""
    answer = await hass.services.async_call(DOMAIN, "publish", data, blocking=True, return_response=True)
    assert isinstance(answer, dict)
    return answer


async def test_a_message_arrives_as_it_was_given(
    hass: HomeAssistant, entry: MockConfigEntry, remote_broker: Mosquitto
) -> None:
    async with Client(*remote_broker.address) as away:
        await away.subscribe("site/#", qos=2)
        answer = await publish(
            hass,
            config_entry_id=entry.entry_id,
            topic="site/7/lamp",
            payload="an",
            qos="2",
            retain=True,
            payload_format_indicator=True,
            message_expiry_interval={"minutes": 10},
            content_type="text/plain",
            response_topic="answers",
            correlation_data="42",
            user_properties={"from": "Home Assistant", "tag": ["a", "b"]},
        )
        assert answer.pop("duration_ms") > 0
        assert answer == {"qos": 2, "reason_code": 0, "reason": "success"}
        await away.wait_for(1)
        message = away.messages[0]
        assert (message.topic, message.payload, message.qos) == ("site/7/lamp", b"an", 2)
        assert message.properties == {
            Property.PAYLOAD_FORMAT: 1,
            Property.MESSAGE_EXPIRY: 600,
            Property.CONTENT_TYPE: "text/plain",
            Property.RESPONSE_TOPIC: "answers",
            Property.CORRELATION_DATA: b"42",
            Property.USER_PROPERTY: [("from", "Home Assistant"), ("tag", "a"), ("tag", "b")],
        }
        # Without an answer, and with nothing but a topic.
        await hass.services.async_call(DOMAIN, "publish", {"topic": "site/empty"}, blocking=True)
        await away.wait_for(2)
        assert away.messages[1].payload == b""
        # The retained one was kept.
        async with Client(*remote_broker.address) as late:
            await late.subscribe("site/#")
            await late.wait_for(1)
    assert (await publish(hass, topic="nobody", qos=1))["reason"] == "no matching subscribers (0x10)"
    assert (await publish(hass, topic="nobody"))["reason"] is None


@pytest.mark.parametrize(
    ("template", "fields", "payload"),
    [
        ("{{ 20 + 1 }}", {}, b"21"),
        ("{{ true }}", {}, b"true"),
        ("{{ {'a': ['ü', 1.5, none]} }}", {}, '{"a": ["ü", 1.5, null]}'.encode()),
        ("{{ none }}", {}, b""),
        ("{{ 'AP8=' | base64_decode(none) }}", {}, b"\x00\xff"),
        ("AP\n8=", {"payload_encoding": "base64"}, b"\x00\xff"),
    ],
)
async def test_payloads_of_templates(
    hass: HomeAssistant,
    entry: MockConfigEntry,
    remote_broker: Mosquitto,
    template: str,
    fields: dict[str, str],
    payload: bytes,
) -> None:
    async with Client(*remote_broker.address) as away:
        await away.subscribe("t")
        await publish(hass, topic="t", qos=1, payload=Template(template, hass).async_render(), **fields)
        await away.wait_for(1)
        assert away.payloads == [payload]


async def test_errors(hass: HomeAssistant, entry: MockConfigEntry, quic_front: Front) -> None:
    texts = load_texts()

    async def failed(**data: object) -> HomeAssistantError:
        with pytest.raises(HomeAssistantError) as caught:
            await publish(hass, **data)
        error = caught.value
        assert error.translation_domain == DOMAIN
        text = texts[f"exceptions.{error.translation_key}.message"]
        assert placeholders(text) <= set(error.translation_placeholders or {})
        return error

    error = await failed(topic="a/+")
    assert isinstance(error, ServiceValidationError)
    assert error.translation_key == "publish_invalid_topic"
    error = await failed(topic="$share/group/a")
    assert error.translation_key == "publish_invalid_topic"
    error = await failed(topic="x" * 70_000)
    assert len(str(error)) < 500
    for template in ("{{ {(1, 2): 3} }}", "{{ ['eA==' | base64_decode(none)] }}", r'{{ "\ud800" }}'):
        error = await failed(topic="t", payload=Template(template, hass).async_render())
        assert error.translation_key == "publish_invalid_payload"
    error = await failed(topic="t", correlation_data="\ud800")
    assert error.translation_key == "publish_invalid_payload"
    error = await failed(topic="t", payload="not base64", payload_encoding="base64")
    assert error.translation_key == "publish_invalid_base64"
    with pytest.raises(probatio.Invalid):
        await publish(hass, topic="t", qos=3)

    quic_front.add_rule(refuse_publish(0x87, topic="forbidden"))
    error = await failed(topic="forbidden", qos=1)
    assert not isinstance(error, ServiceValidationError)
    assert error.translation_key == "publish_refused"
    assert error.translation_placeholders is not None
    assert error.translation_placeholders["detail"] == "not authorized (0x87)"

    quic_front.add_rule(swallow(Direction.TO_CLIENT, PacketType.PUBACK))
    lost = hass.async_create_task(failed(topic="t", qos=1))
    await hass.services.async_call(DOMAIN, "reconnect", {"side": "remote"}, blocking=True)
    assert (await lost).translation_key == "publish_connection_lost"

    await quic_front.stop()
    await wait_for_state(hass, entry, "status", "remote_down")
    assert (await failed(topic="t")).translation_key == "publish_not_connected"

    switch = {"entity_id": entity_id(hass, entry, "enabled")}
    await hass.services.async_call("switch", "turn_off", switch, blocking=True)
    assert (await failed(topic="t")).translation_key == "bridge_paused"


async def test_not_for_everybody(hass: HomeAssistant, entry: MockConfigEntry, hass_read_only_user: User) -> None:
    context = Context(user_id=hass_read_only_user.id)
    with pytest.raises(Unauthorized):
        await hass.services.async_call(DOMAIN, "publish", {"topic": "t"}, blocking=True, context=context)
