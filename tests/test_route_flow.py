"""Adding and changing routes in the user interface, and what becomes of them in the bridge."""

from typing import Any

from homeassistant.config_entries import SOURCE_RECONFIGURE, SOURCE_USER, ConfigSubentry, SubentryFlowResult
from homeassistant.core import HomeAssistant
from homeassistant.data_entry_flow import FlowResultType
import pytest
from pytest_homeassistant_custom_component.common import MockConfigEntry

from .ha_flows import Input, suggested
from .ha_helpers import bridge_entry, local_data, remote_data, route_data, set_up, wait_running
from .support.certs import Certificates
from .support.client import Client
from .support.mosquitto import Mosquitto
from .support.processes import wait_until
from .support.quic_front import Front


@pytest.fixture
def entry(hass: HomeAssistant) -> MockConfigEntry:
    """An entry that is not set up: the flow looks at what is stored, not at the bridge."""
    entry = bridge_entry(local_data(None), remote_data(14567, None))
    entry.add_to_hass(hass)
    return entry


def route_input(direction: str, topic_filter: str, target: str | None = None, **sections: Input) -> Input:
    """What is typed for a route; sections add to what they show at first."""
    return {
        "direction": direction,
        "topic_filter": topic_filter,
        **({} if target is None else {"target": target}),
        "selection": {"max_qos": "2", **sections.get("selection", {})},
        "retained_messages": {"retain": "as_published", "retained": "once", **sections.get("retained_messages", {})},
        "outage": {"qos_0": "drop", "priority": "normal", **sections.get("outage", {})},
        "transport": {"own_stream": False, **sections.get("transport", {})},
    }


async def begin(hass: HomeAssistant, entry: MockConfigEntry, preset: str = "custom") -> SubentryFlowResult:
    """Open the form of a preset."""
    result = await hass.config_entries.subentries.async_init((entry.entry_id, "route"), context={"source": SOURCE_USER})
    assert (result["type"], result["step_id"]) == (FlowResultType.MENU, "user")
    assert result["menu_options"] == ["everything", "discovery", "zigbee2mqtt", "tasmota", "custom"]
    result = await choose(hass, result, preset)
    assert (result["type"], result["step_id"]) == (FlowResultType.FORM, preset)
    return result


async def change(hass: HomeAssistant, entry: MockConfigEntry, route: ConfigSubentry) -> SubentryFlowResult:
    """Open the form of a route that is there."""
    result = await hass.config_entries.subentries.async_init(
        (entry.entry_id, "route"), context={"source": SOURCE_RECONFIGURE, "subentry_id": route.subentry_id}
    )
    assert (result["type"], result["step_id"]) == (FlowResultType.FORM, "reconfigure")
    return result


async def fill(hass: HomeAssistant, result: SubentryFlowResult, user_input: Input) -> SubentryFlowResult:
    """Fill in the form that is shown."""
    return await hass.config_entries.subentries.async_configure(result["flow_id"], user_input)


async def choose(hass: HomeAssistant, result: SubentryFlowResult, option: str) -> SubentryFlowResult:
    """Choose from the menu that is shown."""
    return await fill(hass, result, {"next_step_id": option})


def shown(result: SubentryFlowResult, step_id: str = "confirm") -> list[str]:
    """Return the lines of the preview in the menu `step_id`."""
    assert (result["type"], result["step_id"]) == (FlowResultType.MENU, step_id)
    assert result["menu_options"] == ["save", "back"]
    return str((result["description_placeholders"] or {})["preview"]).splitlines()


def stored(entry: MockConfigEntry) -> list[tuple[str, dict[str, Any]]]:
    """Return titles and data of the routes, but for the two that are there from the beginning."""
    return [(route.title, dict(route.data)) for route in entry.subentries.values()][2:]


# --- all that a route can do ------------------------------------------------------------------------------------------


