"""Batches as text: their status, numbers and times, for tables, progress and details. Rates and estimates are the server's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from cli.output import moment, plural
from core.states import FINAL_BATCH_STATES

if TYPE_CHECKING:
    from cli.client import Json

PAUSED: Final = "paused"
WAITING_FOR_MODEL: Final = "waiting_for_model"
_ENDS: Final = ("completed_at", "failed_at", "expired_at", "cancelled_at")
_SHOWN_ERRORS: Final = 5


def shown_status(batch: Json) -> str:
    """Return the status; `paused` for a batch that has not ended and takes no lines for now, `waiting_for_model` for one whose
    model is not in memory.
    """
    is_paused = batch.get("paused_at") is not None and batch["status"] not in (*FINAL_BATCH_STATES, "cancelling")
    if is_paused:
        return PAUSED
    return WAITING_FOR_MODEL if batch.get("waiting_for_model") else str(batch["status"])


def num_ended(batch: Json) -> int:
    """Return the number of lines that have ended, with an answer or without."""
    counts = batch["request_counts"]
    return int(counts["completed"] + counts["failed"])


def percent(batch: Json) -> str:
    """Return the share of the lines that have ended, rounded down; empty before they are counted."""
    total = batch["request_counts"]["total"]
    return f"{100 * num_ended(batch) // total}%" if total else ""


def rate(batch: Json) -> str:
    """Return the server's throughput; empty without a measurement."""
    tokens = batch.get("tokens_per_second")
    return "" if tokens is None else f"{tokens:,.0f} tokens/s"


def eta_seconds(batch: Json, now: float | None = None) -> float | None:
    """Return the seconds to the server's estimate of the end; None without one."""
    eta_at = batch.get("eta_at")
    return None if eta_at is None else max(0.0, eta_at - (time.time() if now is None else now))


def elapsed_seconds(batch: Json, now: float | None = None) -> float:
    """Return the seconds from the creation of a batch to its end, or to now."""
    end = next((batch[name] for name in _ENDS if batch.get(name)), None)
    until = end if end is not None else time.time() if now is None else now
    return max(0.0, float(until) - float(batch["created_at"]))


def duration(seconds: float) -> str:
    """Format seconds as `45 s`, `3 min 5 s`, `2 h 5 min` or `3 d 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for size, name, small, small_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            large, rest = divmod(whole, size)
            return f"{large} {name} {rest // small} {small_name}"
    raise AssertionError("whole is at least 60")


def age(unix_seconds: int, now: float | None = None) -> str:
    """Format the time since a moment in a few characters: `5s`, `3m`, `2h`, `4d`."""
    seconds = max(0, int((time.time() if now is None else now) - unix_seconds))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def details(batch: Json, now: float | None = None) -> Iterator[tuple[str, str]]:
    """Yield names and values of a batch, in the order in which they are read."""
    counts, status = batch["request_counts"], shown_status(batch)
    yield "id", batch["id"]
    yield "status", f"{status} since {moment(batch['paused_at'])}" if status == PAUSED else status
    yield "waiting for", batch.get("waiting_for") or ""
    if (ready_at := batch.get("model_ready_at")) is not None:
        yield "model ready", f"in {duration(max(0.0, ready_at - (time.time() if now is None else now)))}"
    share = f" ({percent(batch)})" if percent(batch) else ""
    yield "lines", f"{num_ended(batch)} of {counts['total']} have ended{share}, {counts['failed']} failed"
    if rate(batch):
        yield "speed", rate(batch)
    if (left := eta_seconds(batch, now)) is not None:
        late = ", after its window" if batch.get("will_miss_window") else ""
        yield "estimate", f"ends in {duration(left)}, at {moment(batch['eta_at'])}{late}"
    yield "model", batch.get("model") or ""
    yield "endpoint", batch["endpoint"]
    yield "priority", str(batch["priority"]) if batch.get("priority") else ""
    yield "created", moment(batch["created_at"])
    for name in ("in_progress_at", *_ENDS):
        if batch.get(name):
            yield {"in_progress_at": "started"}.get(name, name.removesuffix("_at")), moment(batch[name])
    if status in (*FINAL_BATCH_STATES,):
        yield "took", duration(elapsed_seconds(batch, now))
    else:
        yield "window", f"{batch['completion_window']}, until {moment(batch['expires_at'])}"
    yield "tokens", _tokens(batch)
    file_name = batch.get("input_file_name")
    yield "input", f"{batch['input_file_id']} ({file_name})" if file_name else batch["input_file_id"]
    yield "answers", batch.get("output_file_id") or ""
    yield "failed lines", batch.get("error_file_id") or ""
    yield "retries", batch.get("parent_batch_id") or ""
    yield "metadata", ", ".join(f"{name}={value}" for name, value in (batch.get("metadata") or {}).items())
    yield from _errors(batch)


def error_text(error: Json) -> str:
    """An error of a file, behind its line unless the message names it."""
    line = error.get("line")
    where = f"line {line}: " if line and not error["message"].startswith(f"Line {line} ") else ""
    return f"{where}{error['message']} ({error['code']})"


def estimate_text(found: Json) -> str:
    """Return the estimate of a `BatchValidation` as two lines."""
    if found["seconds"] is None:
        return "Time: unknown; no batch of these models has ended on this server yet."
    behind = f", behind {found['queued_lines']} lines that wait" if found["queued_lines"] else ""
    number = found["measured_batches"]
    return (
        f"Time: about {duration(found['seconds'])}{behind}; done at {moment(found['finish_at'])}.\n"
        f"{found['total_tokens']:,} tokens, {found['output_tokens']:,} of them answers; "
        f"{found['tokens_per_second']:,.0f} tokens/s, as in the last {'batch' if number == 1 else f'{number} batches'}."
    )


def _errors(batch: Json) -> Iterator[tuple[str, str]]:
    found = (batch.get("errors") or {}).get("data", [])
    for error in found[:_SHOWN_ERRORS]:
        yield "error", error_text(error)
    if len(found) > _SHOWN_ERRORS:
        more = plural(len(found) - _SHOWN_ERRORS, "further error")
        yield "", f"{more}: millrace batch errors {batch['id']}"


def _tokens(batch: Json) -> str:
    usage = batch.get("usage")
    if not usage:
        return ""
    cached = usage["input_tokens_details"]["cached_tokens"]
    part = f" ({cached:,} of them cached)" if cached else ""
    return f"{usage['input_tokens']:,} in{part}, {usage['output_tokens']:,} out"
