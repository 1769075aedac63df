"""JSON Lines out: objects of a JSON Lines table keep their text and get further keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, Any, Final

from core.strict_json import escape_line_ends
from mapping.cells import clean_text, to_json
from mapping.columns import Column
from mapping.formats.encodings import errors_of
from mapping.formats.jsonl_table import JsonlTable
from mapping.formats.table import JoinedRow, Row, Table, WriteCounts

RAW_KEY: Final = "_raw"


def write_jsonl(joined: Iterable[JoinedRow], table: Table, added: tuple[Column, ...], file: IO[bytes]) -> WriteCounts:
    """Write all rows. A line that is no object is kept as text under `_raw`."""
    source = table if isinstance(table, JsonlTable) else None
    encoding = (source and source.encoding) or "utf-8"
    names = [column.name for column in added]
    counts = WriteCounts()
    file.write(source.bom if source else b"")
    for row, cells in joined:
        counts.rows += 1
        counts.failed += cells[-1] is not None
        new = dict(zip(names, cells, strict=True))
        if source and not row.problem:
            file.write(_appended(row.raw, new, encoding))
        else:
            line = _encode({RAW_KEY: _text(row, encoding), **new} if source else {**row.values, **new})
            file.write((line.decode() + "\n").encode(encoding))
    file.write(source.tail if source else b"")
    return counts


def _appended(raw: bytes, new: dict[str, Any], encoding: str) -> bytes:
    """Insert keys before the last brace of an object."""
    end = raw.rindex("}".encode(encoding))
    is_empty = raw[:end].decode(encoding, errors_of(encoding)).rstrip().endswith("{")
    keys = _encode(new)[1:].decode()
    return raw[:end] + (keys if is_empty else "," + keys).encode(encoding) + raw[end + len("}".encode(encoding)) :]


def _text(row: Row, encoding: str) -> str:
    return row.raw.decode(encoding, "backslashreplace").strip("\r\n")


def _encode(value: dict[str, Any]) -> bytes:
    """Encode an object; bytes of a CSV file that are no text become U+FFFD."""
    try:
        return escape_line_ends(to_json(value))
    except UnicodeEncodeError:
        cleaned = {key: clean_text(cell) if isinstance(cell, str) else cell for key, cell in value.items()}
        return escape_line_ends(to_json(cleaned))
