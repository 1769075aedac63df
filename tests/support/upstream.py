"""Upstreams of tests: answers in OpenAI's shape, and a transport that plays them and its faults from a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from engine.types import ForwardRequest, Priority
from engine.upstream.http_client import Answer
from engine.upstream.trouble import TIMED_OUT, UNAVAILABLE, Broken, Problem, Unreachable

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


def forward(
    request_id: str = "r", path: str = CHAT, *, priority: Priority = Priority.CHAT, stream: bool = False, **fields: Any
) -> ForwardRequest:
    content = {"messages": [{"role": "user", "content": "hello"}]} if path == CHAT else {}
    body = {"model": "ours", **content, **fields}
    return ForwardRequest(
        id=request_id, path=path, body=json.dumps(body).encode(), priority=priority, stream=stream, exclusive=False
    )


def chat_answer(text: str = "hi", **given: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"object": "chat.completion", "choices": [choice], "usage": USAGE, **given}).encode()


def chunk(text: str | None = None, *, finish: str | None = None, **given: Any) -> bytes:
    """A chunk of a chat as an event."""
    delta = {} if text is None else {"content": text}
    document = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **given}
    return b"data: " + json.dumps(document).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a server sends, after `seconds`; `error` comes after the pieces."""

    status: int = 200
    pieces: tuple[bytes, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 1.0
    error: Exception | None = None


def good(text: str = "hi", seconds: float = 1.0) -> Reply:
    return Reply(pieces=(chat_answer(text),), seconds=seconds)


def events(*pieces: bytes, error: Exception | None = None) -> Reply:
    return Reply(pieces=pieces, headers={"content-type": "text/event-stream; charset=utf-8"}, error=error)


def status(number: int, *, message: str = "no", retry_after: str | None = None, **error: Any) -> Reply:
    body = json.dumps({"error": {"message": message, **error}}).encode()
    headers = {} if retry_after is None else {"retry-after": retry_after}
    return Reply(status=number, pieces=(body,), headers=headers, seconds=0.1)


def refused() -> Reply:
    return Reply(error=Unreachable(Problem(message="connection refused", code=UNAVAILABLE, status=503)), seconds=0)


def reset() -> Reply:
    return Reply(error=Broken(Problem(message="connection reset")), seconds=0.1)


def timed_out() -> Reply:
    return Reply(error=Broken(Problem(message="too late", code=TIMED_OUT, status=504)), seconds=600)


class ScriptedTransport:
    """Answers the requests with the replies in turn, then with `last`. `sent` has their times and bodies."""

    def __init__(self, *replies: Reply, last: Reply | None = None, probes: Callable[[], Reply] | None = None) -> None:
        self.replies = list(replies)
        self.last = last or good()
        self.probes = probes or (lambda: Reply(pieces=(b'{"data": []}',), seconds=0))
        self.sent: list[tuple[float, dict[str, Any]]] = []
        self.num_running = self.most_running = 0

    @asynccontextmanager
    async def send(
        self, method: str, path: str, body: bytes | None, timeout_seconds: float, headers: Mapping[str, str] = {}
    ) -> AsyncIterator[Answer]:
        if body is None:
            reply = self.probes()
        else:
            self.sent.append((asyncio.get_running_loop().time(), json.loads(body)))
            reply = self.replies.pop(0) if self.replies else self.last
        self.num_running += body is not None
        self.most_running = max(self.most_running, self.num_running)
        try:
            await asyncio.sleep(reply.seconds)
            if reply.error is not None and not reply.pieces:
                raise reply.error
            yield Answer(reply.status, reply.headers, self._pieces(reply))
        finally:
            self.num_running -= body is not None

    async def _pieces(self, reply: Reply) -> AsyncIterator[bytes]:
        for piece in reply.pieces:
            yield piece
        if reply.error is not None:
            raise reply.error
