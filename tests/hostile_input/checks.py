"""Invariants of every response and of every batch that ended, whatever was sent."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any


def find_problem(status: int, content_type: str, content: bytes) -> str | None:
    """Return the reason why this response is wrong; None when it is right."""
    if status >= 500:
        return f"{status}: {content[:300]!r}"
    if status >= 400:
        return _envelope(content)
    if content_type.startswith("text/event-stream"):
        return _stream(content)
    if content_type.startswith("application/json"):
        json.loads(content)
    return None


def _envelope(content: bytes) -> str | None:
    try:
        error = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError):
        return f"no envelope: {content[:300]!r}"
    if set(error) != {"message", "type", "param", "code"} or not error["message"]:
        return f"an incomplete envelope: {content[:300]!r}"
    return "the error repeats the input" if len(content) > 2000 else None


def _stream(content: bytes) -> str | None:
    """Check that all events parse and the stream ends; an error in a stream must be marked as the server's."""
    events = [line[6:] for line in content.decode().split("\n") if line.startswith("data: ")]
    for event in events:
        if event != "[DONE]" and (error := json.loads(event).get("error")) and error.get("type") == "server_error":
            return f"a stream failed: {event[:300]}"
    return None if events else "an empty stream"


def find_lost_lines(names: list[str], counts: Any, output: list[Any], errors: list[Any]) -> str | None:
    """Return the reason why a completed batch does not have each line once; None when it has."""
    returned = Counter(line["custom_id"] for line in (*output, *errors))
    if returned != Counter(names):
        missing, extra = Counter(names) - returned, returned - Counter(names)
        return f"missing {list(missing)[:5]}, extra {list(extra)[:5]}"
    if (counts.total, counts.completed, counts.failed) != (len(names), len(output), len(errors)):
        return f"counts {counts} for {len(output)} answers and {len(errors)} errors"
    for line in errors:
        if line["response"] is None or not 400 <= line["response"]["status_code"] < 500:
            return f"a line failed with a server error: {json.dumps(line)[:300]}"
    return None
