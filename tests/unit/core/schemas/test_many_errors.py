"""Bodies with very many wrong items: one error, not one for each, and it names the first item."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from core.errors import ApiError
from core.schemas.base import RequestModel, parse_body
from core.schemas.chat import ChatRequest
from core.schemas.completion import CompletionBody, EmbeddingBody
from core.schemas.responses.request import ResponsesRequest

MANY = 2000
HELLO = [{"role": "user", "content": "hello"}]


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", **fields}]}


BODIES: list[tuple[type[RequestModel], dict[str, Any], str]] = [
    (ChatRequest, message(content=[0] * MANY), "messages[0].content[0]"),
    (ChatRequest, message(content=[{}] * MANY), "messages[0].content[0].type"),
    (ChatRequest, message(content="a", tool_calls=[0] * MANY), "messages[0].tool_calls[0]"),
    (ChatRequest, {"messages": [{}] * MANY}, "messages[0].role"),
    (ChatRequest, {"messages": HELLO, "stop": [0] * MANY}, "stop[0]"),
    (ChatRequest, {"messages": HELLO, "tools": [0] * MANY}, "tools[0]"),
    (ChatRequest, {"messages": HELLO, "logit_bias": {str(n): None for n in range(MANY)}}, "logit_bias"),
    (CompletionBody, {"prompt": [None] * MANY}, "prompt[0]"),
    (CompletionBody, {"prompt": [[None] * MANY] * 9}, "prompt[0][0]"),
    (EmbeddingBody, {"input": [None] * MANY}, "input[0]"),
    (EmbeddingBody, {"input": [[-1] * MANY]}, "input[0][0]"),
    (ResponsesRequest, {"input": [{}] * MANY}, "input[0].role"),
    (ResponsesRequest, {"input": [{"role": "user", "content": [0] * MANY}]}, "input[0].content[0]"),
    (ResponsesRequest, {"input": "a", "include": [0] * MANY}, "include[0]"),
    (ResponsesRequest, {"input": "a", "tools": [0] * MANY}, "tools[0]"),
]


@pytest.mark.parametrize(("kind", "fields", "param"), BODIES)
def test_a_list_stops_at_its_first_wrong_item(kind: type[RequestModel], fields: dict[str, Any], param: str) -> None:
    body = {"model": "m", **fields}
    with pytest.raises(ValidationError) as many:
        kind.model_validate(body)
    assert many.value.error_count() <= 12, "of each branch of a union"
    with pytest.raises(ApiError) as found:
        parse_body(kind, body)
    assert found.value.problem.param == param
