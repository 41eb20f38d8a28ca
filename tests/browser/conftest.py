"""Fixtures of the tests in a browser."""

from collections.abc import AsyncIterator
import shutil

from playwright.async_api import Page, async_playwright
import pytest

from ..support.certs import Certificates
from .visitor import HEIGHT, WIDTH
from .world import World

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""Options that keep Chromium from talking to anybody but Home Assistant."""


def chromium_path() -> str:
    """Find a Chromium; raises FileNotFoundError."""
    for program in PROGRAMS:
        if (path := shutil.which(program)) is not None:
            return path
    raise FileNotFoundError("Chromium is not installed (scripts/test --browser installs it)")


@pytest.fixture(params=["en", "zh-Hans"])
def language(request: pytest.FixtureRequest) -> str:
    """The language of Home Assistant and of the person before it."""
    return str(request.param)


@pytest.fixture
async def world(
    socket_enabled: None, tmp_path_factory: pytest.TempPathFactory, certs: Certificates, language: str
) -> AsyncIterator[World]:
    """Brokers, QUIC and Home Assistant."""
    async with World(tmp_path_factory.mktemp("world"), certs, language=language) as world:
        yield world


@pytest.fixture
async def page(socket_enabled: None, language: str) -> AsyncIterator[Page]:
    """An empty page of a browser that knows nobody."""
    locale = {"en": "en-US", "zh-Hans": "zh-CN"}[language]
    async with (
        async_playwright() as playwright,
        await playwright.chromium.launch(executable_path=chromium_path(), args=QUIET) as browser,
        await browser.new_context(
            viewport={"width": WIDTH, "height": HEIGHT},
            locale=locale,
            timezone_id="UTC",
            color_scheme="light",
            reduced_motion="reduce",
            accept_downloads=True,
        ) as context,
    ):
        # The sidebar says nothing of the integration, and takes a fifth of every picture.
        await context.add_init_script("""localStorage.setItem("dockedSidebar", '"always_hidden"')""")
        yield await context.new_page()
