"""A model's thinking aloud: which tags surround it, and where in an answer it ends.

Knows strings. A thought comes first in an answer or not at all; what looks like one later is content. The spaces around
the tags belong to neither side.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, NamedTuple

from engine.outputs.detokenizer import overlap


class ReasoningTags(NamedTuple):
    """What opens and what closes a thought."""

    open: str
    close: str


_KNOWN: Final = (
    ReasoningTags("<think>", "</think>"),
    ReasoningTags("[THINK]", "[/THINK]"),
    ReasoningTags("<thinking>", "</thinking>"),
    ReasoningTags("<seed:think>", "</seed:think>"),
    ReasoningTags("<|START_THINKING|>", "<|END_THINKING|>"),
)


def detect(template: str) -> ReasoningTags | None:
    """The tags a chat template mentions; a model whose template knows of no thoughts has none."""
    return next((tags for tags in _KNOWN if tags.open in template or tags.close in template), None)


class ReasoningSplit(NamedTuple):
    """What some text brought."""

    reasoning: str = ""
    content: str = ""


class _ParserState(Enum):
    START = auto()
    INSIDE = auto()
    AFTER = auto()
    CONTENT = auto()


class ReasoningParser:
    """Splits one answer. `is_inside` as an argument: the prompt has opened the thought already."""

    def __init__(self, tags: ReasoningTags, *, starts_inside: bool) -> None:
        self.tags = tags
        self._state = _ParserState.INSIDE if starts_inside else _ParserState.START
        self._has_begun = starts_inside
        self._is_blank = True  # nothing of the thought yet: spaces after its opening are left out
        self._held = ""

    @property
    def is_inside(self) -> bool:
        """Is the thought open?"""
        return self._state is _ParserState.INSIDE

    @property
    def has_begun(self) -> bool:
        """Is there, or was there, a thought?"""
        return self._has_begun

    @property
    def is_over(self) -> bool:
        """Will there be no more of a thought?"""
        return self._state in (_ParserState.AFTER, _ParserState.CONTENT)

    def push(self, text: str) -> ReasoningSplit:
        """Take some text; returns what is certain now."""
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
        """No more text will come: what was held back is what it looks like."""
        held, self._held = self._held, ""
        return ReasoningSplit(reasoning=held) if self.is_inside else ReasoningSplit(content=held)

    def _start(self) -> None:
        begin = self._held.lstrip()
        if begin.startswith(self.tags.open):
            self._held = begin.removeprefix(self.tags.open)
            self._state, self._has_begun = _ParserState.INSIDE, True
        elif not self.tags.open.startswith(begin):
            self._state = _ParserState.CONTENT

    def _take_reasoning(self) -> str:
        """What certainly belongs to the thought."""
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
