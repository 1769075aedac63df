"""Progress of a batch: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from cli.batches.text import duration, elapsed_seconds, eta_seconds, num_ended, percent, rate, shown_status
from cli.client import Client, Json
from cli.output import printable
from core.states import FINAL_BATCH_STATES

_POLL_SECONDS: Final = 0.25
_QUIET_SECONDS: Final = 10.0
_MAX_NAME: Final = 16


def wait(client: Client, console: Console, batch: Json, name: str, restart_dead: Callable[[], None]) -> Json:
    """Show progress until the batch has ended. Calls `restart_dead` between polls, for a stack that this command started."""
    with meter(console, name) as show:
        show(batch)
        while batch["status"] not in FINAL_BATCH_STATES:
            time.sleep(_POLL_SECONDS)
            restart_dead()
            batch = client.batch(batch["id"])
            show(batch)
    return batch


@contextmanager
def meter(console: Console, name: str) -> Iterator[Callable[[Json], None]]:
    """Yield a function that shows the progress of a batch."""
    if not console.is_terminal or os.environ.get("TERM") == "dumb":
        yield _lines(console)
        return
    columns = (
        TextColumn("{task.fields[name]}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[numbers]}"),
    )
    with Progress(*columns, console=console, expand=True) as progress:
        task = progress.add_task("", total=None, name="", numbers="")
        short = escape(_short(printable(name)))

        last_reason: str | None = None

        def show(batch: Json) -> None:
            nonlocal last_reason
            if (reason := batch.get("waiting_for")) and reason != last_reason:
                console.print(printable(f"waiting for {reason}"), markup=False, highlight=False)
            last_reason = reason
            progress.update(
                task,
                total=batch["request_counts"]["total"] or None,
                completed=num_ended(batch),
                name=short if shown_status(batch) == "in_progress" else f"{short} {shown_status(batch)}",
                numbers=bar_numbers(batch),
            )

        yield show


def bar_numbers(batch: Json, now: float | None = None) -> str:
    """Return the numbers beside the bar, as few characters as they need."""
    counts = batch["request_counts"]
    failed = f"{counts['failed']} failed" if counts["failed"] else ""
    left = eta_seconds(batch, now)
    eta = "" if left is None else f"ETA {_clock(left)}"
    parts = (
        percent(batch),
        f"{num_ended(batch)}/{counts['total'] or '?'}",
        failed,
        rate(batch).replace("tokens", "tok"),
        _clock(elapsed_seconds(batch, now)),
        eta,
    )
    return " ".join(part for part in parts if part)


def line(batch: Json, now: float | None = None) -> str:
    """Return the state of a batch as one line for a log."""
    counts, left = batch["request_counts"], eta_seconds(batch, now)
    share = f" ({percent(batch)})" if percent(batch) else ""
    parts = (
        f"{shown_status(batch)}: {counts['completed']} done",
        f"{counts['failed']} failed",
        f"{counts['total'] or '?'} total{share}",
        f"{duration(elapsed_seconds(batch, now))} elapsed",
        rate(batch),
        "" if left is None else f"ETA {duration(left)}",
        f"waiting for {batch['waiting_for']}" if batch.get("waiting_for") else "",
    )
    return ", ".join(part for part in parts if part)


def _lines(console: Console) -> Callable[[Json], None]:
    last_status, printed_at = "", 0.0

    def show(batch: Json) -> None:
        nonlocal last_status, printed_at
        now, status = time.monotonic(), shown_status(batch)
        if status == last_status and now - printed_at < _QUIET_SECONDS:
            return
        last_status, printed_at = status, now
        console.print(line(batch), highlight=False, markup=False)

    return show


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"
