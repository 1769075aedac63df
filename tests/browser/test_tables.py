"""Tables on the page: labels without the keyboard, a mapping made by hand, and a prompt of the playground."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.browser.dropping import HOSTILE, INPUTS, drop, started
from tests.browser.journey import Journey
from tests.support.stack import StackProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

OpenJourney = Callable[..., Journey]


def test_a_table_gets_labels_without_the_keyboard(demo_stack: StackProcess, open_journey: OpenJourney) -> None:
    journey = open_journey(demo_stack.url)
    page = journey.open("#/new")
    drop(page, "support_tickets.csv", (INPUTS / "support_tickets.csv").read_bytes())
    page.get_by_label("Model", exact=True).select_option("demo")
    rows = page.get_by_role("region", name="Rows").get_by_role("row")
    expect(rows).to_have_count(4)
    expect(rows.nth(0)).to_contain_text("category")
    for number, label in enumerate(("shipping", "billing", "account"), 1):
        expect(rows.nth(number).locator("td.new").first).to_have_text(label)
    journey.screenshots("new-batch-table")
    page.get_by_role("button", name="Start 240 rows").click()
    started(page, demo_stack)
    expect(page.get_by_role("progressbar", name="Progress")).to_have_attribute("aria-valuenow", "240")
    results = page.get_by_role("region", name="Results")
    expect(results.get_by_text("So far.")).to_be_hidden()
    with page.expect_download() as download:
        results.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "support_tickets.csv"
    lines = download.value.path().read_text().splitlines()
    assert (lines[0], len(lines)) == ("id,text,category,priority,error", 241)
    assert lines[1].endswith(",shipping,medium,")


def test_a_mapping_is_made_by_hand_and_wrong_parts_are_marked(
    demo_stack: StackProcess, open_journey: OpenJourney
) -> None:
    """Columns and cells are hostile, too: they stay text, and reach the model as they are."""
    journey = open_journey(demo_stack.url)
    journey.expect_errors("400")
    page = journey.open("#/new")
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    cell = HOSTILE.replace('"', '""')
    drop(
        page,
        "hostile.csv",
        f'"{cell}";error\n"What is the capital of Peru? {cell}";1\nWhat is the capital of Peru?;2\n'.encode(),
    )
    expect(page.get_by_role("columnheader", name=HOSTILE)).to_be_visible()
    page.get_by_label("Model", exact=True).select_option("demo")
    page.get_by_role("radio", name="free text").click()
    page.get_by_label("System prompt").fill("")
    page.get_by_label("Name of the new column").fill("<b>answer</b>")
    prompt = page.get_by_label("Prompt, for each row")
    prompt.fill("{erorr}")
    expect(page.get_by_text("the table has no column 'erorr'")).to_have_count(2)
    prompt.fill("")
    page.get_by_role("group", name="Columns of the table").get_by_role("button").first.click()
    page.get_by_text("Rows and parameters").click()
    page.get_by_label("Only rows where").fill("error == '2'")
    expect(page.get_by_role("cell", name="The capital of Peru is Lima.")).to_be_visible()
    expect(page.get_by_role("columnheader", name="<b>answer</b>")).to_be_visible()
    expect(page.get_by_role("button", name="Start 1 row")).to_be_enabled()
    page.get_by_label("Only rows where").fill("")
    page.get_by_role("radio", name="columns").click()
    names, words = page.get_by_label("Name of the column"), page.get_by_label("Words, with commas between")
    names.first.fill("city")
    words.first.fill("Lima, it's <Quito>")
    page.get_by_role("button", name="Remove the column priority").click()
    page.get_by_role("button", name="Write it as text").click()
    expect(page.get_by_label("Schema")).to_have_value("""city: Lima|"it's <Quito>\"""")
    page.get_by_role("button", name="Show it as a form").click()
    expect(words.first).to_have_value("Lima, it's <Quito>")
    expect(page.get_by_role("columnheader", name="city")).to_be_visible()
    page.get_by_role("button", name="Start 2 rows").click()
    started(page, demo_stack)


def test_the_prompt_of_the_playground_goes_to_a_table(demo_stack: StackProcess, open_journey: OpenJourney) -> None:
    page = open_journey(demo_stack.url).open("#/playground")
    page.get_by_label("Your message").fill("Answer this:")
    page.get_by_role("button", name="Make a batch of this prompt").click()
    expect(page.get_by_text("The prompt of the playground is ready.")).to_be_visible()
    drop(page, "questions.jsonl", b'{"question": "What is the capital of Peru?", "n": 1}\n')
    expect(page.get_by_label("Prompt, for each row")).to_have_value("Answer this:\n\n{question}")
