"""Reasoning parser: detect a model's reasoning tags, and split an answer into reasoning and content.

Only the beginning of an answer can be reasoning; later tags are content. White space around the tags is dropped.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, NamedTuple

from engine.outputs.detokenizer import overlap


class ReasoningTags(NamedTuple):
    """Texts that open and close the reasoning."""

    open: str
    close: str


_KNOWN: Final = (
    ReasoningTags("<think>", "</think>"),
    ReasoningTags("[THINK]", "[/THINK]"),
    ReasoningTags("<thinking>", "</thinking>"),
    ReasoningTags("<seed:think>", "</seed:think>"),
    ReasoningTags("<|START_THINKING|>", "<|END_THINKING|>"),
)


def detect_reasoning_tags(template: str) -> ReasoningTags | None:
    """Return the tags that a chat template contains; None for a model without reasoning."""
    return next((tags for tags in _KNOWN if tags.open in template or tags.close in template), None)


class ReasoningSplit(NamedTuple):
    """Reasoning and content found by one call of the parser."""

    reasoning: str = ""
    content: str = ""


class _ParserState(Enum):
    START = auto()
    INSIDE = auto()
    AFTER = auto()
    CONTENT = auto()


class ReasoningParser:
    """Splits one answer. With `starts_inside` the prompt contains the opening tag.

    `has_begun`: the answer contains reasoning, open or closed.
    """

    def __init__(self, tags: ReasoningTags, *, starts_inside: bool) -> None:
        self.tags = tags
        self._state = _ParserState.INSIDE if starts_inside else _ParserState.START
        self.has_begun = starts_inside
        self._is_blank = True  # no reasoning yet: white space behind the opening tag is dropped
        self._held = ""

    @property
    def is_over(self) -> bool:
        """Is all further text content?"""
        return self._state in (_ParserState.AFTER, _ParserState.CONTENT)

    def push(self, text: str) -> ReasoningSplit:
        """Add text and return the reasoning and content that are certain."""
        self._held += text
        reasoning = ""
        if self._state is _ParserState.START:
            self._start()
        if self._state is _ParserState.INSIDE:
            reasoning = self._take_reasoning()
        if self._state is _ParserState.AFTER:
            self._held = self._held.lstrip()
            self._state = _ParserState.CONTENT if self._held else _ParserState.AFTER
        if self._state is not _ParserState.CONTENT:
            return ReasoningSplit(reasoning)
        content, self._held = self._held, ""
        return ReasoningSplit(reasoning, content)

    def finish(self) -> ReasoningSplit:
        """End the answer and return the text that was held back."""
        held, self._held = self._held, ""
        is_inside = self._state is _ParserState.INSIDE
        return ReasoningSplit(reasoning=held) if is_inside else ReasoningSplit(content=held)

    def _start(self) -> None:
        begin = self._held.lstrip()
        if begin.startswith(self.tags.open):
            self._held = begin.removeprefix(self.tags.open)
            self._state, self.has_begun = _ParserState.INSIDE, True
        elif not self.tags.open.startswith(begin):
            self._state = _ParserState.CONTENT

    def _take_reasoning(self) -> str:
        """Return the held text that certainly belongs to the reasoning."""
        if self._is_blank:
            self._held = self._held.lstrip()
        at = self._held.find(self.tags.close)
        end = at if at >= 0 else len(self._held) - overlap(self._held, (self.tags.close,))
        reasoning = self._held[:end].rstrip()
        if at >= 0:
            self._held = self._held[at + len(self.tags.close) :]
            self._state = _ParserState.AFTER
        else:
            self._held = self._held[len(reasoning) :]
        self._is_blank = self._is_blank and not reasoning
        return reasoning
