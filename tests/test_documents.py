"""What README and docs point to is there: files, headings, pictures, scripts."""

from pathlib import Path
import re

import pytest

PROJECT = Path(__file__).parents[1]
PAGES = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md")])

_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_SCRIPT = re.compile(r"`(scripts/[\w/-]+|\.ci/run)\b")


def anchors(page: Path) -> set[str]:
    """Names under which the headings of a page can be pointed to."""
    headings = _HEADING.findall(_CODE.sub("", page.read_text()))
    plain = (re.sub(r"[`*_]", "", heading.lower()) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_scripts(page: Path) -> None:
    text = _CODE.sub("", page.read_text())
    dead = []
    for target in _LINK.findall(text):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            dead.append(target)
    dead += [script for script in _SCRIPT.findall(text) if not (PROJECT / script).exists()]
    assert not dead


def test_every_page_is_pointed_to() -> None:
    pointed = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in _LINK.findall(page.read_text())
        if "://" not in target
    }
    assert [page.name for page in (PROJECT / "docs").glob("*.md") if page.resolve() not in pointed] == []
