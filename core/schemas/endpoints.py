"""Table of the endpoints that run a model, at once or as lines of a batch, and the check that a model can run a body.

`workers.generation.endpoints` has the translation of their bodies and answers.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any, Final

from core import ids
from core.errors import bad_request
from core.models.capabilities import CAPABILITIES, FEATURES, Feature, refusal
from core.models.engine_options import BackendKind
from core.models.fields.upstream_fields import UpstreamEndpoint
from core.models.model_files import ModelCatalog, ModelConfig
from core.schemas.chat import ChatRequest
from core.schemas.completion import CompletionBody, EmbeddingBody
from core.schemas.forwarded import ForwardedChat, ForwardedCompletion, ForwardedEmbedding
from core.schemas.generation import ModelRequest
from core.schemas.response_format import ResponseFormat
from core.schemas.responses.request import ResponsesRequest

CHAT_ENDPOINT: Final = "/v1/chat/completions"
COMPLETIONS_ENDPOINT: Final = "/v1/completions"
EMBEDDINGS_ENDPOINT: Final = "/v1/embeddings"
RESPONSES_ENDPOINT: Final = "/v1/responses"
INPUT_TOKENS_ENDPOINT: Final = "/v1/responses/input_tokens"  # counts and generates nothing, so no batch has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An endpoint: the schemas of its bodies for our engines and for a server upstream, and the prefix of its job ids.

    `needs` is the endpoint that a model serves, and the server upstream has.
    """

    path: str
    needs: UpstreamEndpoint
    body: type[ModelRequest]
    forwarded: type[ModelRequest]
    id_prefix: str

    def body_for(self, model: ModelConfig | None) -> type[ModelRequest]:
        """Return the schema of a body for this model."""
        return self.forwarded if model is not None and model.backend is BackendKind.OPENAI else self.body

    def check(self, model: ModelConfig, body: ModelRequest) -> None:
        """Raise a 400 when the model does not serve this endpoint, or its backend lacks something that the body asks for."""
        if self.needs == "embeddings":
            check_feature(model, Feature.EMBEDDINGS, "model")
        for feature, param in _asked(body):
            check_feature(model, feature, param)
        if model.serves(self.needs):
            return
        if model.backend is BackendKind.OPENAI:
            listed = ", ".join(served_endpoints(model))
            message = f"The model '{model.name}' does not serve {self.path}. `endpoints` in its file allow {listed}."
        else:
            message = f"The model '{model.name}' does not embed. A model does with `embeddings: true` in its file."
        raise bad_request(message, code="invalid_value", param="model")


ENDPOINTS: Final = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint(path=CHAT_ENDPOINT, needs="chat", body=ChatRequest, forwarded=ForwardedChat, id_prefix=ids.CHAT),
        Endpoint(
            path=COMPLETIONS_ENDPOINT,
            needs="completions",
            body=CompletionBody,
            forwarded=ForwardedCompletion,
            id_prefix=ids.COMPLETION,
        ),
        Endpoint(
            path=EMBEDDINGS_ENDPOINT,
            needs="embeddings",
            body=EmbeddingBody,
            forwarded=ForwardedEmbedding,
            id_prefix=ids.EMBEDDING,
        ),
        Endpoint(  # run as chats
            path=RESPONSES_ENDPOINT,
            needs="chat",
            body=ResponsesRequest,
            forwarded=ResponsesRequest,
            id_prefix=ids.CHAT,
        ),
    )
}


_ASKING: Final = frozenset(field for asked in FEATURES.values() for field in asked.fields)


def served_endpoints(model: ModelConfig) -> tuple[str, ...]:
    """Return the paths of the endpoints at which a model answers."""
    return tuple(path for path, each in ENDPOINTS.items() if model.serves(each.needs))


def named_model(
    body: Any,  # Any: parsed JSON
    models: ModelCatalog,
    key: str,
    down: Container[str] = (),
) -> ModelConfig | None:
    """Return the model that a body names, if there is one: its backend decides how the body is checked.

    Of several that share the name, `key` decides, among those that are not `down`.
    """
    name = body.get("model") if isinstance(body, dict) else None
    return models.pick(name, key, down) if isinstance(name, str) else None


def check_feature(model: ModelConfig, feature: Feature, param: str) -> None:
    """Raise a 400 when the backend of the model lacks a feature; `param` is the field that asks for it."""
    if feature not in CAPABILITIES[model.backend]:
        raise bad_request(refusal(model.name, model.backend, feature), code="unsupported_parameter", param=param)


def _asked(body: ModelRequest) -> Iterator[tuple[Feature, str]]:
    """The features that a body asks for, each with the field that does: one that is not set asks for none."""
    if not _ASKING.isdisjoint(body.model_fields_set):
        for feature, asked in FEATURES.items():
            for field in asked.fields:
                value = getattr(body, field, None)
                if _is_given(value):
                    yield feature, field
    if isinstance(body, CompletionBody):
        if body.echo and body.logprobs is not None:
            yield Feature.PROMPT_LOGPROBS, "logprobs"
        if not all(isinstance(prompt, str) for prompt in body.prompts):
            yield Feature.TOKEN_PROMPTS, "prompt"
    if isinstance(body, EmbeddingBody) and not all(isinstance(given, str) for given in body.inputs):
        yield Feature.TOKEN_PROMPTS, "input"


def _is_given(value: object) -> bool:
    """Does a field ask for something? A number of logprobs of 0 does, and an answer format of plain text does not."""
    if isinstance(value, ResponseFormat):
        return value.type != "text"
    return type(value) is int or bool(value)


def endpoint_of_line(line: bytes) -> str:
    """The `url` of a batch line, or the chat endpoint if it has none. The endpoint may be one that does not exist."""
    try:
        url = json.loads(line)["url"]
    except (ValueError, KeyError, TypeError):
        return CHAT_ENDPOINT
    return url if isinstance(url, str) and url.startswith("/v1/") else CHAT_ENDPOINT
