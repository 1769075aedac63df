"""What an engine is asked and what it answers: the values that cross its socket.

Knows shapes only. Every value is frozen, encodes to msgpack, and means the same in the engine process and in its clients.
Token counts are in the model's own tokens; times never cross (each side has its own clock).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

RequestKey = tuple[str, str]  # client, request id


class FinishReason(StrEnum):
    """Why a sequence ended, in OpenAI's words; CANCELLED is ours and never reaches a client."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CANCELLED = "cancelled"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the next token is chosen. Temperature 0 is greedy and deterministic; the defaults change nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_penalty: float = 1.0
    logit_bias: dict[int, float] = {}


class ConstraintKind(StrEnum):
    """What the text of a `Constraint` is written in."""

    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"


class Constraint(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer must look like. `text` is the schema's JSON, the regex, a JSON list of choices, or a Lark grammar.

    `param` is what the client calls it, for an error about it; None is the usual field of its kind.
    """

    kind: ConstraintKind
    text: str = ""
    param: str | None = None


class ToolMode(StrEnum):
    """May, must or must not the answer call tools?"""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's `tool_choice`; with REQUIRED, `name` is the one tool that may be called."""

    mode: ToolMode = ToolMode.AUTO
    name: str | None = None


class ChatPrompt(msgspec.Struct, frozen=True, kw_only=True, tag="chat"):
    """Messages for the model's chat template: `role` and text `content`, as the wire types left them."""

    messages: list[dict[str, Any]]  # Any: a message's further fields belong to the template
    tools: list[dict[str, Any]] = []  # Any: OpenAI's tool objects, shown to the template as they came
    template_kwargs: dict[str, Any] = {}  # Any: booleans and short strings, checked at the edge


class TextPrompt(msgspec.Struct, frozen=True, kw_only=True, tag="text"):
    """Raw text: no template; special-token spellings stay text."""

    text: str


class TokenPrompt(msgspec.Struct, frozen=True, kw_only=True, tag="tokens"):
    """Token ids, each checked against the vocabulary."""

    tokens: list[int]


class Priority(StrEnum):
    """Chat is admitted before batch."""

    CHAT = "chat"
    BATCH = "batch"


class Request(msgspec.Struct, frozen=True, kw_only=True, tag="generate", omit_defaults=True):
    """One generation. `id` is chosen by the client and unique among its running requests.

    `max_tokens` None means: until the model stops or the context is full. `n` answers are generated from one prompt.
    `logprobs` None asks for none, 0 for the chosen tokens', more for as many alternatives beside each. With `echo` an answer
    begins with its prompt, and logprobs with those of the prompt's tokens.
    `stream` asks for a `Delta` per step; without it only the `Finished` comes, with the whole text.
    Only requests of one `tenant` share computed prefixes. Batch requests of one `group` are begun before those of the next.
    `exclusive` keeps it out of steps that compute anything else, since it may be the request that crashes the engine.
    """

    id: str
    prompt: ChatPrompt | TextPrompt | TokenPrompt
    sampling: SamplingParams = SamplingParams()
    max_tokens: int | None = None
    n: int = 1
    stop: list[str] = []
    ignore_eos: bool = False
    logprobs: int | None = None
    echo: bool = False
    constraint: Constraint | None = None
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    stream: bool = False
    priority: Priority = Priority.CHAT
    tenant: str = ""
    group: str = ""
    exclusive: bool = False


class EmbedRequest(msgspec.Struct, frozen=True, kw_only=True, tag="embed", omit_defaults=True):
    """A vector for each input, in order. `dimensions` keeps that many of a vector's first numbers; None keeps all."""

    id: str
    inputs: list[TextPrompt | TokenPrompt]
    dimensions: int | None = None
    priority: Priority = Priority.CHAT
    tenant: str = ""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one request. `cached_tokens` of the prompt were not computed again; `reasoning_tokens` are of the answer."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """A token's natural logarithm of probability, before temperature and filters; `top` are the likeliest in its place.

    The first token of an echoed prompt follows nothing and has none: 0, and no `top`.
    """

    piece: bytes
    logprob: float
    top: list[TokenLogprob] = []


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a tool; `arguments` is JSON."""

    id: str
    name: str
    arguments: str


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """More of the call number `index` of an answer: first its `id` and `name`, then pieces of `arguments`."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Delta(msgspec.Struct, frozen=True, kw_only=True, tag="delta", omit_defaults=True):
    """New text of one streamed answer: whole characters, nothing that may still become a stop string."""

    request_id: str
    num_tokens: int
    index: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = []
    logprobs: list[TokenLogprob] = []


class Choice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One answer, streamed or not. `logprobs` is None where none were asked for."""

    reason: FinishReason
    text: str
    index: int = 0
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    logprobs: list[TokenLogprob] | None = None


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """The end of a request: its `n` answers by index, and what all of them used."""

    request_id: str
    choices: list[Choice]
    usage: Usage

    @property
    def reason(self) -> FinishReason:
        """Why the first answer ended; the only one of most requests."""
        return self.choices[0].reason

    @property
    def text(self) -> str:
        """The first answer."""
        return self.choices[0].text


class Embedded(msgspec.Struct, frozen=True, kw_only=True, tag="embedded"):
    """The vectors of a request, each of length 1: little-endian float32, ready for OpenAI's base64."""

    request_id: str
    vectors: list[bytes]
    usage: Usage


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The request could not be run; the engine is fine. `code` and `param` are what an API error needs."""

    request_id: str
    code: str
    message: str
    param: str | None = None
