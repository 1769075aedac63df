"""`RowMapper`: a row becomes a request, and the answer becomes the cells of the added columns."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from core.field_errors import nearest
from core.schemas.endpoints import CHAT_ENDPOINT, EMBEDDINGS_ENDPOINT
from mapping.answer_schema import AnswerSchema
from mapping.answers import Answer
from mapping.cells import cell_text, conform, from_text, is_empty, to_json
from mapping.columns import Column, ColumnType, Kind
from mapping.errors import MappingError, RowError
from mapping.formats.table import Row, Table
from mapping.spec import MapSpec
from mapping.template import Template

_PREFIX: Final = "map-"
_USER: Final = b'{"role":"user","content":'


class Request(NamedTuple):
    """A request of a row. Its id is made of the body, so equal rows share it."""

    custom_id: str
    endpoint: str
    body: bytes

    @property
    def line(self) -> bytes:
        """Return the line of a batch file."""
        start = f'{{"custom_id":"{self.custom_id}","method":"POST","url":"{self.endpoint}","body":'
        return b"".join((start.encode(), self.body, b"}\n"))


_encode: Final = msgspec.json.Encoder().encode
_read_object: Final = msgspec.json.Decoder(dict[str, Any]).decode


class RowMapper:
    """A mapping that has been checked against a table."""

    def __init__(self, spec: MapSpec, table: Table) -> None:
        """Compile templates and schema. Raises MappingError that names the field."""
        self.spec = spec
        names = table.names
        self.schema = None if spec.schema_ is None else AnswerSchema(spec.schema_)
        self.answer_columns = self.schema.columns if self.schema else (self._answer_column(),)
        self.added = (*self.answer_columns, Column(spec.error_column))
        self._check_collisions(names)
        self.endpoint = EMBEDDINGS_ENDPOINT if spec.embed is not None else CHAT_ENDPOINT
        self._templates = {
            name: Template(source, names, param=name)
            for name in ("system", "prompt", "embed")
            if (source := getattr(spec, name)) is not None
        }
        self._main = self._templates.get("prompt") or self._templates["embed"]
        used = frozenset[str]().union(*(template.used for template in self._templates.values()))
        if not used:
            raise MappingError(
                f"the prompt names no column, so every row would be asked the same; name one, such as {{{names[0]}}}",
                param="prompt" if spec.embed is None else "embed",
            )
        self._names = names
        self._used = tuple(name for name in names if name in used)
        self._where = None if spec.where is None else _condition(spec.where, names)
        system = self._templates.get("system")
        self._system = system if system and system.used else None
        self._turns = self._make_turns()
        self._start, self._end = self._make_start(system), b"}" if spec.embed is not None else b"}]}"
        self._start_hash = hashlib.sha256(self._start)

    def request(self, row: Row) -> Request | None:
        """Return the request of a row; None if `where` leaves it out or all cells of its prompt are empty. Raises RowError."""
        if row.problem:
            raise RowError(row.problem)
        values = row.values
        if all(is_empty(values[name]) for name in self._used):
            return None
        if self._where is not None and not self._where.render(values):
            return None
        rest = self._rest(values)
        digest = self._start_hash.copy()
        digest.update(rest)
        return Request(f"{_PREFIX}{digest.hexdigest()}", self.endpoint, self._start + rest)

    def cells(self, answer: Answer) -> tuple[Any, ...]:  # Any: cells
        """Return the added cells, of which the last is the error. Raises RowError for an answer that cannot be used."""
        if self.spec.embed is not None:
            if answer.vector is None:
                raise RowError("the response has no vector")
            return answer.vector, None
        text = answer.text.strip()
        if self.schema is None:
            if not text:
                raise RowError("the answer is empty")
            return text, "the answer is cut off: it reached max_tokens" if answer.is_cut else None
        try:
            values = _read_object(_without_fence(text) if text.startswith("`") else text)
        except (ValueError, RecursionError) as error:
            reason = "it is cut off, since it reached max_tokens" if answer.is_cut else str(error)[:200]
            raise RowError(f"the answer is no JSON object: {reason}") from None
        cells = [conform(values.get(column.name), column.type, column.name) for column in self.answer_columns]
        return (*cells, None)

    def earlier_cells(self, stored: list[Any]) -> tuple[Any, ...] | None:  # Any: cells
        """Return the added cells of a row of an earlier output; None for one that failed or was not answered."""
        *stored, problem = stored
        try:
            cells = [
                conform(from_text(value, column.type), column.type, column.name)
                for value, column in zip(stored, self.answer_columns, strict=True)
            ]
        except RowError:
            return None
        return None if problem or all(cell in (None, "") for cell in cells) else (*cells, None)

    def _answer_column(self) -> Column:
        if self.spec.embed is not None:
            return Column(self.spec.column or "embedding", ColumnType(Kind.VECTOR))
        return Column(self.spec.column or "answer")

    def _check_collisions(self, names: tuple[str, ...]) -> None:
        taken = set(names)
        for column in self.added:
            if column.name not in taken:
                taken.add(column.name)
                continue
            if column.name == self.spec.error_column:
                way, param = "choose another `error_column`", "error_column"
            elif self.schema is not None:
                way, param = "give the property of the schema another name", "schema"
            else:
                way, param = "choose another `column`", "column"
            where = "the table" if column.name in names else "the answer"
            raise MappingError(f"{where} already has a column {column.name!r}: {way}", param=param)

    def _rest(self, values: Mapping[str, Any]) -> bytes:  # Any: cells
        """Return the end of a body, which depends on the row."""
        rest = _text(self._main.render(values)) + self._end
        return rest if self._system is None else _system(self._system.render(values)) + self._turns + _USER + rest

    def _make_start(self, system: Template | None) -> bytes:
        """Return the constant start of all bodies, as long as possible: it is hashed once."""
        fields = {"model": self.spec.model, **self.spec.parameters}
        if self.schema is not None:
            fields["response_format"] = self.schema.response_format()
        start = _encode(fields)[:-1]
        if self.spec.embed is not None:
            return start + b',"input":'
        start += b',"messages":['
        if self._system is not None:
            return start
        return start + (_system(system.render({})) if system else b"") + self._turns + _USER

    def _make_turns(self) -> bytes:
        """Return the messages of the examples, each followed by a comma. Raises MappingError."""
        messages = b""
        for index, example in enumerate(self.spec.examples or (), 1):
            needed = (*self._used, *(column.name for column in self.answer_columns))
            if missing := [name for name in needed if name not in example]:
                problem = f"example {index} has no {missing[0]!r}{nearest(missing[0], example)}"
                raise MappingError(problem, param="examples")
            try:
                texts = (self._main.render({**dict.fromkeys(self._names), **example}), self._example_answer(example))
            except RowError as error:
                raise MappingError(f"example {index}: {error}", param="examples") from None
            for role, text in zip(("user", "assistant"), texts, strict=True):
                messages += _encode({"role": role, "content": text}) + b","
        return messages

    def _example_answer(self, example: Mapping[str, Any]) -> str:
        """Return the answer of an example as the model shall write it. Raises RowError."""
        values = {
            column.name: conform(from_text(example[column.name], column.type), column.type, column.name)
            for column in self.answer_columns
        }
        return to_json(values).decode() if self.schema else cell_text(*values.values())


def _condition(source: str, names: tuple[str, ...]) -> Template:
    if "%}" in source:
        raise MappingError("'where' is one expression, such as priority == 'high'", param="where")
    return Template("{% if " + source + " %}1{% endif %}", names, param="where")


def _system(text: str) -> bytes:
    """Return a system message, followed by a comma."""
    return b'{"role":"system","content":' + _text(text) + b"},"


def _text(text: str) -> bytes:
    """Encode a text as JSON. Raises RowError for characters that no request may hold."""
    if "\0" in text:
        raise RowError("a cell has the character U+0000, which no prompt may hold")
    try:
        return _encode(text)
    except UnicodeEncodeError:
        raise RowError("a cell has bytes that are no text in the encoding of the file") from None


def _without_fence(text: str) -> str:
    """Return JSON without the fence of Markdown that servers without structured output may add."""
    return text.strip("`").removeprefix("json")
