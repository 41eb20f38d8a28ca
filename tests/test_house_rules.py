"""The rules that hold in every test here do find what they are there to find."""

from collections.abc import Callable
from pathlib import Path

from homeassistant.core import HomeAssistant, ServiceCall
from homeassistant.exceptions import HomeAssistantError
import pytest

from custom_components.quic_bridge.const import DOMAIN

from .ha_fixtures import PACKAGE, untranslated


def test_missing_texts_and_placeholders_are_found() -> None:
    texts = {"config.error.refused": "{host} is closed on {port}"}
    assert list(untranslated(["config.error.refused"], ["host", "port"], texts)) == []
    assert list(untranslated(["config.error.refused"], ["host"], texts)) == ["config.error.refused: {port}"]
    assert list(untranslated(["config.error.unknown"], [], texts)) == ["config.error.unknown"]


async def test_errors_without_a_text_are_found(hass: HomeAssistant, complete_translations: set[str]) -> None:
    """Those of our actions and entities, as people see them."""
    errors: list[HomeAssistantError] = []

    async def act(_: ServiceCall) -> None:
        raise errors.pop()

    hass.services.async_register(DOMAIN, "act", act)
    for error, finding in (
        (HomeAssistantError("plain words"), "HomeAssistantError('plain words') has no translation"),
        (
            HomeAssistantError(translation_domain=DOMAIN, translation_key="nowhere"),
            "exceptions.nowhere.message",
        ),
        (
            HomeAssistantError(translation_domain=DOMAIN, translation_key="bridge_paused"),
            "exceptions.bridge_paused.message: {name}",
        ),
    ):
        errors.append(error)
        with pytest.raises(HomeAssistantError):
            await hass.services.async_call(DOMAIN, "act", blocking=True)
        assert complete_translations == {finding}
        complete_translations.clear()


async def test_blocking_calls_are_found(hass: HomeAssistant, no_blocking_calls: list[str]) -> None:
    scope: dict[str, Callable[[Path], str]] = {}
    source = "def read(path):\n    return path.read_text()\n"
    exec(compile(source, str(PACKAGE / "const.py"), "exec"), scope)
    path = PACKAGE / "manifest.json"
    await hass.async_add_executor_job(scope["read"], path)
    assert no_blocking_calls == []
    scope["read"](path)
    assert any(call.startswith("read_text in ") and "const.py:2" in call for call in no_blocking_calls)
    no_blocking_calls.clear()
