"""The web page in a real Chromium: time until the list of batches is drawn, delay of an update, and CPU time of the api.

The database has `BATCHES` batches. Each load is in a new profile, so nothing is cached. Needs Playwright and a Chromium.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import psutil
from playwright.sync_api import Browser, Page, sync_playwright
from sqlalchemy import Engine, text

from bench.stack import running_stack
from cli.stack.stack import Stack
from db.connections import database_engine

BATCHES: Final = 10_000
_LOADS: Final = 8
_UPDATES: Final = 8
_REST_SECONDS: Final = 20.0
_NEWEST: Final = f"batch_{BATCHES:036x}"
_INSERT: Final = text(
    "INSERT INTO batches (id, tenant_id, endpoint, completion_window, window_seconds, input_file_id, input_file_name, model,"
    " status, lines, lines_completed, created_at, in_progress_at, finalizing_at, completed_at)"
    " SELECT 'batch_' || lpad(to_hex(i), 36, '0'), 'default', '/v1/chat/completions', '24h', 86400, 'file-none', 'Run ' || i,"
    " 'fake', 'completed', 100, 100, now() - interval '1 h', now() - interval '1 h', now() - interval '58 min',"
    " now() - interval '57 min' FROM generate_series(1, :number) i"
)
_UPDATE: Final = text("UPDATE batches SET metadata_json = :metadata, updated_at = now() WHERE id = :id")
_NOTE_FIRST_ROW: Final = """
new MutationObserver((_, observer) => {
  if (!document.querySelector(".vrow:not(.head)")) return;
  observer.disconnect();
  requestAnimationFrame(() => (window.drawnAt = performance.now()));
}).observe(document, { childList: true, subtree: true });
"""
_ARGUMENTS: Final = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRun:
    """Milliseconds from navigation until the list is drawn, without the first load of a browser, and from the commit of an update
    until its text is there; the CPU time of the api at rest as a percentage of a core, without and with an open page."""

    ready_ms: float
    first_ready_ms: float
    update_ms: float
    closed_percent: float
    open_percent: float


def open_page() -> PageRun:
    """Measure one stack."""
    with running_stack() as stack, _database(stack) as database, _browser() as browser:
        with database.begin() as connection:
            connection.execute(_INSERT, {"number": BATCHES})
        closed = _api_percent()
        loads = [_load(browser, stack.url) for _ in range(_LOADS)]
        page = browser.new_page()
        _show(page, stack.url)
        opened = _api_percent()
        updates = [_update(page, database, f"Live {number}") for number in range(_UPDATES)]
    return PageRun(
        ready_ms=statistics.median(loads[1:]),
        first_ready_ms=loads[0],
        update_ms=max(updates),
        closed_percent=closed,
        open_percent=opened,
    )


@contextmanager
def _database(stack: Stack) -> Iterator[Engine]:
    database = database_engine(stack.services.database_url, pool_size=1)
    yield database
    database.dispose()


@contextmanager
def _browser() -> Iterator[Browser]:
    path = os.environ.get("MILLRACE_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)


def _load(browser: Browser, url: str) -> float:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.add_init_script(_NOTE_FIRST_ROW)
    _show(page, url)
    drawn_at = float(page.wait_for_function("window.drawnAt").json_value())
    context.close()
    return drawn_at


def _show(page: Page, url: str) -> None:
    page.goto(f"{url}/#/batches")
    page.get_by_text(f"Run {BATCHES}", exact=True).first.wait_for()


def _update(page: Page, database: Engine, name: str) -> float:
    with database.begin() as connection:
        connection.execute(_UPDATE, {"metadata": f'{{"name": "{name}"}}', "id": _NEWEST})
    began = time.perf_counter()
    page.get_by_text(name, exact=True).first.wait_for()
    return 1000 * (time.perf_counter() - began)


def _api_percent() -> float:
    api = next(each for each in psutil.Process().children(recursive=True) if each.cmdline()[-2:] == ["-m", "api"])
    time.sleep(5)  # what came before is over
    before = sum(api.cpu_times()[:2])
    time.sleep(_REST_SECONDS)
    return float(100 * (sum(api.cpu_times()[:2]) - before) / _REST_SECONDS)
