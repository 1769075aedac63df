"""Typed events of a Responses stream, made from chat chunks as they arrive, or from the stored answer.

A `sequence_number` counts steps, not events. An event that opens or closes something is one step; a delta is one step per
character, and its number is that of its last character:

    live     delta "Hel", number 6    delta "lo", number 8    text.done "Hello", number 9
    stored   delta "Hello", number 8                          text.done "Hello", number 9

So a number depends on the text alone and not on its split into chunks. A client that reconnects after number 6 gets the rest
from the stored answer, here beginning inside a delta: "lo", number 8.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import pydantic_core

from core.errors import Problem
from core.schemas.responses.items import (
    FunctionCall,
    OutputMessage,
    Reasoning,
    item_id,
)
from core.schemas.responses.objects import ResponseObject, suffix_of
from core.strict_json import escape_line_ends

Fields = dict[str, Any]  # Any: JSON
AnyOutput = OutputMessage | FunctionCall | Reasoning


@dataclass(frozen=True, slots=True)
class ResponseEvent:
    """One event; `delta` is the text of a delta event."""

    number: int
    type: str
    fields: Fields
    delta: str | None = None

    def encode(self) -> bytes:
        """The bytes of a server-sent event, named by its type."""
        delta = {} if self.delta is None else {"delta": self.delta}
        data = {"type": self.type, "sequence_number": self.number, **self.fields, **delta}
        encoded = escape_line_ends(pydantic_core.to_json(data))
        return b"event: " + self.type.encode() + b"\ndata: " + encoded + b"\n\n"


def events_after(events: Iterable[ResponseEvent], number: int) -> list[ResponseEvent]:
    """The events after a sequence number; a delta that contains it is cut to the characters after it."""
    return [_cut(event, number) for event in events if event.number > number]


def _cut(event: ResponseEvent, number: int) -> ResponseEvent:
    num_left = event.number - number
    if event.delta is None or num_left >= len(event.delta):
        return event
    fields = {**event.fields, "logprobs": []} if "logprobs" in event.fields else event.fields
    return replace(event, fields=fields, delta=event.delta[-num_left:])


_FINAL_EVENTS: Final = {"completed": "response.completed", "incomplete": "response.incomplete"}
_DELTAS: Final = {
    "message": "response.output_text.delta",
    "function_call": "response.function_call_arguments.delta",
    "reasoning": "response.reasoning_text.delta",
}


@dataclass(slots=True)
class ItemText:
    """An output item and the text written to it so far."""

    item_id: str
    text: str = ""


class EventWriter:
    """Makes and numbers the events of one stream; `items` holds the text of each item so far."""

    def __init__(self) -> None:
        self.number = -1  # of the last event
        self.items: list[ItemText] = []
        self._open_item: AnyOutput | None = None

    def start(self, response: ResponseObject) -> list[ResponseEvent]:
        """The first events of every stream; `response` has no output yet."""
        status = "queued" if response.background else "in_progress"
        shown = _dump(response.model_copy(update={"status": status}))
        names = ["response.created", *(["response.queued"] if response.background else [])]
        running = _dump(response.model_copy(update={"status": "in_progress"}))
        return [
            *(self._event(name, response=shown) for name in names),
            self._event("response.in_progress", response=running),
        ]

    def open_item(self, item: AnyOutput) -> list[ResponseEvent]:
        """Begin an item, without content; the one before it is closed."""
        self._open_item = item
        self.items.append(ItemText(item.id))
        empty: Fields = {"arguments": ""} if isinstance(item, FunctionCall) else {"content": []}
        begun = _dump(item.model_copy(update={"status": "in_progress", **empty}))
        events = [self._event("response.output_item.added", **self._position(), item=begun)]
        if (part := _part(item, "")) is not None:
            events.append(self._event("response.content_part.added", **self._position(item), part=part))
        return events

    def add_delta(self, text: str, logprobs: list[Fields] | None = None) -> list[ResponseEvent]:
        """Append text to the open item; its number counts the characters."""
        item = self._open_item
        assert item is not None, "an item is open"
        if not text:
            return []
        self.items[-1].text += text
        self.number += len(text) - 1
        fields = {"logprobs": logprobs or []} if isinstance(item, OutputMessage) else {}
        return [replace(self._event(_DELTAS[item.type], **self._position(item), **fields), delta=text)]

    def close_item(self, complete: AnyOutput | None = None) -> list[ResponseEvent]:
        """End the open item; `complete` replaces the item built from the deltas."""
        if self._open_item is None:
            return []
        item = complete or _with_text(self._open_item, self.items[-1].text)
        position, events = self._position(item), []
        match item:
            case OutputMessage(content=[part, *_]):
                fields = {"text": part.text, "logprobs": part.logprobs}
                events.append(self._event("response.output_text.done", **position, **fields))
            case Reasoning():
                events.append(self._event("response.reasoning_text.done", **position, text=item.text))
            case FunctionCall():
                done = "response.function_call_arguments.done"
                events.append(self._event(done, **position, name=item.name, arguments=item.arguments))
        if (content := _part(item, None)) is not None:
            events.append(self._event("response.content_part.done", **position, part=content))
        self._open_item = None
        return [*events, self._event("response.output_item.done", **self._position(), item=_dump(item))]

    def end(self, response: ResponseObject) -> list[ResponseEvent]:
        """The last event: completed, incomplete or failed."""
        return [self._event(_FINAL_EVENTS.get(response.status, "response.failed"), response=_dump(response))]

    def error(self, problem: Problem) -> list[ResponseEvent]:
        """The stream ends with an error; the response itself may still succeed."""
        return [self._event("error", code=problem.code, message=problem.message, param=problem.param)]

    def _position(self, item: AnyOutput | None = None) -> Fields:
        position: Fields = {"output_index": len(self.items) - 1}
        if item is None:
            return position
        return {"item_id": item.id, **position, **({} if isinstance(item, FunctionCall) else {"content_index": 0})}

    def _event(self, type_: str, **fields: Any) -> ResponseEvent:  # Any: JSON
        self.number += 1
        return ResponseEvent(self.number, type_, fields)


class LiveEvents:
    """Events from chat chunks. An item is closed when the next one begins; the end comes from the stored answer."""

    def __init__(self, response: ResponseObject) -> None:
        self._writer = EventWriter()
        self._response = response
        self._suffix = suffix_of(response.id)
        # what follows a later item: text after a call, reasoning after text, or arguments of a call that is closed already
        self._has_skipped = False

    def start(self) -> list[ResponseEvent]:
        """The first events of the stream."""
        return self._writer.start(self._response)

    def add_chunk(self, chunk: Fields) -> list[ResponseEvent]:
        """The events for one chat chunk."""
        events: list[ResponseEvent] = []
        for choice in chunk["choices"]:
            delta = choice["delta"]
            logprobs = (choice.get("logprobs") or {}).get("content")
            reasoning = Reasoning(id=item_id("reasoning", self._suffix))
            events += self._add_text(reasoning, delta.get("reasoning_content"))
            message = OutputMessage(id=item_id("message", self._suffix), content=[])
            events += self._add_text(message, delta.get("content"), logprobs)
            for call in delta.get("tool_calls") or ():
                events += self._add_call(call)
        return events

    def finish(self, complete: ResponseObject) -> list[ResponseEvent] | None:
        """The remaining events of the stored answer; None when it does not continue the text streamed so far."""
        stored = stored_events(complete, self._response)
        if _is_prefix(self._writer.items, stored.items):
            return events_after(stored.events, self._writer.number)
        if not self._has_skipped:
            return None
        remaining = self._writer.close_item()
        self._writer.number = max(self._writer.number, stored.events[-1].number - 1)
        return [*remaining, *self._writer.end(complete)]

    def fail(self, response: ResponseObject) -> list[ResponseEvent]:
        """The last event of a response that failed or was cancelled."""
        return self._writer.end(response)

    def error(self, problem: Problem) -> list[ResponseEvent]:
        """The stream ends with an error; the response itself may still succeed."""
        return self._writer.error(problem)

    def _add_text(self, item: AnyOutput, text: str | None, logprobs: list[Fields] | None = None) -> list[ResponseEvent]:
        if not text:
            return []
        last = self._writer.items[-1].item_id if self._writer.items else None
        if last == item.id:
            return self._writer.add_delta(text, logprobs)
        if last is not None and not (isinstance(item, OutputMessage) and last.startswith("rs_")):
            self._has_skipped = True
            return []
        return [*self._writer.close_item(), *self._writer.open_item(item), *self._writer.add_delta(text, logprobs)]

    def _add_call(self, call: Fields) -> list[ResponseEvent]:
        function = call["function"]
        events: list[ResponseEvent] = []
        call_item = item_id("function_call", self._suffix, call["index"])
        open_item = self._writer.items[-1].item_id if self._writer.items else None
        if not call.get("id") and open_item != call_item:
            self._has_skipped = True
            return []
        if call.get("id"):
            item = FunctionCall(
                id=call_item,
                call_id=call["id"],
                name=function["name"],
                arguments="",
            )
            events += [*self._writer.close_item(), *self._writer.open_item(item)]
        return events + self._writer.add_delta(function.get("arguments") or "")


@dataclass(frozen=True, slots=True)
class StoredEvents:
    """All events of a stored answer, each item in one delta, and the text of each item."""

    events: list[ResponseEvent]
    items: list[ItemText]


def stored_events(complete: ResponseObject, opening: ResponseObject) -> StoredEvents:
    """The stream of a stored answer, with the numbers of the live one; `opening` is the response without output."""
    writer = EventWriter()
    events = writer.start(opening)
    for item in complete.output:
        logprobs = item.content[0].logprobs if isinstance(item, OutputMessage) else None
        events += [*writer.open_item(item), *writer.add_delta(_text(item), logprobs), *writer.close_item(item)]
    return StoredEvents([*events, *writer.end(complete)], writer.items)


def _is_prefix(part: list[ItemText], complete: list[ItemText]) -> bool:
    """True when the items and text of `complete` begin with those of `part`."""
    if not part:
        return True
    last = len(part) - 1
    if len(complete) <= last or complete[:last] != part[:last]:
        return False
    return complete[last].item_id == part[last].item_id and complete[last].text.startswith(part[last].text)


def _text(item: AnyOutput) -> str:
    match item:
        case OutputMessage():
            return "".join(part.text for part in item.content)
        case Reasoning():
            return item.text
        case FunctionCall():
            return item.arguments


def _part(item: AnyOutput, text: str | None) -> Fields | None:
    """The only content part of an item, complete or with this text; None for calls."""
    match item:
        case OutputMessage():
            part: Fields = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
            return part if text is not None else _dump(item)["content"][0]
        case Reasoning():
            return {"type": "reasoning_text", "text": item.text if text is None else text}
        case FunctionCall():
            return None


def _with_text(item: AnyOutput, text: str) -> AnyOutput:
    """The item, complete with this text."""
    match item:
        case OutputMessage():
            part = {"type": "output_text", "text": text, "annotations": []}
            return OutputMessage.model_validate({"id": item.id, "content": [part]})
        case Reasoning():
            part = {"type": "reasoning_text", "text": text}
            return Reasoning.model_validate({"id": item.id, "content": [part]})
        case FunctionCall():
            return item.model_copy(update={"arguments": text})


def _dump(value: ResponseObject | AnyOutput) -> Fields:
    return value.model_dump(mode="json", by_alias=True)
