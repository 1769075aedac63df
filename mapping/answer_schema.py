"""Schema of an answer: a JSON Schema, or its shorthand, and the columns that it makes."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from core.field_errors import nearest
from mapping.columns import Column, ColumnType, Kind
from mapping.errors import MappingError

_TYPES: Final = {
    "string": {"type": "string"},
    "number": {"type": "number"},
    "integer": {"type": "integer"},
    "boolean": {"type": "boolean"},
    "date": {"type": "string", "format": "date"},
}
_ALIASES: Final = {"text": "string", "str": "string", "float": "number", "int": "integer", "bool": "boolean"}
_PARAM: Final = "schema"
_FIELD: Final = re.compile(
    r"\s*(?P<name>[^:,\n]*?)[ \t]*:[ \t]*(?P<type>(?:'[^'\n]*'|\"[^\"\n]*\"|[^,\n])*)(?:,|\n|\Z)"
)
_CHOICE: Final = re.compile(r"(?:'[^']*'|\"[^\"]*\"|[^|])+|(?<=\|)(?=\||$)|^(?=\|)")
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_NAMED: Final = frozenset(("properties", "$defs", "definitions"))  # their values are schemas by name
_LITERAL: Final = frozenset(("enum", "const", "default", "examples", "allOf"))  # parts of one object do not close it


class AnswerSchema:
    """A strict JSON Schema of an object, with a column for each property."""

    def __init__(self, schema: dict[str, Any] | str) -> None:
        """Read a schema. Raises MappingError that names the part and its position."""
        self.schema = _strict(_unwrapped(_read(schema)))
        properties = self.schema.get("properties")
        if self.schema.get("type") != "object" or not isinstance(properties, dict) or not properties:
            raise MappingError(
                "the schema must be an object with `properties`: each of them becomes a column", param=_PARAM
            )
        self.columns = tuple(Column(name, self._type(part)) for name, part in properties.items())

    def response_format(self) -> dict[str, Any]:
        """Return the `response_format` of a request."""
        return {"type": "json_schema", "json_schema": {"name": "row", "strict": True, "schema": self.schema}}

    def _type(self, part: Any, depth: int = 0) -> ColumnType:  # Any: a schema
        """Return the type of the values that a schema allows; `json` for a mix."""
        any_value = ColumnType(Kind.JSON)
        if not isinstance(part, dict) or depth > 8:
            return any_value
        if isinstance(reference := part.get("$ref"), str):
            target: Any = self.schema
            for step in reference.removeprefix("#").strip("/").split("/"):
                target = target.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
            return self._type(target, depth + 1)
        for key in ("anyOf", "oneOf"):
            if isinstance(options := part.get(key), list):
                kinds = {self._type(each, depth + 1) for each in options if each != {"type": "null"}}
                return kinds.pop() if len(kinds) == 1 else any_value
        if isinstance(parts := part.get("allOf"), list) and len(parts) == 1:
            return self._type(parts[0], depth + 1)
        kind = part.get("type")
        if isinstance(kind, list):
            kinds_left = [each for each in kind if each != "null"]
            kind = kinds_left[0] if len(kinds_left) == 1 else None
        values = part.get("enum", [part["const"]] if "const" in part else None)
        if isinstance(values, list):
            values = [value for value in values if value is not None]
            if values and all(isinstance(value, str) for value in values):
                return ColumnType(Kind.STRING, choices=tuple(values))
            if kind is None and values and all(type(value) is int for value in values):
                return ColumnType(Kind.INTEGER)
        if kind == "string":
            return ColumnType(Kind.DATE if part.get("format") == "date" else Kind.STRING)
        if kind in ("integer", "number", "boolean"):
            return ColumnType(Kind(kind))
        if kind == "array":
            return ColumnType(Kind.ARRAY, item=self._type(part.get("items"), depth + 1))
        if kind == "object" and isinstance(fields := part.get("properties"), dict) and fields:
            return ColumnType(Kind.OBJECT, fields=tuple(Column(n, self._type(p, depth + 1)) for n, p in fields.items()))
        return any_value


def _read(schema: dict[str, Any] | str) -> dict[str, Any]:
    if isinstance(schema, dict):
        return schema
    if not schema.lstrip().startswith("{"):
        return _from_shorthand(schema)
    try:
        return msgspec.json.decode(schema, type=dict[str, Any])
    except ValueError as error:
        raise MappingError(f"the schema is no JSON: {error}", param=_PARAM) from None


def _unwrapped(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema inside a `response_format` or its `json_schema`."""
    for key in ("json_schema", "schema"):
        if isinstance(schema.get(key), dict) and "properties" not in schema:
            schema = schema[key]
    return schema


