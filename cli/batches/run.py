"""The run of a batch from file to file: upload, wait, download; and the command that continues it after Ctrl-C."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from cli.batches.progress import wait
from cli.batches.results import ResultFiles, outcome, print_results, save
from cli.batches.text import error_text
from cli.client import Client, Json
from cli.errors import CommandFailed, ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRun:
    """A batch file and its results. `command`: the words after `millrace` that, with `--resume ID`, continue this run."""

    client: Client
    console: Console
    name: str
    files: ResultFiles
    command: Sequence[str]
    restart_dead: Callable[[], None]

    def start(self, source: Path, model: str | None) -> Json:
        """Upload a file and start its batch."""
        try:
            with _with_model(source, model) as path, path.open("rb") as stream:
                file_id = self.client.send_file(self.name, stream, "batch")["id"]
            return self.client.create_batch(file_id, first_endpoint(source), "24h")
        except KeyboardInterrupt as interrupt:
            raise CommandFailed("Interrupted before the batch was started.", ExitCode.of(interrupt)) from None

    def finish(self, batch: Json) -> Json:
        """Wait for the end and save the results; returns the final batch."""
        try:
            batch = wait(self.client, self.console, batch, self.name, self.restart_dead)
            save(self.client, batch, self.files)
        except KeyboardInterrupt as interrupt:
            words = [program(), *self.command, "--resume", batch["id"]]
            message = f"Interrupted; nothing is lost. Continue with:\n  {shlex.join(words)}"
            raise CommandFailed(message, ExitCode.of(interrupt)) from None
        return batch


def summarise(console: Console, batch: Json, files: ResultFiles) -> ExitCode:
    """Print the outcome; returns the exit code."""
    if batch["status"] == "failed":
        console.print("[red]The file was not accepted:[/]")
        for error in (batch["errors"] or {}).get("data", []):
            console.print(f"  {error_text(error)}", markup=False, highlight=False)
        return outcome(batch)
    print_results(console, batch, files)
    counts = batch["request_counts"]
    console.print(f"{counts['completed']} of {counts['total']} lines answered", highlight=False)
    if batch["status"] != "completed":
        console.print(f"The batch is {batch['status']}.")
    return outcome(batch)


def program() -> str:
    """Return this command as the user's shell finds it: its name, or its path where the name is not on the PATH."""
    path = Path(sys.argv[0])
    if path.name != "millrace":
        return "millrace"
    found = shutil.which("millrace")
    return "millrace" if found and path.exists() and Path(found).samefile(path) else str(path)


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
    return json.dumps(value, ensure_ascii=True).encode() + b"\n"
