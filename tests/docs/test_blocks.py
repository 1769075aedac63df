"""The blocks of all pages are valid in their language, and those that no test runs are few and known."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from core.settings import ROOT
from tests.docs.blocks import NOT_RUN_REASONS, Block, indented_code, pages, read_blocks, transcript
from tests.docs.expected import mismatch
from tests.docs.static_checks import command_problem, millrace_commands, problem_of, unknown_settings

NOT_RUN = {  # the number of blocks that no test runs, by page
    "README.md": 2,
    "docs/backends.md": 1,
    "docs/containers.md": 4,
    "docs/extensions.md": 1,
    "docs/kubernetes.md": 2,
    "docs/models.md": 1,
    "docs/moving.md": 1,
    "docs/operations.md": 1,
    "docs/quickstart.md": 1,
    "docs/recipes/evaluation.md": 1,
    "docs/scale.md": 2,
    "docs/several-machines.md": 10,
    "docs/systemd.md": 1,
    "docs/tables.md": 1,
    "docs/webhooks.md": 2,
}

NAMES = {str(page.relative_to(ROOT)): page for page in pages()}
RUNNABLE = ("sh", "console", "python", "sql")


def _shown_commands(page: Path) -> list[list[str]]:
    """The `millrace …` between backticks in the text of a page."""
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text())
    return [
        words
        for span in re.findall(r"`([^`]+)`", text)
        if re.match(r"(\.venv/bin/)?millrace [a-z]", span)
        for words in millrace_commands(" ".join(span.split()))
        if not any("[" in word or "|" in word for word in words)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_valid_in_their_language(name: str, tmp_path: Path) -> None:
    problems = [
        f"{block.place}: {problem}" for block in read_blocks(NAMES[name]) if (problem := problem_of(block, tmp_path))
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_settings_in_the_text_exist(name: str) -> None:
    page = NAMES[name]
    problems = [problem for words in _shown_commands(page) if (problem := command_problem(words))]
    problems += [f"there is no setting {variable}" for variable in unknown_settings(page.read_text())]
    assert not problems, f"{name}: " + "\n".join(problems)


def test_code_is_fenced() -> None:
    wrong = {f"{name}:{line}" for name, page in NAMES.items() for line in indented_code(page)}
    assert not wrong, "put this code between ``` with its language, so that it is checked"


def test_blocks_that_no_test_runs_have_a_reason_and_do_not_grow_in_number() -> None:
    blocks = [block for page in NAMES.values() for block in read_blocks(page) if block.not_run is not None]
    wrong = {block.place: block.not_run for block in blocks if block.not_run not in NOT_RUN_REASONS}
    assert not wrong, f"the reason is one of {NOT_RUN_REASONS}"
    counted = dict(Counter(str(block.page.relative_to(ROOT)) for block in blocks if block.language in RUNNABLE))
    assert counted == NOT_RUN, "make these blocks run, or state their number in NOT_RUN"


@pytest.mark.parametrize(
    ("shown", "printed", "agrees"),
    [
        ("3 rows in … s", "3 rows in 1.2 s\n", True),
        ("3 rows in … s", "4 rows in 1.2 s\n", False),
        ('{"id": "batch_…", "total": 4, …}', '{"id":"batch_06","total":5,"status":"completed"}', True),
        ('{"id": "file-…"}', '{"id":"batch_06"}', False),
        ('{"total": 4}', '{"total":"4"}', False),
        ('{"data": [{"line": 1}, …], "usage": {…}}', '{"data":[{"line":2},{"line":3}],"usage":{"a":1}}', True),
        ('{"data": [1]}', '{"data":[1,2]}', False),
        ('{"paused": null}', '{"paused":false}', False),
    ],
)
def test_an_output_is_compared_with_the_one_that_the_page_shows(shown: str, printed: str, agrees: bool) -> None:
    assert (mismatch(shown, printed) == "") is agrees


def test_the_commands_of_a_script_are_found() -> None:
    script = """
        A=1 millrace run in.jsonl -o out.jsonl | tail -1
        ID=$(.venv/bin/millrace batch create in.jsonl)  # millrace x
        echo millrace
    """
    assert list(millrace_commands(script)) == [
        ["run", "in.jsonl", "-o", "out.jsonl"],
        ["batch", "create", "in.jsonl"],
    ]
    assert command_problem(["batch", "creat"])
    assert command_problem(["run", "in.jsonl", "--outputt", "x"])
    assert not command_problem(["run", "in.jsonl", "-o", "x"])


def test_a_transcript_is_divided_into_commands_and_outputs() -> None:
    code = "$ curl 'a\nb'\n{}\n$ one \\\n two\nout\nout"
    assert list(transcript(code)) == [(0, "curl 'a\nb'", "{}"), (3, "one \\\n two", "out\nout")]


def test_a_block_is_read_with_marker_and_output(tmp_path: Path) -> None:
    page = ROOT / "docs" / "page.md"
    text = "<!-- not run: needs a GPU -->\n```sh\na\n```\n\n```sh\nb\n```\n```text\nc\n```\n"
    (tmp_path / "page.md").write_text(text)
    first, second, third = read_blocks(tmp_path / "page.md")
    assert (first.not_run, first.line, second.output, third.is_output) == ("needs a GPU", 3, "c", True)
    assert Block(page=page, line=2, language="sh", code="").place == "docs/page.md:2"
