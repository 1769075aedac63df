"""The work of `millrace run`: upload, wait with a progress bar, download."""

from __future__ import annotations

import json
import os
import shlex
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cli.client import Client, Json
from cli.errors import CommandFailed, ExitCode
from core.states import FINAL_BATCH_STATES

_POLL_SECONDS: Final = 0.25
_QUIET_SECONDS: Final = 10.0
_RATE_SECONDS: Final = 10.0


@dataclass(slots=True)
class TokenRate:
    """Tokens per second over the last ten seconds."""

    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    def update(self, now: float, tokens: int) -> float:
        """Record the number of tokens so far; returns the rate."""
        self._seen.append((now, tokens))
        while now - self._seen[0][0] > _RATE_SECONDS and len(self._seen) > 2:
            self._seen.popleft()
        began, first = self._seen[0]
        return (tokens - first) / (now - began) if now > began else 0.0


def run_batch(
    client: Client,
    console: Console,
    source: Path,
    output: Path,
    *,
    model: str | None,
    resume: str | None,
    restart_dead: Callable[[], None],
) -> Json:
    """Upload (unless resumed), wait, download; returns the final batch."""
    batch = _submit(client, source, model) if resume is None else client.batch(resume)
    try:
        batch = wait(client, console, batch, restart_dead)
    except KeyboardInterrupt:
        command = shlex.join(["millrace", "run", str(source), "-o", str(output), "--resume", batch["id"]])
        message = f"Interrupted; nothing is lost. The batch is {batch['id']}. Resume with:\n  {command}"
        raise CommandFailed(message, ExitCode.INTERRUPTED) from None
    save(client, batch, output)
    return batch


def save(client: Client, batch: Json, output: Path) -> None:
    """Fetch both result files; failed lines are saved beside the answers."""
    if batch["output_file_id"]:
        client.download(batch["output_file_id"], output)
    elif batch["status"] != "failed":
        output.write_bytes(b"")
    if batch["error_file_id"]:
        client.download(batch["error_file_id"], error_path(output))


def error_path(output: Path) -> Path:
    """`answers.jsonl` → `answers.errors.jsonl`."""
    return output.with_name(f"{output.stem}.errors{output.suffix or '.jsonl'}")


def wait(client: Client, console: Console, batch: Json, restart_dead: Callable[[], None]) -> Json:
    """Show progress until the batch has ended. Calls `restart_dead` between polls, for a stack that this command started."""
    with _meter(console) as show:
        show(batch)
        while batch["status"] not in FINAL_BATCH_STATES:
            time.sleep(_POLL_SECONDS)
            restart_dead()
            batch = client.batch(batch["id"])
            show(batch)
    return batch


def summarise(console: Console, batch: Json, output: Path) -> ExitCode:
    """Print the outcome; returns the exit code."""
    if batch["status"] == "failed":
        console.print("[red]The file was not accepted:[/]")
        for error in (batch["errors"] or {}).get("data", []):
            where = f"line {error['line']}: " if error["line"] else ""
            console.print(f"  {where}{error['message']} ({error['code']})", markup=False, highlight=False)
        return ExitCode.BATCH_DID_NOT_COMPLETE
    counts = batch["request_counts"]
    if counts["failed"]:
        console.print(f"{counts['failed']} lines failed; see {error_path(output)}", markup=False)
    console.print(f"answers: {output}", markup=False, highlight=False)
    console.print(f"{counts['completed']} of {counts['total']} lines answered", highlight=False)
    if batch["status"] != "completed":
        console.print(f"The batch is {batch['status']}.")
        return ExitCode.BATCH_DID_NOT_COMPLETE
    return ExitCode.SOME_LINES_FAILED if counts["failed"] else ExitCode.FINE


def _submit(client: Client, source: Path, model: str | None) -> Json:
    with _with_model(source, model) as path:
        file_id = client.upload(path)
    return client.create_batch(file_id, first_endpoint(source), "24h")


def first_endpoint(source: Path) -> str:
    """Return the `url` of the first line; errors in the file are reported by the server."""
    from core.schemas.endpoints import endpoint_of_line  # takes a tenth of a second

    with source.open("rb") as stream:
        return endpoint_of_line(stream.readline())


@contextmanager
def _with_model(source: Path, model: str | None) -> Iterator[Path]:
    """Yield the file, or a temporary copy whose lines all name this model. Unreadable lines stay as they are."""
    if model is None:
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="millrace-") as folder:
        copy = Path(folder) / (source.stem + ".jsonl")
        with source.open("rb") as lines, copy.open("wb") as stream:
            for line in lines:
                stream.write(_set_model(line, model))
        yield copy


def _set_model(line: bytes, model: str) -> bytes:
    try:
        value = json.loads(line)
        value["body"]["model"] = model
    except (ValueError, KeyError, TypeError):
        return line
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


@contextmanager
def _meter(console: Console) -> Iterator[Callable[[Json], None]]:
    """Show a live bar on a terminal, and a line every ten seconds elsewhere."""
    rate = TokenRate()
    if not console.is_terminal or os.environ.get("TERM") == "dumb":
        yield _lines(console, rate)
        return
    columns = (
        TextColumn("{task.fields[status]}"),
        BarColumn(),
        TextColumn("{task.fields[done]} done · {task.fields[failed]} failed · {task.fields[lines]} total"),
        TextColumn("{task.fields[rate]:,.0f} tokens/s"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task: TaskID = progress.add_task("", total=None, status="validating", done=0, failed=0, lines="?", rate=0.0)

        def show(batch: Json) -> None:
            counts = batch["request_counts"]
            progress.update(
                task,
                total=counts["total"] or None,
                completed=counts["completed"] + counts["failed"],
                status=batch["status"],
                done=counts["completed"],
                failed=counts["failed"],
                lines=counts["total"] or "?",
                rate=rate.update(time.monotonic(), _tokens(batch)),
            )

        yield show


def _lines(console: Console, rate: TokenRate) -> Callable[[Json], None]:
    last_status, printed_at = "", 0.0

    def show(batch: Json) -> None:
        nonlocal last_status, printed_at
        now, counts, status = time.monotonic(), batch["request_counts"], batch["status"]
        speed = rate.update(now, _tokens(batch))
        if status == last_status and now - printed_at < _QUIET_SECONDS:
            return
        last_status, printed_at = status, now
        console.print(
            f"{status}: {counts['completed']} done, {counts['failed']} failed, {counts['total'] or '?'} total, "
            f"{speed:,.0f} tokens/s{_eta(counts, batch)}",
            highlight=False,
        )

    return show


def _eta(counts: dict[str, int], batch: Json) -> str:
    ended, began = counts["completed"] + counts["failed"], batch["in_progress_at"]
    if not ended or not began or batch["status"] != "in_progress":
        return ""
    left = (counts["total"] - ended) * max(1.0, time.time() - began) / ended
    return f", ETA {left:,.0f} s"


def _tokens(batch: Json) -> int:
    return int((batch["usage"] or {}).get("output_tokens", 0))
