"""The output of an earlier run: rows that did not change keep its answers."""

from __future__ import annotations

import hashlib
from typing import Any

from mapping.cells import cell_text
from mapping.errors import MappingError
from mapping.formats.table import Row, Table
from mapping.row_mapper import RowMapper


class Previous:
    """Cells of the added columns by the content of the row."""

    def __init__(self, previous: Table, table: Table, mapper: RowMapper) -> None:
        """Read the earlier output. Raises MappingError when it lacks columns of the table or of the mapping."""
        self._names = table.names
        wanted = (*table.names, *(column.name for column in mapper.added))
        if missing := [name for name in wanted if name not in previous.names]:
            raise MappingError(
                f"{previous.path.name} has no column {missing[0]!r}, so it is no earlier output of this mapping"
            )
        self._cells: dict[bytes, tuple[Any, ...]] = {}
        for row in previous.rows():
            cells = mapper.stored_cells(row.values)
            if cells is not None and not row.problem:
                self._cells[self._key(row)] = cells

    def cells(self, row: Row) -> tuple[Any, ...] | None:  # Any: cells
        """Return the added cells of an unchanged row that was answered."""
        return None if row.problem else self._cells.get(self._key(row))

    def _key(self, row: Row) -> bytes:
        texts = (cell_text(row.values[name]) for name in self._names)
        return hashlib.blake2b("\x1f".join(texts).encode("utf-8", "surrogatepass"), digest_size=16).digest()
