"""The rules that hassfest and HACS check, and those of the Integration Quality Scale that can be read off the files.

The validators themselves run where the code is hosted (.github/workflows); these run anywhere.
"""

import ast
from collections.abc import Iterator, Sequence
import json
from pathlib import Path
import re
from typing import Any

from awesomeversion import AwesomeVersion, AwesomeVersionStrategy
import hass_frontend
import homeassistant
from homeassistant.helpers.entity import EntityDescription
from homeassistant.util.yaml import load_yaml_dict
from PIL import Image
import pytest

from custom_components.quic_bridge import PLATFORMS
from custom_components.quic_bridge.binary_sensor import CONNECTIONS, ROUTE_PROBLEMS
from custom_components.quic_bridge.bridge.errors import AUTHENTICATION_ERRORS, REFUSED_ERRORS, ErrorCode
from custom_components.quic_bridge.bridge.outbox_model import OutboxFault
from custom_components.quic_bridge.bridge.publisher import PublishFault
from custom_components.quic_bridge.bridge.routes import Direction, Qos0Policy, RetainedAtConnect, RetainMode
from custom_components.quic_bridge.bridge.status import BridgeState, DropReason, Side
from custom_components.quic_bridge.brokers import LocalMode
from custom_components.quic_bridge.button import RECONNECT
from custom_components.quic_bridge.const import DOMAIN
from custom_components.quic_bridge.event import ANSWERS_AGAIN, EVENTS, PAUSED, BridgeEvent
from custom_components.quic_bridge.importer.model import FileProblem, Reason
from custom_components.quic_bridge.option_forms import PAGES
from custom_components.quic_bridge.options import CONGESTION_CONTROLS, Profile
from custom_components.quic_bridge.sensor import SENSORS
from custom_components.quic_bridge.services import Action
from custom_components.quic_bridge.switch import ENABLED

from .ha_fixtures import PACKAGE, load_texts, placeholders

ROOT = PACKAGE.parents[1]
MANIFEST: dict[str, Any] = json.loads((PACKAGE / "manifest.json").read_text())
ICONS: dict[str, Any] = json.loads((PACKAGE / "icons.json").read_text())
QUALITY = load_yaml_dict(str(PACKAGE / "quality_scale.yaml"))["rules"]
TEXTS = load_texts()
LANGUAGES = sorted(path.stem for path in (PACKAGE / "translations").glob("*.json"))
MODULES = sorted(PACKAGE.glob("*.py"))

ENTITIES: dict[str, Sequence[EntityDescription]] = {
    "binary_sensor": [*CONNECTIONS, ROUTE_PROBLEMS],
    "button": [RECONNECT],
    "event": [EVENTS],
    "sensor": SENSORS,
    "switch": [ENABLED],
}

# Integration Quality Scale, tiers.json of August 2026.
# fmt: off
RULES = {
    "action-setup", "appropriate-polling", "brands", "common-modules", "config-flow-test-coverage", "config-flow",
    "dependency-transparency", "docs-actions", "docs-conditions", "docs-high-level-description",
    "docs-installation-instructions", "docs-removal-instructions", "docs-triggers", "entity-event-setup",
    "entity-unique-id", "has-entity-name", "runtime-data", "test-before-configure", "test-before-setup",
    "unique-config-entry", "action-exceptions", "config-entry-unloading", "docs-configuration-parameters",
    "docs-installation-parameters", "entity-unavailable", "integration-owner", "log-when-unavailable",
    "parallel-updates", "reauthentication-flow", "test-coverage", "devices", "diagnostics", "discovery-update-info",
    "discovery", "docs-data-update", "docs-examples", "docs-known-limitations", "docs-supported-devices",
    "docs-supported-functions", "docs-troubleshooting", "docs-use-cases", "dynamic-devices", "entity-category",
    "entity-device-class", "entity-disabled-by-default", "entity-translations", "exception-translations",
    "icon-translations", "reconfiguration-flow", "repair-issues", "stale-devices", "async-dependency",
    "inject-websession", "strict-typing",
}
# fmt: on


def trees() -> Iterator[tuple[Path, ast.Module]]:
    """Parse our modules outside the bridge's core."""
    for path in MODULES:
        yield path, ast.parse(path.read_text())


