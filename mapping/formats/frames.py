"""Parquet and Excel through polars, in batches of rows."""

from __future__ import annotations

import datetime
import importlib
import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final

from mapping.cells import cell_text, clean_text
from mapping.columns import Column, ColumnType, Kind
from mapping.errors import MappingError
from mapping.formats.table import JoinedRow, Row, Table, WriteCounts, unique_names

if TYPE_CHECKING:
    import polars as pl

_BATCH: Final = 8192
_BATCH_BYTES: Final = 32 << 20
_FIRST_DAYS: Final = [datetime.date(1899, 12, 30), datetime.date(1899, 12, 31)]  # of a time without a date
_UNNAMED: Final = "__UNNAMED__"  # fastexcel's name of a column without one


def polars_module() -> Any:  # Any: the module, which is optional
    """Return polars. Raises MappingError where the extra is not installed."""
    return _module("polars")


def _module(name: str) -> Any:  # Any: an optional module
    try:
        return importlib.import_module(name)
    except ImportError as error:
        problem = "Parquet and Excel files need the extra 'tables': pip install 'millrace[tables]'"
        raise MappingError(problem) from error


@contextmanager
def _reading(label: str, kind: str) -> Iterator[None]:
    """Raise the error of a damaged file as a MappingError. Errors of polars have no common base, and some are panics."""
    try:
        yield
    except (Exception, polars_module().exceptions.PanicException) as error:
        if isinstance(error, MappingError | MemoryError):
            raise
        reason = str(error).partition("\n")[0]
        raise MappingError(f"{label} cannot be read as {kind}: {reason}") from error


@dataclass(kw_only=True)
class FrameTable(Table):
    """A table that polars reads."""

    schema: dict[str, Any] = field(init=False)  # Any: polars' types

    @abstractmethod
    def frames(self) -> Iterator[pl.DataFrame]:
        """Read the table in batches of rows."""

    def rows(self) -> Iterator[Row]:
        """Read all rows."""
        names = self.names
        number = 0
        for frame in self.frames():
            for cells in frame.iter_rows():
                number += 1
                yield Row(number, dict(zip(names, cells, strict=True)))


@dataclass(kw_only=True)
class ParquetTable(FrameTable):
    """A Parquet file."""

    def __post_init__(self) -> None:
        with _reading(self.label, "Parquet"):
            self.schema = dict(polars_module().read_parquet_schema(self.path))
        self.columns = tuple(Column(name, _column_type(dtype)) for name, dtype in self.schema.items())

    def frames(self) -> Iterator[pl.DataFrame]:
        """Read the file row group by row group."""
        with _reading(self.label, "Parquet"):
            yield from polars_module().scan_parquet(self.path).collect_batches(chunk_size=_BATCH, maintain_order=True)


@dataclass(kw_only=True)
class ExcelTable(FrameTable):
    """A sheet of an Excel file, in memory. Its first row names the columns; empty rows at the end are left out."""

    sheet: str | None = None

    def __post_init__(self) -> None:
        pl = polars_module()
        fastexcel = _module("fastexcel")
        with _reading(self.label, "an Excel file"):
            sheets = fastexcel.read_excel(self.path).sheet_names
        if self.sheet is not None and self.sheet not in sheets:
            raise MappingError(f"{self.label} has no sheet {self.sheet!r}; it has {', '.join(sheets)}", param="sheet")
        with _reading(self.label, "an Excel file"):
            frame = pl.read_excel(
                self.path,
                sheet_name=self.sheet or sheets[0],
                infer_schema_length=None,
                drop_empty_rows=False,
                drop_empty_cols=False,
                raise_if_empty=False,
            )
        if not frame.width:
            raise MappingError(
                f"sheet {self.sheet or sheets[0]!r} of {self.label} is empty: its first row must name the columns"
            )
        self._frame = _tidy(frame)
        self.schema = dict(self._frame.schema)
        self.columns = tuple(Column(name, _column_type(dtype)) for name, dtype in self.schema.items())

    def frames(self) -> Iterator[pl.DataFrame]:
        """Return the sheet in batches."""
        yield from self._frame.iter_slices(_BATCH)


