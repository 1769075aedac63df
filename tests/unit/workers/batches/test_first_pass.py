"""First pass over a batch file: windows, places of lines, and lines that have failed already."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pytest

from core.models.model_files import ModelCatalog, ModelConfig
from core.settings import load_settings
from workers.batches.first_pass import BadFile, FirstPass
from workers.batches.line_reader import read_span

URL = "/v1/chat/completions"
WINDOW = 4
CATALOG = ModelCatalog([ModelConfig(name="fake", backend="fake")])


def file_of(contents: list[str], model: str = "fake", **fields: object) -> io.BytesIO:
    """A line for each content; one that is empty asks for a model that is not served."""
    lines = []
    for number, content in enumerate(contents):
        body = {
            "model": model if content else "none",
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            **fields,
        }
        lines.append({"custom_id": f"c{number}", "method": "POST", "url": URL, "body": body})
    return io.BytesIO(b"".join(json.dumps(line).encode() + b"\n" for line in lines))


def first_pass(keep_alive: Callable[[], None] = lambda: None) -> FirstPass:
    return FirstPass(load_settings(shard_lines=2), URL, CATALOG, frozenset(), keep_alive, window_lines=WINDOW)


def test_every_line_is_planned_once_in_the_window_it_is_in() -> None:
    stream, first = file_of([f"Question {n}" for n in range(10)]), first_pass()
    first.read(stream)
    assert [list(shard.lines) for shard in first.shards] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    texts = [read_span(stream, first.spans[index]) for index in range(10)]
    assert [json.loads(text)["custom_id"] for text in texts] == [f"c{n}" for n in range(10)]
    assert (first.num_lines, len(first.spans), first.model) == (10, 10, "fake")
    first.close()


def test_identical_lines_are_neighbours_within_a_window() -> None:
    first = first_pass()
    first.read(file_of(["same", "x", "y", "same", "same", "z", "u", "same"]))
    assert [list(shard.lines) for shard in first.shards] == [[0, 3, 1], [2], [4, 7, 5], [6]]
    first.close()


def test_lines_that_have_failed_are_kept_apart_with_their_places() -> None:
    stream, first = file_of(["a", "", "b", "", "c", "d", "e"]), first_pass()
    first.read(stream)
    failed = list(first.failed)
    assert [(line.number, line.custom_id, line.problem.code) for line in failed] == [
        (2, "c1", "model_not_found"),
        (4, "c3", "model_not_found"),
    ]
    assert all(json.loads(read_span(stream, line.span))["custom_id"] == line.custom_id for line in failed)  # type: ignore[arg-type] # readable
    assert [first.spans[index].number for shard in first.shards for index in shard.lines] == [1, 3, 5, 6, 7]
    assert (first.num_lines, len(first.failed), first.model) == (7, 2, None)
    first.close()


def test_the_transaction_of_a_long_file_is_not_idle() -> None:
    calls: list[int] = []
    first = first_pass(lambda: calls.append(first.num_lines))
    first.read(file_of([f"Question {n}" for n in range(2500)]))
    assert calls == [1000, 2000]
    first.close()


def test_a_custom_id_may_not_come_again_in_a_later_window() -> None:
    lines = file_of([f"Question {n}" for n in range(9)]).getvalue().replace(b'"c8"', b'"c1"')
    first = first_pass()
    with pytest.raises(BadFile) as raised:
        first.read(io.BytesIO(lines))
    assert [(error.code, error.line) for error in raised.value.errors] == [("duplicate_custom_id", 9)]
    assert "line 2" in raised.value.errors[0].message
    first.close()


@pytest.mark.parametrize(
    ("num_lines", "max_tokens", "size"), [(120, 1, 2), (300, 1, 4), (900, 1, 8), (900, 30, 3), (900, 1000, 2)]
)
def test_shards_of_large_batches_of_short_answers_have_more_lines(num_lines: int, max_tokens: int, size: int) -> None:
    first = FirstPass(load_settings(shard_lines=2), URL, CATALOG, frozenset(), lambda: None)
    first.read(file_of([f"Question {n}" for n in range(num_lines)], max_tokens=max_tokens))
    assert {len(shard.lines) for shard in first.shards[:-1]} == {size}
    first.close()