async def test_add_a_plain_route(hass: HomeAssistant, entry: MockConfigEntry) -> None:
    result = await begin(hass, entry)
    result = await fill(hass, result, route_input("to_local", " over/+/state ", " "))
    assert shown(result) == ["- `over/lamp/state` ← `over/lamp/state`"]
    result = await choose(hass, result, "save")
    assert result["type"] is FlowResultType.CREATE_ENTRY
    assert stored(entry) == [("← over/+/state", route_data("to_local", "over/+/state"))]


async def test_add_a_route_with_everything(hass: HomeAssistant, entry: MockConfigEntry) -> None:
    user_input = route_input(
        "to_local",
        "site/7/+/#",
        "home/{2}/of/{1}",
        selection={"exclude": [" site/7/lamp/# ", "", "site/7/+/secret"], "max_qos": "1"},
        retained_messages={"retain": "never", "retained": "always"},
        outage={"qos_0": "latest", "max_age": {"days": 1, "hours": 2, "minutes": 3, "seconds": 4}},
    )
    result = await fill(hass, await begin(hass, entry), user_input)
    assert shown(result) == [
        # An example that is not among the exceptions.
        "- `home/state/of/kitchen` ← `site/7/kitchen/state`",
        "- ✗ `site/7/lamp/#`",
        "- ✗ `site/7/+/secret`",
    ]
    # A page that is loaded anew shows the same.
    result = await hass.config_entries.subentries.async_configure(result["flow_id"])
    assert len(shown(result)) == 3
    # The form still has everything.
    result = await choose(hass, result, "back")
    assert (result["type"], result["step_id"], result["errors"]) == (FlowResultType.FORM, "custom", None)
    assert suggested(result, "target") == "home/{2}/of/{1}"
    assert suggested(result, "outage", "max_age") == {"days": 1, "hours": 2, "minutes": 3, "seconds": 4}
    result = await choose(hass, await fill(hass, result, user_input), "save")
    assert result["type"] is FlowResultType.CREATE_ENTRY
    (route,) = stored(entry)
    assert route == (
        "home/{2}/of/{1} ← site/7/+/#",
        route_data(
            "to_local",
            "site/7/+/#",
            target="home/{2}/of/{1}",
            exclude=["site/7/lamp/#", "site/7/+/secret"],
            max_qos=1,
            retain="never",
            retained="always",
            qos_0="latest",
            max_age=93784.0,
        ),
    )


@pytest.mark.parametrize(
    ("user_input", "preview"),
    [
        (
            route_input("both", "zigbee2mqtt/#", "site/7/zigbee2mqtt/{1}"),
            "`zigbee2mqtt/lamp` ↔ `site/7/zigbee2mqtt/lamp`",
        ),
        (route_input("to_remote", "alarm"), "`alarm` → `alarm`"),
        (route_input("to_remote", "+/+/+/+/+/+", "x"), "`lamp/kitchen/state/sensor/switch/etc` → `x`"),
        (route_input("to_remote", "odd`name", "{1}{"), None),
        (route_input("both", "odd/{1}/+"), "`odd/{1}/lamp` ↔ `odd/{1}/lamp`"),
        (route_input("to_remote", "odd`name"), "`` odd`name `` → `` odd`name ``"),
        # The exceptions leave something, but no example of ours.
        (
            route_input(
                "to_remote",
                "a/+",
                selection={"exclude": [f"a/{name}" for name in ("lamp", "kitchen", "state", "sensor", "switch")]},
            ),
            "`a/+` → `a/+`",
        ),
    ],
)
async def test_previews(hass: HomeAssistant, entry: MockConfigEntry, user_input: Input, preview: str | None) -> None:
    result = await fill(hass, await begin(hass, entry), user_input)
    if preview is None:
        assert result["errors"] == {"target": "target_capture"}
    else:
        assert shown(result)[0] == f"- {preview}"


@pytest.mark.parametrize(
    ("user_input", "errors"),
    [
        (route_input("to_local", " "), {"topic_filter": "filter_empty"}),
        (route_input("to_local", "a#"), {"topic_filter": "filter_hash"}),
        (route_input("to_local", "a+"), {"topic_filter": "filter_plus"}),
        (route_input("to_local", "x" * 65536), {"topic_filter": "filter_invalid"}),
        (route_input("to_local", "$share/group/a"), {"topic_filter": "filter_shared"}),
        (route_input("to_local", "$SYS/broker/uptime"), {"topic_filter": "filter_sys"}),
        (route_input("to_remote", "up/#"), {"topic_filter": "route_exists"}),
        (route_input("both", "up/#"), {"topic_filter": "route_exists"}),
        (route_input("to_remote", "a/#", "x" * 65536), {"target": "target_invalid"}),
        (route_input("to_remote", "a/#", "b/#"), {"target": "target_wildcard"}),
        (route_input("both", "a/#", "$share/group/{1}"), {"target": "target_reserved"}),
        (route_input("to_remote", "a/#", "b/{2}"), {"target": "target_capture"}),
        (route_input("both", "a/+/b/#", "c/{1}"), {"target": "target_one_way"}),
        (route_input("to_remote", "a/#", selection={"exclude": ["a/b", "a/#/c"]}), {"selection": "exclude_invalid"}),
        (route_input("to_remote", "a/+/b", selection={"exclude": ["a/b", "a/+/+"]}), {"selection": "exclude_all"}),
        (route_input("to_local", "a/#", transport={"own_stream": True}), {"transport": "own_stream_to_local"}),
    ],
)
async def test_routes_that_cannot_be(
    hass: HomeAssistant, entry: MockConfigEntry, user_input: Input, errors: dict[str, str]
) -> None:
    result = await fill(hass, await begin(hass, entry), user_input)
    assert (result["type"], result["step_id"], result["errors"]) == (FlowResultType.FORM, "custom", errors)
    assert suggested(result, "topic_filter") == user_input["topic_filter"]
    # Mended in place. The other direction, or another name, is another route.
    result = await fill(hass, result, route_input("to_local", "up/#", "elsewhere/{1}"))
    result = await choose(hass, result, "save")
    assert result["type"] is FlowResultType.CREATE_ENTRY
    assert [title for title, _ in stored(entry)] == ["elsewhere/{1} ← up/#"]


async def test_a_route_that_is_hidden(hass: HomeAssistant, entry: MockConfigEntry) -> None:
    result = await fill(hass, await begin(hass, entry), route_input("to_remote", "up/lamp", "lamp"))
    assert shown(result, "confirm_hidden") == ["- `up/lamp` → `lamp`"]
    assert (result["description_placeholders"] or {})["other"] == "`→ up/#`"
    result = await hass.config_entries.subentries.async_configure(result["flow_id"])
    assert shown(result, "confirm_hidden")
    result = await choose(hass, result, "back")
    assert (result["type"], result["step_id"]) == (FlowResultType.FORM, "custom")
    result = await fill(hass, result, route_input("to_remote", "up/lamp", "lamp"))
    result = await choose(hass, result, "save")
    assert result["type"] is FlowResultType.CREATE_ENTRY


async def test_a_route_that_is_hidden_one_way(hass: HomeAssistant, entry: MockConfigEntry) -> None:
    result = await fill(hass, await begin(hass, entry), route_input("both", "up/lamp", "lamp"))
    assert shown(result, "confirm_hidden_one_way") == ["- `up/lamp` ↔ `lamp`"]
    placeholders = result["description_placeholders"] or {}
    assert (placeholders["route"], placeholders["other"]) == ("`up/lamp ↔ lamp`", "`→ up/#`")
    # What comes back as up/lamp, that route takes to the remote again.
    result = await choose(hass, result, "save")
    assert shown(result, "confirm_loop")
    result = await choose(hass, result, "save")
    assert result["type"] is FlowResultType.CREATE_ENTRY


async def test_a_route_that_may_loop(hass: HomeAssistant, entry: MockConfigEntry) -> None:
    result = await fill(hass, await begin(hass, entry), route_input("to_remote", "lamps/#", "down/{1}"))
    assert shown(result, "confirm_loop") == ["- `lamps/lamp` → `down/lamp`"]
    placeholders = result["description_placeholders"] or {}
    assert (placeholders["route"], placeholders["other"]) == ("`lamps/# → down/{1}`", "`← down/#`")
    result = await choose(hass, result, "save")
    assert result["type"] is FlowResultType.CREATE_ENTRY


# --- changing ---------------------------------------------------------------------------------------------------------


async def test_change_a_route_of_version_0_1_0(hass: HomeAssistant, entry: MockConfigEntry) -> None:
    """It has nothing stored but direction and filter."""
    route, other = entry.subentries.values()
    result = await change(hass, entry, route)
    assert suggested(result, "enabled") is True
    assert suggested(result, "topic_filter") == "up/#"
    assert suggested(result, "target") is None
    assert suggested(result, "selection", "max_qos") == "2"
    assert suggested(result, "outage", "max_age") is None
    user_input = {"enabled": True, **route_input("both", other.data["topic_filter"])}
    result = await fill(hass, result, user_input)
    assert result["errors"] == {"topic_filter": "route_exists"}
    # It does not stand in its own way.
    age = {"hours": 1, "minutes": 1, "seconds": 1}
    user_input = {"enabled": True, **route_input("both", "up/#", "over/{1}", outage={"max_age": age})}
    result = await fill(hass, result, user_input)
    assert shown(result) == ["- `up/lamp` ↔ `over/lamp`"]
    result = await choose(hass, result, "back")
    assert (result["step_id"], suggested(result, "target")) == ("reconfigure", "over/{1}")
    result = await choose(hass, await fill(hass, result, user_input), "save")
    assert (result["type"], result["reason"]) == (FlowResultType.ABORT, "reconfigure_successful")
    changed = entry.subentries[route.subentry_id]
    assert changed.title == "up/# ↔ over/{1}"
    assert changed.data == route_data("both", "up/#", target="over/{1}", max_age=3661.0)
    # What was stored is shown.
    result = await change(hass, entry, changed)
    assert suggested(result, "outage", "max_age") == {"days": 0, "hours": 1, "minutes": 1, "seconds": 1}
    assert suggested(result, "target") == "over/{1}"


async def test_warnings_come_one_after_the_other(hass: HomeAssistant, entry: MockConfigEntry) -> None:
    """Changed so that it takes everything, the first route leaves nothing to another and feeds a third."""
    hass.config_entries.async_add_subentry(
        entry,
        ConfigSubentry(data=route_data("to_remote", "lamps/#"), subentry_type="route", title="", unique_id=None),  # type: ignore[arg-type] # a mapping will do
    )
    route = next(iter(entry.subentries.values()))
    result = await change(hass, entry, route)
    result = await fill(hass, result, {"enabled": True, **route_input("to_remote", "#")})
    assert shown(result, "confirm_loop") == ["- `lamp` → `lamp`"]
    assert (result["description_placeholders"] or {})["other"] == "`← down/#`"
    result = await choose(hass, result, "save")
    assert shown(result, "confirm_hides") == ["- `lamp` → `lamp`"]
    assert (result["description_placeholders"] or {})["other"] == "`→ lamps/#`"
    result = await choose(hass, result, "save")
    assert result["reason"] == "reconfigure_successful"
    assert entry.subentries[route.subentry_id].title == "→ #"


