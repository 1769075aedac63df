"""Adapters of models of the backend openai: a body goes to the server as it came, and its answer has the shape of our own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import msgspec

from core.errors import Problem
from core.models.model_files import ModelConfig
from core.schemas.base import parse_body
from core.schemas.endpoints import CHAT_ENDPOINT, COMPLETIONS_ENDPOINT, EMBEDDINGS_ENDPOINT
from core.schemas.forwarded import ForwardedBody, ForwardedChat, ForwardedCompletion, ForwardedEmbedding, count_inputs
from core.schemas.responses.chat import chat_body_of
from core.schemas.responses.request import ResponsesRequest
from engine.types import Embedded, Finished, ForwardRequest, Priority
from workers.generation.endpoints.base import (
    EndpointAdapter,
    EngineRequest,
    EngineResult,
    RequestOrigin,
    ResponseHeader,
    StreamEncoder,
    TextAdapter,
)
from workers.generation.endpoints.chat_response import ChatStreamEncoder, chat_completion
from workers.generation.endpoints.completion_response import CompletionStreamEncoder, text_completion
from workers.generation.endpoints.embedding_response import embedding_list
from workers.generation.endpoints.responses import ResponsesLine, responses_errors
from workers.generation.problems import cut_problem

JsonObject = dict[str, Any]  # Any: JSON

# Fields that ask for a structure of the answer: OpenAI's, vLLM's, and those of llama.cpp's server.
_STRUCTURES: Final = (
    "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "grammar", "json_schema",
)  # fmt: skip
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class ForwardAdapter(EndpointAdapter):
    """A body for a server: `document` is the client's JSON, `body` the fields of it that this service reads."""

    path: ClassVar[str]
    document: JsonObject

    def engine_requests(self, model: ModelConfig, origin: RequestOrigin) -> list[EngineRequest]:
        del model  # the engine has the server's name of it
        return [
            ForwardRequest(
                id=origin.job_id,
                path=self.path,
                body=_encode(self.document),
                headers=origin.trace_headers,
                stream=self.body.is_stream and origin.priority is Priority.CHAT,
                priority=origin.priority,
                tenant=origin.tenant,
                group=origin.group,
            )
        ]

    def expected_tokens(self, model: ModelConfig) -> int:
        """The limit of the body, else the context size if the model file has one, else 0."""
        limit = self.body.max_answer_tokens
        longest = model.known_context or 0 if limit is None else min(limit, model.context_size)
        return longest * self.body.num_answers


@dataclass(frozen=True)
class ForwardedGeneration(ForwardAdapter, TextAdapter):
    """A body that is answered with text."""

    body: ForwardedBody

    def reject_reason(self, result: EngineResult) -> Problem | None:
        return cut_problem(result, is_call=_must_call(self.document), is_structure=_has_structure(self.document))

    def is_deterministic(self, model: ModelConfig) -> bool:
        """True of a single greedy answer."""
        del model
        temperature = self.body.temperature
        is_greedy = type(temperature) in (int, float) and temperature == 0
        return is_greedy and self.body.n in (None, 1) and not self.body.stream


@dataclass(frozen=True)
class ForwardedChatAdapter(ForwardedGeneration):
    """A chat."""

    path: ClassVar[str] = CHAT_ENDPOINT
    body: ForwardedChat

    @classmethod
    def parse(cls, body: Any) -> Self:  # Any: parsed JSON
        """Raises the ApiError that the endpoint would answer."""
        return cls(parse_body(ForwardedChat, body), body)

    def encode_response(self, header: ResponseHeader, result: EngineResult) -> str:
        assert isinstance(result, Finished), "a chat generates text"
        return chat_completion(header, result)

    def new_stream_encoder(self, header: ResponseHeader, *, include_usage: bool) -> StreamEncoder:
        return ChatStreamEncoder(header, include_usage=include_usage)

    def prompt_texts(self) -> Iterator[str]:
        """In the order in which templates render them: tools stand with the system prompt, before what differs."""
        if tools := self.document.get("tools"):
            yield _encode(tools).decode()
        messages = self.body.messages
        for message in messages if isinstance(messages, list) else ():
            yield _encode(message).decode()


@dataclass(frozen=True)
class ForwardedCompletionAdapter(ForwardedGeneration):
    """A text completion; the server numbers the answers of several prompts as we do."""

    path: ClassVar[str] = COMPLETIONS_ENDPOINT
    body: ForwardedCompletion

    @classmethod
    def parse(cls, body: Any) -> Self:  # Any: parsed JSON
        """Raises the ApiError that the endpoint would answer."""
        return cls(parse_body(ForwardedCompletion, body), body)

    def encode_response(self, header: ResponseHeader, result: EngineResult) -> str:
        assert isinstance(result, Finished), "a completion generates text"
        return text_completion(header, result, is_echo=self._is_echo)

    def new_stream_encoder(self, header: ResponseHeader, *, include_usage: bool) -> StreamEncoder:
        return CompletionStreamEncoder(header, is_echo=self._is_echo, include_usage=include_usage)

    def prompt_texts(self) -> Iterator[str]:
        prompt = self.body.prompt
        for each in prompt if isinstance(prompt, list) else [prompt]:
            yield each if isinstance(each, str) else _encode(each).decode()

    @property
    def _is_echo(self) -> bool:
        return self.document.get("echo") is True


@dataclass(frozen=True)
class ForwardedEmbeddingAdapter(ForwardAdapter):
    """Inputs to embed."""

    path: ClassVar[str] = EMBEDDINGS_ENDPOINT
    body: ForwardedEmbedding

    @classmethod
    def parse(cls, body: Any) -> Self:  # Any: parsed JSON
        """Raises the ApiError that the endpoint would answer."""
        return cls(parse_body(ForwardedEmbedding, body), body)

    @property
    def num_inputs(self) -> int:
        return count_inputs(self.body.input)

    def encode_response(self, header: ResponseHeader, result: EngineResult) -> str:
        assert isinstance(result, Embedded), "embeddings are vectors"
        return embedding_list(header, result, is_base64=self.body.encoding_format == "base64")


@dataclass(frozen=True)
class ForwardedResponsesAdapter(ResponsesLine, ForwardedChatAdapter):
    """A batch line for `/v1/responses`: the server gets the chat that it means."""

    @classmethod
    def parse(cls, body: Any) -> Self:  # Any: parsed JSON
        """Raises the ApiError that the endpoint would answer."""
        request = parse_body(ResponsesRequest, body)
        chat = chat_body_of(request)
        with responses_errors():
            return cls(body=parse_body(ForwardedChat, chat), document=chat, request=request)


def _must_call(document: JsonObject) -> bool:
    """Must the answer call a tool?"""
    choice = document.get("tool_choice")
    if not isinstance(choice, dict):
        return bool(choice == "required")
    allowed = choice.get("allowed_tools")
    mode = allowed.get("mode") if isinstance(allowed, dict) else None
    return mode == "required" or choice.get("type") in ("function", "custom")


def _has_structure(document: JsonObject) -> bool:
    asked = document.get("response_format")
    if isinstance(asked, dict) and asked.get("type") not in (None, "text"):
        return True
    return any(document.get(name) for name in _STRUCTURES)
