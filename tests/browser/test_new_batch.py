"""New batch: a file is dropped, explained, and started, without the keyboard; hostile and wrong files do no harm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Route, expect

from tests.browser.dropping import HOSTILE, INPUTS, drop, started
from tests.browser.journey import Journey
from tests.support.stack import StackProcess, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

OpenJourney = Callable[..., Journey]


def line(custom_id: str = "a", **fields: Any) -> bytes:
    body = {"model": "demo", "messages": [{"role": "user", "content": "What is the capital of Peru?"}]} | fields
    whole = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(whole).encode() + b"\n"


def test_requests_dropped_anywhere_are_checked_and_started(demo_stack: StackProcess, open_journey: OpenJourney) -> None:
    journey = open_journey(demo_stack.url)
    page = journey.open("#/models")
    expect(page.get_by_role("heading", name="Models", level=1)).to_be_visible()
    drop(page, "support_tickets.jsonl", (INPUTS / "support_tickets.jsonl").read_bytes())
    expect(page.get_by_text("240 lines, no errors")).to_be_visible()
    page.get_by_label("Priority").select_option("high")
    page.get_by_role("button", name="Start 240 lines").click()
    batch = started(page, demo_stack)
    assert (batch["metadata"], batch["priority"]) == ({"name": "support_tickets"}, 50)
    page.get_by_role("link", name="New batch").click()
    expect(page.get_by_text("Drop a file here")).to_be_visible()
    journey.screenshots("new-batch-empty")


def test_bad_lines_are_explained_at_their_place(
    demo_stack: StackProcess, open_journey: OpenJourney, tmp_path: Path
) -> None:
    lines = [line(f"good-{number}") for number in range(20)]
    lines[3] = line("ünknown", model="gpt-9")
    lines[5] = b"\n"
    lines[7] = line("warm", temperature=7)
    lines[9] = line(HOSTILE, padding="x" * 30_000, top_p=0)
    lines[12] = line("nöne").replace(b"}}\n", b', "seed": None}}\n')
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(b"".join(lines))
    journey = open_journey(demo_stack.url)
    page = journey.open("#/new")
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a file").click()
    chooser.value.set_files(path)
    expect(page.get_by_text("4 of 19 lines would fail")).to_be_visible()
    for number, marked in ((4, '"gpt-9"'), (8, "7"), (10, "0"), (13, "None")):
        page.get_by_role("button", name=f"Line {number}", exact=True).click()
        place = page.get_by_role("listitem").filter(has=page.get_by_role("button", name=f"Line {number}", exact=True))
        expect(place.locator("mark")).to_have_text(marked)
    expect(page.get_by_text("The 15 good lines run.")).to_be_visible()
    expect(page.get_by_text(HOSTILE).first).to_be_visible()
    journey.screenshots("new-batch-report")
    page.get_by_label("Name").fill("mended later")
    page.get_by_role("button", name="Start 19 lines").click()
    assert started(page, demo_stack)["metadata"] == {"name": "mended later"}


def test_lines_for_a_model_of_elsewhere_run_on_one_of_here(demo_stack: StackProcess, open_journey: OpenJourney) -> None:
    """Only the model changes; other lines and other bytes stay, whatever stands in them."""
    theirs = line("ä", model="gpt-9", user='"model": "gpt-9", {"a').replace(b"\n", b"\r\n")
    ours = line("b", seed=12345678901234567)
    page = open_journey(demo_stack.url).open("#/new")
    drop(page, "moved.jsonl", theirs + ours + line("c", model="slow").rstrip())
    expect(page.get_by_text("1 of 3 lines would fail")).to_be_visible()
    page.get_by_label("Run their lines on").select_option("demo")
    page.get_by_role("button", name="Replace and check again").click()
    page.get_by_text("3 lines, no errors").wait_for()
    page.get_by_role("button", name="Start 3 lines").click()
    sent = httpx2.get(f"{demo_stack.url}/v1/files/{started(page, demo_stack)['input_file_id']}/content").content
    assert sent == theirs.replace(b'"gpt-9"', b'"demo"', 1) + ours + line("c", model="slow").rstrip()


def test_a_file_that_is_not_accepted_is_not_started(demo_stack: StackProcess, open_journey: OpenJourney) -> None:
    page = open_journey(demo_stack.url).open("#/new")
    drop(page, "double.jsonl", line("a") + line("a") + b"{oh no\n")
    expect(page.get_by_text("This file would not be accepted")).to_be_visible()
    expect(page.get_by_text("This custom_id was used before, on line 1.")).to_be_visible()
    expect(page.get_by_role("button", name="Start 3 lines")).to_be_disabled()
    expect(page.get_by_text("takes a file only as a whole")).to_be_visible()
    page.get_by_label("Name").fill("my name for it")
    drop(page, "double.jsonl", line("a") + line("b"))
    expect(page.get_by_role("button", name="Start 2 lines")).to_be_enabled()
    expect(page.get_by_label("Name")).to_have_value("my name for it")


WRONG = {
    "cat.png": (b"\x89PNG\r\n\x1a\n\0\0", "“cat.png” is an image."),
    "in.zip": (b"PK\x03\x04\x14\0in.csv", "“in.zip” is a zip archive or an Office file."),
    "old.xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Save it as .xlsx or CSV."),
    "a.exe": (b"MZ\x90\0\3\0", "“a.exe” is not text."),
    "none.jsonl": (b"", "“none.jsonl” is empty."),
    "out.jsonl": (b'{"custom_id":"a","response":null,"error":{}}\n', "“out.jsonl” has the results of a batch"),
    f"{HOSTILE}.gif": (b"GIF89a", f"“{HOSTILE}.gif” is an image."),
    "array.jsonl": (b"[" + line().strip() + b"]", "The file is one JSON array."),
}


def test_wrong_files_get_a_plain_sentence(demo_stack: StackProcess, open_journey: OpenJourney) -> None:
    page = open_journey(demo_stack.url).open("#/new")
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    for name, (content, reason) in WRONG.items():
        drop(page, name, content)
        expect(page.get_by_text(reason)).to_be_visible()
        expect(page.get_by_role("button", name="Choose a")).to_be_visible()
        expect(page.get_by_role("button", name="Start 1 line")).to_be_hidden()


def test_a_lost_connection_costs_one_part(demo_stack: StackProcess, open_journey: OpenJourney) -> None:
    """The second part is cut at each try; the first one is not sent again."""
    journey = open_journey(demo_stack.url)
    journey.expect_errors("ERR_FAILED", "net::", "Failed to load")
    page = journey.open("#/new")
    sent: list[str] = []
    is_cut = True

    def cut(route: Route) -> None:
        sent.append(route.request.url)
        if is_cut and len(sent) > 1:
            route.abort()
        else:
            route.continue_()

    page.route("**/parts", cut)
    page.clock.install()
    drop(page, "big.jsonl", b"".join(line(f"line-{n}", padding="x" * 100_000) for n in range(86)))
    lost = page.get_by_text("The connection was lost")
    wait_for(lambda: page.clock.run_for(3000) or lost.is_visible(), "all tries have failed")
    is_cut = False
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_text("86 lines, no errors")).to_be_visible(timeout=20_000)
    assert len(set(sent)) == 1, "one upload from its beginning to its end"
