"""The list of batches: live rows, filters, thousands of rows, actions on several, a server that restarts, hostile text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from playwright.sync_api import Locator, Page, expect
from sqlalchemy import Engine, text

from cli.stack.services import running_database
from core import ids
from core.api_keys import KEY, new_key
from db import keys
from db.connections import database_engine
from tests.browser.journey import Journey
from tests.support.stack import StackProcess, batch_lines, start_batch, wait_for, write_lines

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

OpenJourney = Callable[..., Journey]
HOSTILE = "<img src=x onerror=alert(1)>\"'`${{}}</script><script>alert(2)</script>"

INSERT = text(
    "INSERT INTO batches (id, tenant_id, endpoint, completion_window, window_seconds, input_file_id, input_file_name, model, "
    " status, metadata_json, lines, lines_completed, lines_failed, completion_tokens, created_at, in_progress_at, "
    " finalizing_at, completed_at, failed_at, expired_at, cancelling_at, cancelled_at, paused_at, key_id, priority, "
    " dispatched_at) "
    "SELECT i.id, 'default', '/v1/chat/completions', '24h', 864000, 'file-none', i.file, i.model, i.status, i.metadata, i.lines, "
    " i.done, i.failed, 5000, now() - interval '1 h', now() - interval '1 h', now() - interval '58 min', "
    " CASE WHEN i.status = 'completed' THEN now() - interval '57 min' END, CASE WHEN i.status = 'failed' THEN now() END, "
    " CASE WHEN i.status = 'expired' THEN now() END, CASE WHEN i.status = 'cancelling' THEN now() END, "
    " CASE WHEN i.status = 'cancelled' THEN now() END, CASE WHEN i.paused THEN now() END, i.owner, i.priority, "
    " now() + interval '1 h' "
    "FROM jsonb_to_recordset(cast(:rows AS jsonb)) AS i(id text, file text, model text, status text, metadata text, lines int, "
    " done int, failed int, paused bool, owner text, priority int)"
)


@pytest.fixture
def database(fake_stack: StackProcess) -> Iterator[Engine]:
    """The stack's database, without batches."""
    url = running_database(fake_stack.state_dir)
    assert url is not None, "it runs"
    engine = database_engine(url, pool_size=1)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM batches"))
    yield engine
    engine.dispose()


@pytest.fixture
def client(fake_stack: StackProcess) -> OpenAI:
    return fake_stack.client()


def insert(database: Engine, *rows: dict[str, Any]) -> list[str]:
    """Insert batches that no clerk touches, the first one the oldest; returns their ids."""
    blank = {"file": "tickets.jsonl", "model": "fake", "status": "completed", "lines": 100, "done": 100, "failed": 0}
    blank |= {"paused": False, "owner": None, "metadata": None, "priority": 0}
    made = sorted(ids.new_id(ids.BATCH) for _ in rows)
    full = [{**blank, "id": made_id, **row} for made_id, row in zip(made, rows, strict=True)]
    with database.begin() as connection:
        connection.execute(INSERT, {"rows": json.dumps(full)})
    return made


def named(name: str) -> str:
    return json.dumps({"name": name})


def rows_of(page: Page) -> Locator:
    return page.get_by_role("row").filter(has=page.get_by_role("cell"))


def row_of(page: Page, name: str) -> Locator:
    return rows_of(page).filter(has=page.get_by_role("link", name=name, exact=True))


def test_the_first_batch_appears_and_ends_before_the_eyes(
    fake_stack: StackProcess, database: Engine, client: OpenAI, open_journey: OpenJourney, tmp_path: Path
) -> None:
    journey = open_journey(fake_stack.url)
    page = journey.open()
    expect(page.get_by_role("heading", name="No batches yet")).to_be_visible()
    journey.screenshots("batches-empty")
    start_batch(client, write_lines(tmp_path / "first.jsonl", batch_lines(200, max_tokens=60)))
    row = row_of(page, "first.jsonl")
    expect(row).to_contain_text("running")
    expect(row.get_by_role("progressbar")).to_have_attribute("aria-valuetext", re.compile(r"[1-9]\d* done, 0 failed"))
    expect(row).to_contain_text("completed", timeout=30_000)
    expect(row).to_contain_text("200 of 200")
    expect(row).to_contain_text("took")
    row.get_by_role("link").click()
    expect(page).to_have_url(re.compile(r"#/batches/batch_\w+$"))