async def test_a_route_that_is_not_in_use(hass: HomeAssistant, entry: MockConfigEntry) -> None:
    """It neither hides another nor is hidden, until it is in use again; then it has its old place."""
    up, _ = entry.subentries.values()
    result = await change(hass, entry, up)
    result = await fill(hass, result, {"enabled": False, **route_input("to_remote", "#")})
    assert shown(result) == ["- `lamp` → `lamp`"]
    result = await choose(hass, result, "save")
    assert (entry.subentries[up.subentry_id].title, up.data["enabled"]) == ("⏸ → #", False)

    result = await fill(hass, await begin(hass, entry), route_input("to_remote", "lamps/#"))
    assert shown(result) == ["- `lamps/lamp` → `lamps/lamp`"]
    await choose(hass, result, "save")

    result = await change(hass, entry, up)
    assert suggested(result, "enabled") is False
    result = await fill(hass, result, {"enabled": True, **route_input("to_remote", "#")})
    assert shown(result, "confirm_loop")
    result = await choose(hass, result, "save")
    assert shown(result, "confirm_hides")


# --- presets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "user_input", "preview", "routes"),
    [
        (
            "everything",
            {"direction": "to_remote", "prefix": " home/# "},
            ["- `home/lamp` → `home/lamp`"],
            [("→ home/#", route_data("to_remote", "home/#"))],
        ),
        (
            "everything",
            {"direction": "both", "prefix": "home/", "site": "site/7/"},
            ["- `home/lamp` ↔ `site/7/home/lamp`"],
            [("home/# ↔ site/7/home/{1}", route_data("both", "home/#", target="site/7/home/{1}"))],
        ),
        (
            "everything",
            {"direction": "to_local", "prefix": "home", "site": "seven"},
            ["- `home/lamp` ← `seven/home/lamp`"],
            [("home/{1} ← seven/home/#", route_data("to_local", "seven/home/#", target="home/{1}"))],
        ),
        (
            "discovery",
            {"direction": "both", "prefix": "homeassistant", "site": "seven"},
            ["- `homeassistant/lamp` ↔ `seven/homeassistant/lamp`", "- ✗ `homeassistant/status`"],
            [
                (
                    "homeassistant/# ↔ seven/homeassistant/{1}",
                    route_data(
                        "both",
                        "homeassistant/#",
                        target="seven/homeassistant/{1}",
                        exclude=["homeassistant/status"],
                    ),
                )
            ],
        ),
        (
            "discovery",
            {"direction": "to_local", "prefix": "ha", "site": "seven"},
            ["- `ha/lamp` ← `seven/ha/lamp`", "- ✗ `seven/ha/status`"],
            [
                (
                    "ha/{1} ← seven/ha/#",
                    route_data("to_local", "seven/ha/#", target="ha/{1}", exclude=["seven/ha/status"]),
                )
            ],
        ),
        (
            "zigbee2mqtt",
            {"prefix": "zigbee2mqtt", "site": "seven", "commands": True},
            ["- `zigbee2mqtt/lamp` ↔ `seven/zigbee2mqtt/lamp`", "- ✗ `zigbee2mqtt/bridge/logging`"],
            [
                (
                    "zigbee2mqtt/# ↔ seven/zigbee2mqtt/{1}",
                    route_data(
                        "both",
                        "zigbee2mqtt/#",
                        target="seven/zigbee2mqtt/{1}",
                        exclude=["zigbee2mqtt/bridge/logging"],
                    ),
                )
            ],
        ),
        (
            "zigbee2mqtt",
            {"prefix": "zigbee2mqtt", "commands": False},
            ["- `zigbee2mqtt/lamp` → `zigbee2mqtt/lamp`", "- ✗ `zigbee2mqtt/bridge/logging`"],
            [
                (
                    "→ zigbee2mqtt/#",
                    route_data("to_remote", "zigbee2mqtt/#", exclude=["zigbee2mqtt/bridge/logging"]),
                )
            ],
        ),
        (
            "tasmota",
            {"site": "seven", "commands": True},
            [
                "- `tele/lamp` → `seven/tele/lamp`",
                "- `stat/lamp` → `seven/stat/lamp`",
                "- `tasmota/discovery/lamp` → `seven/tasmota/discovery/lamp`",
                "- `cmnd/lamp` ← `seven/cmnd/lamp`",
            ],
            [
                ("tele/# → seven/tele/{1}", route_data("to_remote", "tele/#", target="seven/tele/{1}")),
                ("stat/# → seven/stat/{1}", route_data("to_remote", "stat/#", target="seven/stat/{1}")),
                (
                    "tasmota/discovery/# → seven/tasmota/discovery/{1}",
                    route_data("to_remote", "tasmota/discovery/#", target="seven/tasmota/discovery/{1}"),
                ),
                ("cmnd/{1} ← seven/cmnd/#", route_data("to_local", "seven/cmnd/#", target="cmnd/{1}")),
            ],
        ),
        (
            "tasmota",
            {"commands": False},
            [
                "- `tele/lamp` → `tele/lamp`",
                "- `stat/lamp` → `stat/lamp`",
                "- `tasmota/discovery/lamp` → `tasmota/discovery/lamp`",
            ],
            [
                ("→ tele/#", route_data("to_remote", "tele/#")),
                ("→ stat/#", route_data("to_remote", "stat/#")),
                ("→ tasmota/discovery/#", route_data("to_remote", "tasmota/discovery/#")),
            ],
        ),
    ],
)
async def test_presets(
    hass: HomeAssistant,
    entry: MockConfigEntry,
    preset: str,
    user_input: Input,
    preview: list[str],
    routes: list[tuple[str, dict[str, Any]]],
) -> None:
    result = await fill(hass, await begin(hass, entry, preset), user_input)
    assert shown(result) == preview
    # Nothing is stored before it is confirmed, and the form has what was typed.
    assert not stored(entry)
    result = await choose(hass, result, "back")
    assert result["step_id"] == preset
    assert {name: suggested(result, name) for name in user_input} == user_input
    result = await choose(hass, await fill(hass, result, user_input), "save")
    assert result["type"] is FlowResultType.CREATE_ENTRY
    assert stored(entry) == routes


