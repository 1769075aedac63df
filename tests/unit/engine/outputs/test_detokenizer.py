from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.outputs.detokenizer import IncrementalDetokenizer, plain_text

SMALL = st.text("abcé😀", max_size=30)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def run(stream: IncrementalDetokenizer, pieces: list[bytes]) -> str:
    return "".join([stream.push(piece) for piece in pieces]) + stream.finish()


def cut_at_stop(text: str, stop: list[str]) -> str:
    """Reference implementation, which looks at the whole text."""
    for end in range(len(text) + 1):
        ended = [word for word in stop if text[:end].endswith(word)]
        if ended:
            return text[: end - max(map(len, ended))]
    return text


@given(SMALL, st.lists(st.integers(0, 60), max_size=8), st.lists(st.text("abé", min_size=1, max_size=3), max_size=3))
def test_the_text_does_not_depend_on_how_it_falls_into_tokens(text: str, cuts: list[int], stop: list[str]) -> None:
    data = text.encode()
    expected = cut_at_stop(text, stop)
    assert run(IncrementalDetokenizer(stop), [bytes([byte]) for byte in data]) == expected
    assert run(IncrementalDetokenizer(stop), pieces_of(data, cuts)) == expected


@given(st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_any_bytes_become_the_text_python_would_make_of_them(data: bytes, cuts: list[int]) -> None:
    stream = IncrementalDetokenizer([])
    assert run(stream, pieces_of(data, cuts)) == plain_text(data) == data.decode(errors="replace").replace("\0", "")
    assert stream.text == data.decode(errors="replace").replace("\0", "")


def test_half_a_character_is_never_shown() -> None:
    stream = IncrementalDetokenizer([])
    shown = [stream.push(bytes([byte])) for byte in "é😀".encode()]
    assert shown == ["", "é", "", "", "", "😀"]


def test_text_that_may_become_a_stop_string_is_held_back() -> None:
    stream = IncrementalDetokenizer(["END"])
    assert [stream.push(piece) for piece in (b"a", b" E", b"N", b"x", b"END", b"more")] == ["a", " ", "", "ENx", "", ""]
    assert stream.is_stopped
    assert stream.finish() == ""
    assert stream.text == "a ENx"


def test_held_text_is_shown_when_the_answer_ends() -> None:
    stream = IncrementalDetokenizer(["END"])
    assert stream.push(b"xEN") == "x"
    assert stream.finish() == "EN"
