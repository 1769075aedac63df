"""A tab of a person: opens views, and collects everything that must not happen on the way."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request

from tests.contract.clients.install import FOLDER, installed_chromium

WIDTHS = (1440, 390)
_EXTRACT = "import('@sparticuz/chromium').then(async (it) => console.log(await it.default.executablePath()))"


def find_chromium() -> str | None:
    """The browser of MILLRACE_CHROMIUM, else the first on the PATH, else the one of npm that `make test` installs."""
    if found := installed_chromium():
        return found
    folder = FOLDER / "chromium"
    if not (folder / "installed").exists():
        return None
    done = subprocess.run(["node", "--eval", _EXTRACT], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def missing_chromium() -> NoReturn:
    """Skip; where a skipped test is a failure, this is one, too."""
    pytest.skip("no Chromium: `apt install chromium`, or set MILLRACE_CHROMIUM to its path")


class Journey:
    """A tab at a server. `check` raises AssertionError if the console had errors or a request left the server."""

    def __init__(self, browser: Browser, url: str, *, width: int, height: int, dark: bool) -> None:
        self.url = url
        self._context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            accept_downloads=True,
            permissions=["clipboard-read", "clipboard-write"],
        )
        self._context.set_default_timeout(15_000)
        self.page: Page = self._context.new_page()
        self._errors: list[str] = []
        self._expected: list[str] = []
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self._errors.append(f"page error: {error}"))
        self.page.on("request", self._on_request)

    def open(self, address: str = "#/batches") -> Page:
        """Open a view by its hash address."""
        self.page.goto(f"{self.url}/{address}")
        return self.page

    def expect_errors(self, *parts: str) -> None:
        """Allow errors of the console that contain one of these, such as the status of a refused call."""
        self._expected += parts

    def check_accessibility(self) -> None:
        """Raise AssertionError for violations that axe finds in the view as it is."""
        found = Axe().run(self.page)
        violations: list[dict[str, Any]] = found.response["violations"]
        lines = [
            f"{each['id']}: {each['help']}: {[node['html'][:160] for node in each['nodes']]}" for each in violations
        ]
        assert not lines, "\n".join(lines)

    def check_fits(self) -> None:
        """Raise AssertionError if the page scrolls sideways."""
        widths = self.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert widths[0] <= widths[1], f"the page is {widths[0]} px wide in a window of {widths[1]} px"

    def screenshots(self, name: str) -> None:
        """Check the view in light and dark, wide and narrow: it fits, axe finds nothing; pictures go to MILLRACE_SCREENSHOTS."""
        folder = os.environ.get("MILLRACE_SCREENSHOTS")
        for width in WIDTHS:
            for scheme in ("light", "dark"):
                self.page.set_viewport_size({"width": width, "height": 900})
                self.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                self.check_fits()
                self.check_accessibility()
                if folder:
                    Path(folder).mkdir(parents=True, exist_ok=True)
                    self.page.screenshot(path=f"{folder}/{name}-{width}-{scheme}.png", full_page=True)
        self.page.set_viewport_size({"width": 1440, "height": 900})

    def check(self) -> None:
        """Raise AssertionError if anything happened that must not."""
        wrong = [error for error in self._errors if not any(part in error for part in self._expected)]
        assert not wrong, "\n".join(wrong)

    def close(self) -> None:
        """Close the tab."""
        self._context.close()

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._errors.append(f"console: {message.text} {message.location.get('url', '')}")

    def _on_request(self, request: Request) -> None:
        place = urlsplit(request.url)
        if place.scheme not in ("data", "blob") and f"{place.scheme}://{place.netloc}" != self.url:
            self._errors.append(f"a request left the server: {request.url}")