def _strict(part: Any) -> Any:  # Any: JSON
    """Return the schema with all properties required and no others allowed, as strict output needs it."""
    if isinstance(part, list):
        return [_strict(each) for each in part]
    if not isinstance(part, dict):
        return part
    strict: dict[str, Any] = {}
    for key, value in part.items():
        if key in _NAMED and isinstance(value, dict):
            strict[key] = {name: _strict(each) for name, each in value.items()}
        else:
            strict[key] = value if key in _LITERAL else _strict(value)
    if isinstance(properties := part.get("properties"), dict):
        strict = {"type": "object", **strict, "required": list(properties)}
        strict.setdefault("additionalProperties", False)
    return strict


def _from_shorthand(text: str) -> dict[str, Any]:
    """Read `name: type, …`: a type is one of _TYPES or choices `a|b`; `[]` makes a list of it, and `?` allows null."""
    properties: dict[str, Any] = {}
    position = 0
    while text[position:].strip():
        match = _FIELD.match(text, position)
        if match is None or not match["name"]:
            part = re.split("[,\n]", text[position:].lstrip(), maxsplit=1)[0].strip()
            raise _wrong(f"{part!r} is not of the form `name: type`", len(text) - len(text[position:].lstrip()))
        name = match["name"].strip("\"'")
        if name in properties:
            raise _wrong(f"{name!r} appears twice", match.start("name"))
        properties[name] = _from_type(match["type"].strip(), name, match.start("type"))
        position = match.end()
    return {"type": "object", "properties": properties}


def _from_type(text: str, name: str, position: int) -> dict[str, Any]:
    if text.endswith("?"):
        return {"anyOf": [_from_type(text[:-1].rstrip(), name, position), {"type": "null"}]}
    if text.endswith("[]"):
        return {"type": "array", "items": _from_type(text[:-2].rstrip(), name, position)}
    if text.startswith("(") and text.endswith(")"):
        return _from_type(text[1:-1].strip(), name, position)
    words = [word.strip() for word in _CHOICE.findall(text)]
    if len(words) > 1:
        return _from_choices(words, name, position)
    if (kind := _ALIASES.get(text.lower(), text.lower())) in _TYPES:
        return dict(_TYPES[kind])
    known = f"types are {', '.join(_TYPES)}, or choices such as low|high"
    raise _wrong(f"{name!r} has the type {text!r}{nearest(text, _TYPES)}; {known}", position)


def _from_choices(words: list[str], name: str, position: int) -> dict[str, Any]:
    if "null" in words:
        left = "|".join(word for word in words if word != "null")
        return {"anyOf": [_from_type(left, name, position), {"type": "null"}]}
    if types := [word for word in words if word in _TYPES]:
        raise _wrong(f"{name!r} mixes types; put quotes around a choice that is named {types[0]!r}", position)
    choices = [word[1:-1] if len(word) > 1 and word[0] in "'\"" and word[-1] == word[0] else word for word in words]
    if not all(choices):
        raise _wrong(f"{name!r} has an empty choice", position)
    if len(set(choices)) < len(choices):
        raise _wrong(f"{name!r} has a choice twice", position)
    if all(_INTEGER.fullmatch(word) for word in words):
        return {"type": "integer", "enum": [int(word) for word in words]}
    return {"type": "string", "enum": choices}


def _wrong(problem: str, position: int) -> MappingError:
    return MappingError(f"the schema is wrong at character {position + 1}: {problem}", param=_PARAM)
