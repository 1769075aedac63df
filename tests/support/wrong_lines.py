"""A batch file with many kinds of errors, for tests of validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.stack import batch_lines

# line, code, param, whether the file or only the line fails
EXPECTED = [
    (2, "invalid_json_line", None, "file"),
    (4, "duplicate_custom_id", "custom_id", "file"),
    (5, "url_mismatch", "url", "file"),
    (6, "missing_required_parameter", "method", "file"),
    (7, "invalid_request", "body.stream", "file"),
    (8, "missing_required_parameter", "body.messages", "line"),
    (9, "model_not_found", "body.model", "line"),
    (10, "invalid_value", "body.temperature", "line"),
    (11, "context_length_exceeded", "body.messages", "line"),
    (12, "invalid_json_line", None, "file"),
]


def write_wrong_lines(path: Path, model: str = "fake") -> Path:
    """Write a file in which lines 1 and 14 are valid and lines 3 and 13 are blank."""
    lines: list[dict[str, Any]] = batch_lines(9, model)
    good, repeated, elsewhere, no_method, streams, empty, unknown, hot, long = lines
    repeated["custom_id"] = good["custom_id"]
    elsewhere["url"] = "/v1/embeddings"
    del no_method["method"]
    streams["body"]["stream"] = True
    empty["body"] = {"model": model}
    unknown["body"]["model"] = "gpt-9"
    hot["body"]["temperature"] = 9
    long["body"]["messages"][0]["content"] = "word " * 4000
    last = batch_lines(1, model)[0] | {"custom_id": "last"}
    rest = "\n".join(json.dumps(line) for line in lines[1:])
    path.write_text(f"{json.dumps(good)}\n{{oops\n\n{rest}\n[1]\n \n{json.dumps(last)}\n")
    return path


def summarize(errors: list[dict[str, Any]]) -> list[tuple[int, str, str | None, str]]:
    """Return the errors in the form of `EXPECTED`."""
    return [(error["line"], error["code"], error["param"], error["fails"]) for error in errors]
