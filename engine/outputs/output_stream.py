"""One answer while it is being written: bytes of tokens in; content, reasoning and tool calls out.

Knows tokens' bytes, not models. Whole characters only; content that may still become a stop string, a mark or a call is held
back until it is known. However the bytes fall into tokens, the deltas add up to the same answer.
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
    """What the answers of a request may hold; made once for all `n` of them.

    `marks` are the tokens that stand for a mark, whose own piece may be empty: token id to the mark's bytes.
    `constraint` is what the decoder must hold the answer to, tools and thoughts included.
    """

    stop: tuple[str, ...] = ()
    constraint: Constraint | None = None
    reasoning_tags: ReasoningTags | None = None
    starts_in_reasoning: bool = False
    tool_format: ToolFormat | None = None
    tool_names: tuple[str, ...] = ()
    marks: Mapping[int, bytes] = field(default_factory=dict)


class OutputDelta(msgspec.Struct, frozen=True, gc=False):
    """What a token brought, as it may be shown."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = []

    @property
    def is_empty(self) -> bool:
        """Is there nothing to show?"""
        return not (self.content or self.reasoning or self.tool_calls)


EMPTY_DELTA: Final = OutputDelta()


def merge_deltas(deltas: Sequence[OutputDelta]) -> OutputDelta:
    """What several tokens of one step brought, as one delta."""
    shown = [delta for delta in deltas if not delta.is_empty]
    if len(shown) < 2:
        return shown[0] if shown else EMPTY_DELTA
    calls: list[ToolCallDelta] = []
    for delta in shown:
        for call in delta.tool_calls:
            add_call(calls, call)
    return OutputDelta("".join(delta.content for delta in shown), "".join(delta.reasoning for delta in shown), calls)


class OutputStream:
    """The deltas of one answer, token by token. One that `is_plain` is content and nothing else."""

    def __init__(self, spec: OutputSpec) -> None:
        self._content = IncrementalDetokenizer(spec.stop)
        self._marks = spec.marks
        self._reasoning_parser: ReasoningParser | None = None
        if spec.reasoning_tags is not None:
            self._reasoning_parser = ReasoningParser(spec.reasoning_tags, starts_inside=spec.starts_in_reasoning)
        self._tool_parser = ToolParser(spec.tool_format, spec.tool_names) if spec.tool_format else None
        self.is_plain = self._reasoning_parser is None and self._tool_parser is None
        self._reasoning: list[str] = []
        self._num_tokens = 0
        self.num_reasoning_tokens = 0

    @property
    def is_stopped(self) -> bool:
        """Did the content reach a stop string? Nothing that comes after counts."""
        return self._content.is_stopped

    @property
    def text(self) -> str:
        """The content so far."""
        return self._content.text

    @property
    def reasoning(self) -> str:
        """The thought so far."""
        return "".join(self._reasoning)

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls so far; an answer that was cut off may end in incomplete arguments."""
        return self._tool_parser.calls if self._tool_parser is not None else []

    def push(self, token: int, piece: bytes) -> OutputDelta:
        """Take a token with its bytes; returns what may be shown now."""
        if self.is_plain:
            content = self._content.push(piece)
            return OutputDelta(content) if content else EMPTY_DELTA
        self._num_tokens += 1
        return self._push_text(self._content.decode(self._marks.get(token, piece)))

    def push_all(self, piece: bytes) -> None:
        """Take the bytes of many tokens of a plain answer."""
        assert self.is_plain, "only then do tokens not matter"
        self._content.push(piece)

    def finish(self) -> OutputDelta:
        """No more tokens will come: show what was held back."""
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
        if parser.is_over and not was_over:  # from now on its marks are what their tokens are to anyone: mostly nothing
            tags = parser.tags
            self._marks = {token: mark for token, mark in self._marks.items() if mark.decode() not in tags}
        if reasoning:
            self._reasoning.append(reasoning)
        return reasoning, content

    def _push_content(self, text: str) -> OutputDelta:
        if not text:
            return EMPTY_DELTA
        if self._tool_parser is None:
            return OutputDelta(self._content.show(text))
        delta = self._tool_parser.push(text)
        return OutputDelta(self._content.show(delta.content), "", delta.calls)