@pytest.mark.parametrize(
    ("preset", "user_input", "errors"),
    [
        ("everything", {"direction": "to_remote", "prefix": " "}, {"prefix": "filter_empty"}),
        ("everything", {"direction": "to_remote", "prefix": "a/+/b"}, {"prefix": "prefix_invalid"}),
        ("everything", {"direction": "to_remote", "prefix": "$SYS"}, {"prefix": "filter_sys"}),
        ("everything", {"direction": "to_remote", "prefix": "up"}, {"prefix": "route_exists"}),
        ("everything", {"direction": "both", "prefix": "a", "site": "{1}"}, {"site": "site_invalid"}),
        ("discovery", {"direction": "both", "prefix": "homeassistant", "site": " "}, {"site": "site_empty"}),
        ("zigbee2mqtt", {"prefix": "x" * 65534, "commands": True}, {"prefix": "filter_invalid"}),
        ("tasmota", {"site": "#", "commands": True}, {"site": "site_invalid"}),
    ],
)
async def test_presets_that_cannot_be(
    hass: HomeAssistant, entry: MockConfigEntry, preset: str, user_input: Input, errors: dict[str, str]
) -> None:
    result = await fill(hass, await begin(hass, entry, preset), user_input)
    assert (result["type"], result["step_id"], result["errors"]) == (FlowResultType.FORM, preset, errors)
    result = await fill(
        hass, result, {**user_input, **({"prefix": "house"} if "prefix" in user_input else {}), "site": "s"}
    )
    result = await choose(hass, result, "save")
    assert result["type"] is FlowResultType.CREATE_ENTRY


async def test_a_preset_twice(hass: HomeAssistant, entry: MockConfigEntry) -> None:
    for expected in (None, {"site": "route_exists"}):
        result = await fill(hass, await begin(hass, entry, "tasmota"), {"commands": False})
        if expected is None:
            await choose(hass, result, "save")
        else:
            assert result["errors"] == expected


