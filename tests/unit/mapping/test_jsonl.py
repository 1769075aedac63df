"""JSON Lines in and out."""

from __future__ import annotations

import json
import re

import pytest

from mapping.errors import MappingError
from mapping.formats.opening import open_table
from tests.unit.mapping.conftest import Run


def test_objects_keep_their_text(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "a" , "n":1.0}\r\n\n{"text":"b","x":{}} \n[1]\n{"text":null}')
    run = Run(tmp_path / "in.jsonl", tmp_path / "out.jsonl", column="label")
    assert (tmp_path / "out.jsonl").read_bytes().splitlines() == [
        b'{"text": "a" , "n":1.0,"label":"A","error":null}',
        b"",
        b'{"text":"b","x":{},"label":"B","error":null} ',
        b'{"_raw":"[1]","label":null,"error":"line 4 is no JSON object"}',
        b'{"text":null,"label":null,"error":null}',
    ]
    assert (run.planned.asked, run.planned.failed, run.planned.left_out, run.written.failed) == (2, 1, 1, 1)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "cp1252"])
def test_the_encoding_is_kept(tmp_path, encoding):
    (tmp_path / "in.jsonl").write_bytes('{"text":"é}"}\r\n{}\n'.encode(encoding))
    Run(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (
        '{"text":"é}","answer":"É}","error":null}\r\n{"answer":null,"error":null}\n'.encode(encoding)
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": NaN}', "NaN is not JSON, use null (column 10)"),
        (b'{"text": "\\ud83d"}', "half of a surrogate pair"),
        (b'{"text": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deeply"),
        (b'{"text": "a"', "it ends while parsing an object"),
        (b"{'text': 'a'}", "a single quote"),
        (b'{"text": "a"} {"text": "b"}', "a second value follows"),
    ],
)
def test_a_line_that_is_no_object_is_an_error_of_its_row(tmp_path, line, reason):
    (tmp_path / "in.jsonl").write_bytes(b'{"text":"x"}\n' + line + b'\n{"text":"y"}\n')
    Run(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    first, second, third = map(json.loads, (tmp_path / "out.jsonl").read_bytes().splitlines())
    assert (first["answer"], third["answer"]) == ("X", "Y")
    assert second["_raw"] == line.decode()
    assert second["error"].startswith("line 2 is no JSON object: ")
    assert reason in second["error"]


@pytest.mark.parametrize("content", [b'[{"text":"a"}]', b'[\n{"text":"a"},\n{"text":"b"}\n]\n'])
def test_an_array_is_refused_with_the_way_out(tmp_path, content):
    (tmp_path / "in.json").write_bytes(content)
    with pytest.raises(MappingError, match=re.escape("`jq -c .[]` makes lines of an array")):
        open_table(tmp_path / "in.json")


@pytest.mark.parametrize("out", ["out.csv", "out.jsonl", "out.parquet"])
def test_a_key_may_be_empty_or_differ_in_each_row(tmp_path, out):
    (tmp_path / "in.jsonl").write_text(
        '{"": 1, "text": "a"}\n{"text": "b", "more": [1, "x"]}\n{"text": "c", "": null}\n'
    )
    run = Run(tmp_path / "in.jsonl", tmp_path / out)
    assert run.table.names == ("", "text", "more")
    assert (run.prompts, run.written.failed) == (["a", "b", "c"], 0)
