"""Schema of a chat completion's body: fields and limits, and fields that are refused on purpose.

Defaults that a model sets are `None` here. Fields of OpenAI's that may be ignored are not listed.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator

from core.models.fields.sampling import TokenLimit
from core.schemas.base import RequestModel, Unsupported, check_metadata
from core.schemas.generation import UNSUPPORTED, GenerationBody
from core.schemas.tools import Tool, ToolChoice, Tools, check_choice, check_tools

MAX_MESSAGES: Final = 2048
MAX_TEMPLATE_KWARGS: Final = 16

Role = Literal["system", "developer", "user", "assistant", "tool"]
TemplateKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
TemplateValue = bool | int | Annotated[str, StringConstraints(max_length=256)]


class TextPart(RequestModel):
    """A part of the content."""

    type: Literal["text"]
    text: str


class Message(RequestModel):
    """A message. Content is text, or a list of text parts; only an assistant's message may have none, which is an empty text."""

    role: Role
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: str | None = Field(None, max_length=64)
    # Any: passed to the template unchanged
    tool_calls: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _only_text(cls, value: object) -> object:
        """Refuse other parts with a helpful message, instead of the errors of a union."""
        for part in value if isinstance(value, list) else ():
            if isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] != "text":
                raise Unsupported(f"Content parts of type '{part['type'][:32]}' are not supported; send text.")
        return value

    @model_validator(mode="after")
    def _has_content(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of role '{self.role}' needs content")
        return self

    def text(self) -> str:
        """Return the content as one string."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class StoredChatFields(RequestModel):
    """The fields that keep a chat completion."""

    store: bool | None = None
    metadata: Any = None  # Any: checked only where it is kept

    @field_validator("metadata")
    @classmethod
    def _can_be_kept(cls, value: object, info: ValidationInfo) -> dict[str, str] | None:
        """Refuse what `store` could not return; otherwise metadata has no effect, and may be anything."""
        if value is None or not info.data.get("store"):
            return None
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            raise ValueError("with 'store', it should be an object whose values are strings")
        return check_metadata(value)


class ChatRequest(StoredChatFields, GenerationBody):
    """`POST /v1/chat/completions`, `POST /v1/jobs`, and the body of a batch line."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {  # Any: JSON values
        **UNSUPPORTED,
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "web_search_options": (),
        "moderation": (),
        "documents": ([],),
        "suffix": (),
        "echo": (False,),
        "best_of": (1,),
    }

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: TokenLimit | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[TemplateKey, TemplateValue] | None = Field(None, max_length=MAX_TEMPLATE_KWARGS)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

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

    @field_validator("continue_final_message")
    @classmethod
    def _can_be_continued(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value:
            if info.data.get("add_generation_prompt"):
                raise ValueError("the answer cannot begin a new turn too; leave out 'add_generation_prompt'")
            if (messages := info.data.get("messages")) and messages[-1].role != "assistant":
                raise ValueError("only a last message of the role 'assistant' can be continued")
        return value

    @field_validator("tool_choice")
    @classmethod
    def _can_be_chosen(cls, value: ToolChoice | None, info: ValidationInfo) -> ToolChoice | None:
        check_choice(value, info.data.get("tools") or [])
        return value

    @property
    def max_answer_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens
