"""Schemas of structured output: OpenAI's `response_format`, and vLLM's `structured_outputs`.

They check shapes and sizes; the engine compiles schemas, regexes and grammars, which checks their content.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from core.schemas.base import RequestModel, Unsupported

MAX_SCHEMA_BYTES: Final = 64 << 10
MAX_CHOICES: Final = 500
MAX_CHOICE_BYTES: Final = 16 << 10
MAX_REGEX_BYTES: Final = 4 << 10
MAX_GRAMMAR_BYTES: Final = 32 << 10


def _at_most(max_bytes: int) -> AfterValidator:
    """Limit the size of a text, or of compact JSON, in bytes."""

    def check(value: Any) -> Any:  # Any: a field of one of several types
        size = len(value.encode() if isinstance(value, str) else msgspec.json.encode(value))
        if size > max_bytes:
            raise ValueError(f"it has {size} bytes, and at most {max_bytes} are allowed")
        return value

    return AfterValidator(check)


Schema = Annotated[dict[str, Any], _at_most(MAX_SCHEMA_BYTES)]  # Any: JSON
Choice = Annotated[str, StringConstraints(min_length=1)]


class JsonSchema(RequestModel):
    """A schema with its name. Every schema is followed strictly; `strict` has no effect."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]+$", max_length=64)
    description: str | None = Field(None, max_length=4096)
    schema_: Schema = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(RequestModel):
    """`response_format`: any text, any JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="before")
    @classmethod
    def _schema_in_its_place(cls, value: object) -> object:
        """Refuse a schema in this place, where other servers accept it: ignored, the answer would be unconstrained."""
        if isinstance(value, dict) and value.get("schema") is not None:
            raise Unsupported("A schema belongs in 'response_format.json_schema.schema', with type 'json_schema'.")
        return value

    @model_validator(mode="after")
    def _schema_with_its_type(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("'json_schema' is needed with type 'json_schema', and only allowed with it")
        return self


class StructuredOutputs(RequestModel):
    """`structured_outputs`: a schema (or its text), any JSON object, a regex, a list of texts, or a Lark grammar."""

    json_: Annotated[dict[str, Any] | str, _at_most(MAX_SCHEMA_BYTES)] | None = Field(None, alias="json")  # Any: JSON
    json_object: bool | None = None
    regex: Annotated[str, StringConstraints(min_length=1), _at_most(MAX_REGEX_BYTES)] | None = None
    choice: Annotated[list[Choice], Field(min_length=1, max_length=MAX_CHOICES), _at_most(MAX_CHOICE_BYTES)] | None = (
        None
    )
    grammar: Annotated[str, StringConstraints(min_length=1), _at_most(MAX_GRAMMAR_BYTES)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> StructuredOutputs:
        given = (self.json_, self.json_object or None, self.regex, self.choice, self.grammar)
        if sum(value is not None for value in given) != 1:
            raise ValueError("give exactly one of 'json', 'json_object', 'regex', 'choice' and 'grammar'")
        return self
