"""Sentences about wrong fields of a file or of the environment, in place of pydantic's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_KINDS: Final = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text (quote it, if it looks like a number)",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping of keys and values",
    "model": "a mapping of keys and values",
    "model_attributes": "a mapping of keys and values",
    "path": "a path",
}
_LIMITS: Final[dict[str, Callable[[dict[str, Any]], str]]] = {  # Any: the limits, as pydantic gives them
    "greater_than_equal": lambda limits: f"at least {limits['ge']:g}",
    "greater_than": lambda limits: f"more than {limits['gt']:g}",
    "less_than_equal": lambda limits: f"at most {limits['le']:g}",
    "less_than": lambda limits: f"less than {limits['lt']:g}",
    "finite_number": lambda _: "a finite number",
    "string_too_short": lambda limits: f"at least {limits['min_length']} characters long",
}
_MAX_SHOWN: Final = 40


def plain(text: str) -> str:
    """Return the text with an escape for each character that is not printable, such as those that a file name smuggles in."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def nearest(word: str, words: Iterable[str]) -> str:
    """Return `; did you mean 'X'?` for the most similar word; empty where none is similar."""
    by_lower = {each.lower(): each for each in sorted(words)}
    found = get_close_matches(word.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[found[0]]!r}?" if found else ""


def describe(error: ErrorDetails) -> str:
    """Return what is wrong with a value, as the end of a sentence that begins with its key. Unknown keys are not for this."""
    kind, limits = error["type"], error.get("ctx", {})
    if kind == "missing":
        return "is missing"
    if kind in ("value_error", "assertion_error"):
        return str(limits.get("error", error["msg"]))
    if kind in ("enum", "literal_error"):
        return _must_be(_choices(str(limits["expected"])), error["input"])
    if kind == "string_pattern_mismatch":
        return _must_be(_alternatives(limits["pattern"]), error["input"])
    if kind in _LIMITS:
        return _must_be(_LIMITS[kind](limits), error["input"])
    name = kind.removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float")
    if name in _KINDS:
        return _must_be(_KINDS[name], error["input"])
    return error["msg"].replace("Input should be", "must be").replace("String should", "must")


def _alternatives(pattern: str) -> str:
    """`debug, info or error` for `^(debug|info|error)$`, or the pattern."""
    words = pattern.removeprefix("^(").removesuffix(")$").split("|")
    if len(words) == 1 or not all(word.isalnum() for word in words):
        return f"text of the form {pattern}"
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _must_be(wanted: str, value: object) -> str:
    """`must be X, not Y`; a long value, or one with parts, is not repeated."""
    shown = repr(value)
    is_short = isinstance(value, str | int | float | bool | None) and len(shown) <= _MAX_SHOWN
    return f"must be {wanted}, not {shown}" if is_short else f"must be {wanted}"


def _choices(expected: str) -> str:
    """`'a', 'b' or 'c'` without the quotes."""
    return expected.replace("'", "")
