"""Fixtures for the tests in Home Assistant's harness, and rules that hold in each of them."""

import asyncio
import builtins
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
import json
from pathlib import Path
import socket
import ssl
import string
import sys
import tempfile
import time
from typing import Any

from homeassistant.components.repairs import RepairsFlowManager
from homeassistant.config_entries import ConfigEntriesFlowManager, ConfigSubentryFlowManager, OptionsFlowManager
from homeassistant.core import ServiceRegistry
from homeassistant.data_entry_flow import FlowHandler, FlowManager, FlowResultType, section
from homeassistant.exceptions import HomeAssistantError, Unauthorized
from homeassistant.helpers.entity import Entity
from homeassistant.helpers.issue_registry import IssueRegistry, async_get as async_get_issues
from homeassistant.helpers.selector import SelectSelector
import pytest

from custom_components.quic_bridge.const import DOMAIN
from custom_components.quic_bridge.options_flow import QuicBridgeOptionsFlow
from custom_components.quic_bridge.route_flow import RouteSubentryFlow

PACKAGE = Path(__file__).parents[1] / "custom_components" / "quic_bridge"


@pytest.fixture
def hass_config_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A configuration folder for each test; the harness has one for all, among the installed packages."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "configuration.yaml").touch()
    return str(folder)


@pytest.fixture
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep uploads apart: Home Assistant has one folder for them, of a fixed name, in that of temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))


@pytest.fixture
def entity_registry_enabled_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enable also the entities that are disabled by default, as Home Assistant's fixture of this name does."""
    monkeypatch.setattr(Entity, "entity_registry_enabled_default", True)


@pytest.fixture
def quick_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the counters every fifth of a second instead of every five."""
    monkeypatch.setattr("custom_components.quic_bridge.bridge.bridge._COUNTER_INTERVAL", 0.2)


@pytest.fixture(autouse=True)
def house_rules(request: pytest.FixtureRequest) -> None:
    """Load the integration, and apply the rules below, in every test with a Home Assistant."""
    if "hass" in request.fixturenames:
        if "recorder_mock" in request.fixturenames:
            request.getfixturevalue("recorder_mock")  # wants to be before Home Assistant
        for fixture in (
            "enable_custom_integrations",
            "own_temporary_folder",
            "complete_translations",
            "no_blocking_calls",
            "quick_counters",
        ):
            request.getfixturevalue(fixture)


# --- translations -----------------------------------------------------------------------------------------------------

type Texts = dict[str, str]
"""Texts by their dotted keys."""


def load_texts(language: str = "en") -> Texts:
    """Read the translations into one flat mapping."""

    def flat(prefix: str, tree: dict[str, Any]) -> Iterator[tuple[str, str]]:
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from flat(f"{prefix}{key}.", value)
            else:
                yield f"{prefix}{key}", value

    return dict(flat("", json.loads((PACKAGE / "translations" / f"{language}.json").read_text())))


def placeholders(text: str) -> set[str]:
    """Return the names of a text's placeholders."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def untranslated(keys: Iterable[str], given: Iterable[str], texts: Texts) -> Iterator[str]:
    """Find the keys without a text, and placeholders in texts that are not among those given."""
    for key in keys:
        if key not in texts:
            yield key
        else:
            yield from (f"{key}: {{{name}}}" for name in placeholders(texts[key]) - set(given))


