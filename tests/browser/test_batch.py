"""A batch in the browser: failures are understood and retried, it is paused, changed and cancelled, and a line is watched."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import polars
import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import Connection, Engine, func, literal, update

from cli.stack.services import running_database
from core.states import BatchState, JobState, ShardState
from db.connections import database_engine
from db.tables import Batch, Job, Shard
from tests.browser.journey import Journey
from tests.support.rows import make_running_batch
from tests.support.stack import StackProcess, batch_lines, result_lines, start_batch, wait_for, write_lines

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

OpenJourney = Callable[..., Journey]
HOSTILE = '<img src=x onerror="alert(1)"> </script> {{7*7}} "\'`'


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    """A stack with a quick model, and one that is slow enough to be watched."""
    folder = tmp_path_factory.mktemp("stack")
    models = folder / "models"
    models.mkdir()
    (models / "fake.yaml").write_text("name: fake\nbackend: fake\nslots: 8\n")
    (models / "slow.yaml").write_text("name: slow\nbackend: fake\nslots: 2\nstep_seconds: 0.03\n")
    process = StackProcess(folder, models)
    process.start()
    yield process
    process.close()


@pytest.fixture(scope="module")
def rows(stack: StackProcess) -> Iterator[Engine]:
    """The database of the stack."""
    url = running_database(stack.state_dir)
    assert url is not None
    engine = database_engine(url, pool_size=1)
    yield engine
    engine.dispose()


def begin(stack: StackProcess, tmp_path: Path, lines: list[dict[str, object]]) -> str:
    with stack.client() as client:
        return start_batch(client, write_lines(tmp_path / "in.jsonl", lines))


def read(stack: StackProcess, path: str) -> Any:
    return httpx2.get(f"{stack.url}/v1/batches/{path}").raise_for_status().json()


def wait_end(stack: StackProcess, batch_id: str) -> Any:
    wait_for(lambda: read(stack, batch_id)["completed_at"] is not None, "the batch completes")
    return read(stack, batch_id)


def end_batch(connection: Connection, batch_id: str, **line: Any) -> None:
    """Let every line that is queued have this answer, and complete the batch."""
    answered = {"state": JobState.COMPLETED, "finished_at": func.now(), "started_at": func.now(), **line}
    connection.execute(update(Job).where(Job.batch_id == batch_id, Job.state == JobState.QUEUED).values(answered))
    connection.execute(update(Shard).where(Shard.batch_id == batch_id).values(state=ShardState.DONE))
    now = {"finalizing_at": func.now(), "completed_at": func.now()}
    connection.execute(
        update(Batch)
        .where(Batch.id == batch_id)
        .values(status=BatchState.COMPLETED, lines_completed=Batch.lines - Batch.lines_failed, **now)
    )


def table(page: Page) -> Any:
    return page.get_by_role("table", name="Lines")


def test_failures_are_understood_and_retried(stack: StackProcess, open_journey: OpenJourney, tmp_path: Path) -> None:
    lines = batch_lines(40)
    for bad in (7, 23):
        lines[bad]["body"] = {"model": "gpt-9", "messages": [{"role": "user", "content": "Too clever?"}]}
    batch_id = begin(stack, tmp_path, lines)
    wait_end(stack, batch_id)
    journey = open_journey(stack.url)
    page = journey.open(f"#/batches/{batch_id}")
    errors = page.get_by_role("region", name="Errors", exact=True)
    expect(errors).to_contain_text("model_not_found")
    expect(errors).to_contain_text("The model 'gpt-9' does not exist")
    expect(errors).to_contain_text("What to do: Use one of the names")
    expect(page.get_by_role("heading", level=1)).to_contain_text("5 % failed")
    expect(page.get_by_label("Timeline")).to_contain_text("Completed")
    expect(page.locator("canvas")).to_have_count(2)
    expect(table(page)).to_have_attribute("aria-rowcount", "41")
    journey.screenshots("batch-failures")
    errors.get_by_role("button", name="Show these lines").click()
    expect(table(page).get_by_role("row")).to_have_count(3)
    table(page).get_by_role("link", name="line-23").click()
    expect(page.get_by_label("Answer to the line")).to_contain_text("model_not_found")
    expect(page.get_by_label("Answer to the line")).to_contain_text("What to do: Use one of the names")
    expect(page.get_by_label("Prompt of the line")).to_contain_text("Too clever?")
    journey.screenshots("line-failed")
    page.go_back()
    table(page).get_by_role("checkbox", name="Choose line 24").check()
    page.get_by_role("button", name="Retry it").click()
    page.wait_for_url(lambda url: url.endswith("/batches/" + batch_id) is False)
    expect(page.get_by_role("link", name=batch_id)).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_contain_text("100 % failed")
    page.get_by_role("link", name=batch_id).click()
    expect(page.get_by_text("Retried as:")).to_be_visible()


def test_a_running_batch_is_paused_changed_and_cancelled(
    stack: StackProcess, open_journey: OpenJourney, tmp_path: Path
) -> None:
    batch_id = begin(stack, tmp_path, batch_lines(400, "slow", max_tokens=6, ignore_eos=True))
    journey = open_journey(stack.url)
    page = journey.open(f"#/batches/{batch_id}")
    heading = page.get_by_role("heading", level=1)
    expect(heading).to_contain_text("running")
    expect(page.get_by_text(re.compile("^Done in about .* before its window ends"))).to_be_visible()
    journey.screenshots("batch-running")
    page.get_by_role("button", name="Pause").click()
    expect(heading).to_contain_text("paused")
    page.get_by_role("button", name="Priority and window").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Priority").fill("5")
    dialog.get_by_label("Window").fill("soon")
    journey.expect_errors("400 (Bad Request)")
    dialog.get_by_role("button", name="Change").click()
    expect(dialog.get_by_text(re.compile("use '24h'"))).to_be_visible()
    journey.check_accessibility()
    dialog.get_by_label("Window").fill("2d")
    dialog.get_by_role("button", name="Change").click()
    expect(dialog).to_be_hidden()
    changed = read(stack, batch_id)
    assert (changed["priority"], changed["completion_window"]) == (5, "2d")
    httpx2.post(f"{stack.url}/v1/batches/{batch_id}/resume").raise_for_status()
    expect(heading).to_contain_text("running")
    page.get_by_role("button", name="Cancel").click()
    expect(dialog).to_contain_text("have no answer yet")
    dialog.get_by_role("button", name="Cancel the batch").click()
    expect(heading).to_contain_text("cancelled")
    expect(page.get_by_role("button", name=re.compile("^Retry .* lines without an answer"))).to_be_visible()
    expect(page.get_by_role("region", name="Errors", exact=True)).to_contain_text("batch_cancelled")


def test_a_line_is_watched_while_it_is_generated(
    stack: StackProcess, open_journey: OpenJourney, tmp_path: Path
) -> None:
    journey = open_journey(stack.url)
    journey.open("#/batches")  # the browser has the page before the line begins
    batch_id = begin(stack, tmp_path, batch_lines(1, "slow", max_tokens=100, ignore_eos=True))
    page = journey.open(f"#/batches/{batch_id}")
    table(page).get_by_role("link", name="line-0").click()
    live = page.get_by_role("region", name="answer, as it is generated")
    expect(live).to_have_text(re.compile(r".{8,}"))
    partial = (live.text_content() or "").removesuffix("▌")
    expect(page.get_by_role("region", name="answer, as it is generated")).to_have_count(0)
    whole = read(stack, f"{batch_id}/requests/line-0")["response"]["choices"][0]["message"]["content"]
    assert whole.startswith(partial)
    assert len(partial) < len(whole)
    expect(page.get_by_role("region", name=re.compile("^answer"))).to_have_text(whole)
    expect(page.get_by_label("How it was made")).to_contain_text("fake-3")
    journey.screenshots("line-answered")


def test_a_table_of_50000_lines_jumps_and_finds(stack: StackProcess, rows: Engine, open_journey: OpenJourney) -> None:
    with rows.begin() as connection:
        batch_id, _ = make_running_batch(connection, [50_000])
        content = literal('{"choices":[{"index":0,"finish_reason":"stop","message":{"content":"Answer number ')
        end_batch(
            connection,
            batch_id,
            answer=content.op("||")(Job.line).op("||")('."}}]}'),
            prompt_tokens=5,
            completion_tokens=4,
        )
    page = open_journey(stack.url).open(f"#/batches/{batch_id}")
    expect(table(page).get_by_role("link", name="line-1", exact=True)).to_be_visible()
    assert table(page).get_attribute("aria-rowcount") == "50001"
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(table(page).get_by_role("link", name="line-50000")).to_be_visible()
    assert table(page).get_by_role("row").count() < 100
    page.evaluate("scrollTo(0, document.body.scrollHeight / 2)")
    expect(table(page).get_by_text(re.compile(r"Answer number 25\d\d\d\."))).not_to_have_count(0)
    page.get_by_role("searchbox", name="Search lines").fill("number 4999.")
    expect(table(page).get_by_role("row")).to_have_count(2)
    expect(table(page).get_by_role("link", name="line-4999")).to_be_visible()
    page.get_by_label("Search in").select_option("custom_id")
    page.get_by_role("searchbox", name="Search lines").fill("LINE-1234")
    expect(table(page).get_by_role("row")).to_have_count(12)
    page.get_by_label("Outcome").select_option("failed")
    page.get_by_role("button", name="Show all lines").click()
    expect(table(page).get_by_role("link", name="line-1", exact=True)).to_be_visible()


def test_a_file_that_was_not_accepted_shows_every_error_with_its_line(
    stack: StackProcess, open_journey: OpenJourney, tmp_path: Path
) -> None:
    lines = batch_lines(6)
    lines[1]["custom_id"] = lines[0]["custom_id"]
    lines[3]["url"] = "/v1/embeddings"
    del lines[4]["body"]
    batch_id = begin(stack, tmp_path, lines)
    journey = open_journey(stack.url)
    page = journey.open(f"#/batches/{batch_id}")
    expect(page.get_by_role("heading", level=1)).to_contain_text("file not accepted")
    for number, code in ((2, "duplicate_custom_id"), (4, "url_mismatch"), (5, "missing_required_parameter")):
        row = page.get_by_role("row").filter(has_text=code)
        expect(row.get_by_role("cell").first).to_have_text(str(number))
    journey.screenshots("batch-not-accepted")


def test_hostile_text_is_shown_as_text(stack: StackProcess, rows: Engine, open_journey: OpenJourney) -> None:
    answer = {"choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": HOSTILE}}]}
    problem = {"status": 400, "message": HOSTILE, "code": HOSTILE, "param": HOSTILE}
    with rows.begin() as connection:
        batch_id, _ = make_running_batch(connection, [2])
        body = json.dumps({"model": HOSTILE, "messages": [{"role": HOSTILE, "content": HOSTILE}]})
        connection.execute(
            update(Job).where(Job.batch_id == batch_id).values(body=body, custom_id=HOSTILE + Job.custom_id)
        )
        failed = {"state": JobState.FAILED, "problem": json.dumps(problem), "finished_at": func.now()}
        connection.execute(update(Job).where(Job.batch_id == batch_id, Job.line == 2).values(failed))
        named = {"metadata_json": json.dumps({"name": HOSTILE, HOSTILE: HOSTILE}), "input_file_name": HOSTILE}
        connection.execute(update(Batch).where(Batch.id == batch_id).values(lines_failed=1, model=HOSTILE, **named))
        end_batch(connection, batch_id, answer=json.dumps(answer))
    journey = open_journey(stack.url)
    page = journey.open(f"#/batches/{batch_id}")
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    expect(page.get_by_role("heading", level=1)).to_contain_text(HOSTILE)
    expect(page.get_by_role("region", name="Errors", exact=True)).to_contain_text(HOSTILE)
    expect(table(page).get_by_text(HOSTILE)).not_to_have_count(0)
    page.get_by_text("Details", exact=True).click()
    expect(page.locator("main img")).to_have_count(0)
    journey.check_fits()
    for number in range(2):
        page.goto(f"{stack.url}/#/batches/{batch_id}")
        table(page).get_by_role("link").nth(number).click()
        for part in ("Prompt of the line", "Answer to the line"):
            expect(page.get_by_label(part)).to_contain_text(HOSTILE)
        expect(page.locator("main img")).to_have_count(0)
        journey.check_accessibility()


def test_results_are_saved_in_every_form(stack: StackProcess, open_journey: OpenJourney, tmp_path: Path) -> None:
    lines = batch_lines(30)
    lines[4]["body"] = {"model": "gpt-9", "messages": []}
    batch_id = begin(stack, tmp_path, lines)
    batch = wait_end(stack, batch_id)
    page = open_journey(stack.url).open(f"#/batches/{batch_id}")

    def save(outcome: str, kind: str) -> bytes:
        page.get_by_label("Save").select_option(outcome)
        page.get_by_label("as", exact=True).select_option(kind)
        with page.expect_download() as download:
            page.get_by_role("button", name="Download").first.click()
        assert download.value.suggested_filename.endswith(f".{kind.lower()}")
        return download.value.path().read_bytes()

    with stack.client() as client:
        answers = result_lines(client, batch["output_file_id"])
        failures = result_lines(client, batch["error_file_id"])
    parsed = {
        outcome: [json.loads(line) for line in save(outcome, "JSONL").splitlines()]
        for outcome in ("answers only", "errors only", "answers and errors")
    }
    assert parsed["answers only"] == answers
    assert parsed["errors only"] == failures
    assert sorted(parsed["answers and errors"], key=lambda line: str(line["id"])) == sorted(
        answers + failures, key=lambda line: str(line["id"])
    )
    table_rows = list(csv.DictReader(io.StringIO(save("answers and errors", "CSV").decode("utf-8-sig"))))
    assert [row["custom_id"] for row in table_rows] == [f"line-{number}" for number in range(30)]
    said = {str(line["custom_id"]): line["response"]["body"] for line in answers}  # type: ignore[index]
    for row in table_rows:
        if row["custom_id"] == "line-4":
            error = failures[0]["response"]["body"]["error"]  # type: ignore[index]
            assert (row["answer"], row["error"], row["error_code"]) == ("", error["message"], error["code"])
        else:
            assert row["answer"] == said[row["custom_id"]]["choices"][0]["message"]["content"]
    assert len(list(csv.DictReader(io.StringIO(save("errors only", "CSV").decode("utf-8-sig"))))) == 1
    frame = polars.read_parquet(save("answers and errors", "Parquet"))
    assert frame["custom_id"].to_list() == [row["custom_id"] for row in table_rows]


def test_a_key_that_only_reads_sees_and_saves_and_changes_nothing(
    stack: StackProcess, open_journey: OpenJourney, tmp_path: Path
) -> None:
    """The last test of this file: the server asks for keys from here on."""
    batch_id = begin(stack, tmp_path, batch_lines(3))
    batch = wait_end(stack, batch_id)
    with httpx2.Client(base_url=stack.url) as http:
        owner = http.post("/v1/api_keys", json={"name": "owner", "scopes": ["admin"]}).raise_for_status().json()
        http.headers["authorization"] = f"Bearer {owner['key']}"
        made = http.post("/v1/api_keys", json={"name": "reader", "scopes": ["read-only"]}).raise_for_status().json()
        answers = http.get(f"/v1/files/{batch['output_file_id']}/content").content
    journey = open_journey(stack.url)
    journey.expect_errors("401 (Unauthorized)")
    page = journey.open(f"#/batches/{batch_id}")
    page.get_by_label("API key").fill(made["key"])
    page.get_by_role("button", name="Enter").click()
    expect(page.get_by_text("Your key may read this batch, but not change it.")).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("^Retry"))).to_have_count(0)
    expect(page.get_by_role("button", name="Download").first).to_be_visible()
    page.get_by_label("Save").select_option("answers only")
    page.get_by_label("as", exact=True).select_option("JSONL")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").first.click()
    assert download.value.path().read_bytes() == answers
    table(page).get_by_role("link", name="line-1").click()
    expect(page.get_by_label("Answer to the line")).to_be_visible()
    expect(page.get_by_role("button", name="Retry this line")).to_have_count(0)
