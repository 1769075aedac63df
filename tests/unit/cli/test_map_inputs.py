"""Options of `millrace map`, before a server is asked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cli.errors import CommandFailed, ExitCode
from cli.maps.inputs import delimiter_of, output_format, parameters, schema_of, usage_errors
from mapping.errors import MappingError
from mapping.formats.table import TableFormat
from tests.support.command import NO_SERVER, millrace


@pytest.mark.parametrize(
    ("output", "named", "source", "found"),
    [
        ("out.csv", None, TableFormat.JSONL, TableFormat.CSV),
        ("out.PARQUET", None, TableFormat.CSV, TableFormat.PARQUET),
        ("out.csv", "jsonl", TableFormat.CSV, TableFormat.JSONL),
        ("-", None, TableFormat.TSV, TableFormat.TSV),
        ("labels", None, TableFormat.XLSX, TableFormat.CSV),
    ],
)
def test_the_format_of_the_output_is_named_or_found(
    output: str, named: str | None, source: TableFormat, found: TableFormat
) -> None:
    assert output_format(Path(output), named, source) is found


@pytest.mark.parametrize(("output", "named"), [("out.xlsx", None), ("out.parqet", None), ("out.csv", "xml")])
def test_a_format_that_cannot_be_written_is_wrong_usage(output: str, named: str | None) -> None:
    with pytest.raises(CommandFailed) as caught, usage_errors():
        output_format(Path(output), named, TableFormat.CSV)
    assert caught.value.code is ExitCode.USAGE


def test_an_extra_that_the_output_needs_is_missed_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(CommandFailed, match=r"pip install 'millrace\[tables\]'"), usage_errors():
        output_format(Path("out.parquet"), None, TableFormat.CSV)


def test_a_schema_is_a_file_or_the_text_itself(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"type": "object"}')
    assert schema_of(str(file)) == '{"type": "object"}'
    for text in ("a: low|high", "a low|high", '{"type": "object"}', "a: string, " * 100):
        assert schema_of(text) == text
    with pytest.raises(CommandFailed, match=r"There is no file schema\.jsn"):
        schema_of("schema.jsn")


def test_parameters_are_json_or_text() -> None:
    pairs = ["top_p=0.9", "reasoning_effort=low", 'chat_template_kwargs={"enable_thinking": false}']
    assert parameters(pairs, 0.0, None) == {
        "temperature": 0.0,
        "top_p": 0.9,
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": False},
    }
    with pytest.raises(CommandFailed, match="NAME=VALUE"):
        parameters(["top_p"], None, None)


def test_a_delimiter_is_one_character() -> None:
    assert [delimiter_of(given) for given in (None, ";", "tab", "\\t")] == [None, ";", "\t", "\t"]
    with pytest.raises(CommandFailed):
        delimiter_of(";;")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("the table has a column 'a': choose another `column`", "The table has a column 'a': choose another --column."),
        ("'prompt': no column 'txt'; did you mean 'text'?", "--prompt: no column 'txt'; did you mean 'text'?"),
        ("in.csv is empty", "in.csv is empty."),
        ("the table has no column '\x1b[2J'", "The table has no column '�[2J'."),
    ],
)
def test_errors_of_a_mapping_name_options(message: str, shown: str) -> None:
    with pytest.raises(CommandFailed) as caught, usage_errors():
        raise MappingError(message)
    assert (str(caught.value), caught.value.code) == (shown, ExitCode.USAGE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("in.csv", "--prompt", "{text}"), "-o"),
        (("in.csv", "-o", "out.csv"), "--prompt"),
        (("in.csv", "-o", "out.csv", "--prompt", "{txet}"), "did you mean 'text'?"),
        (("in.csv", "-o", "out.csv", "--prompt", "{{ text|uper }}"), "No filter named 'uper'"),
        (("no.csv", "-o", "out.csv", "--prompt", "{text}"), "There is no file no.csv"),
        (("in.csv", "-o", "in.csv", "--prompt", "{text}"), "is the input file"),
    ],
)
def test_wrong_usage_is_found_before_a_server_is_asked(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    (tmp_path / "in.csv").write_text("id,text\n1,a\n")
    done = millrace("map", *arguments, cwd=tmp_path, OPENAI_BASE_URL=NO_SERVER)
    assert (done.returncode, words in done.stderr, done.stdout) == (2, True, ""), done.stderr
