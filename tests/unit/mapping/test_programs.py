"""Tables that other programs write, and outputs that they read back."""

from __future__ import annotations

import csv
import datetime as dt
import json
import re
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import openpyxl
import pandas as pd
import polars as pl
import pytest
import xlsxwriter

from mapping.columns import Kind
from mapping.errors import MappingError
from mapping.formats.opening import open_table
from mapping.formats.table import TableFormat
from tests.unit.mapping.conftest import Run

SCHEMA = "label: billing|other, amount: number?, tags: string[], due: date, n: integer, ok: boolean"
TEXTS = ['He said "hi", twice', "two\nlines", "ünï 漢 😀", "a;b\tc|d", "  spaces  ", "=1+1", "'quoted'", "NULL", "0012"]
FRAME = {"id": list(range(len(TEXTS))), "text": TEXTS, "price": [1.5] * len(TEXTS)}
ANSWER = {"label": "billing", "amount": 2.5, "tags": ["x", "y, z"], "due": "2024-01-02", "n": 7, "ok": True}


def write_pandas(folder: Path) -> None:
    pd.DataFrame(FRAME).to_csv(folder / "in.csv", index=False)


def write_pandas_with_index(folder: Path) -> None:
    pd.DataFrame(FRAME).to_csv(folder / "in.csv", quoting=csv.QUOTE_NONNUMERIC)


def write_pandas_for_excel(folder: Path) -> None:
    pd.DataFrame(FRAME).to_csv(folder / "in.csv", sep=";", encoding="utf-8-sig")


def write_pandas_jsonl(folder: Path) -> None:
    pd.DataFrame(FRAME).to_json(folder / "in.jsonl", orient="records", lines=True)


def write_polars_csv(folder: Path) -> None:
    pl.DataFrame(FRAME).write_csv(folder / "in.csv")


def write_polars_tsv(folder: Path) -> None:
    pl.DataFrame(FRAME).write_csv(folder / "in.tsv", separator="\t")


def write_polars_jsonl(folder: Path) -> None:
    pl.DataFrame(FRAME).write_ndjson(folder / "in.ndjson")


def write_polars_parquet(folder: Path) -> None:
    pl.DataFrame(FRAME).write_parquet(folder / "in.parquet")


def write_polars_excel(folder: Path) -> None:
    pl.DataFrame(FRAME).write_excel(folder / "in.xlsx")


