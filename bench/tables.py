"""Tables: CPU time that `millrace map` adds to a batch for each row of a CSV file, from reading to writing it with answers."""

from __future__ import annotations

import csv
import json
import random
import time
from pathlib import Path
from typing import Final

from mapping.answers import Answers
from mapping.formats.opening import open_table
from mapping.formats.table import TableFormat
from mapping.formats.writing import write_table
from mapping.join import join_rows, plan_rows, write_requests
from mapping.row_mapper import RowMapper
from mapping.spec import parse_spec

ROWS: Final = 200_000
_WORDS: Final = ("refund", "invoice", "delivery", "package", "late", "broken", "account", "password", "please", "order")
_SPEC: Final = {
    "model": "demo",
    "prompt": "Classify this ticket: {text}",
    "schema": "category: billing|shipping|technical|account, urgency: low|medium|high, sum: number?",
}
_CONTENT: Final = '{"category":"billing","urgency":"low","sum":12.5}'
_BODY: Final = {
    "id": "chatcmpl-0123456789abcdef",
    "object": "chat.completion",
    "created": 1,
    "model": "demo",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": _CONTENT}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 50, "completion_tokens": 20, "total_tokens": 70},
}


def microseconds_per_row(folder: Path) -> float:
    """Map a table of `ROWS` rows, all different, and join it with an answer for each; the batch itself is not run."""
    source, lines, results = (folder / name for name in ("in.csv", "lines.jsonl", "results.jsonl"))
    _write_table(source)
    before = time.process_time()
    table = open_table(source)
    mapper = RowMapper(parse_spec(_SPEC), table)
    with lines.open("wb") as stream:
        write_requests(plan_rows(table, mapper), stream)
    seconds = time.process_time() - before
    _answer(lines, results)
    before = time.process_time()
    with Answers() as answers, results.open("rb") as given, (folder / "out.csv").open("wb") as stream:
        answers.add(given)
        joined = join_rows(plan_rows(table, mapper), mapper, answers)
        counts = write_table(joined, table, mapper.added, stream, TableFormat.CSV)
    seconds += time.process_time() - before
    assert (counts.rows, counts.failed) == (ROWS, 0), "every row has an answer"
    return 1e6 * seconds / ROWS


def _write_table(path: Path) -> None:
    draw = random.Random(1)
    with path.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["id", "customer", "priority", "amount", "text"])
        for row in range(ROWS):
            text = " ".join(draw.choices(_WORDS, k=30))
            rows.writerow([row, f"customer {row % 977}", "high", round(100 * draw.random(), 2), f"{text} {row}"])


def _answer(lines: Path, results: Path) -> None:
    with lines.open("rb") as requests, results.open("w") as stream:
        for line in requests:
            response = {"status_code": 200, "request_id": "req_1", "body": _BODY}
            answer = {"id": "batch_req_1", "custom_id": json.loads(line)["custom_id"], "response": response}
            stream.write(json.dumps({**answer, "error": None}) + "\n")
