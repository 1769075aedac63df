"""Printing: results to stdout as text or JSON; remarks to stderr, so that a program can read stdout.

Text from outside (names, messages) loses its control characters first: it could contain terminal commands.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

from cli.errors import CommandFailed, ExitCode

if TYPE_CHECKING:
    from rich.console import Console


_LEAST_WIDTH: Final = 5


class Source(NamedTuple):
    """An opened input: its name, its path on disk, and its bytes."""

    name: str
    path: Path
    stream: BinaryIO


def print_json(value: Any) -> None:  # Any: an answer of the API
    """Print one document on one line."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def remark(text: str) -> None:
    """Print to stderr."""
    print(printable(text), file=sys.stderr, flush=True)


class Column(NamedTuple):
    """A column of a table. A terminal that is too narrow omits one that `is_extra`, and cuts one that `can_shrink`."""

    heading: str
    can_shrink: bool = False
    is_extra: bool = False


def print_fields(value: Mapping[str, Any]) -> None:  # Any: JSON
    """Print one name and value per line; null values are omitted."""
    print_pairs((name, _shown(name, field)) for name, field in value.items() if field is not None)


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Print one name and value per line; empty values are omitted."""
    shown = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name:<{width}}  {printable(value)}")


def print_table(columns: Sequence[str | Column], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns that fit the terminal; a pipe gets everything."""
    headings = [Column(each) if isinstance(each, str) else each for each in columns]
    cells = [[each.heading for each in headings], *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    if sys.stdout.isatty():
        widths = _fitted(headings, widths, shutil.get_terminal_size().columns)
    for row in cells:
        shown = [_cut(cell, width) for cell, width in zip(row, widths, strict=True) if width]
        print("  ".join(shown).rstrip())


def _fitted(columns: Sequence[Column], widths: Sequence[int], room: int) -> list[int]:
    """Return the widths of columns that fit the room; 0 omits a column."""
    fitted = list(widths)
    for column in (index for index, each in enumerate(columns) if each.is_extra):
        if _total(fitted) > room:
            fitted[column] = 0
    for column in (index for index, each in enumerate(columns) if each.can_shrink):
        missing = _total(fitted) - room
        if missing > 0:
            left = fitted[column] - missing
            fitted[column] = left if left >= min(_LEAST_WIDTH, fitted[column]) else 0
    return fitted


def _total(widths: Sequence[int]) -> int:
    shown = [width for width in widths if width]
    return sum(shown) + 2 * (len(shown) - 1)


def _cut(cell: str, width: int) -> str:
    return cell.ljust(width) if len(cell) <= width else f"{cell[: width - 1]}…"


def printable(text: str) -> str:
    """Replace control characters."""
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)


def plural(number: int, noun: str, nouns: str | None = None) -> str:
    """Format a count with its noun; `nouns` is the plural that does not end in s alone."""
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"


def moment(unix_seconds: int | None) -> str:
    """Format a unix time of the API in this machine's time zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_seconds)) if unix_seconds is not None else "-"


def console(*, as_json: bool = False) -> Console:
    """Return a console for bars and colours; on stderr when a program reads stdout."""
    from rich.console import Console

    return Console(stderr=as_json, soft_wrap=True)


@contextmanager
def opened(source: Path) -> Iterator[Source]:
    """Open a file, or stdin for `-`; stdin is copied to a temporary file, since it is read twice."""
    if str(source) != "-":
        if not source.is_file():
            raise no_file(source)
        with source.open("rb") as stream:
            yield Source(source.name, source, stream)
        return
    with tempfile.NamedTemporaryFile(prefix="millrace-", suffix=".jsonl") as kept:
        shutil.copyfileobj(sys.stdin.buffer, kept)
        kept.flush()
        path = Path(kept.name)
        with path.open("rb") as stream:
            yield Source("stdin.jsonl", path, stream)


def no_file(source: Path) -> CommandFailed:
    """Return the failure for an input that is missing, or is no file."""
    reason = f"{source} is a folder, not a file." if source.is_dir() else f"There is no file {source}."
    return CommandFailed(reason, ExitCode.USAGE)


def _shown(name: str, field: Any) -> str:  # Any: JSON
    if isinstance(field, dict | list):
        return printable(json.dumps(field, ensure_ascii=False))
    if name.endswith("_at") and isinstance(field, int):
        return moment(field)
    return printable(str(field))