def write_parquet(joined: Iterable[JoinedRow], table: Table, added: tuple[Column, ...], file: IO[bytes]) -> WriteCounts:
    """Write all rows. Columns that polars read keep their types; nested values of mixed types become JSON text."""
    polars_module()
    from polars.io.plugins import register_io_source

    counts = WriteCounts()
    added_schema = {column.name: _dtype(column.type) for column in added}
    source = table if isinstance(table, FrameTable) else None
    schema = source.schema if source else {column.name: _dtype(column.type) for column in table.columns}
    names = unique_names([*schema, *added_schema])  # polars takes no empty name
    rows = iter(joined)

    def added_frame(batch: list[JoinedRow]) -> pl.DataFrame:
        counts.rows += len(batch)
        counts.failed += sum(each.cells[-1] is not None for each in batch)
        columns = zip(*(each.cells for each in batch), strict=True)
        return _frame(columns, added, added_schema)

    def batches() -> Iterator[pl.DataFrame]:
        if source:
            for frame in source.frames():
                yield frame.hstack(added_frame(list(itertools.islice(rows, len(frame)))))
            return
        while batch := _next_batch(rows):
            columns = zip(*(each.row.values.values() for each in batch), strict=True)
            yield _frame(columns, table.columns, schema).hstack(added_frame(batch))

    def named(*_: object) -> Iterator[pl.DataFrame]:
        for frame in batches():
            frame.columns = names
            yield frame

    types = dict(zip(names, (*schema.values(), *added_schema.values()), strict=True))
    register_io_source(named, schema=types).sink_parquet(file, row_group_size=_BATCH)
    return counts


def _next_batch(rows: Iterator[JoinedRow]) -> list[JoinedRow]:
    """Return the next rows: a number of them, and less if they are long."""
    batch: list[JoinedRow] = []
    size = 0
    for row in itertools.islice(rows, _BATCH):
        batch.append(row)
        size += len(row.row.raw)
        if size > _BATCH_BYTES:
            break
    return batch


def _frame(columns: Iterable[tuple[Any, ...]], types: tuple[Column, ...], schema: dict[str, Any]) -> pl.DataFrame:
    """Make a frame of columns of cells."""
    import polars

    return polars.DataFrame(
        [
            polars.Series(column.name, _plain(cells, column.type), dtype=schema[column.name])
            for column, cells in zip(types, columns, strict=True)
        ]
    )


def _plain(cells: tuple[Any, ...], kind: ColumnType) -> list[Any]:  # Any: cells
    """Return cells as polars takes them: a mix of types as text, and bytes that are no text as U+FFFD."""
    if kind.kind is Kind.JSON:
        cells = tuple(None if cell is None else cell_text(cell) for cell in cells)
    elif kind.kind is not Kind.STRING:
        return list(cells)
    return [cell if cell is None else clean_text(cell) for cell in cells]


def _dtype(kind: ColumnType) -> Any:  # Any: a type of polars
    """Return polars' type of a column."""
    pl = polars_module()
    if kind.kind is Kind.ARRAY and kind.item:
        return pl.List(_dtype(kind.item))
    if kind.kind is Kind.OBJECT:
        return pl.Struct({field.name: _dtype(field.type) for field in kind.fields})
    simple = {
        Kind.INTEGER: pl.Int64,
        Kind.NUMBER: pl.Float64,
        Kind.BOOLEAN: pl.Boolean,
        Kind.DATE: pl.Date,
        Kind.VECTOR: pl.List(pl.Float32),
    }
    return simple.get(kind.kind, pl.String)


def _column_type(dtype: Any) -> ColumnType:  # Any: a type of polars
    """Return the type of a column that polars read."""
    pl = polars_module()
    if isinstance(dtype, pl.List):
        return ColumnType(Kind.ARRAY, _column_type(dtype.inner))
    if isinstance(dtype, pl.Struct):
        return ColumnType(Kind.OBJECT, fields=tuple(Column(f.name, _column_type(f.dtype)) for f in dtype.fields))
    if dtype.is_integer():
        return ColumnType(Kind.INTEGER)
    if dtype.is_numeric():
        return ColumnType(Kind.NUMBER)
    return ColumnType({pl.String: Kind.STRING, pl.Boolean: Kind.BOOLEAN, pl.Date: Kind.DATE}.get(dtype, Kind.JSON))


def _tidy(frame: pl.DataFrame) -> pl.DataFrame:
    """Name columns as other formats do, drop empty rows at the end, and turn moments on Excel's first day into times."""
    pl = polars_module()
    names = unique_names(["" if name.startswith(_UNNAMED) else name.strip() for name in frame.columns])
    frame = frame.rename(dict(zip(frame.columns, names, strict=True)))
    if len(frame):
        is_empty = frame.select(
            pl.all_horizontal(pl.all().cast(pl.String, strict=False).str.strip_chars().fill_null("") == "")
        )
        filled = is_empty.to_series().not_().arg_true()
        frame = frame.head(filled[-1] + 1 if len(filled) else 0)
    times = [
        name
        for name, dtype in frame.schema.items()
        if isinstance(dtype, pl.Datetime) and frame[name].dt.date().drop_nulls().is_in(_FIRST_DAYS).all()
    ]
    return frame.with_columns(pl.col(times).dt.time()) if times else frame
