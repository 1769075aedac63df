"""Answers of batches by custom_id, read from output and error files."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Iterable
from types import TracebackType
from typing import Final, NamedTuple

import msgspec

from mapping.disk_map import DiskMap
from mapping.errors import MappingError, RowError

_TEXT, _CUT, _VECTOR, _PROBLEM = b"+", b"~", b"=", b"-"  # first byte of a stored outcome
_KEY_LENGTH: Final = 40  # of a custom_id of a mapping, with 144 bits of its hash


class Answer(NamedTuple):
    """A text, which may be cut off at `max_tokens`, or a vector."""

    text: str = ""
    is_cut: bool = False
    vector: list[float] | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Embedding(msgspec.Struct):
    embedding: list[float] | str


class _Error(msgspec.Struct):
    message: str = ""
    code: str | None = None


class _Body(msgspec.Struct):
    choices: list[_Choice] = []
    data: list[_Embedding] = []
    error: _Error | None = None


class _Response(msgspec.Struct):
    body: _Body


class _Id(msgspec.Struct):
    custom_id: str


class _Line(_Id):
    response: _Response | None = None
    error: _Error | None = None


_read_line: Final = msgspec.json.Decoder(_Line).decode
_read_id: Final = msgspec.json.Decoder(_Id).decode
_read_body: Final = msgspec.json.Decoder(_Body).decode


class Answers:
    """Answers of all lines that were added. A custom_id that has an answer keeps it, whatever failure is added later."""

    def __init__(self, *, unanswered: str = "not answered: the batch ended before this row") -> None:
        """`unanswered` is the reason of a request without any outcome."""
        self._unanswered = unanswered
        self._outcomes = DiskMap()

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._outcomes.close()

    def add(self, lines: Iterable[bytes]) -> None:
        """Add the lines of an output or error file. Raises MappingError for a line of another form."""
        for line in lines:
            if line.isspace():
                continue
            custom_id, outcome = _read(line)
            key = _key(custom_id)
            if outcome[:1] != _PROBLEM or (self._outcomes.get(key) or _PROBLEM)[:1] == _PROBLEM:
                self._outcomes.put(key, outcome)

    def get(self, custom_id: str) -> Answer:
        """Return the answer to a request. Raises RowError with the reason when there is none."""
        outcome = self._outcomes.get(_key(custom_id))
        if outcome is None:
            raise RowError(self._unanswered)
        return _answer(outcome)

    def __contains__(self, custom_id: str) -> bool:
        """Return whether a request has an answer."""
        return (self._outcomes.get(_key(custom_id)) or _PROBLEM)[:1] != _PROBLEM


def read_answer(body: bytes) -> Answer:
    """Read the body of a response. Raises RowError for one without an answer."""
    try:
        return _answer(_outcome(_read_body(body)))
    except ValueError as error:
        raise RowError(f"the answer has an unknown form: {error}") from None


def _key(custom_id: str) -> bytes:
    return custom_id[:_KEY_LENGTH].encode()


def _read(line: bytes) -> tuple[str, bytes]:
    """Return the custom_id of a line, and the bytes that are stored for it."""
    try:
        result = _read_line(line)
        return result.custom_id, _outcome(result.response.body if result.response else _Body(error=result.error))
    except ValueError as error:
        problem = f"the answer has an unknown form: {error}"
    try:
        return _read_id(line).custom_id, _PROBLEM + problem.encode()
    except ValueError as error:
        raise MappingError(f"a line of the results has no custom_id: {error}") from None


def _outcome(body: _Body) -> bytes:
    """Return the bytes that are stored for a response."""
    if body.choices:
        choice = body.choices[0]
        if choice.message.refusal:
            return _PROBLEM + f"the model refused: {choice.message.refusal}".encode()
        return (_CUT if choice.finish_reason == "length" else _TEXT) + (choice.message.content or "").encode()
    if body.data:
        vector = body.data[0].embedding
        return _VECTOR + (base64.b64decode(vector) if isinstance(vector, str) else array("f", vector).tobytes())
    error = body.error or _Error("the response has no answer")
    return _PROBLEM + (f"{error.code}: {error.message}" if error.code else error.message).encode()


def _answer(outcome: bytes) -> Answer:
    mark = outcome[:1]
    if mark == _VECTOR:
        return Answer(vector=array("f", outcome[1:]).tolist())
    if mark == _PROBLEM:
        raise RowError(outcome[1:].decode())
    return Answer(outcome[1:].decode(), mark == _CUT)
