"""From an empty Home Assistant to a bridge at work, through an outage, as a person sees it."""

import json
from pathlib import Path
import re

from playwright.async_api import Page
import pytest

from ..ha_fixtures import load_texts
from ..support.client import Client
from . import dashboard
from .pictures import Pictures
from .visitor import DOMAIN, Visitor
from .world import PASSWORD, REMOTE_PASSWORD, REMOTE_USER, USER, World

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

NAME = "MQTT-over-QUIC Bridge"
ROUTE = "config_subentries.route"
SENSOR = "entity.sensor"
MOSQUITTO_CONF = """\
connection office
address broker.example.org:8883 spare.example.org:8883
bridge_cafile /etc/mosquitto/ca.crt
clientid home
remote_username home
topic # out 1 zigbee2mqtt/ site/7/zigbee2mqtt/
topic # in 1 office/ office/
try_private true
keepalive_interval 30
"""


async def test_user_story(world: World, page: Page, language: str, tmp_path: Path) -> None:
    texts, pictures = load_texts(language), Pictures(language)
    async with Visitor(page, world.hass.url, texts, pictures=pictures, scratch=tmp_path) as visitor:
        await visitor.log_in(USER, PASSWORD)
        await set_up(visitor, world)
        await look_at_an_import(visitor)
        await add_a_route(visitor)
        await see_it_work(visitor, world)
        await see_an_outage(visitor, world)
        await look_at_options(visitor)
        await download_diagnostics(visitor)
        if language == "en":
            # Its own words are English.
            await look_at_the_dashboard(visitor, world)
    assert visitor.errors == []
    assert world.hass.complaints() == []
    assert pictures.left_over() == set()


async def set_up(visitor: Visitor, world: World) -> None:
    """Add the integration from the list of all, with a wrong password first."""
    await visitor.begin_integration(NAME)
    await visitor.see_step("config.step.user")
    await visitor.choose("config.step.user.menu_options.local")
    await visitor.see_step("config.step.local")
    await visitor.picture_of_dialog("setup-local")
    await visitor.submit()

    remote = "config.step.remote"
    await visitor.see_step(remote)
    # For the picture; where the test's broker is means nothing to anybody.
    await visitor.fill(f"{remote}.data.host", "broker.example.org")
    await visitor.fill(f"{remote}.data.username", REMOTE_USER)
    await visitor.fill(f"{remote}.data.password", "wrong")
    await visitor.picture_of_dialog("setup-remote")
    await visitor.fill(f"{remote}.data.host", "localhost")
    await visitor.fill(f"{remote}.data.port", str(world.front.port))
    await visitor.submit()
    await visitor.see_step("config.step.certificate")
    await visitor.choose("config.step.certificate.menu_options.back")
    await visitor.see_step(remote)
    await visitor.open_section(f"{remote}.sections.tls.name")
    await visitor.fill(f"{remote}.sections.tls.data.ca", world.certs.ca_pem)
    await visitor.submit()
    refusal = "the broker refused the connection: not authorized (0x87)"
    await visitor.see_error("config.error.not_authorized", detail=refusal)
    await visitor.fill(f"{remote}.data.host", "broker.example.org")
    await visitor.fill(f"{remote}.data.port", "14567")
    await visitor.picture_of_dialog("setup-wrong-password")
    await visitor.fill(f"{remote}.data.host", "localhost")
    await visitor.fill(f"{remote}.data.port", str(world.front.port))
    await visitor.fill(f"{remote}.data.password", REMOTE_PASSWORD)
    await visitor.submit()

    topics = "config.step.topics"
    await visitor.see_step(topics)
    await visitor.add(f"{topics}.data.send", "zigbee2mqtt/#")
    await visitor.add(f"{topics}.data.receive", "office/#")
    await visitor.picture_of_dialog("setup-topics")
    await visitor.submit()
    await visitor.name_device("Office")


async def look_at_an_import(visitor: Visitor) -> None:
    """See what would become of another bridge's configuration, and leave it at that."""
    await visitor.begin_integration(NAME)
    await visitor.see_step("config.step.user")
    await visitor.choose("config.step.user.menu_options.import_file")
    await visitor.see_step("config.step.import_file")
    await visitor.fill("config.step.import_file.data.config_text", MOSQUITTO_CONF)
    await visitor.submit()
    await visitor.see_step("config.step.import_review")
    await visitor.picture_of_dialog("import-review")
    await visitor.close()


