"""Pictures for the documentation, which change only when what is shown changes."""

import io
from pathlib import Path
from typing import Final

from PIL import Image, ImageChops
from playwright.async_api import Locator

FOLDER: Final = Path(__file__).parents[2] / "docs" / "images"
_VISIBLE: Final = 48
"""Difference of a colour, of 255, from which it is one; below it is how a letter's edge happens to be drawn."""

_SETTLE: Final = (Path(__file__).parent / "settle.js").read_text()


class Pictures:
    """The pictures of one language."""

    def __init__(self, language: str) -> None:
        """Take the language; the documentation itself is in English."""
        self._folder = FOLDER if language == "en" else FOLDER / language
        self._taken: set[Path] = set()

    async def take(self, name: str, what: Locator) -> None:
        """Take a picture, and keep it unless the one that is there shows the same."""
        await what.evaluate(_SETTLE)
        png = await what.screenshot(animations="disabled", caret="hide")
        path = self._folder / f"{name}.png"
        self._taken.add(path)
        if not (path.exists() and _same(path.read_bytes(), png)):
            path.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(io.BytesIO(png)) as image:
                # Flat colours: a palette takes a third of the bytes.
                image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)

    def left_over(self) -> set[Path]:
        """Return the pictures in the folder that were not taken."""
        return set(self._folder.glob("*.png")) - self._taken


def _same(kept: bytes, taken: bytes) -> bool:
    with Image.open(io.BytesIO(kept)) as one, Image.open(io.BytesIO(taken)) as other:
        if one.size != other.size:
            return False
        difference = ImageChops.difference(one.convert("RGB"), other.convert("RGB")).convert("L")
        return difference.point([0] * _VISIBLE + [1] * (256 - _VISIBLE)).getbbox() is None
