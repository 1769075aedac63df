"""Output format: detect a model's reasoning tags and tool format, and make the `OutputSpec` of each request.

Both are detected once from the chat template and the vocabulary. The output stream parses an answer by its spec, and the
decoder constrains it by the spec's constraint.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Final

from engine.errors import InvalidPrompt
from engine.outputs.output_stream import OutputSpec
from engine.outputs.reasoning import detect_reasoning_tags
from engine.outputs.tool_formats import Tool, callable_tools, detect_tool_format
from engine.outputs.tool_grammar import Layout, with_reasoning, with_tools
from engine.tokenizer import Tokenizer
from engine.types import ChatPrompt, Constraint, Request, ToolMode

_TAIL_TOKENS: Final = 16  # enough for an opening tag that is spelled out, and spaces


class OutputFormat:
    """The output format of one model, whose chats also end at `turn_ends`. Safe to use beside the decoding thread."""

    def __init__(self, tokenizer: Tokenizer, template: str, *, turn_ends: tuple[str, ...] = ()) -> None:
        self._turn_ends = turn_ends
        self._tokenizer = tokenizer
        self.tool_format = detect_tool_format(template, tokenizer.special_texts)
        self.reasoning_tags = detect_reasoning_tags(template)
        self._tokens = _mark_tokens(tokenizer, (*(self.reasoning_tags or ()), *self.tool_format.marks))
        self._thought_end: tuple[int, ...] = ()
        if self.reasoning_tags is not None:
            close = self.reasoning_tags.close
            self._thought_end = tuple(tokenizer.encode(close, special=close in self._tokens, add_bos=False))
        self._marks = {token: mark.encode() for mark, token in self._tokens.items()}
        self._plain_spec = lru_cache(maxsize=64)(self._make_plain_spec)  # most requests have one of a few

    def spec(self, request: Request, prompt: Sequence[int], stopwords: Iterable[str] = ()) -> OutputSpec:
        """Make the spec of a request with these prompt tokens; raises InvalidPrompt for tools that cannot be called."""
        stop = (*request.stop, *stopwords)
        if not isinstance(request.prompt, ChatPrompt):
            return OutputSpec(stop=stop, constraint=request.constraint)
        tools = callable_tools(request, request.prompt.tools)
        plain = self._plain_spec((*stop, *self._turn_ends), self.starts_in_reasoning(prompt))
        if not tools and request.constraint is None:
            return plain
        constraint = self._constraint(request, tools, prompt)
        if not tools:
            return replace(plain, constraint=constraint)
        return replace(
            plain,
            constraint=constraint,
            tool_format=self.tool_format,
            tool_names=tuple(tool.name for tool in tools),
            marks={**plain.marks, **self._mark_bytes(self.tool_format.marks)},
        )

    def starts_in_reasoning(self, prompt: Sequence[int]) -> bool:
        """Does the prompt end behind an opening reasoning tag, so that the answer begins with reasoning?"""
        return self.reasoning_tags is not None and self._ends_with(prompt, self.reasoning_tags.open)

    def _make_plain_spec(self, stop: tuple[str, ...], starts_in_reasoning: bool) -> OutputSpec:
        return OutputSpec(
            stop=stop,
            reasoning_tags=self.reasoning_tags,
            starts_in_reasoning=starts_in_reasoning,
            marks=self._mark_bytes(self.reasoning_tags or ()),
        )

    def _mark_bytes(self, marks: Iterable[str]) -> dict[int, bytes]:
        return {self._tokens[mark]: mark.encode() for mark in marks if mark in self._tokens}

    def _ends_with(self, prompt: Sequence[int], tag: str) -> bool:
        pieces = [self._marks.get(token) or self._tokenizer.piece(token) for token in prompt[-_TAIL_TOKENS:]]
        return b"".join(pieces).rstrip().endswith(tag.encode())

    def _constraint(self, request: Request, tools: list[Tool], prompt: Sequence[int]) -> Constraint | None:
        # the grammar spells out a mark if its token has bytes
        tokens = {mark: token for mark, token in self._tokens.items() if not self._tokenizer.piece(token)}
        tags = self.reasoning_tags
        if tags is not None and self._ends_with(prompt, tags.close):
            tags = None  # the template has closed the thought, so the answer comes at once
        layout = Layout(
            tokens=tokens,
            reasoning_tags=tags,
            starts_in_reasoning=self.starts_in_reasoning(prompt),
            thought_end=self._thought_end if tags is not None else (),
        )
        try:
            if tools:
                return with_tools(
                    self.tool_format,
                    tools,
                    layout,
                    is_required=request.tool_choice.mode is ToolMode.REQUIRED,
                    may_repeat=request.parallel_tool_calls and request.tool_choice.name is None,
                    answer=request.constraint,
                )
            return with_reasoning(request.constraint, layout) if request.constraint is not None else None
        except ValueError:
            param = request.constraint.param if request.constraint is not None else None
            raise InvalidPrompt("The schema of the answer is not JSON.", param=param) from None


def _mark_tokens(tokenizer: Tokenizer, marks: Iterable[str]) -> dict[str, int]:
    """Return the token id of each mark that is a single token of the vocabulary."""
    found = {mark: tokenizer.encode(mark, special=True, add_bos=False) for mark in marks}
    return {mark: tokens[0] for mark, tokens in found.items() if len(tokens) == 1}
