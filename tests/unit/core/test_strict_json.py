from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.strict_json import InvalidJson, escape_line_ends, parse_json

REFUSED = {
    "nothing": b"",
    "half an object": b'{"a": 1',
    "two documents": b"{} {}",
    "NaN": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "a number that becomes infinite": b'{"a": 1e400}',
    "a number of 400 digits and a point": b"[" + b"9" * 400 + b".0]",
    "an integer of 65 bits": b'{"a": [18446744073709551616]}',
    "a negative integer of 65 bits": b"-9223372036854775809",
    "an escaped NUL": rb'{"a": "x\u0000y"}',
    "an escaped NUL in a key": rb'{"x\u0000y": 1}',
    "a raw NUL": b'{"a": "x\0y"}',
    "a lone surrogate": rb'{"a": "\ud800"}',
    "bad UTF-8": b'{"a": "\xff"}',
    "endless nesting": b"[" * 100_000 + b"]" * 100_000,
    "single quotes": b"{'a': 1}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a comment": b"{} // no",
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED.keys())
def test_values_that_json_or_the_database_cannot_hold_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidJson) as caught:
        parse_json(raw)
    assert 0 < len(str(caught.value)) <= 200


def test_an_error_does_not_repeat_the_content() -> None:
    with pytest.raises(InvalidJson) as caught:
        parse_json(b'{"secret prompt": oh}')
    assert "secret" not in str(caught.value)


def test_the_last_of_two_equal_keys_wins() -> None:
    assert parse_json(b'{"a": 1, "a": 2}') == {"a": 2}


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=20,
)


@given(json_values)
def test_every_other_value_comes_through_unchanged(value: object) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.binary(max_size=200))
def test_no_bytes_can_raise_anything_else(raw: bytes) -> None:
    with contextlib.suppress(InvalidJson):
        parse_json(raw)


def test_a_position_names_the_line_only_in_a_document_of_several_lines() -> None:
    for raw, place in (
        (b'{"a": NaN}', "(column 7)"),
        (b'{"a": NaN}\n', "(column 7)"),
        (b'{\n "a": NaN}', "(line 2 column 7)"),
    ):
        with pytest.raises(InvalidJson) as caught:
            parse_json(raw)
        assert str(caught.value) == f"NaN is not JSON, use null {place}"


@given(json_values)
def test_escaped_line_ends_are_read_back_and_no_reader_of_lines_cuts_there(value: object) -> None:
    encoded = json.dumps([value, "a\u2028b\u2029c\u0085d"], ensure_ascii=False).encode()
    escaped = escape_line_ends(encoded)
    assert parse_json(escaped) == [value, "a\u2028b\u2029c\u0085d"]
    assert escaped.decode().splitlines() == [escaped.decode()]
