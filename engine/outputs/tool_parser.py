"""Tool parser: split the text of an answer into content and tool calls while it is generated.

Text that begins like a call but is not one becomes content. White space between content and a call is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import msgspec

from engine.outputs.detokenizer import overlap
from engine.outputs.tool_formats import ToolFormat
from engine.types import ToolCall, ToolCallDelta


class _ParserState(Enum):
    """Position of the next character in the layout of the tool format."""

    TEXT = auto()
    NAME = auto()
    ARGUMENTS = auto()
    CLOSE = auto()
    BETWEEN = auto()
    AFTER = auto()


@dataclass(slots=True)
class ToolParserDelta:
    """Content and parts of tool calls found by one call of the parser."""

    content: str = ""
    calls: list[ToolCallDelta] = field(default_factory=list)


def add_call(calls: list[ToolCallDelta], call: ToolCallDelta) -> None:
    """Append a delta to those sent together, joined with the last one if both are of one call."""
    last = calls[-1] if calls else None
    if last is None or last.index != call.index:
        calls.append(call)
    else:
        calls[-1] = msgspec.structs.replace(last, arguments=last.arguments + call.arguments)


class ToolParser:
    """Parses one answer. A call of a tool that is not in `names` is content."""

    def __init__(self, tool_format: ToolFormat, names: Sequence[str]) -> None:
        self._format = tool_format
        self._names = {f"{name}{tool_format.middle}{{": name for name in names}
        self._leads = tuple({tool_format.lead, tool_format.prelude + tool_format.lead})
        self._next_lead = None if tool_format.separator is None else tool_format.separator + tool_format.open
        self._state = _ParserState.TEXT
        self._lead = ""
        self._held = ""
        self._object = _ObjectEnd()
        self._ids: list[tuple[str, str]] = []
        self._arguments: list[list[str]] = []

    @property
    def calls(self) -> list[ToolCall]:
        """Calls so far; the arguments of the last one may be incomplete."""
        return [
            ToolCall(id=call_id, name=name, arguments="".join(pieces))
            for (call_id, name), pieces in zip(self._ids, self._arguments, strict=True)
        ]

    def push(self, text: str) -> ToolParserDelta:
        """Add text and return the content and calls that are certain."""
        delta = ToolParserDelta()
        self._held += text
        while self._step(delta):
            pass
        return delta

    def finish(self) -> str:
        """End the answer and return the content that was held back; an incomplete call is not content."""
        held, self._held = self._held, ""
        match self._state:
            case _ParserState.TEXT:
                begins_call = self._format.trigger and held.lstrip().startswith(self._format.trigger)
                return "" if begins_call else held
            case _ParserState.NAME:
                return "" if self._format.trigger else self._lead + held
            case _:
                return ""

    def _step(self, delta: ToolParserDelta) -> bool:
        """Advance by one state; return False if that needs more text."""
        match self._state:
            case _ParserState.TEXT:
                return self._find_lead(delta) if self._format.trigger else self._match_lead()
            case _ParserState.NAME:
                return self._match_name(delta)
            case _ParserState.ARGUMENTS:
                return self._take_arguments(delta)
            case _ParserState.CLOSE:
                return self._match_close()
            case _ParserState.BETWEEN:
                return self._match_next()
            case _ParserState.AFTER:
                delta.content += self._held
                self._held = ""
                return False

    def _find_lead(self, delta: ToolParserDelta) -> bool:
        """Search a lead anywhere in the text, and add the text that certainly precedes it to the content."""
        lead = self._format.lead
        at = self._held.find(lead)
        end = at if at >= 0 else len(self._held) - overlap(self._held, self._leads)
        shown = self._held[:end].rstrip()
        delta.content += shown
        if at < 0:
            self._held = self._held[len(shown) :]
            return False
        self._begin_name(len(shown), at + len(lead))
        return True

    def _match_lead(self) -> bool:
        """Match a lead at the beginning of the answer, the only place where this format allows a call."""
        begin = self._held.lstrip()
        for lead in self._leads:
            if begin.startswith(lead):
                self._begin_name(0, len(self._held) - len(begin) + len(lead))
                return True
        self._state = _ParserState.TEXT if _is_prefix_of_any(begin, self._leads) else _ParserState.AFTER
        return self._state is _ParserState.AFTER

    def _begin_name(self, start: int, end: int) -> None:
        """Take the lead that ends at `end`. If no name follows, the text from `start` on is content."""
        self._lead, self._held = self._held[start:end], self._held[end:]
        self._state = _ParserState.NAME

    def _match_name(self, delta: ToolParserDelta) -> bool:
        for head, name in self._names.items():
            if self._held.startswith(head):
                self._held = self._held[len(head) - 1 :]  # the brace begins the arguments
                self._begin_call(name, delta)
                return True
        if _is_prefix_of_any(self._held, self._names):
            return False
        delta.content += self._lead
        self._state = self._text_state()
        return True

    def _begin_call(self, name: str, delta: ToolParserDelta) -> None:
        call_id = self._format.new_call_id()
        delta.calls.append(ToolCallDelta(index=len(self._ids), id=call_id, name=name))
        self._ids.append((call_id, name))
        self._arguments.append([])
        self._object = _ObjectEnd()
        self._state = _ParserState.ARGUMENTS

    def _take_arguments(self, delta: ToolParserDelta) -> bool:
        end = self._object.find(self._held)
        piece, self._held = self._held[:end], self._held[end:]
        if piece:
            self._arguments[-1].append(piece)
            add_call(delta.calls, ToolCallDelta(index=len(self._ids) - 1, arguments=piece))
        if self._object.is_found:
            self._state = _ParserState.CLOSE
        return self._object.is_found

    def _match_close(self) -> bool:
        close = self._format.close
        if self._held.startswith(close):
            self._held = self._held[len(close) :]
            self._state = _ParserState.BETWEEN
            return True
        if close.startswith(self._held):
            return False
        self._state = self._text_state()
        return True

    def _match_next(self) -> bool:
        """Match the text behind a call: another call, the end of all calls, or content."""
        lead, end = self._next_lead, self._format.end
        if lead is not None and self._held.startswith(lead):
            self._begin_name(0, len(lead))
            return True
        if (lead or "").startswith(self._held) or (end and end.startswith(self._held) and self._held != end):
            return False
        self._held = self._held.removeprefix(end)
        self._state = self._text_state()
        return True

    def _text_state(self) -> _ParserState:
        return _ParserState.TEXT if self._format.trigger else _ParserState.AFTER


class _ObjectEnd:
    """Searches the brace that closes a JSON object, over any number of pieces."""

    def __init__(self) -> None:
        self.is_found = False
        self._depth = 0
        self._is_string = False
        self._is_escaped = False

    def find(self, text: str) -> int:
        """Return the number of characters of `text` that belong to the object."""
        for index, character in enumerate(text):
            if self._is_string:
                self._advance_in_string(character)
            elif character == '"':
                self._is_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.is_found = True
                    return index + 1
        return len(text)

    def _advance_in_string(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._is_string = False


def _is_prefix_of_any(text: str, words: Sequence[str] | dict[str, str]) -> bool:
    return any(word.startswith(text) for word in words)
