"""Errors of tables and mappings; their messages are for the author of the table or of the mapping."""

from __future__ import annotations

from core.errors import MillraceError


class MappingError(MillraceError):
    """The table or the mapping cannot be used; `param` is the field of `MapSpec`, or None for the table."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class RowError(MillraceError):
    """One row cannot be asked, or its answer cannot be used; the message ends in its `error` cell."""
