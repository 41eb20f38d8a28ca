"""The rules that hold in every test here do find what they are there to find."""

from collections.abc import Callable
from pathlib import Path

from homeassistant.core import HomeAssistant

from .ha_fixtures import PACKAGE, untranslated


def test_missing_texts_and_placeholders_are_found() -> None:
    texts = {"config.error.refused": "{host} is closed on {port}"}
    assert list(untranslated(["config.error.refused"], ["host", "port"], texts)) == []
    assert list(untranslated(["config.error.refused"], ["host"], texts)) == ["config.error.refused: {port}"]
    assert list(untranslated(["config.error.unknown"], [], texts)) == ["config.error.unknown"]


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
