"""Printing: results to stdout as text or JSON; remarks to stderr, so that a program can read stdout.

Text from outside (names, messages) loses its control characters first: it could contain terminal commands.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from cli.errors import CommandFailed, ExitCode

if TYPE_CHECKING:
    from rich.console import Console


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


def print_fields(value: Mapping[str, Any]) -> None:  # Any: JSON
    """Print one name and value per line; null values are omitted."""
    width = max((len(name) for name in value), default=0)
    for name, field in value.items():
        if field is not None:
            print(f"{name:<{width}}  {_shown(name, field)}")


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns; nothing is truncated, so that a pipe gets everything."""
    cells = [list(headings), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def printable(text: str) -> str:
    """Replace control characters."""
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)


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
            raise CommandFailed(f"There is no file {source}.", ExitCode.USAGE)
        with source.open("rb") as stream:
            yield Source(source.name, source, stream)
        return
    with tempfile.NamedTemporaryFile(prefix="millrace-", suffix=".jsonl") as kept:
        shutil.copyfileobj(sys.stdin.buffer, kept)
        kept.flush()
        path = Path(kept.name)
        with path.open("rb") as stream:
            yield Source("stdin.jsonl", path, stream)


def _shown(name: str, field: Any) -> str:  # Any: JSON
    if isinstance(field, dict | list):
        return printable(json.dumps(field, ensure_ascii=False))
    if name.endswith("_at") and isinstance(field, int):
        return moment(field)
    return printable(str(field))