def every_state(database: Engine) -> list[str]:
    """Insert a batch in each state, with hostile text wherever a client can put any."""
    return insert(
        database,
        {"metadata": named("Old and fine"), "owner": "key_0123456789abcdef"},
        {"status": "failed", "lines": 0, "done": 0, "model": None, "file": "not-json.docx"},
        {"status": "expired", "done": 61, "failed": 39, "metadata": named("Weekly summary of everything that was written")},
        {"status": "cancelled", "done": 20, "failed": 80, "metadata": named("Stopped by hand")},
        {"status": "cancelling", "done": 20, "metadata": named("Being stopped")},
        {"done": 97, "failed": 3, "metadata": named("Some lines failed"), "priority": 5},
        {"status": "in_progress", "done": 40, "failed": 2, "paused": True, "metadata": named("Nightly labels")},
        {"metadata": named(HOSTILE), "file": HOSTILE, "model": HOSTILE, "owner": HOSTILE},
        {"status": "in_progress", "done": 1200, "lines": 50_000, "model": "absent", "metadata": named("Long run")},
    )  # fmt: skip


def test_states_are_plain_words_and_hostile_text_is_text(
    fake_stack: StackProcess, database: Engine, open_journey: OpenJourney
) -> None:
    every_state(database)
    with database.begin() as connection:  # a shard that no worker here can take
        connection.execute(
            text(
                "INSERT INTO shards (id, batch_id, tenant_id, model, position, lines) "
                "SELECT 'shard_' || id, id, 'default', 'absent', 0, 50 FROM batches WHERE model = 'absent'"
            )
        )
    journey = open_journey(fake_stack.url)
    page = journey.open()
    expect(rows_of(page)).to_have_count(9)
    for name, words in {
        "Old and fine": "completed",
        "not-json.docx": "file not accepted",
        "Weekly summary of everything that was written": "out of time",
        "Stopped by hand": "cancelled",
        "Being stopped": "cancelling",
        "Some lines failed": "3 % failed",
        "Nightly labels": "paused",
        "Long run": "waiting for model absent",
        HOSTILE: "completed",
    }.items():
        expect(row_of(page, name).locator(".badge")).to_contain_text(words)
    expect(page.locator("img[src='x']")).to_have_count(0)
    assert page.evaluate("document.scripts.length") == 1
    page.get_by_label("Select Nightly labels").check()
    journey.screenshots("batches")


def test_filters_are_in_the_address_and_stay_live(
    fake_stack: StackProcess, database: Engine, open_journey: OpenJourney
) -> None:
    every_state(database)
    page = open_journey(fake_stack.url).open()
    page.get_by_label("Status").select_option("Paused")
    expect(rows_of(page)).to_have_count(1)
    expect(page).to_have_url(re.compile(r"status=paused"))
    with database.begin() as connection:
        connection.execute(text("UPDATE batches SET paused_at = NULL, updated_at = now() WHERE paused_at IS NOT NULL"))
    expect(page.get_by_role("heading", name="No batch matches")).to_be_visible()
    page.get_by_role("button", name="Show all batches").click()
    expect(rows_of(page)).to_have_count(9)
    page.get_by_label("Search").fill("some LINES")
    expect(rows_of(page)).to_have_count(1)
    expect(page).to_have_url(re.compile(r"q=some\+LINES"))
    insert(database, {"metadata": named("some lines more")}, {"metadata": named("others")})
    expect(rows_of(page)).to_have_count(2)
    page.reload()
    expect(page.get_by_label("Search")).to_have_value("some LINES")
    expect(rows_of(page)).to_have_count(2)
    page.get_by_label("Search").fill("")
    page.get_by_label("Model").select_option("fake")
    expect(page).to_have_url(re.compile(r"model=fake"))
    expect(row_of(page, "others")).to_be_visible()  # the list without the search; that of the model lacks the next
    expect(row_of(page, "Long run")).to_have_count(0)
    first = rows_of(page).first.get_by_role("link")
    first.focus()
    page.keyboard.press("ArrowDown")
    expect(rows_of(page).nth(1).get_by_role("link")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"#/batches/batch_\w+$"))
    page.go_back()
    expect(page.get_by_label("Model")).to_have_value("fake")


