"""Helpers: a mapping runs from a file to a file, with answers that the test makes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mapping.answers import Answers
from mapping.formats.opening import format_of, open_table
from mapping.formats.table import TableFormat, WriteCounts
from mapping.formats.writing import write_table
from mapping.join import PlanCounts, join_rows, plan_rows, write_requests
from mapping.previous import Previous
from mapping.row_mapper import RowMapper
from mapping.spec import parse_spec


def chat_line(custom_id: str, text: str, finish_reason: str = "stop") -> bytes:
    """Return a line of an output file with an answer."""
    message = {"role": "assistant", "content": text, "refusal": None}
    body = {"id": "chatcmpl-1", "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}
    response = {"status_code": 200, "request_id": "req_1", "body": body}
    return json.dumps({"id": "b", "custom_id": custom_id, "response": response, "error": None}).encode() + b"\n"


def failed_line(custom_id: str, code: str, message: str) -> bytes:
    """Return a line of an error file."""
    return json.dumps(
        {"id": "b", "custom_id": custom_id, "response": None, "error": {"code": code, "message": message}}
    ).encode()


class Run:
    """One mapping of one file; `requests` has the parsed lines of the batch."""

    requests: list[dict[str, Any]]
    planned: PlanCounts
    written: WriteCounts

    def __init__(
        self,
        source: Path,
        out: Path,
        answer: Callable[[str], Any] = str.upper,
        *,
        update: Path | None = None,
        escape_formulas: bool = True,
        reading: dict[str, Any] | None = None,
        **spec: Any,
    ) -> None:
        """Ask each row with the prompt `{text}`; `answer` makes an answer, or a line, of the last message of a request."""
        self.table = open_table(source, **reading or {})
        if "embed" not in spec:
            spec.setdefault("prompt", "{text}")
        mapper = RowMapper(parse_spec({"model": "demo", **spec}), self.table)
        previous = Previous(open_table(update), self.table, mapper) if update else None
        batch = io.BytesIO()
        self.planned = write_requests(plan_rows(self.table, mapper, previous), batch)
        self.requests = [json.loads(line) for line in batch.getvalue().splitlines()]
        with Answers() as answers:
            answers.add(_answer(request, answer) for request in self.requests)
            with out.open("wb") as file:
                joined = join_rows(plan_rows(self.table, mapper, previous), mapper, answers)
                self.written = write_table(
                    joined,
                    self.table,
                    mapper.added,
                    file,
                    format_of(out) or TableFormat.CSV,
                    escape_formulas=escape_formulas,
                )

    @property
    def prompts(self) -> list[str]:
        return [request["body"]["messages"][-1]["content"] for request in self.requests]


def _answer(request: dict[str, Any], answer: Callable[[str], Any]) -> bytes:
    body = request["body"]
    if "input" in body:
        response = {"status_code": 200, "body": {"data": [{"embedding": answer(body["input"])}]}}
        return json.dumps({"custom_id": request["custom_id"], "response": response}).encode()
    made = answer(body["messages"][-1]["content"])
    if isinstance(made, Exception):
        return failed_line(request["custom_id"], "server_error", str(made))
    return chat_line(request["custom_id"], made if isinstance(made, str) else json.dumps(made))
