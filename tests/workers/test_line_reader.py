from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.wire.batch import BatchLine
from core.wire.objects import BatchError
from workers.line_reader import LineParser, RawLine, read_lines

URL = "/v1/chat/completions"


def line(custom_id: object = "a", **change: object) -> bytes:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": URL, "body": {"model": "m"}} | change).encode()


def read(data: bytes, max_bytes: int = 1000) -> list[RawLine]:
    return list(read_lines(io.BytesIO(data), max_bytes))


def test_lines_are_numbered_as_an_editor_does_and_blank_ones_are_skipped() -> None:
    assert read(b"one\n\n  \r\nfour\r\nfive") == [RawLine(1, b"one"), RawLine(4, b"four"), RawLine(5, b"five")]


def test_a_byte_order_mark_may_start_the_file_and_nothing_else() -> None:
    assert read(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo") == [RawLine(1, b"one"), RawLine(2, b"\xef\xbb\xbftwo")]


def test_other_line_ends_may_stand_inside_a_line() -> None:
    text = "a\u2028b\x0bc\x85d\re".encode()
    assert read(text + b"\nx") == [RawLine(1, text), RawLine(2, b"x")]


def test_a_line_over_the_limit_is_skipped_and_the_next_one_is_read() -> None:
    assert read(b"x" * 1001 + b"\nnext", 1000) == [RawLine(1, None), RawLine(2, b"next")]
    assert read(b"x" * 1000 + b"\r\nnext", 1000) == [RawLine(1, b"x" * 1000), RawLine(2, b"next")]
    assert read(b"x" * 10**6, 1000) == [RawLine(1, None)]


@given(st.lists(st.binary(max_size=30).filter(lambda b: b"\n" not in b), max_size=12))
def test_no_line_is_lost_or_invented(lines: list[bytes]) -> None:
    found = {raw.number: raw.content for raw in read(b"\n".join(lines), 20)}
    for number, content in enumerate(lines, start=1):
        expected = content.removeprefix(b"\xef\xbb\xbf") if number == 1 else content
        expected = expected.removesuffix(b"\r")
        if len(expected) > 20:
            assert found[number] is None
        elif expected.strip():
            assert found[number] == expected
        else:
            assert number not in found


BAD = {
    "not JSON": (b"{", "invalid_json_line", None),
    "a list": (b"[]", "invalid_json_line", None),
    "a number": (b"5", "invalid_json_line", None),
    "no custom_id": (b'{"method": "POST", "url": "/", "body": {}}', "missing_required_parameter", "custom_id"),
    "an empty custom_id": (line(""), "invalid_value", "custom_id"),
    "a custom_id as number": (line(5), "invalid_type", "custom_id"),
    "a long custom_id": (line("x" * 513), "invalid_value", "custom_id"),
    "another method": (line(method="GET"), "invalid_value", "method"),
    "another url": (line(url="/v1/embeddings"), "url_mismatch", "url"),
    "a body as text": (line(body="hello"), "invalid_type", "body"),
    "a streamed line": (line(body={"stream": True}), "invalid_request", "body.stream"),
    "a NUL": (b'{"custom_id": "a\\u0000"}', "invalid_json_line", None),
    "bad UTF-8": (b'{"custom_id": "\xff"}', "invalid_json_line", None),
}


@pytest.mark.parametrize(("raw", "code", "param"), BAD.values(), ids=BAD.keys())
def test_a_bad_line_says_why_and_where(raw: bytes, code: str, param: str | None) -> None:
    error = LineParser(URL, 1000).parse(RawLine(7, raw))
    assert isinstance(error, BatchError)
    assert (error.code, error.param, error.line) == (code, param, 7)


def test_a_custom_id_may_not_repeat_and_the_first_line_is_named() -> None:
    parser = LineParser(URL, 1000)
    assert isinstance(parser.parse(RawLine(1, line("a"))), BatchLine)
    assert isinstance(parser.parse(RawLine(2, line("b"))), BatchLine)
    error = parser.parse(RawLine(9, line("a")))
    assert isinstance(error, BatchError)
    assert (error.code, error.line) == ("duplicate_custom_id", 9)
    assert "line 1" in error.message