@pytest.fixture
def complete_translations(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Fail a test in which a flow, an issue or an error of ours shows what is not translated, or lacks a placeholder.

    Home Assistant's own tests have such a fixture; the harness for custom integrations comes without.
    """
    texts = load_texts()
    missing: set[str] = set()
    handle_step = FlowManager._async_handle_step
    create_issue = IssueRegistry.async_get_or_create
    call_service = ServiceRegistry.async_call

    @wraps(handle_step)
    async def checked_step(
        self: FlowManager[Any, Any, Any],
        flow: FlowHandler[Any, Any, Any],
        step_id: str,
        user_input: dict[str, Any] | None,
    ) -> object:
        prefix, of_issue = _flow_prefix(self, flow), _issue_placeholders(flow)  # an issue may end with the step
        result = await handle_step(self, flow, step_id, user_input)
        if prefix is not None:
            given = {**(result.get("description_placeholders") or {}), **of_issue}
            missing.update(untranslated(_shown(result, prefix), given, texts))
        return result

    @wraps(create_issue)
    def checked_issue(self: IssueRegistry, domain: str, issue_id: str, **kwargs: Any) -> object:  # noqa: ANN401
        if domain == DOMAIN:
            parts = ("title", "fix_flow.step.confirm.description" if kwargs["is_fixable"] else "description")
            keys = [f"issues.{kwargs['translation_key']}.{part}" for part in parts]
            missing.update(untranslated(keys, kwargs["translation_placeholders"] or {}, texts))
        return create_issue(self, domain, issue_id, **kwargs)

    @wraps(call_service)
    async def checked_call(self: ServiceRegistry, domain: str, *args: Any, **kwargs: Any) -> object:  # noqa: ANN401
        try:
            return await call_service(self, domain, *args, **kwargs)
        except HomeAssistantError as error:
            if error.translation_domain == DOMAIN:
                key = f"exceptions.{error.translation_key}.message"
                missing.update(untranslated([key], error.translation_placeholders or {}, texts))
            elif domain == DOMAIN and error.translation_key is None and not isinstance(error, Unauthorized):
                missing.add(f"{error!r} has no translation")
            raise

    monkeypatch.setattr(ServiceRegistry, "async_call", checked_call)
    monkeypatch.setattr(FlowManager, "_async_handle_step", checked_step)
    monkeypatch.setattr(IssueRegistry, "async_get_or_create", checked_issue)
    yield missing
    assert not missing, f"Translations are missing or incomplete: {sorted(missing)}"


def _flow_prefix(manager: FlowManager[Any, Any, Any], flow: FlowHandler[Any, Any, Any]) -> str | None:
    """Return where the texts of a flow are; None for flows of others."""
    if isinstance(manager, ConfigEntriesFlowManager):
        return "config" if flow.handler == DOMAIN else None
    if isinstance(manager, OptionsFlowManager):
        return "options" if isinstance(flow, QuicBridgeOptionsFlow) else None
    if isinstance(manager, ConfigSubentryFlowManager):
        return f"config_subentries.{flow.handler[1]}" if isinstance(flow, RouteSubentryFlow) else None
    if isinstance(manager, RepairsFlowManager) and flow.handler == DOMAIN:
        issue = async_get_issues(flow.hass).async_get_issue(DOMAIN, flow.context["issue_id"])
        return f"issues.{issue.translation_key}.fix_flow" if issue is not None else None
    return None


def _issue_placeholders(flow: FlowHandler[Any, Any, Any]) -> Mapping[str, str]:
    """Return what the texts of a repair flow are given by its issue."""
    issue = async_get_issues(flow.hass).async_get_issue(DOMAIN, flow.context.get("issue_id", ""))
    return (issue.translation_placeholders or {}) if issue is not None else {}


def _shown(result: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Return the keys of the texts that a step shows."""
    step = f"{prefix}.step.{result.get('step_id')}"
    if result["type"] is FlowResultType.FORM:
        yield from (f"{step}.title", f"{step}.description")
        yield from _fields(step, result["data_schema"].schema)
        yield from (f"{prefix}.error.{error}" for error in (result["errors"] or {}).values())
    elif result["type"] is FlowResultType.MENU:
        yield from (f"{step}.title", f"{step}.description")
        yield from (f"{step}.menu_options.{option}" for option in result["menu_options"])
    elif result["type"] is FlowResultType.ABORT and "translation_domain" not in result:
        yield f"{prefix}.abort.{result['reason']}"


def _fields(step: str, schema: Mapping[Any, Any]) -> Iterator[str]:
    for marker, field in schema.items():
        if isinstance(field, section):
            yield f"{step}.sections.{marker}.name"
            yield from _fields(f"{step}.sections.{marker}", field.schema.schema)
            continue
        yield from (f"{step}.data.{marker}", f"{step}.data_description.{marker}")
        if isinstance(field, SelectSelector) and (name := field.config.get("translation_key")) is not None:
            yield from (f"selector.{name}.options.{option}" for option in field.config["options"])


# --- the event loop ---------------------------------------------------------------------------------------------------

BLOCKING: tuple[tuple[object, str], ...] = (
    (builtins, "open"),
    (time, "sleep"),
    (socket, "getaddrinfo"),
    (socket, "create_connection"),
    (ssl.SSLContext, "load_cert_chain"),
    (ssl.SSLContext, "load_default_certs"),
    (ssl.SSLContext, "load_verify_locations"),
    (ssl.SSLContext, "set_default_verify_paths"),
    (Path, "open"),
    (Path, "read_bytes"),
    (Path, "read_text"),
    (Path, "write_bytes"),
    (Path, "write_text"),
    (Path, "unlink"),
    (Path, "mkdir"),
)


@pytest.fixture
def no_blocking_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Fail a test in which the integration, or a library on its behalf, makes a blocking call in the event loop.

    Home Assistant's own guard is off in tests.
    """
    found: list[str] = []

    def guard(owner: object, name: str) -> None:
        original: Callable[..., object] = getattr(owner, name)

        @wraps(original)
        def guarded(*args: object, **kwargs: object) -> object:
            if (caller := _caller_in_loop()) is not None:
                found.append(f"{name} in {caller}")
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, guarded)

    for owner, name in BLOCKING:
        guard(owner, name)
    yield found
    assert not found, f"Blocking calls in the event loop: {found}"


def _caller_in_loop() -> str | None:
    """Return the innermost line of the integration on this thread's stack, if the thread runs an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return None
    frame = sys._getframe(2)
    while frame.f_back is not None:
        if frame.f_code.co_filename.startswith(str(PACKAGE)):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return None