async def add_a_route(visitor: Visitor) -> None:
    """Add a route that renames topics, after a look at what it does."""
    await visitor.open_integration()
    await visitor.see_route("→ zigbee2mqtt/#")
    await visitor.see_route("← office/#")
    await visitor.press(f"{ROUTE}.initiate_flow.user")
    await visitor.see_step(f"{ROUTE}.step.user")
    await visitor.picture_of_dialog("route-kinds")
    await visitor.choose(f"{ROUTE}.step.user.menu_options.custom")
    custom = f"{ROUTE}.step.custom"
    await visitor.see_step(custom)
    await visitor.fill(f"{custom}.data.topic_filter", "home/+/state")
    await visitor.fill(f"{custom}.data.target", "site/7/{1}/state")
    await visitor.picture_of_dialog("route-form")
    await visitor.submit()
    await visitor.see_step(f"{ROUTE}.step.confirm")
    await visitor.picture_of_dialog("route-preview")
    await visitor.choose(f"{ROUTE}.step.confirm.menu_options.save")
    await visitor.submit()
    await visitor.see_route("home/+/state → site/7/{1}/state")
    await visitor.look_at_page()
    await visitor.picture_of_page("integration")


async def see_it_work(visitor: Visitor, world: World) -> None:
    """See messages counted on the device's page."""
    await visitor.open_device()
    await visitor.see_entity(f"{SENSOR}.status", visitor.text(f"{SENSOR}.status.state.running"))
    async with Client("127.0.0.1", world.local.port) as local:
        for number in range(5):
            await local.publish("zigbee2mqtt/lamp", f"{number}".encode(), qos=1)
    await visitor.see_entity(f"{SENSOR}.messages_sent", re.compile(r"\b5\b"))
    await visitor.look_at_page()
    await visitor.picture_of_page("device")


async def see_an_outage(visitor: Visitor, world: World) -> None:
    """See the remote broker go and come back, and what waits meanwhile."""
    await world.front.kill()
    async with Client("127.0.0.1", world.local.port) as local:
        for number in range(3):
            await local.publish("zigbee2mqtt/lamp", f"{number}".encode(), qos=1)
    await visitor.see_entity(f"{SENSOR}.status", visitor.text(f"{SENSOR}.status.state.remote_down"))
    await visitor.see_entity(f"{SENSOR}.outbox_messages", re.compile(r"\b3\b"))
    await visitor.look_at_page()
    await visitor.picture_of_page("device-remote-down")
    await world.front.start()
    await visitor.see_entity(f"{SENSOR}.status", visitor.text(f"{SENSOR}.status.state.running"))
    await visitor.see_entity(f"{SENSOR}.messages_sent", re.compile(r"\b8\b"))


async def look_at_options(visitor: Visitor) -> None:
    """Open every page of the options."""
    menu = "options.step.init.menu_options"
    await visitor.open_integration()
    for page in visitor.keys_below(menu):
        await visitor.open_options()
        await visitor.see_step("options.step.init")
        await visitor.picture_of_dialog("options")
        await visitor.choose(f"{menu}.{page}")
        await visitor.see_step(f"options.step.{page}")
        await visitor.picture_of_dialog(f"options-{page}")
        await visitor.close()
    await visitor.open_options()
    await visitor.choose(f"{menu}.connection")
    await visitor.see_step("options.step.connection")
    await visitor.pick("selector.profile.options.custom")
    await visitor.submit()
    await visitor.see_step("options.step.custom")
    await visitor.close()


async def download_diagnostics(visitor: Visitor) -> None:
    """Download the diagnostics: they hold the bridge's status and no secret."""
    text = await visitor.download_diagnostics()
    assert json.loads(text)["home_assistant"]["version"]
    assert json.loads(text)["integration_manifest"]["domain"] == DOMAIN
    assert REMOTE_PASSWORD not in text


async def look_at_the_dashboard(visitor: Visitor, world: World) -> None:
    """Add the dashboard of the documentation and look at it."""
    entry_id = await world.api.entry_of(DOMAIN)
    assert entry_id is not None
    await dashboard.add_history(world.api, entry_id)
    path = await dashboard.add_dashboard(world.api, entry_id)
    await visitor.open_dashboard(path, at=dashboard.NOW)
    await visitor.look_at_page()
    await visitor.picture_of_page("dashboard")
