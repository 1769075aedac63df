"""Any bytes under any name: a table, or an error that a person can read."""

from __future__ import annotations

import json

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mapping.errors import MappingError
from mapping.formats.opening import open_table
from mapping.formats.table import TableFormat
from tests.unit.mapping.conftest import Run

PIECES = [
    b",",
    b";",
    b'"',
    b"\n",
    b"\r",
    b"\r\n",
    b"\t",
    b" ",
    b"{",
    b"}",
    b"[",
    b":",
    b"text",
    b"1",
    b"\xe9",
    b"\xc3\xa9",
]
MARKS = [
    b"",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xfe\xff",
    b"\xff\xfe\x00\x00",
    b"PAR1",
    b"PK\x03\x04",
    b"sep=;\n",
    b'{"text":1}\n',
]
BYTES = st.binary(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mark=st.sampled_from(MARKS),
    content=BYTES,
    suffix=st.sampled_from(["csv", "tsv", "jsonl", "parquet", "xlsx", "txt"]),
)
@pytest.mark.parametrize("out", ["out.csv", "out.jsonl", "out.parquet"])
def test_any_bytes_are_a_table_or_an_error(tmp_path, mark, content, suffix, out):
    path = tmp_path / f"in.{suffix}"
    path.write_bytes(mark + content)
    try:
        names = open_table(path).names
    except MappingError:
        return
    prompt = "".join(f"{{{{ row[{json.dumps(name)}] }}}}" for name in names)
    run = Run(path, tmp_path / out, prompt=prompt, column="new answer", error_column="new error")
    assert run.planned.rows == run.written.rows
    assert run.planned.rows == run.planned.asked + run.planned.failed + run.planned.left_out


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mark=st.sampled_from(MARKS), content=BYTES)
def test_a_damaged_csv_file_becomes_one_in_which_every_cell_is_in_its_column(tmp_path, mark, content):
    path, out = tmp_path / "in.csv", tmp_path / "out.csv"
    path.write_bytes(mark + content)
    try:
        table = open_table(path)
    except MappingError:
        return
    if table.format is not TableFormat.CSV:
        return
    prompt = "".join(f"{{{{ row[{json.dumps(name)}] }}}}" for name in table.names)
    Run(path, out, prompt=prompt, column="new answer", error_column="new error")
    again = open_table(out, delimiter=table.delimiter, encoding=table.encoding)
    before, after = list(table.rows()), list(again.rows())
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        if not (old.problem and new.problem and "fields" in new.problem):  # surplus fields stay where they are
            assert new.problem is None
            assert list(new.values.values())[: len(old.values)] == [cell or "" for cell in old.values.values()]


def test_a_parquet_file_that_is_damaged_behind_its_schema_is_an_error_in_words(tmp_path):
    path = tmp_path / "in.parquet"
    pl.DataFrame({"text": [f"row {number}" for number in range(1000)]}).write_parquet(path)
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 40 + content[44:])
    table = open_table(path)
    with pytest.raises(MappingError, match=r"^in.parquet cannot be read as Parquet: [^\n]+$"):
        list(table.rows())
