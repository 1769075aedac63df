"""`MapSpec`: one mapping, as the command's options and the body of `POST /v1/batches/map` give it."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from core.field_errors import describe, nearest
from mapping.errors import MappingError

MAX_TEMPLATE: Final = 256 << 10
MAX_EXAMPLES: Final = 100
_OWN: Final = frozenset({"model", "messages", "prompt", "input", "stream", "stream_options", "response_format", "n"})


class MapSpec(BaseModel):
    """A mapping of rows to requests, and of their answers to columns."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)

    model: str = Field(min_length=1, max_length=256)
    prompt: str | None = Field(None, min_length=1, max_length=MAX_TEMPLATE, description="Template of the user message.")
    system: str | None = Field(None, max_length=MAX_TEMPLATE, description="Template of the system message.")
    embed: str | None = Field(None, min_length=1, max_length=MAX_TEMPLATE, description="Template of a text to embed.")
    column: str | None = Field(
        None, min_length=1, max_length=256, description="Column of the answer or vector; `answer` or `embedding`."
    )
    schema_: dict[str, Any] | str | None = Field(  # Any: a JSON Schema
        None, alias="schema", description="JSON Schema of the answer, or its shorthand: each property becomes a column."
    )
    examples: list[dict[str, Any]] | None = Field(  # Any: cells
        None, max_length=MAX_EXAMPLES, description="Rows with their answers, shown to the model before each row."
    )
    where: str | None = Field(None, min_length=1, max_length=MAX_TEMPLATE, description="Jinja condition: rows to ask.")
    limit: int | None = Field(None, ge=1, description="Ask at most so many rows, the first ones.")
    parameters: dict[str, Any] = Field(  # Any: JSON; the endpoint checks them
        default_factory=dict, description="Further fields of each request, such as `temperature` and `max_tokens`."
    )
    error_column: str = Field(
        "error", min_length=1, max_length=256, description="Column of the reason of a failed row."
    )

    @field_validator("parameters")
    @classmethod
    def _leave_own_fields(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(_OWN & value.keys()):
            raise ValueError(f"the mapping sets {taken[0]!r} itself; leave it out")
        return value

    @model_validator(mode="after")
    def _one_purpose(self) -> MapSpec:
        if (self.prompt is None) == (self.embed is None):
            raise ValueError("give either 'prompt' or 'embed'")
        for name in ("system", "schema_", "examples"):
            if self.embed is not None and getattr(self, name) is not None:
                raise ValueError(f"{name.rstrip('_')!r} needs 'prompt'; with 'embed' there is no answer to shape")
        if self.schema_ is not None and self.column is not None:
            raise ValueError("'column' is for free text; with 'schema' its properties name the columns")
        return self


def parse_spec(value: Any) -> MapSpec:  # Any: parsed JSON
    """Validate a mapping. Raises MappingError that names the first wrong field."""
    try:
        return MapSpec.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"] if part not in ("dict[str,any]", "str")) or None
    if first["type"] == "extra_forbidden":
        fields = (each.alias or key for key, each in MapSpec.model_fields.items())
        raise MappingError(f"the mapping has no field {name!r}{nearest(str(name), fields)}", param=name)
    problem = describe(first)
    raise MappingError(f"{name!r} {problem}" if name else f"the mapping is not complete: {problem}", param=name)
