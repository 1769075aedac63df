"""Schema of the body of `POST /v1/responses`: fields and limits, and fields that are refused on purpose.

Fields that a chat has, too (schemas, tools), have the same limits: its schema checks the translated body.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from core.models.fields.sampling import TokenLimit
from core.schemas.base import Metadata, RequestModel, Unsupported
from core.schemas.chat import MAX_MESSAGES
from core.schemas.generation import ModelRequest
from core.schemas.response_format import Schema
from core.schemas.responses.items import InputItem
from core.schemas.tools import MAX_TOOLS, ToolName

# Fields for which null and the listed values mean "off"; any other value is refused.
UNSUPPORTED: Final[dict[str, tuple[Any, ...]]] = {  # Any: JSON values
    "conversation": (),
    "prompt": (),
    "context_management": ([],),
    "moderation": (),
    "access_programs": (),
    "background_options": (),
    "image": (),
    "max_tokens": (),
    "max_completion_tokens": (),
    "n_predict": (),
    "num_predict": (),
    "max_new_tokens": (),
}
_LIMITS: Final = ("max_tokens", "max_completion_tokens", "n_predict", "num_predict", "max_new_tokens")
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Includable = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]
LOGPROBS: Final = "message.output_text.logprobs"


ShortText = Annotated[str, StringConstraints(max_length=512)]


class TextFormat(RequestModel):
    """`text.format`: any text, any JSON object, or JSON by a schema, which is here and not in a `json_schema`."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = Field(None, pattern=r"^[a-zA-Z0-9_-]+$", max_length=64)
    description: str | None = Field(None, max_length=4096)
    schema_: Schema | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _schema_with_its_type(self) -> TextFormat:
        is_named = self.name is not None and self.schema_ is not None
        if self.type == "json_schema" and not is_named:
            raise ValueError("'name' and 'schema' are needed with type 'json_schema'")
        if self.type != "json_schema" and self.schema_ is not None:
            raise ValueError("'schema' is only allowed with type 'json_schema'")
        return self


class TextConfig(RequestModel):
    """`text`."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(RequestModel):
    """`reasoning`: hints for the model."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class _OnlyFunctions(RequestModel):
    @model_validator(mode="before")
    @classmethod
    def _is_function(cls, value: object) -> object:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in ("function", "allowed_tools"):
            raise Unsupported(f"Tools of type '{kind[:32]}' are not supported; use functions.")
        return value


class FunctionTool(_OnlyFunctions):
    """An entry of `tools`; it has the fields of a chat's `function` itself."""

    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None  # Any: a JSON schema
    strict: bool | None = None


class ChosenTool(_OnlyFunctions):
    """`tool_choice` as an object: this function must be called, or only these may be."""

    type: Literal["function", "allowed_tools"]
    name: ToolName | None = None
    mode: Literal["auto", "required"] | None = None
    tools: Annotated[list[ChosenTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _has_its_fields(self) -> ChosenTool:
        if self.type == "function" and self.name is None:
            raise ValueError("'name' is needed with type 'function'")
        if self.type == "allowed_tools" and not (self.mode and self.tools):
            raise ValueError("'mode' and 'tools' are needed with type 'allowed_tools'")
        return self


def _kind_of_choice(value: object) -> str:
    return "Tool" if isinstance(value, dict | ChosenTool) else "Mode"


# the discriminator picks the branch, so that an error is about that branch
Choice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("Mode")] | Annotated[ChosenTool, Tag("Tool")],
    Discriminator(_kind_of_choice),
]


class ResponseStreamOptions(RequestModel):
    """`stream_options`, which have no effect: streams here are not padded."""

    include_obfuscation: bool | None = None


class ResponsesRequest(ModelRequest):
    """`POST /v1/responses`."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = UNSUPPORTED  # Any: JSON values
    instead: ClassVar[dict[str, str]] = dict.fromkeys(_LIMITS, "max_output_tokens")

    input: str | Annotated[list[InputItem], Field(max_length=MAX_MESSAGES, fail_fast=True)]
    instructions: str | None = None
    previous_response_id: str | None = Field(None, max_length=128)
    background: bool | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    include: Annotated[list[Includable], Field(fail_fast=True)] | None = None
    max_output_tokens: TokenLimit | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Metadata | None = None
    user: ShortText | None = None
    safety_identifier: ShortText | None = None
    prompt_cache_key: ShortText | None = None

    @property
    def is_stream(self) -> bool:
        return bool(self.stream)

    @property
    def max_answer_tokens(self) -> int | None:
        return self.max_output_tokens

    @property
    def num_answers(self) -> int:
        return 1

    @model_validator(mode="after")
    def _kept_when_later(self) -> ResponsesRequest:
        if self.background and self.store is False:
            raise Unsupported("A response in the background is always stored.", param="store")
        return self

    @property
    def is_stored(self) -> bool:
        """Is the response stored? Yes, unless the caller disables it."""
        return self.store is not False
