"""The output of an earlier run: rows that did not change keep its answers."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec

from mapping.cells import cell_text
from mapping.disk_map import DiskMap
from mapping.errors import MappingError
from mapping.formats.table import Row, Table
from mapping.row_mapper import RowMapper

_write: Final = msgspec.json.Encoder().encode
_read: Final = msgspec.json.Decoder(list[Any]).decode


class Previous:
    """Cells of the added columns by the content of the row."""

    def __init__(self, earlier: Table, table: Table, mapper: RowMapper) -> None:
        """Read the earlier output. Raises MappingError when it lacks columns of the table or of the mapping."""
        self._names = table.names
        self._mapper = mapper
        added = [column.name for column in mapper.added]
        if missing := [name for name in (*table.names, *added) if name not in earlier.names]:
            raise MappingError(f"{earlier.label} has no column {missing[0]!r}: it is no earlier output of this mapping")
        self._cells = DiskMap()
        for row in earlier.rows():
            stored = [row.values[name] for name in added]
            if not row.problem and mapper.earlier_cells(stored) is not None:
                self._cells.put(self._key(row), _write(stored))

    def cells(self, row: Row) -> tuple[Any, ...] | None:  # Any: cells
        """Return the added cells of an unchanged row that was answered; None for any other."""
        found = None if row.problem else self._cells.get(self._key(row))
        return self._mapper.earlier_cells(_read(found)) if found else None

    def _key(self, row: Row) -> bytes:
        texts = (cell_text(row.values[name]) for name in self._names)
        return hashlib.blake2b("\x1f".join(texts).encode("utf-8", "surrogatepass"), digest_size=16).digest()
