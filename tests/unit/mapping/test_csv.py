"""CSV in and out, byte for byte."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mapping.errors import MappingError
from mapping.formats.opening import open_table
from tests.unit.mapping.conftest import Run

SCHEMA = "label: billing|other"


def labelled(folder: Path, content: bytes, name: str = "in.csv", **given: Any) -> bytes:
    """Map a file with a schema and return the output."""
    (folder / name).write_bytes(content)
    out = folder / f"out{Path(name).suffix}"
    Run(folder / name, out, lambda _: {"label": "billing"}, schema=SCHEMA, **given)
    return out.read_bytes()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"id,text\n1,a\n2,b\n", b"id,text,label,error\n1,a,billing,\n2,b,billing,\n", id="plain"),
        pytest.param(b"id,text\n1,a", b"id,text,label,error\n1,a,billing,", id="no line end at the end"),
        pytest.param(
            b'id;text\r\n1;"a;\r\nb ""c"""\r\n',
            b'id;text;label;error\r\n1;"a;\r\nb ""c""";billing;\r\n',
            id="Excel with line breaks in cells",
        ),
        pytest.param(
            "id,text\n1,ü €\n2,ü\n".encode("cp1252"),
            "id,text,label,error\n1,ü €,billing,\n2,ü,billing,\n".encode("cp1252"),
            id="cp1252",
        ),
        pytest.param(
            b"id,text\n1,\xe9\x81\n", b"id,text,label,error\n1,\xe9\x81,billing,\n", id="latin-1 with controls"
        ),
        pytest.param(
            "\ufeffid\ttext\n1\t漢\n".encode(),
            "\ufeffid\ttext\tlabel\terror\n1\t漢\tbilling\t\n".encode(),
            id="BOM and tabs",
        ),
        pytest.param(
            "\ufeffid,text\r\n1,漢😀\r\n".encode("utf-16-le"),
            "\ufeffid,text,label,error\r\n1,漢😀,billing,\r\n".encode("utf-16-le"),
            id="UTF-16",
        ),
        pytest.param(
            "\ufeffid,text\n1,漢\n".encode("utf-16-be"),
            "\ufeffid,text,label,error\n1,漢,billing,\n".encode("utf-16-be"),
            id="UTF-16 of the other order",
        ),
        pytest.param(
            "id,text\n1,a\n".encode("utf-16-le"),
            "id,text,label,error\n1,a,billing,\n".encode("utf-16-le"),
            id="UTF-16 without BOM",
        ),
        pytest.param(
            b"sep=;\r\nid;text\r\n1;x\r\n", b"sep=;\r\nid;text;label;error\r\n1;x;billing;\r\n", id="Excel's hint"
        ),
        pytest.param(b"id,text\r1,a\r2,b\r", b"id,text,label,error\r1,a,billing,\r2,b,billing,\r", id="old Mac"),
        pytest.param(
            b"id,text\r\n1,a\n2,b\r3,c\r\n",
            b"id,text,label,error\r\n1,a,billing,\n2,b,billing,\r3,c,billing,\r\n",
            id="mixed line ends",
        ),
        pytest.param(
            b"id,text\r\r\n1,a\r\r\n", b"id,text,label,error\r\r\n1,a,billing,\r\r\n", id="line ends converted twice"
        ),
        pytest.param(
            b"\n\nid,text\n\n1,a\n\n\n2,b\n\n",
            b"\n\nid,text,label,error\n\n1,a,billing,\n\n\n2,b,billing,\n\n",
            id="blank lines",
        ),
        pytest.param(
            b'"","text"\n"1","a"\n"2",NA\n',
            b'"","text","label","error"\n"1","a","billing",\n"2",NA,"billing",\n',
            id="write.csv of R",
        ),
        pytest.param(
            b'"id" "text"\n"1" 5 "a b"\n',
            b'"id" "text" "label" "error"\n"1" 5 "a b" "billing" \n',
            id="write.table of R",
        ),
        pytest.param(b"id\ttext\nr1\t5\ta\n", b"id\ttext\tlabel\terror\nr1\t5\ta\tbilling\t\n", id="R without quotes"),
        pytest.param(b",text\n0,a\n1,b\n", b",text,label,error\n0,a,billing,\n1,b,billing,\n", id="index of pandas"),
        pytest.param(b"id|text\n1|a,b;c\n", b"id|text|label|error\n1|a,b;c|billing|\n", id="pipes"),
        pytest.param(
            b"id;text\n1,5;2,5\n3,5;4,5\n",
            b"id;text;label;error\n1,5;2,5;billing;\n3,5;4,5;billing;\n",
            id="decimal commas",
        ),
        pytest.param(
            b'id, text\n1, "a, b"\n', b'id, text,label,error\n1, "a, b",billing,\n', id="spaces after delimiters"
        ),
        pytest.param(b"text\na\nb\n", b"text,label,error\na,billing,\nb,billing,\n", id="one column"),
        pytest.param(
            b"text\nHello, world\nHi\n", b"text;label;error\nHello, world;billing;\nHi;billing;\n", id="lines of text"
        ),
        pytest.param(b'"text"\n"a" 1\n', b'"text","label","error"\n"a" 1,"billing",\n', id="one quoted column"),
        pytest.param(
            b"id,text,\n1,a,\n2,b,\n",
            b"id,text,,label,error\n1,a,,billing,\n2,b,,billing,\n",
            id="delimiters at all ends",
        ),
        pytest.param(
            b"id,text\n1,a,\n2,b,\n",
            b"id,text,,label,error\n1,a,,billing,\n2,b,,billing,\n",
            id="delimiters at row ends",
        ),
        pytest.param(b"text,id,x\na\nb,1\n", b"text,id,x,label,error\na,,,billing,\nb,1,,billing,\n", id="short rows"),
        pytest.param(b"text,text\na,b\n", b"text,text,label,error\na,b,billing,\n", id="a name twice"),
        pytest.param(
            b'text,id\nhe said "hi",1\n"a "b" c",2\n',
            b'text,id,label,error\nhe said "hi",1,billing,\n"a "b" c",2,billing,\n',
            id="quotes inside",
        ),
        pytest.param(b"id,text\n1,=1+1\n", b"id,text,label,error\n1,=1+1,billing,\n", id="formulas of the table"),
        pytest.param(b"id,text\n", b"id,text,label,error\n", id="no rows"),
        pytest.param(b"id,text", b"id,text,label,error", id="only a header"),
    ],
)
def test_every_byte_is_kept(tmp_path, content, expected):
    assert labelled(tmp_path, content) == expected


