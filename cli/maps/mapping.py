"""A mapping with its table: its requests in files for batches, and its rows with their answers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Final, NamedTuple, Self

import msgspec

from cli.errors import CommandFailed
from mapping.answers import Answers
from mapping.formats.opening import open_table
from mapping.formats.table import JoinedRow, Table, TableFormat
from mapping.join import PlannedRow, join_rows, plan_rows
from mapping.previous import Previous
from mapping.row_mapper import Request, RowMapper
from mapping.spec import MapSpec

_KEY_DIGITS: Final = 32
_CLOCKS_DIFFER: Final = 86_400.0  # at most by so many seconds


class Limits(NamedTuple):
    """The largest batch: lines, and bytes of its file."""

    num_lines: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """A mapping that fits its table.

    `previous` is the earlier output, of which unchanged rows are kept; it has the answers of batches older than `since`.
    """

    table: Table
    mapper: RowMapper
    state: tuple[int, ...]
    previous: Previous | None = None
    since: float = 0.0

    @classmethod
    def of(cls, spec: MapSpec, table: Table) -> Self:
        """Check a mapping against its table. Raises MappingError."""
        return cls(table=table, mapper=RowMapper(spec, table), state=_state(table.path))

    def updating(self, output: Path, kind: TableFormat) -> Mapping:
        """Return the mapping of rows that an earlier output lacks; of all rows without one. Raises MappingError."""
        if not output.is_file() or not output.stat().st_size:
            return self
        given = (
            {"encoding": self.table.encoding, "delimiter": self.table.delimiter} if kind is self.table.format else {}
        )
        previous = Previous(open_table(output, format=kind, **given), self.table, self.mapper)
        return replace(self, previous=previous, since=output.stat().st_mtime - _CLOCKS_DIFFER)

    def with_model(self, model: str) -> Mapping:
        """Return the mapping for this model."""
        spec = self.mapper.spec.model_copy(update={"model": model})
        return replace(self, mapper=RowMapper(spec, self.table))

    def key(self, name: str) -> str:
        """Return the value by which the batches of this mapping, of a table of this name, are found again."""
        same = self.mapper.spec.model_dump(mode="json", exclude={"where", "limit", "column", "error_column"})
        return hashlib.sha256(msgspec.json.encode([name, same], order="sorted")).hexdigest()[:_KEY_DIGITS]

    def planned(self) -> Iterator[PlannedRow]:
        """Yield the rows with their requests."""
        return plan_rows(self.table, self.mapper, self.previous)

    def rows(self, answers: Answers) -> Iterator[JoinedRow]:
        """Yield the rows with their answers."""
        return join_rows(self.planned(), self.mapper, answers)

    def check_unchanged(self) -> None:
        """Raise CommandFailed when the file of the table has changed since it was opened."""
        if _state(self.table.path) != self.state:
            message = (
                "The table has changed while its rows were asked, so nothing was written. Run the same command again:"
            )
            raise CommandFailed(f"{message} rows that are as they were keep their answers.")


class Chunk:
    """The input file of a batch: a temporary file without a name, which no killed command leaves behind."""

    def __init__(self) -> None:
        self.file: IO[bytes] = TemporaryFile(prefix="millrace-")  # noqa: SIM115 - `chunks` closes it
        self.num_lines = 0
        self.num_bytes = 0
        self._digest = hashlib.sha256()

    @property
    def digest(self) -> str:
        """Return the SHA-256 of its lines."""
        return self._digest.hexdigest()

    def has_room(self, line: bytes, limits: Limits) -> bool:
        """Return whether it may have this line, too."""
        return self.num_lines < limits.num_lines and self.num_bytes + len(line) <= limits.num_bytes

    def add(self, line: bytes) -> None:
        """Write a request."""
        self.file.write(line)
        self._digest.update(line)
        self.num_lines += 1
        self.num_bytes += len(line)

    def rewound(self) -> IO[bytes]:
        """Return the file at its start."""
        self.file.seek(0)
        return self.file


def chunks(requests: Iterable[Request], limits: Limits) -> Iterator[Chunk]:
    """Yield files of as many requests as a batch may have; each is deleted when the next one is asked for."""
    chunk = Chunk()
    for request in requests:
        line = request.line
        if chunk.num_lines and not chunk.has_room(line, limits):
            yield chunk
            chunk.file.close()
            chunk = Chunk()
        chunk.add(line)
    if chunk.num_lines:
        yield chunk
    chunk.file.close()


def _state(path: Path) -> tuple[int, ...]:
    """Return numbers that differ when a file has been replaced or written to."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