def write_openpyxl(folder: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(list(FRAME))
    for number, row in enumerate(zip(*FRAME.values(), strict=True), 2):
        sheet.append(row)
        sheet.cell(number, 2).data_type = "s"  # no formula
    book.save(folder / "in.xlsx")


def write_duckdb(folder: Path, name: str = "in.csv", options: str = "") -> None:
    frame = pd.DataFrame(FRAME)
    with duckdb.connect() as database:
        database.register("frame", frame)
        database.execute(f"copy (select * from frame) to '{folder / name}'{options}")


def write_duckdb_parquet(folder: Path) -> None:
    write_duckdb(folder, "in.parquet")


def write_duckdb_jsonl(folder: Path) -> None:
    write_duckdb(folder, "in.jsonl", " (format json)")


WRITERS: list[Callable[[Path], None]] = [
    write_pandas,
    write_pandas_with_index,
    write_pandas_for_excel,
    write_pandas_jsonl,
    write_polars_csv,
    write_polars_tsv,
    write_polars_jsonl,
    write_polars_parquet,
    write_polars_excel,
    write_openpyxl,
    write_duckdb,
    write_duckdb_parquet,
    write_duckdb_jsonl,
]


def read_back(out: Path, delimiter: str) -> list[list[dict[str, Any]]]:
    """Return the rows of an output as pandas, polars and DuckDB read it."""
    with duckdb.connect() as database:
        if out.suffix == ".csv":
            by_pandas = pd.read_csv(out, sep=delimiter, dtype={"text": str}, keep_default_na=False)
            by_polars = pl.read_csv(out, separator=delimiter, schema_overrides={"text": pl.String})
            by_duckdb = database.sql(f"from read_csv('{out}', types={{'text': 'VARCHAR'}})")
        elif out.suffix == ".jsonl":
            by_pandas, by_polars = pd.read_json(out, lines=True, dtype=False), pl.read_ndjson(out)
            by_duckdb = database.sql(f"from '{out}'")
        else:
            by_polars = by_pandas = pl.read_parquet(out)
            by_duckdb = database.sql(f"from '{out}'")
        names = by_duckdb.columns
        duckdb_rows = [dict(zip(names, row, strict=True)) for row in by_duckdb.fetchall()]
    pandas_rows = by_pandas.to_dict("records") if isinstance(by_pandas, pd.DataFrame) else by_pandas.to_dicts()
    return [pandas_rows, by_polars.to_dicts(), duckdb_rows]


@pytest.mark.parametrize("out", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("write", WRITERS)
def test_tables_of_other_programs(tmp_path, write, out):
    write(tmp_path)
    (source,) = tmp_path.iterdir()
    out = tmp_path / f"out{out}"
    answers = lambda text: {**ANSWER, "amount": None} if text.startswith("two") else ANSWER  # noqa: E731
    run = Run(source, out, answers, prompt="{text} {id}", schema=SCHEMA)
    assert run.prompts == [f"{text} {number}" for number, text in enumerate(TEXTS)]
    assert run.written.failed == 0
    for rows in read_back(out, (run.table.delimiter if source.suffix == ".csv" else None) or ","):
        assert [row["text"] for row in rows] == TEXTS
        assert {row["label"] for row in rows} == {"billing"}
        assert [row["amount"] in ("", None) or pd.isna(row["amount"]) for row in rows] == [
            text == "two\nlines" for text in TEXTS
        ]
        assert [float(row["amount"]) for row in rows if row["text"] != "two\nlines"] == [2.5] * 8
        assert [str(row["due"])[:10] for row in rows] == ["2024-01-02"] * 9
        assert all(row["tags"] in ('["x","y, z"]', ["x", "y, z"]) for row in rows)
        assert all(float(row["price"]) == 1.5 and row["n"] == 7 for row in rows)
    if source.suffix == out.suffix == ".csv":
        before, after = source.read_bytes(), out.read_bytes()
        records = re.split(rb"(?<=\n)(?=\d)", before), re.split(rb"(?<=\n)(?=\d)", after)
        assert all(new.startswith(old.rstrip(b"\r\n")) for old, new in zip(*records, strict=True))


def test_parquet_keeps_the_types_of_its_columns(tmp_path):
    frame = pl.DataFrame(
        {
            "text": ["a", None],
            "price": [Decimal("1.50"), None],
            "at": [dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=dt.UTC), None],
            "took": [dt.timedelta(seconds=90), None],
            "kind": pl.Series(["x", "y"], dtype=pl.Categorical),
            "raw": [b"\xff\x00", None],
            "small": pl.Series([1, 2], dtype=pl.UInt8),
            "nested": [{"a": [1, 2], "b": {"c": "d"}}, None],
            "vector": pl.Series([[0.5], [1.0]], dtype=pl.Array(pl.Float32, 1)),
        }
    )
    frame.write_parquet(tmp_path / "in.parquet")
    run = Run(
        tmp_path / "in.parquet",
        tmp_path / "out.parquet",
        prompt="{text} {price} {at} {nested} {kind}",
        schema=SCHEMA,
        answer=lambda _: ANSWER,
    )
    assert run.prompts == ['a 1.50 2024-01-02 03:04:05+00:00 {"a":[1,2],"b":{"c":"d"}} x', "    y"]
    out = pl.read_parquet(tmp_path / "out.parquet")
    assert out.select(frame.columns).equals(frame)
    assert dict(out.select(frame.columns).schema) == dict(frame.schema)
    assert dict(out.select(pl.exclude(frame.columns)).schema) == {
        "label": pl.String,
        "amount": pl.Float64,
        "tags": pl.List(pl.String),
        "due": pl.Date,
        "n": pl.Int64,
        "ok": pl.Boolean,
        "error": pl.String,
    }
    Run(tmp_path / "in.parquet", tmp_path / "out.jsonl", prompt="{text} {kind}")
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert (first["price"], first["at"], first["nested"]) == (
        1.5,
        "2024-01-02T03:04:05Z",
        {"a": [1, 2], "b": {"c": "d"}},
    )
    Run(tmp_path / "in.parquet", tmp_path / "out.csv", prompt="{text} {kind}")
    assert (tmp_path / "out.csv").read_text().splitlines()[2] == ",,,,y,,2,,[1.0],Y,"


def test_vectors_are_small_floats(tmp_path):
    pl.DataFrame({"text": ["a", "b"]}).write_parquet(tmp_path / "in.parquet")
    Run(tmp_path / "in.parquet", tmp_path / "out.parquet", lambda _: [0.1, -2.0], embed="{text}", column="vector")
    out = pl.read_parquet(tmp_path / "out.parquet")
    assert out.schema["vector"] == pl.List(pl.Float32)
    found = duckdb.execute(f"select vector[2] from '{tmp_path}/out.parquet'")
    assert found.fetchall() == [(-2.0,), (-2.0,)]


def test_nested_answers_become_structs(tmp_path):
    pl.DataFrame({"text": ["a"]}).write_parquet(tmp_path / "in.parquet")
    part = {"type": "object", "properties": {"name": {"type": "string"}, "price": {"type": "number"}}}
    schema = {"type": "object", "properties": {"parts": {"type": "array", "items": part}, "any": {}}}
    answer = {"parts": [{"name": "x", "price": 1}], "any": [1, "a"]}
    Run(tmp_path / "in.parquet", tmp_path / "out.parquet", lambda _: answer, schema=schema)
    row = pl.read_parquet(tmp_path / "out.parquet").to_dicts()[0]
    assert (row["parts"], row["any"]) == ([{"name": "x", "price": 1.0}], '[1,"a"]')


def excel(path: Path, rows: list[list[Any]], sheet: str = "Tickets") -> Path:
    with xlsxwriter.Workbook(path, {"default_date_format": "yyyy-mm-dd"}) as book:
        book.add_worksheet("First").write_row(0, 0, ["other"])
        page = book.add_worksheet(sheet)
        for number, row in enumerate(rows):
            page.write_row(number, 0, row)
    return path


def test_excel_cells_have_the_values_that_are_shown(tmp_path):
    path = excel(
        tmp_path / "in.xlsx",
        [
            [" text ", "when", "n", "mixed", None, "late"],
            ["a", dt.date(2024, 5, 6), 3, "007", "x", None],
            [None, None, 2.5, 8, None, None],
            *[["b", None, None, None, None, None]] * 200,
            ["c", None, 10**15, True, None, "text after 200 empty cells"],
            [None, None, None, " ", None, None],
        ],
    )
    table = open_table(path, sheet="Tickets")
    assert table.names == ("text", "when", "n", "mixed", "column_5", "late")
    rows = [row.values for row in table.rows()]
    assert len(rows) == 203
    assert (rows[0]["when"], rows[0]["n"], rows[0]["mixed"], rows[1]["mixed"]) == (dt.date(2024, 5, 6), 3, "007", "8")
    assert rows[-1]["late"] == "text after 200 empty cells"
    Run(path, tmp_path / "out.csv", reading={"sheet": "Tickets"})
    content = (tmp_path / "out.csv").read_bytes()
    assert content.startswith(
        "\ufefftext,when,n,mixed,column_5,late,answer,error\r\na,2024-05-06,3,007,x,,A,\r\n".encode()
    )


def test_the_first_sheet_is_read_and_a_wrong_name_is_an_error(tmp_path):
    path = excel(tmp_path / "in.xlsx", [["text"], ["a"]])
    assert open_table(path).names == ("other",)
    with pytest.raises(MappingError, match="no sheet 'Tikets'; it has First, Tickets"):
        open_table(path, sheet="Tikets")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.parquet", b"id,text\n1,a\n", "is no parquet file"),
        ("in.xlsx", b"id,text\n1,a\n", "is no xlsx file"),
        ("in.parquet", b"PAR1 and more", "cannot be read as Parquet"),
        ("in.xlsx", b"PK\x03\x04 and more", "cannot be read as an Excel file"),
        ("in.csv", b"PK\x03\x04 and more", "cannot be read as an Excel file"),
        ("in.json", b'[{"text": "a"}]\n', "`jq -c .[]` makes lines of an array"),
        ("in.jsonl", b'"text"\n', "has no JSON object in any line"),
    ],
)
def test_damaged_files_are_explained(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MappingError, match=re.escape(message)):
        open_table(tmp_path / name)


