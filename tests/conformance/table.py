"""The table backend × behaviour, as the tests print it and as it stands in `docs/backends.md`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from core.models.capabilities import FEATURES
from tests.conformance.backend_under_test import BackendUnderTest
from tests.conformance.behaviours import BEHAVIOURS, Behaviour

RESULTS: Final[dict[tuple[str, str], str]] = {}  # of this run, by backend and title


def claimed(backend: BackendUnderTest, behaviour: Behaviour) -> str:
    """`yes`, `refused` for a feature that requests may ask for and do not get, `no` for another one that is not there."""
    if behaviour.feature is None or behaviour.feature in backend.able:
        return "yes"
    return "refused" if behaviour.feature in FEATURES else "no"


def render(backends: Sequence[BackendUnderTest], cell: Callable[[BackendUnderTest, Behaviour], str] = claimed) -> str:
    """The table in Markdown."""
    names = [backend.name for backend in backends]
    rows = [["behaviour", *names], ["---"] * (len(names) + 1)]
    rows += [[each.title, *(cell(backend, each) for backend in backends)] for each in BEHAVIOURS]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def measured(backend: BackendUnderTest, behaviour: Behaviour) -> str:
    """The result of this run; empty if it was not tested."""
    return RESULTS.get((backend.name, behaviour.title), "")
