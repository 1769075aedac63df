"""Server-sent events: the data of each event, from bytes in pieces of any size. Source: WHATWG HTML, "Server-sent events"."""

from __future__ import annotations

from typing import Final

_MAX_BYTES: Final = 64 << 20  # of one event


class EventTooLong(Exception):
    """An event is longer than an answer can be."""


class EventParser:
    """Takes bytes and returns the data of complete events. Comments, ids and names of events are dropped."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._is_first = True

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the data of the events that end in this piece; raises EventTooLong."""
        text = self._rest + piece
        if self._is_first and len(text) >= 3:
            text, self._is_first = text.removeprefix(b"\xef\xbb\xbf"), False
        held = text[-1:] if text.endswith(b"\r") else b""  # it may be half of a CRLF
        text = text[: len(text) - len(held)]
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        self._rest = rest + held
        if len(self._rest) > _MAX_BYTES:
            raise EventTooLong
        events = (self._add(line) for line in lines)
        return [event for event in events if event is not None]

    def end(self) -> list[bytes]:
        """Return the data of an event that has no empty line after it, since the stream ended."""
        return self.feed(b"\n\n")

    def _add(self, line: bytes) -> bytes | None:
        if not line:
            data, self._data = self._data, []
            return b"\n".join(data) if data else None
        if line.startswith(b"data:"):
            self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
        return None
