"""The body of a chat completion: what is accepted, within which limits, and what is refused on purpose.

Knows nothing of models: defaults that a model sets are `None` here. Fields OpenAI defines and we may ignore are not listed.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator

from core.wire.response_format import ResponseFormat, StructuredOutputs
from core.wire.tools import Tool, ToolChoice, Tools, check_choice, check_tools
from core.wire.validation import Unsupported, WireModel

MAX_MESSAGES: Final = 2048
MAX_TOKENS: Final = 1 << 20
MAX_CHOICES: Final = 16
MAX_BIASES: Final = 300
MAX_TEMPLATE_KWARGS: Final = 16

# Of the operator alone.
DANGEROUS: Final = ("chat_template", "api_base", "base_url", "n_discard", "lora", "mmproj")
# Fields whose absence, null or listed value means "off"; anything else asks for what this server does not do.
NOT_DONE: Final[dict[str, tuple[Any, ...]]] = {  # Any: JSON values
    "functions": ([],),
    "function_call": ("none", "auto"),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "json_schema": (),
    "grammar": (),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "moderation": (),
    "suffix": (),
    "echo": (False,),
    "best_of": (1,),
    "use_beam_search": (False,),
    "repetition_penalty": (1,),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "mirostat": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
}
_INSTEAD: Final = {
    "functions": "tools",
    "function_call": "tool_choice",
    "guided_json": "structured_outputs",
    "guided_regex": "structured_outputs",
    "guided_choice": "structured_outputs",
    "guided_grammar": "structured_outputs",
    "grammar": "structured_outputs",
    "json_schema": "response_format",
    "repetition_penalty": "repeat_penalty",
    "best_of": "n",
}

Role = Literal["system", "developer", "user", "assistant", "tool"]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TokenKey = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,6})$")]  # a token id, as JSON's keys must be
TemplateKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
TemplateValue = bool | int | Annotated[str, StringConstraints(max_length=256)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class TextPart(WireModel):
    """A piece of text content."""

    type: Literal["text"]
    text: str


class Message(WireModel):
    """One turn. Content is text, or a list of text parts; only an assistant that called tools may have none."""

    role: Role
    content: str | list[TextPart] | None = None
    name: str | None = Field(None, max_length=64)
    tool_calls: list[dict[str, Any]] | None = None  # Any: shown to the template as it came
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _only_text(cls, value: object) -> object:
        """A list of other parts gets the message that helps, instead of a union's complaints."""
        for part in value if isinstance(value, list) else ():
            if isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] != "text":
                raise Unsupported(f"Content parts of type '{part['type'][:32]}' are not supported; send text.")
        return value

    @model_validator(mode="after")
    def _has_content(self) -> Message:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError(f"a message of role '{self.role}' needs content")
        return self

    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(WireModel):
    """What a stream adds."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(WireModel):
    """`POST /v1/chat/completions`, `POST /v1/jobs`, and the body of a batch line."""

    model: str = Field(min_length=1, max_length=256)
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1 << 20)
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    repeat_penalty: float | None = Field(None, gt=0, le=2)
    logit_bias: dict[TokenKey, Bias] | None = Field(None, max_length=MAX_BIASES)
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[TemplateKey, TemplateValue] | None = Field(None, max_length=MAX_TEMPLATE_KWARGS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, body: object) -> object:
        """Say no to what would be dangerous, or silently not done."""
        if not isinstance(body, dict):
            return body
        for name in DANGEROUS:
            if body.get(name) is not None:
                message = f"'{name}' cannot be set by a request; it belongs to the server's model file."
                raise Unsupported(message, param=name)
        for name, harmless in NOT_DONE.items():
            if body.get(name) is not None and body[name] not in harmless:
                instead = f"; use '{_INSTEAD[name]}'" if name in _INSTEAD else ""
                raise Unsupported(f"'{name}' with this value is not supported by this server{instead}.", param=name)
        return body

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("logprobs"):
            raise ValueError("'top_logprobs' is only allowed when 'logprobs' is true")
        return value

    @field_validator("tools")
    @classmethod
    def _fit_together(cls, value: list[Tool] | None) -> list[Tool] | None:
        check_tools(value or [])
        return value

    @field_validator("tool_choice")
    @classmethod
    def _can_be_chosen(cls, value: ToolChoice | None, info: ValidationInfo) -> ToolChoice | None:
        check_choice(value, info.data.get("tools") or [])
        return value

    @field_validator("stream_options")
    @classmethod
    def _needs_stream(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise ValueError("'stream_options' is only allowed when 'stream' is true")
        return value

    @field_validator("structured_outputs")
    @classmethod
    def _is_alone(cls, value: StructuredOutputs | None, info: ValidationInfo) -> StructuredOutputs | None:
        other = info.data.get("response_format")
        if value is not None and other is not None and other.type != "text":
            raise ValueError("'response_format' and 'structured_outputs' cannot be used together")
        return value

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    @property
    def include_usage(self) -> bool:
        """Does the stream end with a usage chunk?"""
        return bool(self.stream_options and self.stream_options.include_usage)
