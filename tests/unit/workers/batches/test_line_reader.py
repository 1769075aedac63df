"""Lines of a batch file: numbers, limits, and the errors of bad ones."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.schemas.batch import BatchLine, read_checked_line
from core.schemas.objects import BatchError
from workers.batches.line_reader import LineParser, LineSpan, RawLine, UnreadableLine, read_lines, read_span

URL = "/v1/chat/completions"


def line(custom_id: object = "a", **change: object) -> bytes:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": URL, "body": {"model": "m"}} | change).encode()


def read(data: bytes, max_bytes: int = 1000) -> list[tuple[int, bytes | None]]:
    """Numbers and contents, None for a line over the limit; each content is also read again by its span."""
    stream = io.BytesIO(data)
    found = list(read_lines(stream, max_bytes))
    for raw in found:
        assert raw.cut_end is not None or read_span(stream, raw.span) == raw.content
    return [(raw.number, raw.content if raw.cut_end is None else None) for raw in found]


def raw_line(number: int, content: bytes) -> RawLine:
    return RawLine(LineSpan(number, 0, len(content)), content)


def test_lines_are_numbered_as_an_editor_does_and_blank_ones_are_skipped() -> None:
    assert read(b"one\n\n  \r\nfour\r\nfive") == [(1, b"one"), (4, b"four"), (5, b"five")]


def test_a_byte_order_mark_may_start_the_file_and_nothing_else() -> None:
    assert read(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo") == [(1, b"one"), (2, b"\xef\xbb\xbftwo")]


def test_other_line_ends_may_stand_inside_a_line() -> None:
    text = "a\u2028b\x0bc\x85d\re".encode()
    assert read(text + b"\nx") == [(1, text), (2, b"x")]


def test_a_line_over_the_limit_is_skipped_and_the_next_one_is_read() -> None:
    assert read(b"x" * 1001 + b"\nnext", 1000) == [(1, None), (2, b"next")]
    assert read(b"x" * 1000 + b"\r\nnext", 1000) == [(1, b"x" * 1000), (2, b"next")]
    assert read(b"x" * 10**6, 1000) == [(1, None)]


@given(st.lists(st.binary(max_size=30).filter(lambda b: b"\n" not in b), max_size=12))
def test_no_line_is_lost_or_invented(lines: list[bytes]) -> None:
    found = dict(read(b"\n".join(lines), 20))
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
def test_a_bad_line_has_a_code_a_parameter_and_its_number(raw: bytes, code: str, param: str | None) -> None:
    error = LineParser(URL, 1000).parse(raw_line(7, raw))
    assert isinstance(error, BatchError)
    assert (error.code, error.param, error.line) == (code, param, 7)


def test_a_custom_id_may_not_repeat_and_the_first_line_is_named() -> None:
    parser = LineParser(URL, 1000)
    assert isinstance(parser.parse(raw_line(1, line("a"))), BatchLine)
    assert isinstance(parser.parse(raw_line(2, line("b"))), BatchLine)
    error = parser.parse(raw_line(9, line("a")))
    assert isinstance(error, BatchError)
    assert (error.code, error.line) == ("duplicate_custom_id", 9)
    assert "line 1" in error.message


KEYS = st.sampled_from(["custom_id", "custom\\u005fid", "method", "url", "body", "b\\u006fdy", "extra"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.tuples(KEYS, VALUES, st.booleans()), max_size=6), st.sampled_from(["", " ", "\t"]))
def test_a_line_that_is_split_again_is_the_line_that_was_checked(
    pairs: list[tuple[str, object, bool]], space: str
) -> None:
    """Keys may repeat and be escaped: both parsers must take the same one."""
    good = [("custom_id", "a", True), ("method", "POST", True), ("url", URL, True), ("body", {"x": "é"}, False)]
    fields = [
        f'{space}"{key}"{space}:{space}{json.dumps(value, ensure_ascii=is_escaped)}'
        for key, value, is_escaped in [*pairs, *good]
    ]
    content = ("{" + f"{space},".join(fields) + "}" + space).encode(errors="replace")
    checked = LineParser(URL, 100_000).parse(raw_line(1, content))
    if isinstance(checked, BatchLine):
        again = read_checked_line(content)
        assert again.custom_id == checked.custom_id
        assert json.loads(again.body) == checked.body


def written(body: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    return b'{"custom_id": "a", "method": "POST",%b "url": "%b", "body": %b%b}' % (before, URL.encode(), body, after)


UNREADABLE = {
    "a lone surrogate": (rb'{"a": "cut \ud83d"}', "surrogate"),
    "a trailing surrogate": (rb'{"a": "\ude00"}', "surrogate"),
    "an escaped NUL": (rb'{"a": "\u0000"}', "U+0000"),
    "a raw NUL": (b'{"a": "\0"}', "control character"),
    "bad UTF-8": (b'{"a": "\xff"}', "not UTF-8"),
    "deep lists": (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deeply"),
    "NaN": (b'{"a": [1, NaN]}', "NaN is not JSON"),
    "-Infinity": (b'{"a": -Infinity}', "Infinity is not JSON"),
    "None": (b'{"a": None}', "None is Python"),
    "True": (b'{"a": True}', "True is Python"),
    "undefined": (b'{"a": undefined}', "undefined is JavaScript"),
    "a trailing comma": (b'{"a": 1,}', "trailing comma"),
    "single quotes": (b"{'a': 1}", "single quote"),
    "typographic quotes": ("{“a”: 1}".encode(), "typographic quote"),
    "a no-break space": ("{\u00a0}".encode(), "no-break space"),
    "a comment": (b'{"a": 1 /* one */}', "no comments"),
    "an integer of 65 bits": (b'{"a": 18446744073709551616}', "64 bits"),
    "1e400": (b'{"a": 1e400}', "too large"),
    "brackets in strings": (rb'{"a": "\"}]{[", "b": NaN}', "NaN is not JSON"),
}


@pytest.mark.parametrize(("body", "reason"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_line_whose_envelope_can_be_read_fails_alone_with_the_true_reason(body: bytes, reason: str) -> None:
    parser = LineParser(URL, 100_000)
    failed = parser.parse(raw_line(57, written(body)))
    assert isinstance(failed, UnreadableLine)
    assert (failed.custom_id, failed.problem.status, failed.problem.code) == ("a", 400, "invalid_json")
    assert failed.problem.message.startswith("The body of line 57 cannot be read: ")
    assert reason in failed.problem.message
    assert "line 1" not in failed.problem.message
    repeated = parser.parse(raw_line(58, line("a")))
    assert isinstance(repeated, BatchError)
    assert repeated.code == "duplicate_custom_id"


def test_keys_may_stand_in_any_order_and_the_last_of_equal_keys_counts() -> None:
    sorted_keys = b'{"body": {"a": NaN}, "custom_id": "a", "method": "POST", "url": "%b"}' % URL.encode()
    repeated = written(b'{"a": 1}', after=b', "custom_id": "b", "body": {"a": None}')
    for content, name in ((sorted_keys, "a"), (repeated, "b")):
        failed = LineParser(URL, 1000).parse(raw_line(1, content))
        assert isinstance(failed, UnreadableLine)
        assert failed.custom_id == name


WRONG_ENVELOPES = {
    "cut": (written(b"{}")[:-1], "invalid_json_line", "ends"),
    "cut in the body": (written(b'{"a": [NaN')[:-1], "invalid_json_line", "NaN is not JSON"),
    "a comma behind the line": (written(b"{}") + b",", "invalid_json_line", "comma follows"),
    "two lines in one": (written(b"{}") * 2, "invalid_json_line", "second value"),
    "a trailing comma": (written(b"{}", after=b","), "invalid_json_line", "trailing comma"),
    "a BOM": (b"\xef\xbb\xbf" + written(b"{}"), "invalid_json_line", "byte order mark"),
    "NaN beside the body": (written(b"{}", before=b' "n": NaN,'), "invalid_json_line", "NaN is not JSON"),
    "another url": (written(b'{"a": NaN}').replace(b"chat/", b""), "url_mismatch", URL),
    "no custom_id": (written(b'{"a": NaN}').replace(b"custom_id", b"id"), "missing_required_parameter", "custom_id"),
    "no object": (written(b"[NaN]"), "invalid_json_line", "NaN is not JSON"),
}


@pytest.mark.parametrize(("content", "code", "reason"), WRONG_ENVELOPES.values(), ids=WRONG_ENVELOPES.keys())
def test_a_wrong_envelope_fails_the_file_and_names_line_and_reason(content: bytes, code: str, reason: str) -> None:
    error = LineParser(URL, 1000).parse(raw_line(57, content))
    assert isinstance(error, BatchError)
    assert (error.code, error.line) == (code, 57)
    assert reason in error.message
    assert "line 1" not in error.message


@pytest.mark.parametrize("order", ["custom_id first", "body first", "both"])
def test_a_line_over_the_limit_fails_alone_if_its_custom_id_can_be_read(order: str) -> None:
    content = {
        "custom_id first": written(b'{"a": "%b"}' % (b"x" * 9000)),
        "body first": b'{"body": {"a": "%b"}, "custom_id": "a", "method": "POST", "url": "%b"}'
        % (b"x" * 9000, URL.encode()),
        "both": b'{"custom_id": "a", "body": {"a": "%b"}, "method": "POST", "url": "%b"}' % (b"x" * 9000, URL.encode()),
    }[order]
    (raw, last) = read_lines(io.BytesIO(content + b"\n" + line("b")), 1000)
    failed = LineParser(URL, 1000).parse(raw)
    assert isinstance(failed, UnreadableLine)
    assert (failed.custom_id, failed.problem.status, failed.problem.code) == ("a", 413, "line_too_long")
    assert "1000" in failed.problem.message
    assert last.content == line("b")


def test_a_line_over_the_limit_without_a_readable_custom_id_fails_the_file() -> None:
    hidden = b'{"body": {"metadata": {"custom_id": "no"}, "a": "%b", "custom_id": "no"}}' % (b"x" * 9000)
    for content in (b"x" * 9000, b'{"custom_id": "%b"}' % (b"x" * 9000), hidden):
        (raw,) = read_lines(io.BytesIO(content), 1000)
        error = LineParser(URL, 1000).parse(raw)
        assert isinstance(error, BatchError)
        assert (error.code, error.line) == ("line_too_long", 1)


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_no_bytes_can_raise_anything(body: bytes, rest: bytes) -> None:
    content = (written(body) + rest).replace(b"\n", b"")
    assert LineParser(URL, 1000).parse(raw_line(1, content)) is not None
    assert LineParser(URL, 1000).parse(RawLine(LineSpan(1, 0, 5000), content, content[20:])) is not None
