"""Answers of batches by custom_id, kept in a temporary database that spills to disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from types import TracebackType

import msgspec

from mapping.errors import MappingError, RowError


class _Response(msgspec.Struct):
    status_code: int
    body: msgspec.Raw


class _Error(msgspec.Struct):
    message: str = ""
    code: str | None = None


class _Line(msgspec.Struct):
    custom_id: str
    response: _Response | None = None
    error: _Error | None = None


class _Failure(msgspec.Struct):
    error: _Error


_read_line = msgspec.json.Decoder(_Line).decode
_read_failure = msgspec.json.Decoder(_Failure).decode


class Answers:
    """Answers that were read from output and error files. A custom_id that has an answer keeps it whatever else is added."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA cache_size = -32768")
        self._database.execute(
            "CREATE TABLE answers (custom_id TEXT PRIMARY KEY, body BLOB, problem TEXT) WITHOUT ROWID"
        )

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def add(self, lines: Iterable[bytes]) -> int:
        """Add the lines of an output or error file; return their number. Raises MappingError for a line of another form."""
        self._database.execute("BEGIN")
        try:
            cursor = self._database.executemany(
                "INSERT INTO answers VALUES (?, ?, ?) ON CONFLICT (custom_id) DO UPDATE "
                "SET body = excluded.body, problem = excluded.problem WHERE answers.body IS NULL",
                map(_outcome, filter(bytes.strip, lines)),
            )
        finally:
            self._database.execute("COMMIT")
        return cursor.rowcount

    def body(self, custom_id: str) -> bytes:
        """Return the body of the response to a request. Raises RowError with the reason when there is none."""
        found = self._database.execute("SELECT body, problem FROM answers WHERE custom_id = ?", (custom_id,)).fetchone()
        if found is None:
            raise RowError("not answered: the batch ended before this row")
        if found[0] is None:
            raise RowError(found[1])
        body: bytes = found[0]
        return body

    def __contains__(self, custom_id: str) -> bool:
        """Return whether a request has an answer."""
        query = "SELECT 1 FROM answers WHERE custom_id = ? AND body IS NOT NULL"
        return self._database.execute(query, (custom_id,)).fetchone() is not None


def _outcome(line: bytes) -> tuple[str, bytes | None, str | None]:
    """Return the custom_id of a line, and its body or problem."""
    try:
        result = _read_line(line)
        if result.response is not None and result.response.status_code == 200:
            return result.custom_id, bytes(result.response.body), None
        error = result.error or _read_failure(result.response.body if result.response else b"").error
    except ValueError as problem:
        raise MappingError(f"a result line has an unknown form: {problem}") from None
    return result.custom_id, None, f"{error.code}: {error.message}" if error.code else error.message
