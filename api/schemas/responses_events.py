"""The typed events of a response's stream, from chat chunks while they come and from the whole answer when it is there.

An event's `sequence_number` is its place in the stream counted in steps: one for each event that opens or closes something,
and for a delta one for each of its characters, so its number is that of its last one. Thus numbers depend on what is
said and not on how it fell into chunks: whoever saw number N can be given the rest from the stored answer alone, and the
rest begins in the middle of a delta if it must.
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

Fields = dict[str, Any]  # Any: JSON
AnyOutput = OutputMessage | FunctionCall | Reasoning


@dataclass(frozen=True, slots=True)
class ResponseEvent:
    """One event. `delta` is set for those that carry some of the answer."""

    number: int
    type: str
    fields: Fields
    delta: str | None = None

    def encode(self) -> bytes:
        """As server-sent event, with the name that OpenAI gives it."""
        said = {} if self.delta is None else {"delta": self.delta}
        data = {"type": self.type, "sequence_number": self.number, **self.fields, **said}
        return b"event: " + self.type.encode() + b"\ndata: " + pydantic_core.to_json(data) + b"\n\n"


def after(events: Iterable[ResponseEvent], number: int) -> list[ResponseEvent]:
    """The events after this number; of a delta that it lies in, the characters after it."""
    return [_rest(event, number) for event in events if event.number > number]


def _rest(event: ResponseEvent, number: int) -> ResponseEvent:
    left = event.number - number
    if event.delta is None or left >= len(event.delta):
        return event
    fields = {**event.fields, "logprobs": []} if "logprobs" in event.fields else event.fields
    return replace(event, fields=fields, delta=event.delta[-left:])


_ENDS: Final = {"completed": "response.completed", "incomplete": "response.incomplete"}
_DELTAS: Final = {
    "message": "response.output_text.delta",
    "function_call": "response.function_call_arguments.delta",
    "reasoning": "response.reasoning_text.delta",
}


class EventWriter:
    """Numbers the events of one stream and remembers what was said in it."""

    def __init__(self) -> None:
        self.number = -1
        self.said: list[list[str]] = []  # of each item so far: its id and what of it was said
        self._item: AnyOutput | None = None

    def opening(self, response: ResponseObject) -> list[ResponseEvent]:
        """What every stream begins with: `response` is the one that has no answer yet."""
        status = "queued" if response.background else "in_progress"
        shown = _dump(response.model_copy(update={"status": status}))
        names = ["response.created", *(["response.queued"] if response.background else [])]
        running = _dump(response.model_copy(update={"status": "in_progress"}))
        return [
            *(self._event(name, response=shown) for name in names),
            self._event("response.in_progress", response=running),
        ]

    def open(self, item: AnyOutput) -> list[ResponseEvent]:
        """An item begins, empty; the one before it has been closed."""
        self._item = item
        self.said.append([item.id, ""])
        empty: Fields = {"arguments": ""} if isinstance(item, FunctionCall) else {"content": []}
        begun = _dump(item.model_copy(update={"status": "in_progress", **empty}))
        events = [self._event("response.output_item.added", **self._place(), item=begun)]
        if (part := _part(item, "")) is not None:
            events.append(self._event("response.content_part.added", **self._place(item), part=part))
        return events

    def more(self, text: str, logprobs: list[Fields] | None = None) -> list[ResponseEvent]:
        """Some more of the open item."""
        item = self._item
        assert item is not None, "something is open"
        if not text:
            return []
        self.said[-1][1] += text
        self.number += len(text) - 1
        fields = {"logprobs": logprobs or []} if isinstance(item, OutputMessage) else {}
        return [replace(self._event(_DELTAS[item.type], **self._place(item), **fields), delta=text)]

    def close(self, whole: AnyOutput | None = None) -> list[ResponseEvent]:
        """The open item is done: `whole` is all of it, unless it is what was said."""
        if self._item is None:
            return []
        item = whole or _filled(self._item, self.said[-1][1])
        place, events = self._place(item), []
        match item:
            case OutputMessage(content=[part, *_]):
                events.append(self._event("response.output_text.done", **place, text=part.text, logprobs=part.logprobs))
            case Reasoning():
                events.append(self._event("response.reasoning_text.done", **place, text=item.text))
            case FunctionCall():
                events.append(self._event("response.function_call_arguments.done", **place, arguments=item.arguments))
        if (done := _part(item, None)) is not None:
            events.append(self._event("response.content_part.done", **place, part=done))
        self._item = None
        return [*events, self._event("response.output_item.done", **self._place(), item=_dump(item))]

    def end(self, response: ResponseObject) -> list[ResponseEvent]:
        """How it ended."""
        return [self._event(_ENDS.get(response.status, "response.failed"), response=_dump(response))]

    def error(self, problem: Problem) -> list[ResponseEvent]:
        """The stream cannot go on, whatever becomes of the response."""
        return [self._event("error", code=problem.code, message=problem.message, param=problem.param)]

    def _place(self, item: AnyOutput | None = None) -> Fields:
        place: Fields = {"output_index": len(self.said) - 1}
        if item is None:
            return place
        return {"item_id": item.id, **place, **({} if isinstance(item, FunctionCall) else {"content_index": 0})}

    def _event(self, type_: str, **fields: Any) -> ResponseEvent:  # Any: JSON
        self.number += 1
        return ResponseEvent(self.number, type_, fields)


class LiveEvents:
    """Events from chat chunks. Items are closed when the next one begins; how it ends only the stored answer knows."""

    def __init__(self, response: ResponseObject) -> None:
        self._writer = EventWriter()
        self._response = response
        self._suffix = suffix_of(response.id)
        self.has_skipped = False  # text after a call: the stored answer has it before, with the rest of the text

    @property
    def number(self) -> int:
        """Of the last event."""
        return self._writer.number

    def opening(self) -> list[ResponseEvent]:
        """See `EventWriter.opening`."""
        return self._writer.opening(self._response)

    def more(self, chunk: Fields) -> list[ResponseEvent]:
        """What a chat chunk adds."""
        events: list[ResponseEvent] = []
        for choice in chunk["choices"]:
            delta = choice["delta"]
            logprobs = (choice.get("logprobs") or {}).get("content")
            events += self._say(Reasoning(id=item_id("reasoning", self._suffix)), delta.get("reasoning_content"))
            message = OutputMessage(id=item_id("message", self._suffix), content=[])
            events += self._say(message, delta.get("content"), logprobs)
            for call in delta.get("tool_calls") or ():
                events += self._call(call)
        return events

    def rest(self, whole: ResponseObject) -> list[ResponseEvent] | None:
        """The events that are left now that the whole answer is there; None when it is another answer."""
        events = events_of(whole, self._response)
        if _continues(events.said, self._writer.said):
            return after(events.events, self.number)
        if not self.has_skipped:
            return None
        left = self._writer.close()
        self._writer.number = max(self._writer.number, events.events[-1].number - 1)
        return [*left, *self._writer.end(whole)]

    def failed(self, response: ResponseObject) -> list[ResponseEvent]:
        """It ended without an answer."""
        return self._writer.end(response)

    def error(self, problem: Problem) -> list[ResponseEvent]:
        """See `EventWriter.error`."""
        return self._writer.error(problem)

    def _say(self, item: AnyOutput, text: str | None, logprobs: list[Fields] | None = None) -> list[ResponseEvent]:
        if not text:
            return []
        said = self._writer.said
        if said and said[-1][0] == item.id:
            return self._writer.more(text, logprobs)
        if said and not (isinstance(item, OutputMessage) and said[-1][0].startswith("rs_")):
            self.has_skipped = True
            return []
        return [*self._writer.close(), *self._writer.open(item), *self._writer.more(text, logprobs)]

    def _call(self, call: Fields) -> list[ResponseEvent]:
        function = call["function"]
        events: list[ResponseEvent] = []
        if call.get("id"):
            item = FunctionCall(
                id=item_id("function_call", self._suffix, call["index"]),
                call_id=call["id"],
                name=function["name"],
                arguments="",
            )
            events += [*self._writer.close(), *self._writer.open(item)]
        return events + self._writer.more(function.get("arguments") or "")


@dataclass(frozen=True, slots=True)
class WholeEvents:
    """All events of an answer, each item in one delta; `said` as `EventWriter` has it."""

    events: list[ResponseEvent]
    said: list[list[str]]


def events_of(whole: ResponseObject, opening: ResponseObject) -> WholeEvents:
    """The stream of an answer that is there, numbered as the live one was."""
    writer = EventWriter()
    events = writer.opening(opening)
    for item in whole.output:
        logprobs = item.content[0].logprobs if isinstance(item, OutputMessage) else None
        events += [*writer.open(item), *writer.more(_text(item), logprobs), *writer.close(item)]
    return WholeEvents([*events, *writer.end(whole)], writer.said)


def _continues(whole: list[list[str]], part: list[list[str]]) -> bool:
    """Is a part that was said the beginning of this whole?"""
    if not part:
        return True
    last = len(part) - 1
    if len(whole) <= last or whole[:last] != part[:last]:
        return False
    return whole[last][0] == part[last][0] and whole[last][1].startswith(part[last][1])


def _text(item: AnyOutput) -> str:
    match item:
        case OutputMessage():
            return "".join(part.text for part in item.content)
        case Reasoning():
            return item.text
        case FunctionCall():
            return item.arguments


def _part(item: AnyOutput, text: str | None) -> Fields | None:
    """Its only content part, whole or with this text; calls have none."""
    match item:
        case OutputMessage():
            part: Fields = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
            return part if text is not None else _dump(item)["content"][0]
        case Reasoning():
            return {"type": "reasoning_text", "text": item.text if text is None else text}
        case FunctionCall():
            return None


def _filled(item: AnyOutput, text: str) -> AnyOutput:
    """An item of which all was said."""
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
