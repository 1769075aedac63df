"""The published OpenAPI document is complete and correct, and generated requests get the responses it promises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from openai import OpenAI
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.app import create_app
from api.schemas.chat_objects import ChatCompletion
from core.settings import Settings
from tests.support.chat_chunks import ChatCompletionChunk
from tests.support.stack import StackProcess

_DOCUMENT: Final = create_app(Settings()).openapi()
_SCHEMA: Final = schemathesis.openapi.from_dict(_DOCUMENT)
_CHECKS: Final = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
_EXAMPLES: Final = 12


def _nodes(node: Any) -> Iterator[dict[str, Any]]:  # Any: JSON
    if isinstance(node, list):
        for item in node:
            yield from _nodes(item)
    elif isinstance(node, dict):
        yield node
        for item in node.values():
            yield from _nodes(item)


def _operations() -> list[Any]:  # Any: schemathesis's operations
    return [result.ok() for result in _SCHEMA.get_all_operations()]  # type: ignore[union-attr]


def test_every_reference_resolves() -> None:
    defined = {f"#/components/schemas/{name}" for name in _DOCUMENT["components"]["schemas"]}
    named = {node["$ref"] for node in _nodes(_DOCUMENT) if isinstance(node.get("$ref"), str)}
    assert named <= defined
    assert len(named) > 20


def test_every_operation_documents_its_request_and_response() -> None:
    for path, methods in _DOCUMENT["paths"].items():
        for method, operation in methods.items():
            good = next(answer for status, answer in operation["responses"].items() if status.startswith("2"))
            assert all(kind["schema"] for kind in good["content"].values()), (method, path)
            if method == "post" and not path.endswith(("}", "/cancel", "/pause", "/resume", "/revoke")):
                assert "requestBody" in operation, (method, path)


def test_a_chat_completion_and_its_chunks_match_the_published_schema(client: OpenAI) -> None:
    request: dict[str, Any] = {
        "model": "fake",
        "messages": [{"role": "user", "content": "hello"}],
        "n": 2,
        "logprobs": True,
        "top_logprobs": 2,
    }
    answer = client.chat.completions.with_raw_response.create(**request)
    ChatCompletion.model_validate_json(answer.content, extra="forbid")
    with client.chat.completions.with_streaming_response.create(
        **request, stream=True, stream_options={"include_usage": True}
    ) as stream:
        data = [line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    assert len(data) > 10
    for chunk in data:
        ChatCompletionChunk.model_validate_json(chunk, extra="forbid")


def _cases() -> Iterator[Any]:  # Any: pytest's parameters
    for operation in _operations():
        if operation.path == "/v1/batches/events":  # it ends only with its client; test_batch_feed.py reads it
            continue
        yield pytest.param(operation, GenerationMode.POSITIVE, id=f"{operation.label} valid")
        if len(operation.body) or len(operation.query):  # without them no request can violate the schema
            yield pytest.param(operation, GenerationMode.NEGATIVE, id=f"{operation.label} invalid")


@pytest.mark.parametrize(("operation", "mode"), list(_cases()))
def test_generated_requests_get_the_published_responses(
    operation: Any, mode: GenerationMode, server: StackProcess
) -> None:  # Any: schemathesis's operation
    @settings(
        max_examples=_EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:  # Any: schemathesis's case
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "fake"  # otherwise nearly every request fails with an unknown model
        if operation.path == "/v1/api_keys" and isinstance(case.body, dict):
            case.body["scopes"] = ["files"]  # an admin's key would be the first one, and other requests need it then
        response = case.call(base_url=server.url, timeout=60)
        case.validate_response(response, checks=_CHECKS)

    ask()