def code_strings() -> set[str]:
    """Return all string constants in these modules."""
    return {
        node.value
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def steps_in(module: str) -> set[str]:
    """Return the steps of the flow in a module."""
    (flow,) = (
        node
        for node in ast.parse((PACKAGE / module).read_text()).body
        if isinstance(node, ast.ClassDef) and node.name.endswith("Flow")
    )
    names = [node.name for node in flow.body if isinstance(node, ast.AsyncFunctionDef)]
    # Another name of a step.
    names += [
        target.id
        for node in flow.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    return {name.removeprefix("async_step_") for name in names if name.startswith("async_step_")}


# --- manifest.json and hacs.json --------------------------------------------------------------------------------------


def test_manifest() -> None:
    assert set(MANIFEST) == {
        "domain",
        "name",
        "after_dependencies",
        "codeowners",
        "config_flow",
        "dependencies",
        "documentation",
        "integration_type",
        "iot_class",
        "issue_tracker",
        "loggers",
        "requirements",
        "version",
    }
    keys = list(MANIFEST)
    assert keys == ["domain", "name", *sorted(keys[2:])]
    assert MANIFEST["domain"] == DOMAIN == PACKAGE.name
    assert all(owner.startswith("@") for owner in MANIFEST["codeowners"])
    assert MANIFEST["codeowners"]
    assert MANIFEST["iot_class"] == "local_push"
    assert MANIFEST["integration_type"] == "service"
    for key in ("documentation", "issue_tracker"):
        assert MANIFEST[key].startswith("https://github.com/quic-bridge/ha-quic-bridge")
    assert AwesomeVersion(MANIFEST["version"]).strategy is AwesomeVersionStrategy.SEMVER


def test_requirements_fit_home_assistant() -> None:
    """Home Assistant installs with its own constraints: another pin of the same package cannot be installed."""
    constraints = (Path(homeassistant.__file__).parent / "package_constraints.txt").read_text().splitlines()
    for requirement in MANIFEST["requirements"]:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+", requirement)
        name = requirement.partition("==")[0]
        assert {line for line in constraints if line.startswith(f"{name}==")} <= {requirement}
    project = (ROOT / "pyproject.toml").read_text()
    assert all(f'"{requirement}"' in project for requirement in MANIFEST["requirements"])
    assert f'version = "{MANIFEST["version"]}"' in project


def test_hacs() -> None:
    hacs = json.loads((ROOT / "hacs.json").read_text())
    allowed = {"name", "content_in_root", "country", "filename", "hide_default_branch", "homeassistant", "zip_release"}
    assert set(hacs) <= allowed
    assert hacs["name"] == MANIFEST["name"]
    # 2026.10: the reasons `reauth_successful` and `reconfigure_successful` come translated from Home Assistant.
    assert AwesomeVersion(hacs["homeassistant"]) >= "2026.10.0"
    assert [path.name for path in PACKAGE.parent.iterdir() if path.is_dir() and path.name != "__pycache__"] == [DOMAIN]
    assert "Apache License" in (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize(("name", "size"), [("icon.png", 256), ("icon@2x.png", 512)])
def test_brand(name: str, size: int) -> None:
    with Image.open(PACKAGE / "brand" / name) as image:
        assert (image.format, image.size, image.mode) == ("PNG", (size, size), "RGBA")
        left, top, right, bottom = image.getbbox() or (0, 0, 0, 0)
    # Trimmed: it reaches the edges one way or the other.
    assert (right - left == size) or (bottom - top == size)


def test_files() -> None:
    for platform in PLATFORMS:
        assert (PACKAGE / f"{platform}.py").exists()
    assert not (PACKAGE / "strings.json").exists()


def test_actions() -> None:
    """Each action that is registered is described, with all its fields, and the other way round."""
    described = load_yaml_dict(str(PACKAGE / "services.yaml"))
    assert set(described) == {action.value for action in Action} == set(ICONS["services"])
    document = (ROOT / "docs" / "actions.md").read_text()
    keys = set[str]()
    for action, description in described.items():
        keys |= {f"services.{action}.{part}" for part in ("name", "description")}
        fields = {name: field for name, field in description["fields"].items() if "fields" not in field}
        sections = {name: field["fields"] for name, field in description["fields"].items() if "fields" in field}
        keys |= {f"services.{action}.sections.{name}.name" for name in sections}
        assert set(ICONS["services"][action].get("sections", {})) == set(sections)
        for field in (*fields, *(name for inner in sections.values() for name in inner)):
            keys |= {f"services.{action}.fields.{field}.{part}" for part in ("name", "description")}
            assert f"`{field}`" in document, field
        assert f"### `{DOMAIN}.{action}`" in document
    assert keys == {key for key in TEXTS if key.startswith("services.")}
    assert all(f"| `{event}` |" in document for event in BridgeEvent)


# --- translations and icons -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts(language: str) -> None:
    """What hassfest wants of each text, and the same keys and placeholders in all languages."""
    texts = load_texts(language)
    assert {key: placeholders(text) for key, text in texts.items()} == {
        key: placeholders(text) for key, text in TEXTS.items()
    }
    for key, text in texts.items():
        assert text, key
        assert text == text.strip(), key
        assert text.count("\n") == TEXTS[key].count("\n"), key
        assert not re.search(r"</?[a-z]+>|\w://\w|www\.|\[%key:|'\{\w+\}'", text), key
        for part in key.split("."):
            assert re.fullmatch(r"[a-z0-9]+([_-][a-z0-9]+)*", part), key
        if ".state." in key:
            assert not placeholders(text), key


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_texts_are_translated(language: str) -> None:
    """No text is left in English, but for names of products and of what has no other name."""
    products = {"Zigbee2MQTT", "Tasmota", "Reno", "Cubic", "QUIC"}
    assert {key for key, text in load_texts(language).items() if text == TEXTS[key] and text not in products} == set()


def test_chinese_is_set_as_home_assistant_sets_it() -> None:
    """Fullwidth punctuation, and a space between Chinese and Latin characters or placeholders."""
    chinese = "[\u4e00-\u9fff]"
    faults = "|".join(
        (
            rf"{chinese}[A-Za-z0-9{{]|[A-Za-z0-9}}]{chinese}",
            rf"{chinese}\s*[,;:!?()]|[,;:!?()]\s*{chinese}|{chinese}\.",
            r"[，。；：！？（）“”] | [，。；：！？（）“”]",  # noqa: RUF001
        )
    )
    assert {key: text for key, text in load_texts("zh-Hans").items() if re.search(faults, text)} == {}


def test_every_field_is_described() -> None:
    fields = {key for key in TEXTS if re.search(r"\.data\.\w+$", key)}
    described = {key.replace(".data_description.", ".data.") for key in TEXTS if ".data_description." in key}
    assert fields == described


def test_texts_of_values() -> None:
    """Everything that the core can say has a text, and no text is left over."""

    def below(prefix: str) -> set[str]:
        return {key.removeprefix(prefix) for key in TEXTS if key.startswith(prefix)}

    codes = {code.value for code in ErrorCode}
    form_errors = {
        "invalid_host",
        "invalid_address",
        "zone_missing",
        "ca_invalid",
        "certificate_invalid",
        "key_invalid",
        "pin_invalid",
        "client_id_empty",
        "no_topics",
        "unknown",
    }
    filters = {"filter_empty", "filter_invalid", "filter_hash", "filter_plus", "filter_shared", "filter_sys"}
    # An empty filter in a list is passed over.
    assert below("config.error.") == codes | form_errors | filters | {problem.value for problem in FileProblem}
    assert below("selector.import_reason.options.") == {reason.value for reason in Reason}
    targets = {"target_invalid", "target_reserved", "target_wildcard", "target_capture", "target_one_way"}
    others = {
        "exclude_invalid",
        "exclude_all",
        "own_stream_to_local",
        "route_exists",
        "site_invalid",
        "site_empty",
        "prefix_invalid",
    }
    assert below("config_subentries.route.error.") == filters | targets | others
    assert below("entity.sensor.status.state.") == {state.value for state in BridgeState}
    for side in ("local", "remote"):
        assert below(f"entity.sensor.{side}_last_error.state.") == codes | {"none"}
    assert below("entity.sensor.messages_dropped.state_attributes.") == {f"{reason}.name" for reason in DropReason}
    event = "entity.event.events.state_attributes."
    assert below(f"{event}event_type.state.") == {event.value for event in BridgeEvent}
    assert below(f"{event}side.state.") == {side.value for side in Side}
    assert below(f"{event}reason.state.") == codes | {reason.value for reason in DropReason} | {PAUSED, ANSWERS_AGAIN}
    to_settings = {f"refused_{code}" for code in REFUSED_ERRORS - AUTHENTICATION_ERRORS}
    to_settings |= {"refused_mqtt_credentials", "verification_off", "client_certificate_expires"}
    file_faults = {f"outbox_{fault}" for fault in (OutboxFault.CORRUPT, OutboxFault.TOO_NEW)}
    ways_out = {
        **{issue: {"abort.settings"} for issue in to_settings},
        **{issue: {"abort.not_moved"} for issue in file_faults},
        "session_taken_over": {"abort.settings", "menu.new_client_id", "menu.settings"},
        "outbox_overflow": {"abort.options", "menu.double", "menu.options"},
        "loop": {"abort.options"},
        "routes_hidden": {"abort.not_loaded", "menu.disable", "menu.remove"},
        **{
            f"subscriptions_refused_{side}": {"abort.not_loaded", "abort.still_refused", "menu.again", "menu.disable"}
            for side in Side
        },
    }
    issues = {
        f"{issue}.{part}"
        for issue in {f"outbox_{fault}" for fault in OutboxFault} - file_faults
        | {"certificate_expires", "routes_unreadable"}
        for part in ("title", "description")
    }
    step = "step.confirm"
    for issue, ways in ways_out.items():
        parts = {f"{step}.title", f"{step}.description", "abort.entry_removed"}
        parts |= {way.replace("menu.", f"{step}.menu_options.") for way in ways}
        issues |= {f"{issue}.title"} | {f"{issue}.fix_flow.{part}" for part in parts}
    assert below("issues.") == issues
    faults = {f"publish_{fault}" for fault in PublishFault} | {"publish_invalid_base64", "publish_invalid_payload"}
    assert {key.split(".")[0] for key in below("exceptions.")} == faults | {"bridge_paused", "entry_unreadable"}
    assert below("selector.local_mode.options.") == {mode.value for mode in LocalMode}
    for selector, values in (
        ("direction", Direction),
        ("retain", RetainMode),
        ("retained", RetainedAtConnect),
        ("qos_0", Qos0Policy),
        ("profile", Profile),
    ):
        assert below(f"selector.{selector}.options.") == {value.value for value in values}
    assert below("selector.payload_encoding.options.") == {"text", "base64"}
    assert below("selector.side.options.") == {side.value for side in Side}
    assert below("selector.congestion_control.options.") == set(CONGESTION_CONTROLS)
    numbers = [number for page in PAGES.values() for number in page.numbers.values()]
    symbols = {"KiB", "MiB"}
    assert below("selector.unit.unit_of_measurement.") == {number.unit for number in numbers} - symbols
    assert below("selector.max_qos.options.") == {"0", "1", "2"}


def test_error_placeholders() -> None:
    """An error of a broker can be shown with what is known when it comes (see `_async_try` in the flow)."""
    for code in ErrorCode:
        known = {"host", "port", "protocol", "client_id", "detail"}
        if code in {ErrorCode.LOCAL_ENTRY_MISSING, ErrorCode.CONFIGURATION}:
            known = {"detail"}
        assert placeholders(TEXTS[f"config.error.{code}"]) <= known, code
        assert "detail" in placeholders(TEXTS[f"config.error.{code}"]), code


def test_keys_in_code_are_translated() -> None:
    """Each step and key of a text that is named in the code has a text, and the other way round."""
    strings = code_strings() | {f"publish_{fault}" for fault in PublishFault}
    # These only lead to others.
    for prefix, modules, silent in (
        ("config", ("config_flow.py", "import_flow.py", "trust_flow.py"), {"reauth", "back", "trust", "use_fallback"}),
        ("config_subentries.route", ("route_flow.py",), {"back", "save"}),
        ("options", ("options_flow.py",), set()),
    ):
        steps = {
            key.removeprefix(f"{prefix}.step.").split(".")[0] for key in TEXTS if key.startswith(f"{prefix}.step.")
        }
        assert steps == {step for module in modules for step in steps_in(module)} - silent
    for prefix in ("config.abort.", "exceptions.", "options.error.", "selector."):
        for key in {key.removeprefix(prefix).split(".")[0] for key in TEXTS if key.startswith(prefix)}:
            assert key in strings, key


def test_entities_have_names_and_icons() -> None:
    assert set(ENTITIES) == set(PLATFORMS) == set(ICONS["entity"])
    for platform, descriptions in ENTITIES.items():
        keys = {description.translation_key for description in descriptions}
        assert keys == {description.key for description in descriptions}
        assert keys == set(ICONS["entity"][platform])
        assert keys == {key.split(".")[2] for key in TEXTS if key.startswith(f"entity.{platform}.")}


def test_icons() -> None:
    """Icons are icons of the frontend, and a state's icon is not the default one."""
    folder = Path(hass_frontend.__file__).parent / "static" / "mdi"
    known = {icon["name"] for icon in json.loads((folder / "iconList.json").read_text())}
    used = [icons["service"] for icons in ICONS["services"].values()]
    for entities in ICONS["entity"].values():
        for icons in entities.values():
            states = icons.get("state", {}).values()
            assert icons["default"] not in states
            used += [icons["default"], *states]
    for icon in used:
        prefix, _, name = icon.partition(":")
        assert prefix == "mdi"
        assert name in known, icon
    states = set(ICONS["entity"]["sensor"]["status"]["state"])
    assert states <= {state.value for state in BridgeState}


def test_exceptions_are_translated() -> None:
    """None of Home Assistant's exceptions is raised with a text of its own."""
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in {
                "HomeAssistantError",
                "ServiceValidationError",
            }:
                assert not node.args, path.name
                given = {keyword.arg for keyword in node.keywords}
                assert {"translation_domain", "translation_key"} <= given, path.name


# --- code -------------------------------------------------------------------------------------------------------------


def test_imports_are_declared() -> None:
    """A component that is imported is a dependency, or a platform's own, or always there."""
    allowed = {*PLATFORMS, *MANIFEST["dependencies"], *MANIFEST["after_dependencies"]}
    own = {f"{platform}.py": {platform} for platform in ("diagnostics", "logbook", "repairs", "system_health")}
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("homeassistant.components"):
                component = (node.module or "").split(".")[2]
                assert component in allowed | own.get(path.name, set()), f"{path.name}: {component}"


def test_core_knows_nothing_of_home_assistant() -> None:
    for path in (PACKAGE / "bridge").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.split(".")[0] == "homeassistant" for name in names), path
            if isinstance(node, ast.ImportFrom) and node.level:
                depth = len(path.relative_to(PACKAGE).parts) - 1
                assert node.level <= depth, f"{path} imports from outside the core"


def test_home_assistant_side_uses_the_core_by_its_face() -> None:
    faces = {
        "bridge",
        "certificates",
        "check",
        "config",
        "errors",
        "guard",
        "link_local",
        "outbox",
        "outbox_model",
        "publisher",
        "routes",
        "status",
        "topic_tree",
        "topics",
    }
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == 1 and (node.module or "").startswith("bridge."):
                assert (node.module or "").removeprefix("bridge.") in faces, f"{path.name}: {node.module}"


def test_platforms_say_how_many_updates_run_at_once() -> None:
    for platform in PLATFORMS:
        assert re.search(r"^PARALLEL_UPDATES = \d+$", (PACKAGE / f"{platform}.py").read_text(), re.MULTILINE)


# --- quality_scale.yaml -----------------------------------------------------------------------------------------------


def test_quality_scale() -> None:
    """All rules are met or do not apply, and then it is said why."""
    assert len(RULES) == 54
    assert set(QUALITY) == RULES
    for rule, value in QUALITY.items():
        if isinstance(value, str):
            assert value == "done", rule
            continue
        assert set(value) == {"status", "comment"}, rule
        assert value["status"] in {"done", "exempt"}, rule
        assert value["comment"].strip(), rule


def test_documentation_has_what_the_rules_want() -> None:
    """Where the rules for documentation are met; the pages that they lead to are there."""
    readme = (ROOT / "README.md").read_text()
    for rule, place in {
        "docs-high-level-description": "# MQTT-over-QUIC Bridge for Home Assistant",
        "docs-installation-instructions": "**Install it**",
        "docs-removal-instructions": "## Remove it",
        "docs-actions": "(docs/actions.md)",
        "docs-installation-parameters": "## Set-up, field by field",
        "docs-configuration-parameters": "(docs/settings.md)",
        "docs-data-update": "Nothing is polled",
        "docs-examples": "(docs/automations.md)",
        "docs-known-limitations": "## Known limitations",
        "docs-supported-devices": "## The remote broker",
        "docs-supported-functions": "(docs/entities.md)",
        "docs-troubleshooting": "(docs/troubleshooting.md)",
        "docs-use-cases": "## What people use it for",
    }.items():
        assert QUALITY[rule] == "done", rule
        assert place in readme, rule
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
            # Pictures are taken by the browser's tests.
            assert link.endswith(".png") or (path.parent / link).exists(), f"{path.name}: {link}"


def test_documentation_of_entities() -> None:
    """Each is described under its name, and which are disabled at first."""
    described = dict[str, bool]()
    for names, off in re.findall(
        r"^\| (\*\*.+?) \|.*\| ?(off|) ?\|$", (ROOT / "docs/entities.md").read_text(), re.MULTILINE
    ):
        described |= dict.fromkeys(re.findall(r"\*\*(.+?)\*\*", names), not off)
    assert described == {
        TEXTS[f"entity.{platform}.{description.translation_key}.name"]: description.entity_registry_enabled_default
        for platform, descriptions in ENTITIES.items()
        for description in descriptions
    }
