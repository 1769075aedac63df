"""Requests and outputs of an engine: the values that cross its socket.

Every value is frozen, encodes to msgpack, and means the same in the engine process and in its clients. Token counts are in
the model's own tokens. No value holds a moment, since each process has its own clock; durations are in seconds.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from engine.errors import EngineError

RequestKey = tuple[str, str]  # client, request id


class FinishReason(StrEnum):
    """Reason for the end of a sequence, in OpenAI's words. CANCELLED is not OpenAI's and never appears in an HTTP response."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    CANCELLED = "cancelled"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Parameters of the choice of the next token. Temperature 0 is greedy and deterministic; the defaults change nothing."""

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
    """Language of the text of a `Constraint`."""

    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    GRAMMAR = "grammar"


class Constraint(msgspec.Struct, frozen=True, kw_only=True):
    """Format that an answer must follow. `text` is a JSON schema, a regex, a JSON list of choices, or a Lark grammar.

    `param` is the request field named in an error; None means the usual field of this kind.
    `thought_end`: the tokens that end free reasoning before the answer, where no other part of the answer is free text.
    """

    kind: ConstraintKind
    text: str = ""
    param: str | None = None
    thought_end: tuple[int, ...] = ()


class ToolMode(StrEnum):
    """Permission of an answer to call tools: it must not, may, or must."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


class ToolChoice(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's `tool_choice`; with REQUIRED, `name` is the one tool that may be called."""

    mode: ToolMode = ToolMode.AUTO
    name: str | None = None


class ChatPrompt(msgspec.Struct, frozen=True, kw_only=True, tag="chat"):
    """Messages for the model's chat template: `role`, and `content` of a text or of text parts, as parsed at the HTTP edge.

    The prompt ends with the beginning of the assistant's turn if `add_generation_prompt`; with `continue_final_message` it ends
    with the last message, which the answer continues.
    """

    messages: list[dict[str, Any]]  # Any: a template may use any further field
    tools: list[dict[str, Any]] = []  # Any: OpenAI's tool objects, passed to the template unchanged
    template_kwargs: dict[str, Any] = {}  # Any: booleans and short strings, checked at the edge
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class TextPrompt(msgspec.Struct, frozen=True, kw_only=True, tag="text"):
    """Raw text without a template. Text that spells a special token stays text."""

    text: str


class TokenPrompt(msgspec.Struct, frozen=True, kw_only=True, tag="tokens"):
    """Token ids, each checked against the vocabulary."""

    tokens: list[int]


class Priority(StrEnum):
    """Class of a request. Chat is admitted before batch."""

    CHAT = "chat"
    BATCH = "batch"


class Request(msgspec.Struct, frozen=True, kw_only=True, tag="generate", omit_defaults=True):
    """One generation of `n` answers from one prompt.

    `id`: chosen by the client, unique among its running requests.
    `max_tokens`: None generates until the model stops or the context is full; 0 only counts and scores the prompt.
    `logprobs`: None returns none, 0 those of the chosen tokens, k > 0 also those of k alternatives to each.
    `echo`: an answer begins with its prompt, and its logprobs with those of the prompt's tokens.
    `stream`: each step sends a `Delta`; otherwise only the `Finished` is sent, with the whole text.
    `tenant`: only requests of one tenant share computed prefixes.
    `group`: batch requests of one group begin before those of the next.
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

    @property
    def only_counts(self) -> bool:
        """Is there nothing to compute? Then the prompt is only counted, however long it is."""
        return self.max_tokens == 0 and not (self.echo and self.logprobs is not None)


class EmbedRequest(msgspec.Struct, frozen=True, kw_only=True, tag="embed", omit_defaults=True):
    """Computation of one vector for each input, in order. `dimensions` keeps the first numbers of a vector; None keeps all.

    `exclusive` keeps it out of steps with inputs of other requests, since it may be the request that crashes the engine.
    """

    id: str
    inputs: list[TextPrompt | TokenPrompt]
    dimensions: int | None = None
    priority: Priority = Priority.CHAT
    tenant: str = ""
    exclusive: bool = False


class ForwardRequest(msgspec.Struct, frozen=True, kw_only=True, tag="forward", omit_defaults=True):
    """A request for an OpenAI-compatible server, in the words of the client.

    `path` is that of the endpoint, such as `/v1/chat/completions`; `body` is the client's JSON, in which only `model` and the
    fields that ask for a stream are replaced. `headers` are sent in addition to those of the model, as for a trace. The other
    fields are those of `Request`.
    """

    id: str
    path: str
    body: bytes
    headers: dict[str, str] = {}
    stream: bool = False
    priority: Priority = Priority.CHAT
    tenant: str = ""
    group: str = ""
    exclusive: bool = False


AnyRequest = Request | EmbedRequest | ForwardRequest


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts of one request. `cached_tokens` are part of the prompt, `reasoning_tokens` part of the completion."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Natural logarithm of a token's probability, before temperature and filters; `top` are the likeliest tokens in its place.

    The first token of an echoed prompt has no probability: its `logprob` is 0 and its `top` empty. The `piece` of a control
    token is its spelling; it `is_hidden`, since it is not in the text.
    """

    piece: bytes
    logprob: float
    is_hidden: bool = False
    top: list[TokenLogprob] = []


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A complete tool call; `arguments` is JSON."""

    id: str
    name: str
    arguments: str


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Next part of the tool call number `index` of an answer: first its `id` and `name`, then pieces of `arguments`."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Delta(msgspec.Struct, frozen=True, kw_only=True, tag="delta", omit_defaults=True):
    """New text of one streamed answer: whole characters, without an end that may still become a stop string."""

    request_id: str
    num_tokens: int
    index: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = []
    logprobs: list[TokenLogprob] = []


class Choice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One complete answer, streamed or not. `logprobs` is None when the request has none."""

    reason: FinishReason
    text: str
    index: int = 0
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    logprobs: list[TokenLogprob] | None = None


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """End of a request: its `n` answers by index, and the token counts of all of them.

    `first_token_seconds`: from its arrival in the engine to its first new token, with the wait for a slot; None where there was
    none, or where a server upstream sent the answer as a whole.
    """

    request_id: str
    choices: list[Choice]
    usage: Usage
    first_token_seconds: float | None = None

    @property
    def reason(self) -> FinishReason:
        """Finish reason of the first answer, which is the only one of most requests."""
        return self.choices[0].reason

    @property
    def text(self) -> str:
        """Text of the first answer."""
        return self.choices[0].text


class Embedded(msgspec.Struct, frozen=True, kw_only=True, tag="embedded"):
    """Vectors of a request, each of length 1: little-endian float32, ready for OpenAI's base64."""

    request_id: str
    vectors: list[bytes]
    usage: Usage


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """End of a request that failed while the engine goes on. `code` and `param` are those of the API error.

    `status` and `kind` (OpenAI's error `type`) are set where a server upstream chose them, and `retry_seconds` where it named
    the pause before another request.
    """

    request_id: str
    code: str
    message: str
    param: str | None = None
    status: int | None = None
    kind: str | None = None
    retry_seconds: float | None = None

    @classmethod
    def from_error(cls, request_id: str, error: EngineError) -> Failed:
        """Translate an engine error into the end of a request."""
        return cls(request_id=request_id, code=error.code, message=str(error), param=error.param)
