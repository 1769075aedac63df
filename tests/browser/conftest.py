"""Fixtures: one Chromium for all journeys, pages that fail on errors of the console and on requests to elsewhere, and stacks.

A folder of screenshots is written if MILLRACE_SCREENSHOTS names one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from core.settings import ROOT
from tests.browser.journey import Journey, find_chromium, missing_chromium
from tests.service.api.conftest import TOOLS_TEMPLATE, indented
from tests.support.stack import StackProcess

THINKER = """\
name: thinker
backend: fake
chat_template: "{% for message in messages %}{{ message.role + ': ' + message.content + '\\n' }}{% endfor %}assistant: <think>\\n"
"""
FAKE_MODEL = "name: fake\nbackend: fake\nslots: 8\nstep_seconds: 0.002\n"


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium, without its calls to servers of its maker. While it is open, Playwright runs the event loop of this thread, so
    it ends with this folder: other tests need a loop of their own."""
    path = find_chromium()
    if path is None:
        missing_chromium()
    expect.set_options(timeout=15_000)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
        arguments += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
        chromium = playwright.chromium.launch(executable_path=path, headless=True, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def open_journey(browser: Browser) -> Iterator[Callable[..., Journey]]:
    """Open a tab on a server; `Journey.check` runs at the end of the test for each of them."""
    journeys: list[Journey] = []

    def open_at(url: str, *, width: int = 1440, height: int = 900, dark: bool = False) -> Journey:
        journeys.append(Journey(browser, url, width=width, height=height, dark=dark))
        return journeys[-1]

    yield open_at
    for journey in journeys:
        journey.close()
    for journey in journeys:
        journey.check()


@pytest.fixture(scope="module")
def fake_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    """A stack with a fake model, for all tests of a file."""
    folder = tmp_path_factory.mktemp("stack")
    models = folder / "models"
    models.mkdir()
    (models / "fake.yaml").write_text(FAKE_MODEL)
    stack = StackProcess(folder, models)
    stack.start()
    try:
        yield stack
    finally:
        stack.close()


@pytest.fixture(scope="package")
def demo_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    """A stack with the demo model, a slow one, one that reasons and one that calls tools, for the files that share it."""
    folder = tmp_path_factory.mktemp("demo")
    models = folder / "models"
    models.mkdir()
    weights = ROOT / "models" / "demo.gguf"
    (models / "demo.yaml").write_text(
        f"name: demo\nparameters: {{model: {weights}, temperature: 0}}\ncontext_size: 1024\nslots: 8\nthreads: 1\n"
    )
    (models / "slow.yaml").write_text("name: slow\nbackend: fake\nstep_seconds: 0.05\n")
    (models / "thinker.yaml").write_text(THINKER)
    (models / "caller.yaml").write_text(
        f"name: caller\nparameters: {{model: {weights}, temperature: 0}}\ncontext_size: 512\nthreads: 1\n"
        f"chat_template: |-\n{indented(TOOLS_TEMPLATE)}"
    )
    stack = StackProcess(folder, models)
    stack.start()
    try:
        yield stack
    finally:
        stack.close()
