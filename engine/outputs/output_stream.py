"""Output stream: convert the token bytes of one answer to content, reasoning and tool calls while it is generated.

Deltas hold whole characters. Text that may still become a stop string, a mark or a tool call is held back until it is
certain. The deltas add up to the same answer, however its bytes are divided into tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from engine.outputs.detokenizer import IncrementalDetokenizer
from engine.outputs.reasoning import ReasoningParser, ReasoningTags
from engine.outputs.tool_formats import ToolFormat
from engine.outputs.tool_parser import ToolParser, add_call
from engine.types import Constraint, ToolCall, ToolCallDelta


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSpec:
    """Output options of a request, shared by its `n` answers.

    `marks`: bytes of each control token that stands for a tag or a part of a tool call, by token id. Such a token may have
    no bytes of its own.
    `constraint`: the format that the decoder enforces, with reasoning and tool calls included.
    """

    stop: tuple[str, ...] = ()
    constraint: Constraint | None = None
    reasoning_tags: ReasoningTags | None = None
    starts_in_reasoning: bool = False
    tool_format: ToolFormat | None = None
    tool_names: tuple[str, ...] = ()
    marks: Mapping[int, bytes] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """Is all of the text content?"""
        return self.reasoning_tags is None and self.tool_format is None


class OutputDelta(msgspec.Struct, frozen=True, gc=False):
    """Output to show after a token."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = []

    @property
    def is_empty(self) -> bool:
        """Is there nothing to show?"""
        return not (self.content or self.reasoning or self.tool_calls)


EMPTY_DELTA: Final = OutputDelta()


def merge_deltas(deltas: Sequence[OutputDelta]) -> OutputDelta:
    """Join the deltas of several tokens of one step."""
    shown = [delta for delta in deltas if not delta.is_empty]
    if len(shown) < 2:
        return shown[0] if shown else EMPTY_DELTA
    calls: list[ToolCallDelta] = []
    for delta in shown:
        for call in delta.tool_calls:
            add_call(calls, call)
    return OutputDelta("".join(delta.content for delta in shown), "".join(delta.reasoning for delta in shown), calls)


class OutputStream:
    """Parses one answer, token by token. With `is_plain` all of its text is content."""

    def __init__(self, spec: OutputSpec) -> None:
        self._content = IncrementalDetokenizer(spec.stop)
        self._marks = spec.marks
        self._reasoning_parser: ReasoningParser | None = None
        if spec.reasoning_tags is not None:
            self._reasoning_parser = ReasoningParser(spec.reasoning_tags, starts_inside=spec.starts_in_reasoning)
        self._tool_parser = ToolParser(spec.tool_format, spec.tool_names) if spec.tool_format else None
        self.is_plain = spec.is_plain
        self._reasoning: list[str] = []
        self._num_tokens = 0
        self.num_reasoning_tokens = 0

    @property
    def is_stopped(self) -> bool:
        """Did the content reach a stop string? All later text is dropped."""
        return self._content.is_stopped

    @property
    def text(self) -> str:
        """Content so far."""
        return self._content.text

    @property
    def reasoning(self) -> str:
        """Reasoning so far."""
        return "".join(self._reasoning)

    @property
    def tool_calls(self) -> list[ToolCall]:
        """Tool calls so far. The arguments of the last one are incomplete if the answer is cut off."""
        return self._tool_parser.calls if self._tool_parser is not None else []

    def push(self, token: int, piece: bytes) -> OutputDelta:
        """Add a token with its bytes and return the output to show."""
        if self.is_plain:
            content = self._content.push(piece)
            return OutputDelta(content) if content else EMPTY_DELTA
        self._num_tokens += 1
        return self._push_text(self._content.decode(self._marks.get(token, piece)))

    def push_all(self, piece: bytes) -> None:
        """Add the bytes of many tokens of a plain answer."""
        assert self.is_plain, "marks are parsed token by token"
        self._content.push(piece)

    def finish(self) -> OutputDelta:
        """End the answer and return the output that was held back."""
        if self.is_plain or self.is_stopped:
            return OutputDelta(self._content.finish())
        deltas = [self._push_text(self._content.decode(b"", is_last=True))]
        if self._reasoning_parser is not None:
            reasoning, content = self._reasoning_parser.finish()
            self._reasoning.append(reasoning)
            deltas += [OutputDelta(reasoning=reasoning), self._push_content(content)]
        if self._tool_parser is not None:
            deltas.append(OutputDelta(self._content.show(self._tool_parser.finish())))
        return merge_deltas([*deltas, OutputDelta(self._content.finish())])

    def _push_text(self, text: str) -> OutputDelta:
        if self._reasoning_parser is None:
            return self._push_content(text)
        reasoning, text = self._push_reasoning(self._reasoning_parser, text)
        delta = self._push_content(text)
        return OutputDelta(delta.content, reasoning, delta.tool_calls) if reasoning else delta

    def _push_reasoning(self, parser: ReasoningParser, text: str) -> tuple[str, str]:
        was_over = parser.is_over
        reasoning, content = parser.push(text)
        if parser.has_begun and not was_over:
            self.num_reasoning_tokens = self._num_tokens
        if parser.is_over and not was_over:  # later reasoning tags are ordinary control tokens, mostly without bytes
            self._marks = {token: mark for token, mark in self._marks.items() if mark.decode() not in parser.tags}
        self._reasoning.append(reasoning)
        return reasoning, content

    def _push_content(self, text: str) -> OutputDelta:
        if not text:
            return EMPTY_DELTA
        if self._tool_parser is None:
            return OutputDelta(self._content.show(text))
        delta = self._tool_parser.push(text)
        return OutputDelta(self._content.show(delta.content), "", delta.calls)
