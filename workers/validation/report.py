"""Validate: everything that is wrong with a batch file and how many tokens it holds, without running any of it.

`python -m workers.validation.report FILE` prints the report as one JSON document. It is a process of its own for the clerk and
for `millrace validate`: llama.cpp reads vocabularies in it, and what it takes of memory ends with it. Reads lines as prepare
does, judges them as prepare does, and encodes prompts and compiles schemas as the engine does, in a process that may break
under them (see `engine.structured.compile_sandbox`). Needs no database, no GPU and no weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Final

from core.errors import ApiError, MillraceError, Problem
from core.model_files import ModelCatalog, load_models
from core.schemas.batch import BatchLine
from core.schemas.batch_validation import BatchValidation, LineProblem, ModelLines
from core.schemas.endpoints import CHAT_ENDPOINT, ENDPOINTS
from core.schemas.objects import BatchError
from core.settings import Settings, load_settings
from engine.errors import EngineError, PromptTooLong
from engine.inputs.dry_run import CompileBudget
from workers.batches.line_checker import LineChecker, RejectedLine
from workers.batches.line_reader import LineParser, RawLine, read_lines
from workers.batches.plan import PlanLine
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
    """Read a seekable file once; lists at most `max_errors` errors, and counts all. Raises EngineError for a broken model.

    `budget` is what may be spent on compiling schemas, by default the usual one.
    """
    endpoint = endpoint or first_endpoint(stream, settings.line_bytes)
    with closing(BatchDryRun(catalog, budget)) as rehearsals:
        report = _Report(endpoint, catalog, settings, max_errors, rehearsals)
        for raw in read_lines(stream, settings.line_bytes):
            report.take(raw)
        return report.finish()


def first_endpoint(stream: BinaryIO, max_bytes: int) -> str:
    """The `url` of the first line where batches may have it, else the chat endpoint; the stream is at its start again."""
    first = next(read_lines(stream, max_bytes), None)
    stream.seek(0)
    try:
        url = str(json.loads((first and first.content) or b"")["url"])
    except (ValueError, KeyError, TypeError):
        return CHAT_ENDPOINT
    return url if url in ENDPOINTS else CHAT_ENDPOINT


class _Report:
    """Takes raw lines in order; holds counts, the first errors, and the parser's `custom_id`s."""

    def __init__(
        self, endpoint: str, catalog: ModelCatalog, settings: Settings, max_errors: int, rehearsals: BatchDryRun
    ) -> None:
        self._endpoint = endpoint
        self._most_lines = settings.batch_lines
        self._parser = LineParser(endpoint, settings.line_bytes)
        self._judge = LineChecker(catalog, share_identical_lines=False, endpoint=endpoint)
        self._rehearsals = rehearsals
        self._max_errors = max_errors
        self._errors: list[LineProblem] = []
        self._num_errors: Counter[str] = Counter()
        self._num_lines = 0
        self._num_over_context = 0
        self._num_unchecked = 0
        self._lines: Counter[str] = Counter()
        self._prompt_tokens: Counter[str] = Counter()
        self._output_tokens: Counter[str] = Counter()

    def take(self, raw: RawLine) -> None:
        """One line of the file."""
        self._num_lines += 1
        if self._num_lines > self._most_lines:
            if self._num_lines == self._most_lines + 1:
                message = f"A batch has at most {self._most_lines} lines; split the file. The rest was not looked at."
                self._complain(LineProblem(code="too_many_tasks", message=message, line=raw.number, fails="file"))
            return
        line = self._parser.parse(raw)
        if isinstance(line, BatchError):
            self._complain(LineProblem(**line.model_dump(), fails="file"))
            return
        assert raw.content is not None, "a line without content is an error"
        verdict = self._judge.judge(line, raw.content)
        if isinstance(verdict, RejectedLine):
            self._refuse(raw, line, verdict.problem)
        else:
            self._count(raw, line, verdict)

    def finish(self) -> BatchValidation:
        """Everything that was found."""
        if not self._num_lines:
            self._complain(LineProblem(code="empty_file", message="The input file has no lines.", fails="file"))
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

    def _count(self, raw: RawLine, line: BatchLine, planned: PlanLine) -> None:
        try:
            tokens = self._rehearsals.measure(self._endpoint, planned, line)
        except ApiError as error:
            self._num_over_context += error.problem.code == PromptTooLong.code
            self._refuse(raw, line, error.problem)
            return
        self._num_unchecked += not tokens.is_checked
        self._lines[planned.model] += 1
        self._prompt_tokens[planned.model] += tokens.num_prompt
        self._output_tokens[planned.model] += tokens.max_output

    def _refuse(self, raw: RawLine, line: BatchLine, problem: Problem) -> None:
        self._complain(
            LineProblem(
                line=raw.number,
                custom_id=line.custom_id,
                code=problem.code or "invalid_request",
                message=problem.message,
                param=f"body.{problem.param}" if problem.param else "body",
                fails="line",
            )
        )

    def _complain(self, problem: LineProblem) -> None:
        self._num_errors[problem.fails] += 1
        if len(self._errors) < self._max_errors:
            self._errors.append(problem)


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser(description="Say everything that is wrong with a batch file.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--endpoint", choices=ENDPOINTS)
    parser.add_argument("--max-errors", type=int, default=DEFAULT_ERRORS)
    arguments = parser.parse_args()
    try:
        settings = load_settings()
        with arguments.file.open("rb") as stream:
            report = validate(
                stream,
                arguments.endpoint,
                load_models(settings.models_dir),
                settings,
                max_errors=arguments.max_errors,
            )
    except (MillraceError, EngineError, OSError) as error:
        sys.exit(f"millrace validate: {error}")
    sys.stdout.write(report.model_dump_json())


if __name__ == "__main__":
    main()
