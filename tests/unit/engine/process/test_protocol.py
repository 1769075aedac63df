"""Messages between an engine and its clients."""

from __future__ import annotations

import msgspec
import pytest

from engine.process.protocol import Submit, ToEngine
from engine.types import AnyRequest, ChatPrompt, EmbedRequest, ForwardRequest, Request, TextPrompt

REQUESTS: list[AnyRequest] = [
    Request(id="a", prompt=ChatPrompt(messages=[{"role": "user", "content": "Hi"}])),
    EmbedRequest(id="a", inputs=[TextPrompt(text="stone")]),
    ForwardRequest(id="a", path="/v1/chat/completions", body=b'{"model": "m", "n": 1.0}'),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
def test_a_request_is_the_same_on_both_sides_of_the_socket(request_: AnyRequest) -> None:
    sent = Submit(client="c", boot_id="b", requests=[request_])
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=ToEngine) == sent
