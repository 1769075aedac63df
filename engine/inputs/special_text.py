"""Special text: keep the spellings of control tokens in a request from becoming control tokens.

Each spelling is enclosed in marks that survive the template, and the text between two marks is tokenised as plain text:

    … hello ⟦<|im_end|>⟧ there …     the template's own <|im_end|> stays a token, the request's stays text
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Final, NamedTuple

# Unicode noncharacters: no text needs them, so they are removed from the request's.
_OPEN: Final = "\ufdd0"
_CLOSE: Final = "\ufdd1"
END_MARK: Final = "\ufdd2"
MARKS: Final = _OPEN + _CLOSE + END_MARK
_NO_MARKS: Final = str.maketrans("", "", MARKS)
_MARK: Final = re.compile(f"[{MARKS}]")


class Fragment(NamedTuple):
    """A part of a rendered prompt; no control token is in it if it `is_plain`."""

    text: str
    is_plain: bool = False


class SpecialText:
    """The spellings of the control tokens of one vocabulary."""

    def __init__(self, spellings: Iterable[str]) -> None:
        longest_first = sorted((re.escape(text) for text in spellings if text), key=len, reverse=True)
        # with no spelling, a pattern that matches nothing
        self._pattern = re.compile("|".join(longest_first) or "(?!)")

    @cached_property
    def _marked(self) -> re.Pattern[str]:
        """Few requests need it, and of thousands of spellings it takes a tenth of a second."""
        return re.compile(f"({_OPEN}?)({self._pattern.pattern})({_CLOSE}?)")

    def is_in(self, value: Any) -> bool:  # Any: JSON
        """Does any text of the value spell a control token, or contain a mark?"""
        stack = [value]
        while stack:
            item = stack.pop()
            if isinstance(item, str):
                if self._pattern.search(item) is not None or (not item.isascii() and _MARK.search(item) is not None):
                    return True
            elif isinstance(item, dict):
                stack += (*item, *item.values())
            elif isinstance(item, list):
                stack += item
        return False

    def without_marks(self, value: Any) -> Any:  # Any: JSON
        """Remove all marks from the texts of a value."""
        return _map_texts(value, lambda text: text.translate(_NO_MARKS))

    def enclose(self, value: Any) -> Any:  # Any: JSON
        """Enclose each spelling in the texts of a value."""
        return _map_texts(value, lambda text: self._pattern.sub(lambda found: f"{_OPEN}{found[0]}{_CLOSE}", text))

    def is_made_by_joining(self, texts: list[str]) -> bool:
        """Do texts, joined with nothing, spell a control token that none of them spells? White space at their ends may go."""
        stripped = [text.strip() for text in texts]
        return any(
            self._pattern.findall("".join(parts)) != [found for part in parts for found in self._pattern.findall(part)]
            for parts in (texts, stripped)
        )

    def fragments(self, rendered: str, enclosed: str) -> list[Fragment]:
        """Split a rendered prompt; `enclosed` is the same prompt of enclosed texts, which has to tell its spellings apart.

        A template that looks at the ends of a text may render that differently. If so, the order of the spellings decides;
        if even that differs, `enclosed` is used, and every spelling beside a mark is plain.
        """
        found = self._marked.findall(enclosed)
        if [spelling for _, spelling, _ in found] == self._pattern.findall(rendered):
            return _split(self._pattern, rendered, [bool(opened and closed) for opened, _, closed in found])
        fragments = _split(self._marked, enclosed, [bool(opened or closed) for opened, _, closed in found])
        return [Fragment(text.translate(_NO_MARKS), is_plain) for text, is_plain in fragments]


def _split(pattern: re.Pattern[str], text: str, are_plain: list[bool]) -> list[Fragment]:
    """Split a text at those matches of the pattern that are plain."""
    fragments, end = [], 0
    for found, is_plain in zip(pattern.finditer(text), are_plain, strict=True):
        if is_plain:
            fragments += [Fragment(text[end : found.start()]), Fragment(found[0], is_plain=True)]
            end = found.end()
    return [*fragments, Fragment(text[end:])]


def _map_texts(value: Any, convert: Any) -> Any:  # Any: JSON, and a function of texts
    match value:
        case str():
            return convert(value)
        case dict():
            return {_map_texts(key, convert): _map_texts(item, convert) for key, item in value.items()}
        case list():
            return [_map_texts(item, convert) for item in value]
    return value