def test_rows_with_surplus_fields_are_failed_rows(tmp_path):
    content = b"id,text\n1,a\n2,b,c,d\n3,e\n"
    problem = b'"line 3 has 4 fields, but the header 2"'
    assert labelled(tmp_path, content) == (
        b"id,text,label,error\n1,a,billing,\n2,b,c,d,," + problem + b"\n3,e,billing,\n"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(
            b'id,text\n1,"a\n2,b\n3,"c"\n4,d\n',
            b'id,text,label,error\n1,"a",,line 2 has a quote that is not closed\n2,b,billing,\n3,"c",billing,\n4,d,billing,\n',
            id="closed by a later one",
        ),
        pytest.param(
            b'text,id\n"a,1\nb,2\nc,3',
            b'text,id,label,error\n"a,1",,,line 2 has a quote that is not closed\nb,2,billing,\nc,3,billing,',
            id="never closed",
        ),
    ],
)
def test_a_quote_that_is_not_closed_takes_only_its_row(tmp_path, content, expected):
    result = labelled(tmp_path, content)
    assert result == expected
    rows = list(csv.reader(io.StringIO(result.decode()), strict=True))
    assert {len(row) for row in rows} == {4}


def test_many_damaged_rows_take_no_longer_than_others(tmp_path):
    (tmp_path / "in.csv").write_text("id,text\n" + '1,"a" b\n2,"c\n3,d\n' * 15000)
    start = time.process_time()
    rows = list(open_table(tmp_path / "in.csv").rows())
    assert (len(rows), sum(row.problem is not None for row in rows)) == (45000, 15000)
    assert time.process_time() - start < 2


def test_one_row_in_another_encoding_is_a_failed_row(tmp_path):
    content = "id,text\n1,ü漢ü漢\n".encode() + b"2,\xfc\n3,x\n"
    lines = labelled(tmp_path, content).splitlines()
    assert lines[1] == "1,ü漢ü漢,billing,".encode()
    assert lines[2] == b"2,\xfc,,a cell has bytes that are no text in the encoding of the file"
    assert lines[3] == b"3,x,billing,"


def test_a_zero_character_is_a_failed_row(tmp_path):
    assert b'2,a\0b,,"a cell has the character U+0000' in labelled(tmp_path, b"id,text\n1,a\n2,a\0b\n3,c\n")


def test_a_field_may_be_huge(tmp_path):
    result = labelled(tmp_path, b"id,text\n1," + b"x" * 1_000_000 + b"\n2,y\n")
    assert result.endswith(b"x,billing,\n2,y,billing,\n")


def test_a_field_without_end_is_a_failed_row(tmp_path, monkeypatch):
    old = csv.field_size_limit(1000)
    try:
        result = labelled(tmp_path, b'id,text\n1,"' + b"x\n" * 2000 + b"2,y\n")
    finally:
        csv.field_size_limit(old)
    assert b"line 2 has a quote that is not closed" in result
    assert result.endswith(b"2,y,billing,\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "in.csv is empty"),
        (b"\xef\xbb\xbf\r\n", "in.csv is empty"),
        (b"\n \n", "in.csv is empty"),
        (b"Report of May\nmade by x\nid,text,more\n" + b"1,2,3\n" * 5, None),
        (b"Report\n" + b"id,text,more\n" * 5, "delete lines above the header"),
        (b"\x89PNG\r\n", "is an image"),
        (b"\x1f\x8b\x08\x00abc", "is compressed"),
        (b"%PDF-1.7", "is a PDF"),
        (b"<html><table>", "is HTML"),
    ],
)
def test_files_that_are_no_table_are_explained(tmp_path, content, message):
    (tmp_path / "in.csv").write_bytes(content)
    if message is None:
        assert open_table(tmp_path / "in.csv").names == ("Report of May",)
        return
    with pytest.raises(MappingError, match=message):
        open_table(tmp_path / "in.csv")


