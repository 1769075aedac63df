"""The view of models and devices: what runs where, what an admin may change, what went wrong, and what a key may not see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Locator, Page, expect

from core.states import EngineState
from db import workers
from db.workers import DeviceReport, EngineReport, WorkerReport
from tests.browser.journey import Journey
from tests.support.guarded import Guarded
from tests.support.stack import StackProcess, batch_lines, start_batch, write_lines

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

Open = Callable[..., Journey]
BUSY = "name: busy\nbackend: fake\nslots: 4\nstep_seconds: 0.05\nmemory_bytes: 100MiB\n"
SPARE = "name: lab/spare\nbackend: fake\nload: lazy\nmemory_bytes: 50MiB\n"
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    """A stack with two models, of which one is not in memory."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "models").mkdir()
    for name, content in (("busy", BUSY), ("spare", SPARE)):
        (folder / "models" / f"{name}.yaml").write_text(content)
    process = StackProcess(folder, folder / "models", MILLRACE_DEVICE_MEMORY="200MiB")
    process.start()
    try:
        yield process
    finally:
        process.close()


def model(page: Page, name: str) -> Locator:
    return page.get_by_role("article", name=f"Model {name}")


def test_a_model_is_loaded_pinned_and_unloaded_with_the_keyboard(stack: StackProcess, open_journey: Open) -> None:
    page = open_journey(stack.url).open("#/models")
    spare, device = model(page, "lab/spare"), page.get_by_role("article", name="Device cpu")
    expect(spare).to_contain_text("not in memory")
    expect(device).to_contain_text("100 MiB of at most 200 MiB")
    button = spare.get_by_role("group").get_by_role("button").first
    expect(button).to_have_accessible_name("Load lab/spare")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("lab/spare will be loaded.")).to_be_visible()
    expect(button).to_have_accessible_name("Unload lab/spare")
    expect(button).to_be_focused()
    expect(spare.get_by_text("ready", exact=True)).to_be_visible()
    expect(device).to_contain_text("150 MiB of at most 200 MiB")
    expect(page.get_by_text("lab/spare: ready")).to_be_attached()
    spare.get_by_role("button", name="Pin lab/spare").click()
    expect(spare.get_by_text("pinned", exact=True)).to_be_visible()
    expect(button).to_be_disabled()
    spare.get_by_role("button", name="Unpin lab/spare").click()
    spare.get_by_role("button", name="Unload lab/spare").click()
    expect(spare).to_contain_text("not in memory")
    expect(device).to_contain_text("100 MiB of at most 200 MiB")


def test_a_batch_shows_in_slots_speed_and_queue_while_it_runs(
    stack: StackProcess, open_journey: Open, tmp_path: Path
) -> None:
    journey = open_journey(stack.url)
    page = journey.open("#/models")
    busy = model(page, "busy")
    expect(busy).to_contain_text("0 of 4")
    client = stack.client()
    lines = write_lines(tmp_path / "in.jsonl", batch_lines(40, model="busy", max_tokens=100, ignore_eos=True))
    batch_id = start_batch(client, lines)
    expect(busy).to_contain_text("4 of 4")
    expect(busy.get_by_text("working", exact=True)).to_be_visible()
    expect(busy).to_contain_text("40 in 1 batch")
    expect(busy).to_contain_text("tok/s")
    expect(busy.get_by_role("meter", name="KV cache of busy")).not_to_have_attribute("aria-valuenow", "0")
    journey.screenshots("models-busy")
    client.batches.cancel(batch_id)
    expect(busy).to_contain_text("0 of 4")
    expect(busy.get_by_text("ready", exact=True)).to_be_visible()


def test_a_crash_is_shown_with_its_reason_and_the_request_is_in_quarantine(
    stack: StackProcess, open_journey: Open
) -> None:
    page = open_journey(stack.url).open("#/models")
    spare = model(page, "lab/spare")
    expect(spare).to_be_visible()
    body = {"model": "lab/spare", "messages": [{"role": "user", "content": "<<segfault>>"}]}
    assert httpx2.post(f"{stack.url}/v1/chat/completions", json=body, timeout=60).status_code == 500
    expect(spare).to_contain_text("Last crash")
    expect(spare).to_contain_text("it was ended by SIGSEGV")
    expect(spare).to_contain_text("In quarantine")


def test_a_key_for_reading_sees_no_buttons_and_text_from_elsewhere_is_only_text(
    stack: StackProcess, open_journey: Open
) -> None:
    guarded = Guarded(stack)
    try:
        engine = EngineReport(
            model="lab/spare", state=EngineState.LOADING, device=HOSTILE, memory_bytes=1, warning=HOSTILE
        )
        device = DeviceReport(device=HOSTILE, card=HOSTILE, total_bytes=2, free_bytes=1)
        report = WorkerReport(id="other", kind="launcher", host=HOSTILE, pid=1, engines=[engine], device=device)
        with guarded.database.begin() as connection:
            connection.execute(*workers.report_worker(report))
        journey = open_journey(stack.url)
        journey.expect_errors("401")
        page = journey.open("#/models")
        page.get_by_label("API key").fill(guarded.key(scopes=["read-only"]).text)
        page.get_by_role("button", name="Enter").click()
        expect(model(page, "busy")).to_be_visible()
        expect(page.get_by_text(HOSTILE).first).to_be_visible()
        assert page.locator("main img").count() == 0
        assert page.get_by_role("button", name="busy").count() == 0
        journey.screenshots("models-reader")
        page.get_by_role("button", name="Sign out").click()
        page.get_by_label("API key").fill(guarded.key(scopes=["files"]).text)
        page.get_by_role("button", name="Enter").click()
        expect(page.get_by_text("Your key may not see this")).to_be_visible()
    finally:
        guarded._stack.close()