# --- in the bridge ----------------------------------------------------------------------------------------------------


async def test_routes_at_work(
    hass: HomeAssistant, local_broker: Mosquitto, remote_broker: Mosquitto, quic_front: Front, certs: Certificates
) -> None:
    """A preset and a route with everything, added, paused and removed, while the bridge stays connected."""
    entry = bridge_entry(local_data(local_broker), remote_data(quic_front.port, certs.ca_pem), [])
    await set_up(hass, entry)
    await wait_running(hass, entry)
    result = await begin(hass, entry, "zigbee2mqtt")
    result = await fill(hass, result, {"prefix": "zigbee2mqtt", "site": "seven", "commands": True})
    await choose(hass, result, "save")
    user_input = route_input(
        "to_remote",
        "sensors/+/+",
        "{2}/{1}",
        selection={"exclude": ["sensors/secret/+"], "max_qos": "0"},
        retained_messages={"retain": "always"},
    )
    await choose(hass, await fill(hass, await begin(hass, entry), user_input), "save")
    await hass.async_block_till_done()

    async with Client(*local_broker.address) as home, Client(*remote_broker.address) as away:
        await home.subscribe("zigbee2mqtt/#", qos=1)
        for topic_filter in ("seven/#", "t/#", "last", "zigbee2mqtt/#", "sensors/#"):
            await away.subscribe(topic_filter, qos=1)
        await home.publish("zigbee2mqtt/lamp", b"on", 1)
        await home.publish("zigbee2mqtt/bridge/logging", b"private", 1)
        await home.publish("sensors/secret/t", b"private", 1)
        await home.publish("sensors/attic/t", b"20", 1)
        await away.publish("seven/zigbee2mqtt/lamp/set", b"off", 1)
        expected = {
            ("seven/zigbee2mqtt/lamp", b"on", 1),
            ("t/attic", b"20", 0),
            ("seven/zigbee2mqtt/lamp/set", b"off", 1),
        }
        await wait_until(
            lambda: {(message.topic, message.payload, message.qos) for message in away.messages} == expected,
            what="routes",
        )
        await wait_until(lambda: ("zigbee2mqtt/lamp/set", b"off") in {(m.topic, m.payload) for m in home.messages})

        async with Client(*remote_broker.address) as late:
            await late.subscribe("t/#", qos=1)
            await late.wait_for(1)
            assert late.messages[0].retain

        zigbee, sensors = entry.subentries.values()
        result = await change(hass, entry, zigbee)
        await choose(hass, await fill(hass, result, {"enabled": False, **route_input("both", "zigbee2mqtt/#")}), "save")
        hass.config_entries.async_remove_subentry(entry, sensors.subentry_id)
        await choose(hass, await fill(hass, await begin(hass, entry), route_input("to_remote", "last")), "save")
        await hass.async_block_till_done()
        away.messages.clear()
        await home.publish("zigbee2mqtt/lamp", b"paused", 1)
        await home.publish("sensors/attic/t", b"21", 1)
        await home.publish("last", b"over", 1)
        await away.wait_for(1)
        assert [(message.topic, message.payload) for message in away.messages] == [("last", b"over")]
    assert len(quic_front.stats.connects) == 1


async def test_a_route_with_a_stream_of_its_own(hass: HomeAssistant, entry: MockConfigEntry) -> None:
    user_input = route_input("both", "camera/#", transport={"own_stream": True})
    result = await choose(hass, await fill(hass, await begin(hass, entry), user_input), "save")
    assert result["type"] is FlowResultType.CREATE_ENTRY
    assert stored(entry) == [("↔ camera/#", route_data("both", "camera/#", own_stream=True))]
    route = next(route for route in entry.subentries.values() if route.title == "↔ camera/#")
    assert suggested(await change(hass, entry, route), "transport", "own_stream") is True
