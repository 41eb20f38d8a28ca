"""What a person does at Home Assistant's frontend, step by step, and what they must not see on the way.

Texts of the integration are named by their keys in `translations/`, so that the same steps work in every language.
The frontend's own buttons are found by their place. Playwright's CSS selectors reach into shadow roots by themselves.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
import math
from pathlib import Path
import re
from typing import Final, Self

from playwright.async_api import Error, Locator, Page, expect

from .pictures import Pictures

DOMAIN: Final = "quic_bridge"
PATIENCE: Final = 20.0
"""Seconds that a person waits for anything to appear. Home Assistant's first page takes longest."""

WIDTH, HEIGHT = 1200, 1400
"""Pixels of the page: high enough for every dialog."""
MARGIN: Final = 16
"""Pixels below the last card in a picture."""

_LOOK: Final = (Path(__file__).parent / "look.js").read_text()


class Visitor:
    """A person in front of the browser."""

    def __init__(self, page: Page, url: str, texts: Mapping[str, str], *, pictures: Pictures, scratch: Path) -> None:
        """Take an empty page and a folder; `texts` are those of the integration in the person's language."""
        self.page = page
        self._scratch = scratch
        self.errors: list[str] = []
        """Errors of the frontend's own code."""
        self._url = url
        self._texts = texts
        self._pictures = pictures
        page.set_default_timeout(PATIENCE * 1000)
        expect.set_options(timeout=PATIENCE * 1000)
        page.on("pageerror", self._note_error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is not None:
            path = self._scratch / "failure.png"
            with suppress(Error):
                await self.page.screenshot(path=path)
                error.add_note(f"what the browser showed: {path}")

    def _note_error(self, error: Error) -> None:
        # What the frontend had asked when the person went on to the next page.
        if error.message != "disconnected":
            self.errors.append(str(error))

    def text(self, key: str, **placeholders: str) -> str:
        """Return a text of the integration as it is shown."""
        return self._texts[key].format(**placeholders)

    def keys_below(self, prefix: str) -> list[str]:
        """Return the last parts of the keys of all texts of one kind."""
        return [key.removeprefix(f"{prefix}.") for key in self._texts if key.startswith(f"{prefix}.")]

    # --- getting around ---

    async def log_in(self, user: str, password: str) -> None:
        """Open Home Assistant and log in."""
        await self.page.goto(self._url)
        form = self.page.locator("ha-auth-flow")
        await form.locator("input[name=username]").fill(user)
        await form.locator("input[name=password]").fill(password)
        await form.locator("input[name=password]").press("Enter")
        await self.page.wait_for_url(re.compile(r"/(home|lovelace)"))

    async def open(self, path: str) -> None:
        """Go to a page by its address."""
        # A dialog that closes goes one step back by itself.
        await self.page.wait_for_function("!history.state?.open")
        await self.page.goto(f"{self._url}{path}")

    async def open_integration(self) -> None:
        """Go to the integration's page."""
        await self.open(f"/config/integrations/integration/{DOMAIN}")

    async def open_device(self) -> None:
        """Go from the integration's page to the bridge's."""
        await self.open_integration()
        await self.page.locator('a[href^="/config/devices/device/"]').first.click()
        await self.page.locator("ha-config-device-page hui-generic-entity-row").first.wait_for()

    async def open_dashboard(self, path: str, *, at: datetime) -> None:
        """Go to a dashboard, by a clock that stands still, and see all its cards."""
        await self.page.clock.set_fixed_time(at)
        await self.open(path)
        await self.page.locator("hui-tile-card").first.wait_for()
        for graph in await self.page.locator("hui-statistics-graph-card").all():
            await graph.locator("canvas").wait_for()
        await expect(self.page.locator("hui-error-card, hui-warning")).to_have_count(0)

    # --- dialogs ---

    @property
    def _dialog(self) -> Locator:
        # Another one may still be on its way out.
        return self.page.locator("ha-dialog[open], ha-dialog").last

    async def begin_integration(self, name: str) -> None:
        """Search for an integration among all there are, and begin to add it."""
        await self.open("/config/integrations/dashboard")
        await self.page.locator("ha-config-integrations-dashboard ha-button[slot=fab]").click()
        search = self.page.locator("dialog-add-integration input")
        await search.fill(name)
        await self.page.locator("ha-integration-list-item").filter(has_text=name).click()

    async def press(self, key: str) -> None:
        """Press a button with a text of the integration."""
        await self.page.get_by_role("button", name=self.text(key)).click()

    async def see_step(self, step: str) -> None:
        """Wait until a step of a flow is shown, whole and in words."""
        await expect(self._dialog.locator("[slot=headerTitle]")).to_have_text(self.text(f"{step}.title"))
        await self._look(self._dialog)

    async def choose(self, key: str) -> None:
        """Choose from a menu."""
        await (
            self._dialog.locator("mwc-list-item, ha-list-item")
            .filter(has_text=re.compile(rf"^\s*{re.escape(self.text(key))}"))
            .click()
        )

    def _field(self, key: str) -> Locator:
        label = re.compile(rf"^{re.escape(self.text(key))}\*?$")
        return self._dialog.locator("ha-selector").filter(has=self.page.get_by_text(label))

    async def fill(self, key: str, value: str) -> None:
        """Type into a field."""
        await self._field(key).locator("input, textarea").fill(value)

    async def pick(self, key: str) -> None:
        """Pick one of a field's options that are all in sight."""
        await self._dialog.locator("ha-selector-select").get_by_text(self.text(key), exact=True).click()

    async def add(self, key: str, value: str) -> None:
        """Add one value to a field that takes several."""
        field = self._dialog.locator("ha-selector").filter(has_text=self.text(key))
        await field.locator("ha-button").last.click()
        await field.locator("input").last.fill(value)

    async def open_section(self, key: str) -> None:
        """Open a section of a form."""
        await self._dialog.locator("ha-expansion-panel").filter(has_text=self.text(key)).first.click()

    async def submit(self) -> None:
        """Press the dialog's main button."""
        await self._dialog.locator("ha-dialog-footer [slot=primaryAction]").click()

    async def close(self) -> None:
        """Close the dialog."""
        await self._dialog.locator("[slot=headerNavigationIcon]").click()
        await expect(self.page.locator("ha-dialog [slot=headerTitle]")).to_have_count(0)

    async def name_device(self, name: str) -> None:
        """Give the new device a name, at the end of a flow, which then leads to its page."""
        await self.page.locator("step-flow-create-entry ha-input input").fill(name)
        await self.submit()
        # Whoever goes elsewhere before is taken back, or their way breaks off.
        await self.page.wait_for_url("**/config/devices/device/*")

    async def see_error(self, key: str, **placeholders: str) -> None:
        """Wait for an error in a form."""
        await expect(self._dialog.locator("ha-alert")).to_contain_text(self.text(key, **placeholders))
        await self._look(self._dialog)

    # --- the pages of the integration and of its device ---

    async def see_route(self, title: str) -> None:
        """Wait for a route on the integration's page."""
        await self.page.locator("ha-config-sub-entry-row").filter(has_text=title).wait_for()

    async def open_options(self) -> None:
        """Press the entry's cogwheel."""
        await self.page.locator("ha-config-entry-row > * ha-icon-button[slot=end]").first.click()

    async def download_diagnostics(self) -> str:
        """Choose the download of the diagnostics in the entry's menu."""
        row = self.page.locator("ha-config-entry-row ha-row-item").first
        await row.locator("ha-dropdown ha-icon-button").click()
        async with self.page.expect_download() as download:
            await row.locator('a[href^="/api/diagnostics/"]').click()
        path = self._scratch / "diagnostics.json"
        await (await download.value).save_as(path)
        return await asyncio.to_thread(path.read_text)

    async def see_entity(self, key: str, state: str | re.Pattern[str]) -> None:
        """Wait for an entity of the device's page to have a state, as it is shown."""
        name = self.page.get_by_text(self.text(f"{key}.name"), exact=True)
        row = self.page.locator("hui-generic-entity-row").filter(has=name)
        await expect(row).to_contain_text(state)

    async def look_at_page(self) -> None:
        """Look over the whole page."""
        await self._look(self.page.locator("partial-panel-resolver"))

    # --- looking ---

    async def _look(self, place: Locator) -> None:
        """Find what nobody should see: keys in place of words, texts that are cut off, values that are not there."""
        faults: list[str] = await place.evaluate(_LOOK)
        if faults:
            raise AssertionError("\n".join(faults))

    async def picture_of_dialog(self, name: str) -> None:
        """Take a picture of the dialog for the documentation."""
        # Nothing is to look hovered over.
        await self.page.mouse.move(0, 0)
        await self._pictures.take(name, self._dialog.locator("dialog"))

    async def picture_of_page(self, name: str) -> None:
        """Take a picture of the page for the documentation, down to its last card."""
        height = await self.page.locator("ha-card, ha-config-entry-row").evaluate_all(
            "(cards) => Math.max(...cards.map((card) => card.getBoundingClientRect().bottom))"
        )
        await self.page.set_viewport_size({"width": WIDTH, "height": math.ceil(height) + MARGIN})
        await self._pictures.take(name, self.page.locator("html"))
        await self.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
