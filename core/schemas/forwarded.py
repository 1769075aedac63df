"""Schemas of bodies that go to a server upstream as they came: only the fields that this service reads are checked.

Messages, images, tools and unknown parameters are the server's to accept or to refuse.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final

from pydantic import Field

from core.schemas.base import RequestModel
from core.schemas.chat import StoredChatFields
from core.schemas.generation import ModelRequest

_MAX_COUNT: Final = 1 << 31

# -1 is "no limit" of many servers
Limit = Annotated[int, Field(ge=-1, lt=_MAX_COUNT)]


class ForwardedStreamOptions(RequestModel):
    """`stream_options`."""

    include_usage: bool | None = None


class ForwardedBody(ModelRequest):
    """The fields that all endpoints read."""

    operator_only: ClassVar[tuple[str, ...]] = ()

    n: int | None = Field(None, ge=1, lt=_MAX_COUNT)
    temperature: Any = None  # Any: only compared with 0
    max_tokens: Limit | None = None
    stream: bool | None = None
    stream_options: ForwardedStreamOptions | None = None

    @property
    def is_stream(self) -> bool:
        return bool(self.stream)

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def max_answer_tokens(self) -> int | None:
        return self.max_tokens if self.max_tokens is not None and self.max_tokens >= 0 else None

    @property
    def num_answers(self) -> int:
        return self.n or 1


class ForwardedChat(StoredChatFields, ForwardedBody):
    """`POST /v1/chat/completions`."""

    max_completion_tokens: Limit | None = None
    messages: Any = None  # Any: the server's to check

    @property
    def max_answer_tokens(self) -> int | None:
        limit = self.max_completion_tokens
        return limit if limit is not None and limit >= 0 else super().max_answer_tokens


class ForwardedCompletion(ForwardedBody):
    """`POST /v1/completions`. Each of several prompts gets `n` answers."""

    prompt: Any = None  # Any: the server's to check

    @property
    def num_answers(self) -> int:
        return (self.n or 1) * count_inputs(self.prompt)


class ForwardedEmbedding(ModelRequest):
    """`POST /v1/embeddings`."""

    operator_only: ClassVar[tuple[str, ...]] = ()

    input: Any = None  # Any: the server's to check
    encoding_format: Any = None  # Any: the server's to check; base64 also decides the form of the answer


def count_inputs(given: Any) -> int:  # Any: JSON
    """Return the number of texts or lists of token ids that are given."""
    return len(given) if isinstance(given, list) and given and not isinstance(given[0], int) else 1
