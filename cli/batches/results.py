"""Results of a batch in files of the user's: answers in one, failed lines in another beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from rich.console import Console

from cli.client import Client, Json
from cli.errors import CommandFailed, ExitCode
from cli.output import plural
from cli.output_files import STDOUT, OutputFile, choose_outputs


@dataclass(frozen=True, slots=True)
class ResultFiles:
    """The file of the answers, and that of the failed lines; None beside stdout and devices."""

    answers: OutputFile
    failed: OutputFile | None

    @property
    def paths(self) -> list[Path]:
        """The paths of both."""
        return [self.answers.path, *([self.failed.path] if self.failed else [])]


def error_path(output: Path) -> Path:
    """`answers.jsonl` → `answers.errors.jsonl`."""
    return output.with_name(f"{output.stem}.errors{output.suffix or '.jsonl'}")


def choose_results(
    output: Path, *, force: bool, inputs: list[Path] | None = None, of_batch: tuple[Client, str] | None = None
) -> ResultFiles:
    """Return the files to write; asks before one is replaced. Results of `of_batch`, which is resumed, may be replaced."""
    is_file = output != STDOUT and not (output.exists() and not output.is_file() and not output.is_dir())
    paths = [output, error_path(output)] if is_file else [output]

    def is_own(path: Path) -> bool:
        return of_batch is not None and _has_results(path, *of_batch)

    chosen = choose_outputs(paths, inputs=inputs or [], force=force, is_own=is_own)
    return ResultFiles(chosen[0], chosen[1] if is_file else None)


def save(client: Client, batch: Json, files: ResultFiles) -> None:
    """Fetch the failed lines, then the answers. A batch whose file was not accepted has neither."""
    if batch["error_file_id"] and files.failed is not None:
        files.failed.write(client.content(batch["error_file_id"]))
    if batch["output_file_id"]:
        files.answers.write(client.content(batch["output_file_id"]))
    elif batch["status"] != "failed":
        files.answers.write([])


def print_results(console: Console, batch: Json, files: ResultFiles) -> None:
    """Print which files have been written, and with how many lines."""
    counts, answers = batch["request_counts"], files.answers
    if answers.path != STDOUT and batch["status"] != "failed":
        _print(console, f"{plural(counts['completed'], 'answer')}: {answers.path}")
    if files.failed is not None:
        if batch["error_file_id"]:
            _print(console, f"{plural(counts['failed'], 'failed line')}: {files.failed.path}")
        elif batch["status"] == "completed" and files.failed.path.exists():
            _print(console, f"{files.failed.path} is of an earlier run: no line of this batch failed.")
    elif counts["failed"]:
        _print(console, f"{plural(counts['failed'], 'failed line')}: millrace batch errors {batch['id']}")


def outcome(batch: Json) -> ExitCode:
    """Return the exit code for a batch that has ended."""
    if batch["status"] != "completed":
        return ExitCode.BATCH_DID_NOT_COMPLETE
    return ExitCode.SOME_LINES_FAILED if batch["request_counts"]["failed"] else ExitCode.FINE


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)


def _has_results(path: Path, client: Client, batch_id: str) -> bool:
    """Does the file begin with a result of this batch?"""
    try:
        with path.open("rb") as stream:
            line_id = json.loads(stream.readline())["id"]
        client.get(f"/batches/{batch_id}/requests/{quote(str(line_id), safe='')}")
    except (ValueError, KeyError, TypeError):
        return False
    except CommandFailed as error:
        if error.code is not ExitCode.ERROR:
            raise
        return False
    return True