def test_ten_thousand_batches_scroll_and_stay_live(
    fake_stack: StackProcess, database: Engine, open_journey: OpenJourney
) -> None:
    made = insert(database, *({"metadata": named(f"Run {number}")} for number in range(10_000)))
    page = open_journey(fake_stack.url).open()
    expect(row_of(page, "Run 9999")).to_be_visible()
    page.evaluate(
        """async () => {  // scroll as far as there are rows
            window.rows = 0;
            while (parseInt(document.querySelector(".filters [role=status]").textContent.replace(",", "")) < 2000) {
                scrollTo(0, document.documentElement.scrollHeight);
                await new Promise(requestAnimationFrame);
                window.rows = Math.max(window.rows, document.querySelectorAll(".vrow").length);
            }
            scrollTo(0, 64 * 1500);
        }"""
    )
    assert page.evaluate("window.rows") < 60, "only what is in view is in the page"
    expect(row_of(page, "Run 8495")).to_be_visible()
    with database.begin() as connection:
        connection.execute(
            text("UPDATE batches SET metadata_json = :name, updated_at = now() WHERE id = :id"),
            {"id": made[8495], "name": named("Renamed")},
        )
    expect(row_of(page, "Renamed")).to_be_visible()
    top = row_of(page, "Run 8493").bounding_box()
    seen = page.get_by_role("search").get_by_role("status").inner_text()
    insert(database, {"metadata": named("New at the top")})
    expect(page.get_by_role("search").get_by_role("status")).not_to_have_text(seen)
    assert row_of(page, "Run 8493").bounding_box() == top, "what one looks at stays where it is"
    row_of(page, "Run 8493").get_by_role("link").click()
    expect(page).to_have_url(re.compile(made[8493]))
    page.go_back()
    expect(row_of(page, "Run 8493")).to_be_in_viewport()
    page.get_by_label("Search").fill("run 77")
    expect(row_of(page, "Run 7799")).to_be_visible()
    expect(page.get_by_text("111 batches")).to_be_visible()


def test_several_batches_are_cancelled_and_retried_at_once(
    fake_stack: StackProcess, database: Engine, client: OpenAI, open_journey: OpenJourney, tmp_path: Path
) -> None:
    for number in range(3):
        start_batch(
            client, write_lines(tmp_path / f"run-{number}.jsonl", batch_lines(2000, max_tokens=400, ignore_eos=True))
        )
    insert(database, {"metadata": named("Over")})
    journey = open_journey(fake_stack.url)
    page = journey.open()
    expect(rows_of(page)).to_have_count(4)
    for number in range(3):
        expect(row_of(page, f"run-{number}.jsonl")).to_contain_text("running")
    page.get_by_label("Select Over").click()
    page.get_by_label("Select run-0.jsonl").click(modifiers=["Shift"])
    bulk = page.get_by_role("region", name="Selected batches")
    expect(bulk).to_contain_text("4 selected")
    bulk.get_by_role("button", name="Pause").click()
    page.get_by_role("dialog").get_by_role("button", name="Keep as it is").click()
    bulk.get_by_role("button", name="Cancel").click()
    dialog = page.get_by_role("dialog", name="Cancel 3 batches?")
    expect(dialog).to_contain_text("can be retried")
    expect(dialog).to_contain_text("1 other selected batch cannot be cancelled")
    journey.check_accessibility()
    dialog.get_by_role("button", name="Cancel 3 batches").click()
    expect(page.get_by_text("3 batches cancelled.")).to_be_visible()
    expect(page.locator(".badge", has_text=re.compile("^cancelled$"))).to_have_count(3, timeout=30_000)
    expect(bulk).to_have_count(0)
    page.get_by_label("Select all batches").check()
    bulk.get_by_role("button", name="Retry failed lines (3)").click()
    dialog = page.get_by_role("dialog", name="Retry 3 batches?")
    expect(dialog).to_contain_text("lines without an answer")
    dialog.get_by_role("button", name="Retry 3 batches").click()
    expect(rows_of(page)).to_have_count(7)
    page.get_by_label("Select all batches").check()
    bulk.get_by_role("button", name="Cancel (3)").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel 3 batches").click()
    expect(page.locator(".badge", has_text=re.compile("^cancelled$"))).to_have_count(6, timeout=30_000)


