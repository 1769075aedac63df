"""The run of a mapping: rows are asked in batches, and the table is written with their answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Final
from uuid import uuid4

from rich.console import Console

from cli.batches.progress import meter
from cli.client import Json
from cli.errors import CommandFailed, ExitCode
from cli.maps.batches import MapBatches
from cli.maps.mapping import Limits, Mapping, chunks
from cli.maps.preview import preview, preview_lines
from cli.output import plural, printable
from cli.output_files import STDOUT, OutputFile
from cli.stack.session import Session
from mapping.answers import Answers
from mapping.disk_map import DiskMap
from mapping.formats.table import JoinedRow, TableFormat, WriteCounts
from mapping.formats.writing import write_table
from mapping.join import PlanCounts

_MAX_REASONS: Final = 1000  # different ones that are counted
_SHOWN_REASONS: Final = 3
_SHOWN_LENGTH: Final = 160
_OF_ONE_ROW: Final = ("context_length_exceeded",)


@dataclass(frozen=True, slots=True, kw_only=True)
class MapRun:
    """One command. `is_fresh`: it does not use the answers of earlier commands."""

    session: Session
    console: Console
    name: str
    mapping: Mapping
    limits: Limits
    window: str
    priority: int | None
    is_fresh: bool

    def to_file(self, output: OutputFile, kind: TableFormat) -> tuple[Json, ExitCode]:
        """Ask all rows and write the table; returns a report and the exit code."""
        with Answers() as answers, closing(DiskMap()) as asked, _resumable():
            with meter(self.console, self.name) as show:
                batches = self.batches(answers, asked, show)
                plan = self._ask(batches)
            written, reasons = self._write(answers, output, kind)
        self._print(plan, written, reasons, output)
        report: Json = {
            "rows": written.rows,
            "answered": _num_answered(plan, written),
            "kept": plan.kept,
            "failed": written.failed,
            "left_out": plan.left_out,
            "requests": plan.requests,
            "batches": batches.ids,
            "output": str(output.path),
        }
        return report, ExitCode.SOME_LINES_FAILED if written.failed else ExitCode.FINE

    def preview(self) -> tuple[Json, ExitCode]:
        """Print the first prompts, the tokens and the time; returns a report and the exit code."""
        with Answers() as answers, closing(DiskMap()) as asked:
            report = preview(self.mapping, self.batches(answers, asked, lambda _: None), self.limits)
        for line in preview_lines(report):
            self._say(line)
        return report, ExitCode.FINE

    def batches(self, answers: Answers, asked: DiskMap, show: Callable[[Json], None]) -> MapBatches:
        """Return the batches of this mapping, with the answers of earlier commands."""
        batches = MapBatches(
            client=self.session.client,
            answers=answers,
            asked=asked,
            key=self.mapping.key(self.name),
            since=self.mapping.since,
            name=self.name,
            endpoint=self.mapping.mapper.endpoint,
            window=self.window,
            priority=self.priority,
            show=show,
            restart_dead=self.session.restart_dead,
        )
        if self.is_fresh:
            batches.salt = uuid4().hex
        else:
            batches.find_earlier()
        return batches

    def _ask(self, batches: MapBatches) -> PlanCounts:
        """Send the requests of all rows that have no answer, and wait for the end of their batches."""
        counts = PlanCounts()
        requests = batches.requests(self.mapping, counts)
        for number, chunk in enumerate(chunks(requests, self.limits)):
            if not number:
                self._check_first(chunk.rewound().readline())
            batches.send(chunk)
        batches.finish()
        return counts

    def _check_first(self, first: bytes) -> None:
        """Raise CommandFailed for what would fail every row, such as a schema that the model cannot follow."""
        client, endpoint = self.session.client, self.mapping.mapper.endpoint
        report = client.patiently(lambda: client.validate("map.jsonl", BytesIO(first), endpoint))
        for error in report["errors"]:
            if error["code"] not in _OF_ONE_ROW:
                raise CommandFailed(f"No row can be asked: {error['message']}", ExitCode.USAGE)

    def _write(self, answers: Answers, output: OutputFile, kind: TableFormat) -> tuple[WriteCounts, Counter[str]]:
        """Write the table; returns its counts, and how often each reason of a failed row occurs."""
        reasons: Counter[str] = Counter()

        def rows() -> Iterator[JoinedRow]:
            for row in self.mapping.rows(answers):
                if (reason := row.cells[-1]) is not None and (reason in reasons or len(reasons) < _MAX_REASONS):
                    reasons[reason] += 1
                yield row

        with output.open() as file:
            counts = write_table(rows(), self.mapping.table, self.mapping.mapper.added, file, kind)
            self.mapping.check_unchanged()
        return counts, reasons

    def _print(self, plan: PlanCounts, written: WriteCounts, reasons: Counter[str], output: OutputFile) -> None:
        for reason, number in reasons.most_common(_SHOWN_REASONS):
            short = reason if len(reason) <= _SHOWN_LENGTH else f"{reason[: _SHOWN_LENGTH - 1]}…"
            self._say(f"{plural(number, 'row')} failed: {short}")
        if written.escaped:
            rows, encoding = plural(written.escaped, "row"), self.mapping.table.encoding
            self._say(
                f"{rows} have characters that {encoding} lacks, written as escapes; a .jsonl file has them as they are."
            )
        parts = {
            "answered": _num_answered(plan, written),
            "kept": plan.kept,
            "failed": written.failed,
            "left out": plan.left_out,
        }
        shown = ", ".join(f"{number:,} {word}" for word, number in parts.items() if number or word == "answered")
        if written.rows and plan.left_out == written.rows:
            reason = "the condition of --where holds for none, or " if self.mapping.mapper.spec.where else ""
            self._say(f"No row was asked: {reason}the columns in the prompt are empty.")
        if plan.asked and not plan.requests:
            self._say("No request was sent: the answers are those of earlier commands. --fresh asks anew.")
        self._say(f"{plural(written.rows, 'row')}: {shown}" + ("" if output.path == STDOUT else f" → {output.path}"))

    def _say(self, text: str) -> None:
        self.console.print(printable(text), markup=False, highlight=False)


def _num_answered(plan: PlanCounts, written: WriteCounts) -> int:
    return written.rows - written.failed - plan.kept - plan.left_out


@contextmanager
def _resumable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as interrupt:
        message = "Interrupted; nothing is lost. The same command goes on, and asks for nothing twice."
        raise CommandFailed(message, ExitCode.of(interrupt)) from None
