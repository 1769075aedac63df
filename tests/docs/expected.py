"""Comparison of what a block printed with what its page shows."""

from __future__ import annotations

import json
import re
from typing import Any, Final

_ANY: Final = "…"
_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|…', re.DOTALL)
_EVENT_FIELD: Final = re.compile(r"(?m)^(id|event|data): ")


def mismatch(shown: str, printed: str) -> str:
    """Return what differs between an output as a page shows it and as it was printed; empty where they agree."""
    problem = _compare(_tidy(shown), _tidy(printed))
    return f"{problem}\nthe page shows:\n{shown}\nprinted:\n{printed}" if problem else ""


def _compare(shown: str, printed: str) -> str:
    if _EVENT_FIELD.match(shown):
        return _compare_events(shown, printed)
    wanted = _json(_with_wildcards(shown)) if shown.startswith(("{", "[")) else None
    if wanted is None:
        return "" if _matches(shown, printed) else "the text differs"
    found = _json(printed)
    if found is None:
        return "no JSON was printed"
    if len(found) != len(wanted):
        return f"{len(wanted)} JSON documents are shown, {len(found)} were printed"
    return next((text for each, real in zip(wanted, found, strict=True) if (text := _differs(each, real, "$"))), "")


def _compare_events(shown: str, printed: str) -> str:
    """Compare server-sent events in their order, the JSON of each as JSON; `…` in place of one stands for any number."""
    real = iter(re.split(r"\n\n+", printed))
    may_skip = False
    for event in re.split(r"\n\n+", shown):
        if event == _ANY:
            may_skip = True
            continue
        wanted = _fields(event)
        for other in real:
            found = _fields(other)
            if wanted.keys() == found.keys() and not any(_compare(wanted[name], found[name]) for name in wanted):
                break
            if not may_skip:
                return f"this event differs: {other}"
        else:
            return f"this event was not printed: {event}"
        may_skip = False
    return "" if may_skip or next(real, None) is None else "further events were printed"


def _fields(event: str) -> dict[str, str]:
    parts = _EVENT_FIELD.split(event)
    return {name: value.strip() for name, value in zip(parts[1::2], parts[2::2], strict=True)} or {"": event}


def _tidy(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.replace("\ufeff", "").splitlines()).strip()


def _matches(shown: str, printed: str) -> bool:
    return re.fullmatch(".*?".join(re.escape(part) for part in shown.split(_ANY)), printed, re.DOTALL) is not None


def _with_wildcards(shown: str) -> str:
    """Make JSON of a shown output in which `…` replaces values, or further entries."""
    text = _TOKEN.sub(lambda token: '"…"' if token[0] == _ANY else token[0], shown)
    return re.sub(r'([{,]\s*)"…"(?=\s*[,}])', r'\1"…": 0', text) if "{" in text else text


def _json(text: str) -> list[Any] | None:  # Any: JSON
    """Return the JSON documents of a text, which follow each other on one line or on several; None if it is no JSON."""
    documents = []
    decoder = json.JSONDecoder(strict=False)
    rest = text.strip()
    try:
        while rest:
            document, end = decoder.raw_decode(rest)
            documents.append(document)
            rest = rest[end:].lstrip()
    except ValueError:
        return None
    return documents


def _differs(shown: Any, real: Any, path: str) -> str:  # Any: JSON
    if shown == _ANY:
        return ""
    if isinstance(shown, dict) and isinstance(real, dict):
        names = [name for name in shown if name != _ANY]
        if missing := next((name for name in names if name not in real), None):
            return f"{path}.{missing} is shown, but was not printed"
        return next((text for name in names if (text := _differs(shown[name], real[name], f"{path}.{name}"))), "")
    if isinstance(shown, list) and isinstance(real, list):
        items = [item for item in shown if item != _ANY]
        if len(items) > len(real) or (len(items) == len(shown) and len(shown) != len(real)):
            return f"{path} has {len(real)} items, not {len(shown)}"
        return next((text for n, item in enumerate(items) if (text := _differs(item, real[n], f"{path}[{n}]"))), "")
    if isinstance(shown, str) and isinstance(real, str):
        is_same = _matches(" ".join(shown.split()), " ".join(real.split()))
        return "" if is_same else f"{path} is {real!r}, not {shown!r}"
    if _is_number(shown) and (real is None or _is_number(real)):  # null: not measured yet
        return ""
    return "" if type(shown) is type(real) and shown == real else f"{path} is {real!r}, not {shown!r}"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
