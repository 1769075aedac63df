"""Files that are something else than JSON Lines: recognised once, by their first bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile

import pytest

from workers.batches.file_kind import check_kind

LINE = json.dumps(
    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": []}}
)


def zipped(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, LINE)
    return stream.getvalue()


OTHERS = {
    "utf-16": (LINE.encode("utf-16"), "UTF-16"),
    "utf-16-le": (LINE.encode("utf-16-le"), "UTF-16LE"),
    "utf-16-be": (LINE.encode("utf-16-be"), "UTF-16BE"),
    "utf-16-be with a bom": (("\ufeff" + LINE).encode("utf-16-be"), "UTF-16"),
    "utf-16 with white space": (("\r\n " + LINE).encode("utf-16-le"), "UTF-16LE"),
    "utf-32": (LINE.encode("utf-32"), "UTF-32"),
    "utf-32-le": (LINE.encode("utf-32-le"), "UTF-32LE"),
    "utf-32-be": (LINE.encode("utf-32-be"), "UTF-32BE"),
    "gzip": (gzip.compress(LINE.encode()), "gzip"),
    "bzip2": (bz2.compress(LINE.encode()), "bzip2"),
    "xz": (lzma.compress(LINE.encode()), "xz"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(range(60)), "zstd"),
    "zip": (zipped("in.jsonl"), "zip archive"),
    "xlsx": (zipped("xl/workbook.xml"), "Excel"),
    "parquet": (b"PAR1\x15\x04\x15", "Parquet"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "PDF"),
    "sqlite": (b"SQLite format 3\0" + bytes(80), "SQLite"),
    "pickle": (b"\x80\x04\x95\x10\0\0\0", "binary"),
    "zeros": (bytes(5000), "binary"),
    "csv": (b"custom_id,method,url,body\na,POST,/v1/chat/completions,{}\n", "CSV"),
    "csv with a bom": (b"\xef\xbb\xbfid;prompt\n1;hello\n", "CSV"),
    "csv with quotes": (b'"id","prompt"\n"1","hello, you"\n', "CSV"),
    "tsv": (b"id\tprompt\n1\thello\n", "tab-separated"),
    "html": (b"<!DOCTYPE html><title>404</title>\n", "HTML"),
    "xml": (b"<?xml version='1.0'?><a/>\n", "XML"),
    "yaml": (b"- custom_id: a\n  method: POST\n", "YAML"),
    "markdown": (b"```json\n{}\n```\n", "Markdown"),
    "a log": (b"[2026-11-29 10:00] begin\n[2026-11-29 10:01] end\n", "text"),
    "text": (b"Dear server,\nplease summarise\nthe following\n", "text"),
    "one array": (f"[{LINE}, {LINE}]".encode(), "array"),
    "array by lines": (f"[\n{LINE},\n{LINE}\n]".encode(), "array"),
    "pretty-printed array": (json.dumps([json.loads(LINE)], indent=2).encode(), "array"),
    "pretty-printed": (json.dumps(json.loads(LINE), indent=4).encode() * 2, "several lines"),
    "half pretty-printed": (LINE.replace('"body": ', '\n"body": ').encode(), "several lines"),
    "python": (str(json.loads(LINE)).encode(), "Python"),
    "carriage returns": (f"{LINE}\r{LINE}\r".encode(), "carriage returns"),
}


@pytest.mark.parametrize(("content", "name"), OTHERS.values(), ids=OTHERS.keys())
def test_a_file_of_another_kind_gets_one_message_that_names_it(content: bytes, name: str) -> None:
    stream = io.BytesIO(content)
    error = check_kind(stream)
    assert error is not None
    assert (error.code, error.line) == ("invalid_file_format", None)
    assert name in error.message
    assert error.message.count(". ") >= 1, "it says what to do"
    assert stream.tell() == 0


JSON_LINES = {
    "a line": LINE.encode(),
    "a bom": b"\xef\xbb\xbf" + LINE.encode(),
    "crlf": f"\r\n{LINE}\r\n{LINE}\r\n".encode(),
    "nothing": b"",
    "blank lines": b"\n \n",
    "a long first line": LINE.replace("[]", json.dumps(["x" * 9000])).encode(),
    "one list among the lines": f"[1]\n{LINE}\n".encode(),
    "a wrong first line": f"oops\n{LINE}\n".encode(),
    "a half first line": f"{LINE[:40]}\n{LINE}\n".encode(),
    "lines that end with a comma": f"{LINE},\n{LINE},\n".encode(),
    "a NUL in a line": LINE.replace("[]", '"\0"').encode(),
    "one wrong line": b"hello, world",
    "one list": b"[1]",
    "a second bom": b"\xef\xbb\xbf\xef\xbb\xbf" + f"{LINE}\n{LINE}\n".encode(),
}


@pytest.mark.parametrize("content", JSON_LINES.values(), ids=JSON_LINES.keys())
def test_json_lines_are_never_taken_for_something_else(content: bytes) -> None:
    assert check_kind(io.BytesIO(content)) is None
