"""Batches as text: a pause is visible, rates and estimates are the server's, and everything fits 80 columns."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from rich.console import Console

from cli.batches.progress import bar_numbers, line
from cli.batches.text import age, details, duration, eta_seconds, percent, shown_status
from cli.output import Column, plural, print_pairs, print_table
from core.field_errors import nearest
from core.ids import BATCH, new_id
from core.schemas.objects import BatchError, BatchErrors, BatchObject, BatchUsage, RequestCounts

NOW = 1_000_100.0


def batch(**changes: Any) -> dict[str, Any]:
    made = BatchObject(
        id=new_id(BATCH),
        endpoint="/v1/chat/completions",
        model="mine-7b",
        input_file_id="file-a",
        completion_window="24h",
        status="in_progress",
        created_at=1_000_000,
        in_progress_at=1_000_010,
        expires_at=1_086_400,
        request_counts=RequestCounts(total=400, completed=100, failed=3),
        tokens_per_second=3515.03,
        eta_at=1_000_160,
    )
    return made.model_copy(update=changes).model_dump(mode="json")


def test_a_paused_batch_is_shown_as_paused_until_it_ends() -> None:
    assert shown_status(batch(paused_at=1)) == "paused"
    assert shown_status(batch(paused_at=None)) == "in_progress"
    assert shown_status(batch(paused_at=1, status="cancelled")) == "cancelled"
    assert line(batch(paused_at=1), NOW).startswith("paused: 100 done")


def test_rate_and_estimate_are_those_of_the_api() -> None:
    assert eta_seconds(batch(), NOW) == 60
    assert bar_numbers(batch(), NOW) == "25% 103/400 3 failed 3,515 tok/s 1:40 ETA 1:00"
    assert (
        line(batch(), NOW)
        == "in_progress: 100 done, 3 failed, 400 total (25%), 1 min 40 s elapsed, 3,515 tokens/s, ETA 1 min 0 s"
    )
    shown = dict(details(batch(), NOW))
    assert (shown["speed"], shown["estimate"].partition(", ")[0]) == ("3,515 tokens/s", "ends in 1 min 0 s")
    unmeasured = batch(tokens_per_second=None, eta_at=None)
    assert bar_numbers(unmeasured, NOW) == "25% 103/400 3 failed 1:40"
    assert "estimate" not in dict(details(unmeasured, NOW))


def test_numbers_are_those_of_lines_that_ended() -> None:
    assert percent(batch(request_counts=RequestCounts())) == ""
    assert percent(batch(request_counts=RequestCounts(total=3, completed=2, failed=1))) == "100%"
    assert percent(batch(request_counts=RequestCounts(total=1000, completed=999))) == "99%"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.6, "1 min 0 s"), (3905, "1 h 5 min"), (100_000, "1 d 3 h")]
)
def test_durations_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert duration(seconds) == text
    assert age(100, 100 + 3700) == "1h"


def test_the_details_of_a_batch_are_sentences_not_json(capsys: pytest.CaptureFixture[str]) -> None:
    errors = BatchErrors(data=[BatchError(code="c", message=f"m{n}", line=n) for n in range(1, 8)])
    usage = BatchUsage(input_tokens=1234, output_tokens=5, total_tokens=1239)
    failed = batch(status="failed", failed_at=1_000_050, errors=errors, usage=usage, metadata={"team": "red"})
    print_pairs(details(failed, NOW))
    shown = capsys.readouterr().out
    assert "{" not in shown
    assert "error     line 1: m1 (c)" in shown
    assert "2 further errors: millrace batch errors batch_" in shown
    assert "tokens    1,234 in, 5 out" in shown
    assert "took      50 s" in shown
    assert "metadata  team=red" in shown


def rows() -> list[tuple[str, ...]]:
    return [(new_id(BATCH), "in_progress", "50000/50000", "0", "3h", "a-model-with-a-long-name", "2026-11-29 15:00:00")]


COLUMNS = ("ID", "STATUS", "DONE", "FAIL", "AGE", Column("MODEL", can_shrink=True), Column("CREATED", is_extra=True))


def test_a_table_fits_the_terminal_and_a_pipe_gets_everything(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    print_table(COLUMNS, rows())
    assert "a-model-with-a-long-name  2026-11-29 15:00:00" in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for width in (80, 90, 100, 130):
        monkeypatch.setenv("COLUMNS", str(width))
        print_table(COLUMNS, rows())
        shown = capsys.readouterr().out
        assert max(map(len, shown.splitlines())) <= width
        assert "a-model" in shown or width == 80
    monkeypatch.setenv("COLUMNS", "90")
    print_table(COLUMNS, rows())
    assert "…" in capsys.readouterr().out


def test_the_bar_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    from cli.batches import progress

    monkeypatch.setattr(progress, "bar_numbers", lambda shown: bar_numbers(shown, NOW))
    monkeypatch.delenv("TERM", raising=False)
    console = Console(force_terminal=True, width=80, color_system=None)
    with console.capture() as written, progress.meter(console, "support_tickets_of_november.jsonl") as show:
        show(batch(request_counts=RequestCounts(total=50000, completed=20000, failed=12)))
    lines = [part.strip("\r") for part in written.get().splitlines() if "tok/s" in part]
    assert lines
    assert lines[-1].endswith("40% 20012/50000 12 failed 3,515 tok/s 1:40 ETA 1:00")
    assert "support_tickets…" in lines[-1]
    assert len(lines[-1].removeprefix("\x1b[2K")) == 80


def test_words_are_counted_and_corrected() -> None:
    assert (plural(1, "line"), plural(2000, "line"), plural(2, "batch", "batches")) == (
        "1 line",
        "2,000 lines",
        "2 batches",
    )
    assert nearest("pauzed", ["paused", "failed"]) == "; did you mean 'paused'?"
    assert nearest("xyz", ["paused"]) == ""


def test_a_batch_that_cannot_go_on_shows_what_it_waits_for() -> None:
    waiting = batch(waiting_for="model short: its engine does not start")
    assert line(waiting, NOW).endswith("waiting for model short: its engine does not start")
    assert dict(details(waiting, NOW))["waiting for"] == "model short: its engine does not start"
    assert "waiting" not in line(batch(waiting_for=None), NOW)


def test_a_batch_whose_model_is_not_in_memory_says_so_in_its_status() -> None:
    waiting = batch(
        waiting_for="model m: it waits for its turn in memory", waiting_for_model="m", model_ready_at=int(NOW) + 75
    )
    assert line(waiting, NOW).startswith("waiting_for_model: ")
    shown = dict(details(waiting, NOW))
    assert (shown["status"], shown["model ready"]) == ("waiting_for_model", "in 1 min 15 s")
    assert dict(details(batch(paused_at=int(NOW) - 5, waiting_for_model=None), NOW))["status"].startswith("paused")