def test_the_content_decides_over_a_wrong_name(tmp_path):
    pl.DataFrame({"text": ["a"]}).write_parquet(tmp_path / "in.csv")
    assert open_table(tmp_path / "in.csv").format is TableFormat.PARQUET
    (tmp_path / "upload").write_bytes(b'{"text": "a"}\n')
    assert open_table(tmp_path / "upload").format is TableFormat.JSONL
    (tmp_path / "upload").write_bytes(b"id\ttext\n1\ta\n")
    assert open_table(tmp_path / "upload", name="x.TSV").format is TableFormat.TSV


def test_columns_of_json_lines_have_the_type_that_all_values_share(tmp_path):
    rows = [
        {"text": "a", "n": 1, "x": 1, "ok": True, "v": [0.5], "tags": ["a"], "mix": 1, "o": {"a": 1}, "big": 1 << 70},
        {"text": None, "n": 2, "x": 1.5, "v": [1, 2], "tags": [], "mix": "b", "big": 1},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    kinds = {column.name: str(column.type) for column in open_table(tmp_path / "in.jsonl").columns}
    assert kinds == {
        "text": "string",
        "n": "integer",
        "x": "number",
        "ok": "boolean",
        "v": "number[]",
        "tags": "string[]",
        "mix": Kind.JSON,
        "o": Kind.JSON,
        "big": Kind.JSON,
    }
    Run(tmp_path / "in.jsonl", tmp_path / "out.parquet", prompt="{n}")
    out = pl.read_parquet(tmp_path / "out.parquet").to_dicts()
    assert (out[0]["o"], out[0]["mix"], out[0]["v"], out[1]["x"], out[1]["ok"]) == ('{"a":1}', "1", [0.5], 1.5, None)


def test_a_parquet_file_that_is_damaged_inside_is_explained(tmp_path):
    pl.DataFrame({"text": [f"text {n}" for n in range(1000)]}).write_parquet(
        tmp_path / "in.parquet", compression="uncompressed"
    )
    content = bytearray((tmp_path / "in.parquet").read_bytes())
    content[4:400] = bytes(396)
    (tmp_path / "in.parquet").write_bytes(content)
    with pytest.raises(MappingError, match="in.parquet cannot be read as Parquet: "):
        list(open_table(tmp_path / "in.parquet").rows())


@pytest.mark.parametrize(
    ("missing", "name"), [("polars", "in.parquet"), ("polars", "in.xlsx"), ("fastexcel", "in.xlsx")]
)
def test_a_missing_extra_is_named(tmp_path, monkeypatch, missing, name):
    pl.DataFrame({"text": ["a"]}).write_parquet(tmp_path / "in.parquet")
    excel(tmp_path / "in.xlsx", [["text"]])
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MappingError, match=re.escape("pip install 'millrace[tables]'")):
        open_table(tmp_path / name)
    (tmp_path / "in.csv").write_text("text\na\n")
    assert Run(tmp_path / "in.csv", tmp_path / "out.jsonl").written.rows == 1
