"""One answer while it is being written: bytes of tokens in; content, reasoning and tool calls out.

Knows tokens' bytes, not models. Whole characters only; content that may still become a stop string, a mark or a call is held
back until it is known. However the bytes fall into tokens, the parts add up to the same answer.
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
    thought: ReasoningTags | None = None
    is_inside: bool = False
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


def merge_deltas(parts: Sequence[OutputDelta]) -> OutputDelta:
    """What several tokens of one step brought, as one part."""
    shown = [part for part in parts if not part.is_empty]
    if len(shown) < 2:
        return shown[0] if shown else EMPTY_DELTA
    calls: list[ToolCallDelta] = []
    for part in shown:
        for delta in part.tool_calls:
            add_call(calls, delta)
    return OutputDelta("".join(part.content for part in shown), "".join(part.reasoning for part in shown), calls)


class OutputStream:
    """The parts of one answer, token by token. One that `is_plain` is content and nothing else."""

    def __init__(self, spec: OutputSpec) -> None:
        self._content = IncrementalDetokenizer(spec.stop)
        self._marks = spec.marks
        self._splitter = ReasoningParser(spec.thought, is_inside=spec.is_inside) if spec.thought else None
        self._parser = ToolParser(spec.tool_format, spec.tool_names) if spec.tool_format else None
        self.is_plain = self._splitter is None and self._parser is None
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
        return self._parser.calls if self._parser is not None else []

    def push(self, token: int, piece: bytes) -> OutputDelta:
        """Take a token with its bytes; returns what may be shown now."""
        if self.is_plain:
            content = self._content.push(piece)
            return OutputDelta(content) if content else EMPTY_DELTA
        self._num_tokens += 1
        return self._take(self._content.decode(self._marks.get(token, piece)))

    def push_all(self, piece: bytes) -> None:
        """Take the bytes of many tokens of a plain answer."""
        assert self.is_plain, "only then do tokens not matter"
        self._content.push(piece)

    def finish(self) -> OutputDelta:
        """No more tokens will come: show what was held back."""
        if self.is_plain or self.is_stopped:
            return OutputDelta(self._content.finish())
        parts = [self._take(self._content.decode(b"", is_last=True))]
        if self._splitter is not None:
            reasoning, content = self._splitter.finish()
            self._reasoning.append(reasoning)
            parts += [OutputDelta(reasoning=reasoning), self._parse(content)]
        if self._parser is not None:
            parts.append(OutputDelta(self._content.show(self._parser.finish())))
        return merge_deltas([*parts, OutputDelta(self._content.finish())])

    def _take(self, text: str) -> OutputDelta:
        if self._splitter is None:
            return self._parse(text)
        reasoning, text = self._split(self._splitter, text)
        part = self._parse(text)
        return OutputDelta(part.content, reasoning, part.tool_calls) if reasoning else part

    def _split(self, splitter: ReasoningParser, text: str) -> tuple[str, str]:
        was_over = splitter.is_over
        reasoning, content = splitter.push(text)
        if splitter.has_begun and not was_over:
            self.num_reasoning_tokens = self._num_tokens
        if (
            splitter.is_over and not was_over
        ):  # from now on its marks are what their tokens are to anyone: mostly nothing
            of_thought = splitter.marks
            self._marks = {token: mark for token, mark in self._marks.items() if mark.decode() not in of_thought}
        if reasoning:
            self._reasoning.append(reasoning)
        return reasoning, content

    def _parse(self, text: str) -> OutputDelta:
        if not text:
            return EMPTY_DELTA
        if self._parser is None:
            return OutputDelta(self._content.show(text))
        part = self._parser.push(text)
        return OutputDelta(self._content.show(part.content), "", part.calls)
