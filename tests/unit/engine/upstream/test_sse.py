"""Server-sent events in pieces of any size."""

from __future__ import annotations

import pytest

from engine.upstream.sse import EventParser

STREAM = (
    b"\xef\xbb\xbf: comment\n\ndata: one\n\n:keep-alive\n\nevent: x\nid: 3\ndata:two\ndata: lines\n\n"
    b"retry: 10\n\ndata: \xe2\x82\xac\n\n"
)
EVENTS = [b"one", b"two\nlines", b"\xe2\x82\xac"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_found_in_pieces_of_any_size_with_any_line_end(end: bytes, size: int) -> None:
    stream = STREAM.replace(b"\n", end)
    parser = EventParser()
    found = [event for at in range(0, len(stream), size) for event in parser.feed(stream[at : at + size])]
    assert found + parser.end() == EVENTS


def test_an_event_without_an_empty_line_after_it_ends_with_the_stream() -> None:
    parser = EventParser()
    assert parser.feed(b"data: [DONE]") == []
    assert parser.end() == [b"[DONE]"]
