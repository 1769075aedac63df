"""The playground: a chat with its speed, a schema, stop, errors that keep what was typed, and the request to take along."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.journey import Journey
from tests.support.stack import StackProcess, clean_environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

OpenJourney = Callable[..., Journey]
HOSTILE = """<img src=x onerror=alert(1)> it's "quoted" $(touch /tmp/x) `id` \\n \\ ! é 👍 {text} {{ 7*7 }}
second line"""


def say(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.get_by_label("Your message").press("Enter")


def answers(page: Page) -> list[str]:
    return page.get_by_role("log", name="Answer").all_inner_texts()


def test_an_answer_streams_with_its_speed_and_may_be_asked_again(
    demo_stack: StackProcess, open_journey: OpenJourney
) -> None:
    journey = open_journey(demo_stack.url)
    page = journey.open("#/playground")
    expect(page.get_by_text("Say something to the model")).to_be_visible()
    page.get_by_label("System prompt").fill("Be short.")
    say(page, "What is the capital of France?")
    expect(page.get_by_text("The capital of France is Paris.")).to_be_visible()
    facts = page.get_by_text("first token after")
    expect(facts).to_contain_text("tokens/s")
    expect(facts).to_contain_text("12 out")
    expect(page.get_by_label("Your message")).to_have_value("")
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_label("Text").fill("What is the capital of Japan?")
    page.get_by_role("button", name="Save and answer again").click()
    expect(page.get_by_text("The capital of Japan is Tokyo.")).to_be_visible()
    assert len(answers(page)) == 1
    page.get_by_role("button", name="Regenerate").click()
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
    page.get_by_role("link", name="Models").click()
    page.go_back()
    expect(page.get_by_text("The capital of Japan is Tokyo.")).to_be_visible()


def test_a_schema_shapes_the_answer_and_wrong_json_is_marked(
    demo_stack: StackProcess, open_journey: OpenJourney
) -> None:
    journey = open_journey(demo_stack.url)
    page = journey.open("#/playground")
    page.get_by_text("JSON schema of the answer").click()
    page.get_by_label("JSON schema", exact=True).fill("{no")
    say(page, "My card was billed twice.")
    expect(page.get_by_text("This is not JSON").first).to_be_visible()
    expect(page.get_by_label("Your message")).to_have_value("My card was billed twice.")
    page.get_by_role("button", name="Use an example").click()
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_text("tokens/s")).to_be_visible()
    assert json.loads(answers(page)[0])["category"] == "billing"
    journey.screenshots("playground")


def test_a_running_answer_is_stopped(demo_stack: StackProcess, open_journey: OpenJourney) -> None:
    page = open_journey(demo_stack.url).open("#/playground")
    page.get_by_label("Model", exact=True).select_option("slow")
    say(page, "Tell me a long story.")
    expect(page.get_by_role("log", name="Answer")).to_contain_text(re.compile(r"\w"))
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("stopped by you")).to_be_visible()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert answers(page)[0].strip()


def test_an_error_keeps_what_was_typed(demo_stack: StackProcess, open_journey: OpenJourney) -> None:
    journey = open_journey(demo_stack.url)
    journey.expect_errors("400")
    page = journey.open("#/playground")
    page.get_by_label("Temperature").fill("9")
    say(page, "What is the capital of Peru?")
    expect(page.get_by_role("alert")).to_contain_text("temperature")
    expect(page.get_by_text("What is the capital of Peru?")).to_be_visible()
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_text("The capital of Peru is Lima.")).to_be_visible()


def test_images_are_refused_with_the_reason(demo_stack: StackProcess, open_journey: OpenJourney) -> None:
    page = open_journey(demo_stack.url).open("#/playground")
    page.get_by_label("Your message").fill("Look:")
    for kind, holder in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        page.evaluate(
            """([kind, holder]) => {
                const data = new DataTransfer();
                data.items.add(new File(["x"], "cat.png", { type: "image/png" }));
                const options = { bubbles: true, cancelable: true, [holder]: data };
                const Kind = kind === "paste" ? ClipboardEvent : DragEvent;
                document.querySelector(".composer textarea").dispatchEvent(new Kind(kind, options));
            }""",
            [kind, holder],
        )
        toast = page.get_by_text("The models here read text only")
        expect(toast).to_be_visible()
        page.get_by_role("button", name="Close the message").click()
    expect(page.get_by_label("Your message")).to_have_value("Look:")


def test_reasoning_stands_apart(demo_stack: StackProcess, open_journey: OpenJourney) -> None:
    page = open_journey(demo_stack.url).open("#/playground")
    page.get_by_label("Model", exact=True).select_option("thinker")
    page.get_by_label("Max tokens").fill("80")
    say(page, "Hello")
    expect(page.get_by_text("cut at max tokens")).to_be_visible()
    expect(page.get_by_text("The wheel turns while the water runs.")).to_be_hidden()
    page.get_by_text("Reasoning", exact=True).click()
    expect(page.get_by_text("The wheel turns while the water runs.")).to_be_visible()
    assert "wheel turns" not in answers(page)[0]


def test_tool_calls_are_shown(demo_stack: StackProcess, open_journey: OpenJourney) -> None:
    page = open_journey(demo_stack.url).open("#/playground")
    page.get_by_label("Model", exact=True).select_option("caller")
    page.get_by_text("More parameters").click()
    parameters = {"type": "object", "properties": {"country": {"enum": ["Peru"]}}, "required": ["country"]}
    tool = {"type": "function", "function": {"name": "capital_of", "parameters": parameters}}
    page.get_by_label("Tools", exact=True).fill(json.dumps([tool]))
    page.get_by_label("Tool calls").select_option("required")
    page.get_by_label("Max tokens").fill("60")
    say(page, "What is the capital of Peru?")
    expect(page.locator(".call").first).to_have_text('capital_of({"country": "Peru"})')
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible()


def test_the_request_is_taken_along_as_it_is(demo_stack: StackProcess, open_journey: OpenJourney) -> None:
    """Hostile text stays text: on the page, in a shell, in Python, and in a batch."""
    page = open_journey(demo_stack.url).open("#/playground")
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    page.get_by_label("System prompt").fill(HOSTILE)
    page.get_by_label("Seed").fill("7")
    page.get_by_text("JSON schema of the answer").click()
    hostile = {"type": "object", "properties": {"<b>'\"": {"enum": ["<script>alert(1)</script>", "$(id) '"]}}}
    page.get_by_label("JSON schema", exact=True).fill(json.dumps({**hostile, "required": ["<b>'\""]}))
    say(page, HOSTILE)
    expect(page.get_by_text("tokens/s")).to_be_visible()
    (answer,) = answers(page)
    assert json.loads(answer).popitem()[1] in ("<script>alert(1)</script>", "$(id) '")

    page.get_by_role("button", name="Copy as curl").click()
    curl = page.get_by_role("dialog").locator("code").inner_text()
    assert page.evaluate("navigator.clipboard.readText()") == curl
    shown = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout)["choices"][0]["message"]["content"] == answer
    page.get_by_role("button", name="Close", exact=True).click()

    page.get_by_role("button", name="Copy as Python").click()
    program = page.get_by_role("dialog").locator("code").inner_text()
    environment = {**clean_environment(), "PATH": os.environ["PATH"]}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert ran.stdout.rstrip("\n") == answer
    page.get_by_role("button", name="Close", exact=True).click()

    page.get_by_role("button", name="Make a batch of this prompt").click()
    page.get_by_role("button", name="Make a batch of this one request").click()
    expect(page.get_by_text("1 line, no errors")).to_be_visible()
