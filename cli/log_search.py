"""Search of the logs of this machine: all lines about one id, and about the request, job or batch that it belongs to.

Files are read as streams, so memory stays flat for logs of any size; rotated ones (`.3` to `.1`) come before the current one.
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

_IDS: Final = ("request_id", "job", "batch", "file", "upload", "trace_id")  # fields that say what a line is about
_FOLLOWED: Final = ("request_id", "job", "batch")  # of such a line, those whose other lines are wanted, too
_MAX_IDS: Final = 200
_MAX_PASSES: Final = 4
_JSON_TIME: Final = re.compile(r'"timestamp": ?"([^"]+)"')
_PLAIN_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d(?:\.\d+)?)")  # as Postgres writes it
_ID_LETTERS: Final = r"[0-9A-Za-z_-]"


class LogLine(NamedTuple):
    """A line, and its time (ISO 8601); one without a time has that of the line before."""

    at: str
    process: str
    text: str

    def fields(self) -> dict[str, Any] | None:  # Any: JSON
        """The fields of a JSON line; None for another one."""
        try:
            parsed = json.loads(self.text) if self.text.startswith("{") else None
        except ValueError:
            return None
        return parsed if isinstance(parsed, dict) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The ids that lines are about. With a `shard`, lines about other shards of its batch are left out."""

    ids: frozenset[str]
    shard: str | None = None


def log_files(folder: Path) -> list[Path]:
    """The logs of a state directory, with rotated ones."""
    return sorted(path for path in folder.glob("*.log*") if path.is_file() and not path.name.endswith(".part"))


def search(files: Iterable[Path], wanted: Wanted) -> Iterator[LogLine]:
    """Yield all lines about these ids and what they belong to, by time."""
    streams: dict[str, list[Path]] = {}
    for path in files:
        streams.setdefault(path.name.partition(".log")[0], []).append(path)
    for paths in streams.values():
        paths.sort(key=lambda path: path.suffix if path.suffix[1:].isdigit() else "", reverse=True)
    for _ in range(_MAX_PASSES):
        found = _followed(_matching(streams, wanted), wanted)
        if found <= wanted.ids or len(found) > _MAX_IDS:
            break
        wanted = Wanted(ids=wanted.ids | found, shard=wanted.shard)
    yield from _matching(streams, wanted)


def _followed(lines: Iterable[LogLine], wanted: Wanted) -> set[str]:
    """The ids that belong to the wanted ones, by lines that are about both."""
    found: set[str] = set()
    for line in lines:
        fields = line.fields()
        if fields is not None and any(fields.get(name) in wanted.ids for name in _IDS):
            found |= {fields[name] for name in _FOLLOWED if isinstance(fields.get(name), str)}
            if len(found) > _MAX_IDS:
                break
    return found


def _matching(streams: dict[str, list[Path]], wanted: Wanted) -> Iterator[LogLine]:
    words = "|".join(re.escape(each) for each in sorted(wanted.ids))
    pattern = re.compile(f"(?<!{_ID_LETTERS})(?:{words})(?!{_ID_LETTERS})")
    sources = [_lines(process, paths, pattern) for process, paths in streams.items()]
    for line in heapq.merge(*sources, key=lambda line: line.at):
        if wanted.shard is None or (line.fields() or {}).get("shard") in (None, wanted.shard):
            yield line


def _lines(process: str, paths: list[Path], pattern: re.Pattern[str]) -> Iterator[LogLine]:
    at = ""
    for path in paths:
        try:
            with path.open(errors="replace") as stream:
                for text in stream:
                    if (match := _JSON_TIME.search(text)) is not None:
                        at = match[1]
                    elif (match := _PLAIN_TIME.match(text)) is not None:
                        at = f"{match[1]}T{match[2]}"
                    if pattern.search(text) is not None:
                        yield LogLine(at, process, text.rstrip("\n"))
        except FileNotFoundError:  # rotated meanwhile
            continue
