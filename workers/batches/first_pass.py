"""First pass over a batch file: check every line in order, and plan those that will run, at flat memory for any number of lines.

Lines are planned a window at a time, and of each planned line only its place in the file is kept, as packed numbers. A batch of
up to WINDOW_LINES lines is planned as a whole; in a larger one, groups and identical lines end at the end of a window.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, Final

import msgspec

from core.errors import Problem
from core.models.model_files import ModelCatalog
from core.schemas.batch import BatchLine
from core.schemas.objects import BatchError
from core.settings import Settings
from workers.batches.file_kind import check_kind
from workers.batches.line_checker import LineChecker, RejectedLine
from workers.batches.line_reader import LineParser, LineSpan, RawLine, UnreadableLine, read_lines
from workers.batches.plan import PlanLine, PlannedShard, plan_shards

WINDOW_LINES: Final = 50_000
_ALIVE_LINES: Final = 1000  # even the largest ones take seconds only
_SPOOL_BYTES: Final = 1 << 20
_MANY_SHARDS: Final = 64
_USUAL_TOKENS: Final = 64  # of a line in a shard of the usual size
_BYTES_PER_TOKEN: Final = 32  # of a prompt, which take about as long as a token of an answer
_MOST_TIMES: Final = 4


class BadFile(Exception):
    """The file cannot become a batch."""

    def __init__(self, errors: list[BatchError], num_errors: int) -> None:
        super().__init__(f"{num_errors} errors")
        self.errors = errors
        self.num_errors = num_errors


@dataclass(frozen=True, slots=True)
class FailedLine:
    """A line that has failed already. Without a `span` its body cannot be read, and is stored as null."""

    number: int
    custom_id: str
    problem: Problem
    model: str = ""
    span: LineSpan | None = None


class FirstPass:
    """Checks raw lines in order; collects errors, lines that fail alone, and the shards of those that will run.

    `keep_alive` is called every 1,000 lines, since the transaction of the caller may not be idle for long.
    """

    def __init__(
        self,
        settings: Settings,
        endpoint: str,
        catalog: ModelCatalog,
        down: frozenset[str],
        keep_alive: Callable[[], None],
        window_lines: int = WINDOW_LINES,
    ) -> None:
        self._settings = settings
        self._parser = LineParser(endpoint, settings.line_bytes)
        is_shared = settings.share_identical_lines
        self._checker = LineChecker(catalog, share_identical_lines=is_shared, endpoint=endpoint, down=down)
        self._keep_alive = keep_alive
        self._window_lines = window_lines
        self._window: list[PlanLine] = []
        self._errors: list[BatchError] = []
        self._num_errors = 0
        self._models: set[str] = set()
        self.num_lines = 0
        self.num_bytes = 0
        self.failed = _FailedLines()
        self.spans = _Spans()
        self.shards: list[PlannedShard] = []

    @property
    def model(self) -> str | None:
        """The model of all lines; None when there are several."""
        return next(iter(self._models)) if len(self._models) == 1 else None

    def close(self) -> None:
        """Delete temporary files."""
        self._parser.close()
        self.failed.close()

    def read(self, stream: BinaryIO) -> None:
        """Check and plan the lines of a file. Raises BadFile."""
        if (error := check_kind(stream)) is not None:
            raise BadFile([error], 1)
        for number, raw in enumerate(read_lines(stream, self._settings.line_bytes), start=1):
            self._add_line(raw)
            if number % _ALIVE_LINES == 0:
                self._keep_alive()
        if self._num_errors:
            raise BadFile(self._errors, self._num_errors)
        if not self.num_lines:
            raise BadFile([BatchError(code="empty_file", message="The input file has no lines.")], 1)
        self._plan_window()

    def _add_line(self, raw: RawLine) -> None:
        line = self._parser.parse(raw)
        if isinstance(line, BatchError):
            self._add_error(line)
            return
        if self.num_lines >= self._settings.batch_lines:
            message = f"A batch has at most {self._settings.batch_lines} lines; split the file."
            raise BadFile([BatchError(code="too_many_tasks", message=message)], 1)
        if self._num_errors:
            return
        self.num_lines += 1
        if isinstance(line, UnreadableLine):
            self.failed.append(FailedLine(raw.number, line.custom_id, line.problem))
        else:
            self._add_checked(raw, line)

    def _add_error(self, error: BatchError) -> None:
        self._num_errors += 1
        if len(self._errors) < self._settings.error_lines:
            self._errors.append(error)

    def _add_checked(self, raw: RawLine, line: BatchLine) -> None:
        checked = self._checker.check(line, raw.content)
        if self._checker.num_inputs > (most := self._settings.batch_inputs):
            message = f"The lines of a batch have at most {most} inputs to embed; split the file."
            raise BadFile([BatchError(code="too_many_tasks", message=message)], 1)
        if isinstance(checked, RejectedLine):
            self._add_model(checked.model)
            self.failed.append(FailedLine(raw.number, line.custom_id, checked.problem, checked.model, raw.span))
            return
        self._add_model(checked.model.name)
        self._window.append(checked.plan)
        self.spans.append(raw.span)
        self.num_bytes += len(raw.content)
        if len(self._window) == self._window_lines:
            self._plan_window()

    def _add_model(self, name: str) -> None:
        if len(self._models) < 2:  # rejected lines may name any number of models
            self._models.add(name)

    def _plan_window(self) -> None:
        """Replace the lines of the window by their shards."""
        begin = len(self.spans) - len(self._window)
        for shard in plan_shards(self._window, self._shard_lines()):
            lines = array("I", (begin + line for line in shard.lines))
            self.shards.append(PlannedShard(model=shard.model, lines=lines))
        self._window.clear()
        self._checker.begin_window()

    def _shard_lines(self) -> int:
        """More lines in the shards of a large batch of little work: each shard costs a few round trips.

        There are enough shards for all devices even so, and none keeps a more urgent batch waiting for longer than usual.
        """
        usual, window = self._settings.shard_lines, self._window
        answers = sum(line.expected_tokens for line in window) / max(1, len(window))
        prompts = self.num_bytes / max(1, len(self.spans)) / _BYTES_PER_TOKEN
        most = min(self.num_lines / _MANY_SHARDS, usual * _USUAL_TOKENS / (1 + answers + prompts), usual * _MOST_TIMES)
        return max(usual, int(most))


class _Spans:
    """The places of lines in the file, 20 bytes each."""

    def __init__(self) -> None:
        self._numbers, self._offsets, self._lengths = array("Q"), array("Q"), array("I")

    def append(self, span: LineSpan) -> None:
        for column, value in zip((self._numbers, self._offsets, self._lengths), span, strict=True):
            column.append(value)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> LineSpan:
        return LineSpan(self._numbers[index], self._offsets[index], self._lengths[index])


class _FailedLines:
    """Lines that have failed already, as JSON Lines in a temporary file once they are many."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115 - closed by close
        self._num_lines = 0

    def append(self, line: FailedLine) -> None:
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._num_lines += 1

    def __len__(self) -> int:
        return self._num_lines

    def __iter__(self) -> Iterator[FailedLine]:
        self._file.seek(0)
        return (msgspec.json.decode(line, type=FailedLine) for line in self._file)

    def close(self) -> None:
        self._file.close()
