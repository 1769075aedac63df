"""Contexts of workers and clerks with other settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from workers.context import ClerkContext, WorkerContext

_Context = TypeVar("_Context", ClerkContext, WorkerContext)


def with_settings(context: _Context, **changes: Any) -> _Context:
    """Return a copy of a context with some settings changed."""
    return replace(context, settings=context.settings.model_copy(update=changes))