def test_encoding_and_delimiter_can_be_given(tmp_path):
    content = "id:text\n1:日本\n".encode("shift_jis")
    reading = {"encoding": "shift_jis", "delimiter": ":"}
    assert labelled(tmp_path, content, reading=reading) == "id:text:label:error\n1:日本:billing:\n".encode("shift_jis")


@pytest.mark.parametrize(
    ("name", "value"),
    [("encoding", "utf-9"), ("encoding", "cp037"), ("encoding", "base64"), ("delimiter", ";;"), ("delimiter", '"')],
)
def test_a_wrong_encoding_or_delimiter_is_named(tmp_path, name, value):
    (tmp_path / "in.csv").write_bytes(b"id,text\n1,a\n")
    options: dict[str, Any] = {name: value}
    with pytest.raises(MappingError) as raised:
        open_table(tmp_path / "in.csv", **options)
    assert raised.value.param == name


def test_names_are_made_for_columns_without_one(tmp_path):
    (tmp_path / "in.csv").write_bytes(b" id ,,text,text,\n1,2,3,4,5\n")
    assert open_table(tmp_path / "in.csv").names == ("id", "column_2", "text", "text_2", "column_5")


def test_answers_that_the_encoding_lacks_are_escaped_and_counted(tmp_path):
    (tmp_path / "in.csv").write_bytes("id,text\n1,é\n2,b\n".encode("cp1252"))
    run = Run(tmp_path / "in.csv", tmp_path / "out.csv", lambda text: "漢😀" if text == "é" else "ok é")
    assert (tmp_path / "out.csv").read_bytes() == b"id,text,answer,error\n1,\xe9,\\u6f22\\U0001f600,\n2,b,ok \xe9,\n"
    assert run.written.escaped == 1


@pytest.mark.parametrize(
    ("answer", "cell"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1+cmd|x", "'+1+cmd|x"),
        ("-2+3", "'-2+3"),
        ("@SUM(1)", "'@SUM(1)"),
        ("- a list", "'- a list"),
        ("-5", "-5"),
        ("+1,000.50%", '"+1,000.50%"'),
        ("-", "-"),
        ("a=b", "a=b"),
    ],
)
def test_answers_that_excel_would_run_get_a_quote(tmp_path, answer, cell):
    (tmp_path / "in.csv").write_bytes(b"text\nx\n")
    Run(tmp_path / "in.csv", tmp_path / "out.csv", lambda _: answer)
    assert (tmp_path / "out.csv").read_text() == f"text,answer,error\nx,{cell},\n"
    Run(tmp_path / "in.csv", tmp_path / "out.csv", lambda _: answer, escape_formulas=False)
    assert cell.replace("'", "") in (tmp_path / "out.csv").read_text()


def test_answers_that_are_choices_stay_as_they_are(tmp_path):
    (tmp_path / "in.csv").write_bytes(b"text\nx\n")
    Run(tmp_path / "in.csv", tmp_path / "out.csv", lambda _: {"sign": "+-"}, schema="sign: +-|-+")
    assert (tmp_path / "out.csv").read_text() == "text,sign,error\nx,+-,\n"


ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"])
CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.sampled_from(
    ["", '"', '""', ",", ";", "\n", "\r\n", "\r", "'", " a ", "a\tb", "=1", "é", "sep=;", "#", "\\"]
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=6),
    delimiter=st.sampled_from(",;\t|"),
    quotes_all=st.booleans(),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=ENCODINGS,
    has_last_line_end=st.booleans(),
)
def test_any_table_keeps_its_bytes(tmp_path, rows, delimiter, quotes_all, line_end, encoding, has_last_line_end):
    encodable = [tuple(cell.encode(encoding, "replace").decode(encoding) for cell in row) for row in rows]
    rows = [("id", "text", "more"), *encodable]
    ends = [line_end] * (len(rows) - 1) + [line_end if has_last_line_end else ""]
    before, after = "", ""
    for index, (row, end) in enumerate(zip(rows, ends, strict=True)):
        record = quoted(row, delimiter, quotes_all)
        added = ["label", "error"] if index == 0 else ["billing" if row[1].strip() else "", ""]
        if quotes_all:
            added = [f'"{cell}"' if cell else "" for cell in added]
        before += record + end
        after += delimiter.join([record, *added]) + end
    result = labelled(tmp_path, before.encode(encoding), reading={"delimiter": delimiter, "encoding": encoding})
    assert result == after.encode(encoding)


def quoted(row: tuple[str, ...], delimiter: str, quotes_all: bool) -> str:
    """Return a record of RFC 4180: Python's own writer leaves line ends of another kind without quotes."""
    special = set('"\r\n') | {delimiter}
    return delimiter.join('"' + c.replace('"', '""') + '"' if quotes_all or special & set(c) else c for c in row)
