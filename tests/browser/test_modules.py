"""Modules of the page without a view: lines of big files, places of errors, the shorthand of schemas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.journey import Journey
from tests.support.stack import StackProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

OpenJourney = Callable[..., Journey]

_AROUND = """async (numbers) => {
    const { FileLines } = await import("/web/lib/file_lines.js");
    const line = (n) => `${n} ${"é".repeat((n * 7919) % 300)}`;
    const whole = Array.from({ length: 60_000 }, (_, index) => line(index + 1)).join("\\r\\n");
    const lines = new FileLines(new File([whole], "big.jsonl"));
    const wrong = [];
    for (const number of numbers) {
        for (const found of await lines.around(number)) if (found.text !== line(found.number)) wrong.push(found.number);
    }
    return [wrong, (await lines.around(60_000)).length, (await lines.around(70_000)).length, whole.length];
}"""


def test_any_line_of_a_big_file_is_found(demo_stack: StackProcess, open_journey: OpenJourney) -> None:
    page = open_journey(demo_stack.url).open("#/new")
    numbers = [59_999, 1, 2, *range(20, 60_000, 1499), 60_000]
    wrong, at_end, behind, size = page.evaluate(_AROUND, numbers)
    assert (wrong, at_end, behind) == ([], 2, 0)
    assert size > 8 << 20, "several pieces"


_REPLACE = """async ([text, count]) => {
    const { withModel } = await import("/web/lib/file_lines.js");
    const lines = Array.from({ length: count }, () => text);
    const file = new File([...lines, new Uint8Array([123, 255, 10]), text.trimEnd()], "in.jsonl");
    const made = await withModel(file, "demo", (name) => name === "gpt-9");
    const bytes = new Uint8Array(await made.slice(-text.length - 20).arrayBuffer());
    return [made.name, (await made.text()).split('"demo"').length - 1, [...bytes].includes(255), made.size - file.size];
}"""


def test_a_model_is_replaced_in_every_line_and_other_bytes_stay(
    demo_stack: StackProcess, open_journey: OpenJourney
) -> None:
    page = open_journey(demo_stack.url).open("#/new")
    text = '{"custom_id": "a", "body": {"user": "' + "x" * 5000 + '", "model": "gpt-9", "n": 1.50}}\r\n'
    name, replaced, is_kept, growth = page.evaluate(_REPLACE, [text, 2000])
    assert (name, replaced, is_kept, growth) == ("in.jsonl", 2001, True, -2001)


PLACES: list[tuple[str, dict[str, Any], str | None]] = [
    ('{"a": {"b": [1, {"c": "x, }"}]}}', {"param": "a.b[1].c"}, '"x, }"'),
    ('{"a": 1, "a": {"b": 2}}', {"param": "a.b"}, "2"),
    ('{"body": {"messages": []}}', {"param": "body.messages[0].role"}, "[]"),
    ('{"é": 1, "b": tru', {"message": "… (column 16)"}, "tru"),
    ('{"a": "\\\\\\"", "b": 3}', {"param": "b"}, "3"),
    ("nothing", {"param": "b"}, "nothing"),
    ("{}", {}, None),
]


def test_an_error_is_marked_at_its_place(demo_stack: StackProcess, open_journey: OpenJourney) -> None:
    page = open_journey(demo_stack.url).open("#/new")
    marked = page.evaluate(
        """async (places) => {
            const { placeOf } = await import("/web/lib/file_lines.js");
            return places.map(([line, error]) => placeOf(line, error)).map((at, n) => at && places[n][0].slice(...at));
        }""",
        [[line, error] for line, error, _ in PLACES],
    )
    assert marked == [expected for *_, expected in PLACES]


def test_the_shorthand_of_a_schema_and_its_form_say_the_same(
    demo_stack: StackProcess, open_journey: OpenJourney
) -> None:
    page = open_journey(demo_stack.url).open("#/new")
    texts = [
        "a: low|high?, b: number, c: 'x|y'|\"it's so\"",
        "a: 'x, y'|z",
        "tags: string[]",
        "oh no",
        '{"type": "object"}',
        "n: integer?",
    ]
    made = page.evaluate(
        """async (texts) => {
            const { toFields, toShorthand } = await import("/web/lib/columns.js");
            return texts.map(toFields).map((fields) => fields && toShorthand(fields));
        }""",
        texts,
    )
    assert made == [texts[0], None, None, None, None, texts[5]]


KINDS = {
    'a.jsonl {"custom_id": "1", "method": "POST"}': "batch",
    'a.txt {"body": {"model": "demo"}}': "batch",
    'a.jsonl {oh no\n{"custom_id": "1", "body": {}}': "batch",
    "a.jsonl oh no": "batch",
    'a.jsonl {"custom_id": "1", "text": "x"}': "table",
    'pages.jsonl {"url": "http://x", "body": "text of a page"}': "table",
    "a.csv id,text": "table",
    "a.csv \ufeffid;text": "table",
}


def test_requests_and_rows_are_told_apart(demo_stack: StackProcess, open_journey: OpenJourney) -> None:
    page = open_journey(demo_stack.url).open("#/new")
    kinds = page.evaluate(
        """async (files) => {
            const { kindOf } = await import("/web/lib/file_kind.js");
            const read = ([name, ...text]) => kindOf(new File([text.join(" ")], name));
            return Promise.all(files.map((file) => read(file.split(" ")).then(({ kind }) => kind)));
        }""",
        list(KINDS),
    )
    assert kinds == list(KINDS.values())
