"""Search in the texts of a batch's lines: their prompts and answers, in any case.

Postgres picks candidates by the stored JSON, which is quick; each of them is then parsed, so that keys, roles and escapes of
JSON do not count as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from db import batch_requests
from db.batch_requests import LineFilter, LineTexts

_PAGE_LINES: Final = 200
_MOST_WORDS: Final = 4
_UNESCAPED: Final = r"""[^\x00-\x1f"\\/<>&'\x7f-\U0010ffff]+"""
_TEXT_KEYS: Final = frozenset(
    {"content", "text", "prompt", "input", "instructions", "arguments", "output", "reasoning_content", "refusal"}
)
_NOT_TEXT: Final = frozenset({"embedding", "response_format", "tools", "logprobs", "metadata"})


async def with_text(
    connection: AsyncConnection, batch_id: str, chosen: LineFilter, wanted: str, limit: int
) -> LineFilter:
    """The filter narrowed to its first `limit` lines with this text in their prompt or answer."""
    words, pattern = _candidates(wanted)
    texts = batch_requests.list_texts(batch_id, chosen, words, pattern)
    found: list[int] = []
    async with connection.stream(texts.statement, execution_options={"yield_per": _PAGE_LINES}) as rows:
        async for row in rows:
            line = LineTexts._make(row)
            if has_text(line, wanted.lower()):
                found.append(line.line)
                if len(found) == limit:
                    break
    return replace(chosen, lines=tuple(found))


def has_text(line: LineTexts, wanted: str) -> bool:
    """True if a text of the prompt or the answer has `wanted`, which is in lower case."""
    stored = [json.loads(document) for document in (line.body, line.answer) if document]
    return any(wanted in text.lower() for text in _texts(stored, is_text=False))


def _texts(value: Any, *, is_text: bool) -> Iterator[str]:  # Any: JSON
    if isinstance(value, str):
        if is_text:
            yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, is_text=is_text)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in _NOT_TEXT:
                yield from _texts(item, is_text=key in _TEXT_KEYS)


def _candidates(wanted: str) -> tuple[list[str], str | None]:
    """The parts of a text in ASCII, or else a regular expression.

    Some writers of JSON escape some signs and all letters beyond ASCII: the expression has each way to write the longest run
    of such letters.
    """
    if words := sorted(re.findall(_UNESCAPED, wanted), key=len, reverse=True)[:_MOST_WORDS]:
        return words, None
    letters = max(re.findall(r"[^\x00-\x7f]+", wanted), key=len, default="")
    return [], "".join(map(_spellings, letters)) or None


def _spellings(letter: str) -> str:
    ways = []
    for each in {letter, letter.lower(), letter.upper()}:
        units = each.encode("utf-16-be").hex(" ", -2).split()
        ways += [each, *("".join(rf"\\u{cased(unit)}" for unit in units) for cased in (str.lower, str.upper))]
    return f"(?:{'|'.join(dict.fromkeys(ways))})"