def test_a_server_that_restarts_under_the_page_is_shown_and_nothing_is_lost(
    fake_stack: StackProcess, database: Engine, open_journey: OpenJourney
) -> None:
    insert(database, *({"metadata": named(f"Run {number}")} for number in range(5)))
    journey = open_journey(fake_stack.url)
    journey.expect_errors("ERR_CONNECTION", "ERR_EMPTY_RESPONSE", "ERR_INCOMPLETE_CHUNKED", "503")
    page = journey.open()
    expect(rows_of(page)).to_have_count(5)
    page.get_by_label("Select Run 3").check()
    fake_stack.find("-m api").kill()
    expect(page.get_by_text("The connection to the server is lost")).to_be_visible()
    page.get_by_label("Search").press_sequentially("Run")
    insert(database, {"metadata": named("Run while away")})
    wait_for(lambda: fake_stack.client().models.list().data != [], "the api is back")
    expect(page.get_by_text("The connection to the server is lost")).to_be_hidden()
    expect(row_of(page, "Run while away")).to_be_visible()
    expect(page.get_by_label("Search")).to_have_value("Run")
    insert(database, {"metadata": named("Run later")})
    expect(row_of(page, "Run later")).to_be_visible()
    expect(rows_of(page)).to_have_count(7)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_key_with_few_rights_sees_the_owners_and_no_actions(
    fake_stack: StackProcess, database: Engine, open_journey: OpenJourney
) -> None:
    """The last test of this file: from here on the server asks for keys."""
    made = {name: new_key() for name in ("reader", HOSTILE)}
    key_ids = {name: ids.new_id(KEY) for name in made}
    with database.begin() as connection:
        for name, key in made.items():
            scopes = ["read-only"] if name == "reader" else ["admin"]
            connection.execute(
                keys.insert_key(
                    id=key_ids[name],
                    tenant_id="default",
                    name=name,
                    prefix=key.prefix,
                    digest=key.digest,
                    scopes=scopes,
                )
            )
    insert(database, {"metadata": named("Mine"), "owner": key_ids[HOSTILE]})
    wait_for(lambda: httpx2.get(f"{fake_stack.url}/v1/batches").status_code == 401, "a key is asked for")
    for name, owner in (("reader", f"{key_ids[HOSTILE][:13]}…"), (HOSTILE, HOSTILE)):
        journey = open_journey(fake_stack.url)
        journey.expect_errors("401")
        page = journey.open()
        page.get_by_label("API key").fill(made[name].text)
        page.get_by_role("button", name="Enter").click()
        expect(row_of(page, "Mine").get_by_role("cell").last).to_have_text(owner)
        actions = page.get_by_role("checkbox").or_(page.get_by_role("main").get_by_role("link", name="New batch"))
        expect(actions).to_have_count(0 if name == "reader" else 3)
        journey.check_accessibility()
