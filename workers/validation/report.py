"""Validation report: all errors of a batch file and its number of tokens, without running any of it.

`python -m workers.validation.report FILE` prints the report as one JSON document. The clerk and `millrace validate` start it as
a process of its own: llama.cpp reads vocabularies in it, and its memory is freed with it. Lines are read and checked as prepare
does; prompts are encoded and schemas compiled as the engine does, schemas in a sandbox that may crash
(`engine.structured.compile_sandbox`). Needs no database, no GPU and no weights.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Final

from pydantic import TypeAdapter

from core.errors import ApiError, MillraceError, Problem
from core.models.model_files import ModelCatalog, ModelConfig
from core.models.models_folder import load_models
from core.schemas.batch import BatchLine
from core.schemas.batch_validation import BatchValidation, LineProblem, ModelLines
from core.schemas.endpoints import CHAT_ENDPOINT, ENDPOINTS, endpoint_of_line
from core.schemas.objects import BatchError
from core.settings import Settings, load_settings
from engine.errors import EngineError, PromptTooLong
from engine.inputs.dry_run import CompileBudget
from workers.batches.file_kind import check_kind
from workers.batches.line_checker import AcceptedLine, LineChecker, RejectedLine
from workers.batches.line_reader import LineParser, RawLine, UnreadableLine, read_lines
from workers.validation.dry_run import BatchDryRun

DEFAULT_ERRORS: Final = 10_000


def validate(
    stream: BinaryIO,
    endpoint: str | None,
    catalog: ModelCatalog,
    settings: Settings,
    *,
    max_errors: int,
    budget: CompileBudget | None = None,
) -> BatchValidation:
    """Read a seekable file once; list at most `max_errors` errors, and count all. Raises EngineError for a broken model.

    `budget` limits the compiling of schemas.
    """
    endpoint = endpoint or first_endpoint(stream, settings.line_bytes)
    parser = LineParser(endpoint, settings.line_bytes)
    with closing(BatchDryRun(budget)) as dry_run, closing(parser):
        report = _Report(endpoint, catalog, settings, max_errors, dry_run, parser)
        if (error := check_kind(stream)) is not None:
            report.add_file_error(error)
            return report.finish()
        for raw in read_lines(stream, settings.line_bytes):
            report.add_line(raw)
        return report.finish()


def first_endpoint(stream: BinaryIO, max_bytes: int) -> str:
    """The `url` of the first line if batches support it, else the chat endpoint. Rewinds the stream."""
    first = next(read_lines(stream, max_bytes), None)
    stream.seek(0)
    url = endpoint_of_line(first.content if first else b"")
    return url if url in ENDPOINTS else CHAT_ENDPOINT


class _Report:
    """Checks raw lines in order; keeps counts, the first errors, and the parser's `custom_id`s."""

    def __init__(
        self,
        endpoint: str,
        catalog: ModelCatalog,
        settings: Settings,
        max_errors: int,
        dry_run: BatchDryRun,
        parser: LineParser,
    ) -> None:
        self._endpoint = endpoint
        self._max_lines = settings.batch_lines
        self._parser = parser
        self._checker = LineChecker(catalog, share_identical_lines=False, endpoint=endpoint)
        self._dry_run = dry_run
        self._max_errors = max_errors
        self._errors: list[LineProblem] = []
        self._num_errors: Counter[str] = Counter()
        self._num_lines = 0
        self._num_over_context = 0
        self._num_unchecked = 0
        self._lines: Counter[str] = Counter()
        self._prompt_tokens: Counter[str] = Counter()
        self._output_tokens: Counter[str] = Counter()

    def add_line(self, raw: RawLine) -> None:
        """Check the next line of the file."""
        self._num_lines += 1
        if self._num_lines > self._max_lines:
            if self._num_lines == self._max_lines + 1:
                message = f"A batch has at most {self._max_lines} lines; split the file. The rest was not looked at."
                self._add_error(LineProblem(code="too_many_tasks", message=message, line=raw.number, fails="file"))
            return
        line = self._parser.parse(raw)
        if isinstance(line, BatchError):
            self.add_file_error(line)
            return
        if isinstance(line, UnreadableLine):
            self._add_rejection(raw, line, line.problem)
            return
        checked = self._checker.check(line, raw.content)
        if isinstance(checked, RejectedLine):
            self._add_rejection(raw, line, checked.problem)
        else:
            self._count(raw, line, checked)

    def add_file_error(self, error: BatchError) -> None:
        """Record an error of the file or of its line."""
        self._add_error(LineProblem(**error.model_dump(), fails="file"))

    def finish(self) -> BatchValidation:
        """The report of all lines."""
        if not (self._num_lines or self._num_errors):
            self._add_error(LineProblem(code="empty_file", message="The input file has no lines.", fails="file"))
        models = [
            ModelLines(
                model=name,
                lines=self._lines[name],
                prompt_tokens=self._prompt_tokens[name],
                max_output_tokens=self._output_tokens[name],
            )
            for name in sorted(self._lines)
        ]
        return BatchValidation(
            endpoint=self._endpoint,
            is_valid=not self._num_errors["file"],
            lines=self._num_lines,
            lines_failing=self._num_errors["line"],
            lines_over_context=self._num_over_context,
            lines_unchecked=self._num_unchecked,
            num_errors=self._num_errors.total(),
            errors=self._errors,
            models=models,
            prompt_tokens=self._prompt_tokens.total(),
            max_output_tokens=self._output_tokens.total(),
        )

    def _count(self, raw: RawLine, line: BatchLine, accepted: AcceptedLine) -> None:
        try:
            tokens = self._dry_run.measure(accepted)
        except ApiError as error:
            self._num_over_context += error.problem.code == PromptTooLong.code
            self._add_rejection(raw, line, error.problem)
            return
        self._num_unchecked += not tokens.is_checked
        self._lines[accepted.model.name] += 1
        self._prompt_tokens[accepted.model.name] += tokens.num_prompt
        self._output_tokens[accepted.model.name] += tokens.max_output

    def _add_rejection(self, raw: RawLine, line: BatchLine | UnreadableLine, problem: Problem) -> None:
        self._add_error(
            LineProblem(
                line=raw.number,
                custom_id=line.custom_id,
                code=problem.code or "invalid_request",
                message=problem.message,
                param=f"body.{problem.param}" if problem.param not in (None, "body") else "body",
                fails="line",
            )
        )

    def _add_error(self, problem: LineProblem) -> None:
        self._num_errors[problem.fails] += 1
        if len(self._errors) < self._max_errors:
            self._errors.append(problem)


def main() -> None:
    """Print the report of a file."""
    parser = argparse.ArgumentParser(description="Report all errors of a batch file.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--endpoint", choices=ENDPOINTS)
    parser.add_argument("--max-errors", type=int, default=DEFAULT_ERRORS)
    parser.add_argument("--models-from-stdin", action="store_true", help="as JSON, in place of the models folder")
    arguments = parser.parse_args()
    try:
        settings = load_settings()
        with arguments.file.open("rb") as stream:
            report = validate(
                stream,
                arguments.endpoint,
                _read_models() if arguments.models_from_stdin else load_models(settings.models_dir),
                settings,
                max_errors=arguments.max_errors,
            )
    except (MillraceError, EngineError, OSError) as error:
        sys.exit(f"millrace validate: {error}")
    sys.stdout.write(report.model_dump_json())


def _read_models() -> ModelCatalog:
    return ModelCatalog(TypeAdapter(list[ModelConfig]).validate_json(sys.stdin.buffer.read()))


if __name__ == "__main__":
    main()
