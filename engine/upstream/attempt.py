"""One attempt at a request: send it to a server, and make the engine's values of the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from engine.errors import InvalidPrompt
from engine.types import Delta, Embedded, Finished, ForwardRequest
from engine.upstream.answers import Collector, embedded
from engine.upstream.bodies import read_body
from engine.upstream.http_client import Answer, Transport
from engine.upstream.sse import EventParser, EventTooLong
from engine.upstream.trouble import Broken, Problem, error_answer

_PREFIX: Final = "/v1"  # in the paths of our endpoints; `base_url` has it, or what stands for it there
_EMBEDDINGS: Final = "/v1/embeddings"
_DONE: Final = b"[DONE]"
_Fields = dict[str, msgspec.Raw]
_decode = msgspec.json.Decoder(_Fields).decode
_encode = msgspec.json.Encoder().encode


def request_body(body: bytes, model: str, *, is_streamed: bool) -> bytes:
    """The client's JSON with another `model`, and the fields that ask for a stream with usage, or without them.

    All other fields keep their text, so that a number that a client writes is the number that the server reads.
    """
    try:
        fields = _decode(body)
        options = _decode(fields["stream_options"]) if fields.get("stream_options", _NULL) != _NULL else {}
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise InvalidPrompt("The body must be a JSON object, and so must its stream_options.") from None
    fields["model"] = msgspec.Raw(_encode(model))
    if is_streamed:
        fields["stream"] = _TRUE
        fields["stream_options"] = msgspec.Raw(_encode({**options, "include_usage": _TRUE}))
    else:
        fields.pop("stream", None)
        fields.pop("stream_options", None)
    return _encode(fields)


_NULL: Final = msgspec.Raw(b"null")
_TRUE: Final = msgspec.Raw(b"true")


async def attempt(
    transport: Transport,
    request: ForwardRequest,
    body: bytes,
    timeout_seconds: float,
    send_deltas: Callable[[list[Delta]], None] | None,
) -> Finished | Embedded:
    """Return the answer; with `send_deltas`, pass on its parts as they come. Raises Trouble and Refused."""
    path = request.path.removeprefix(_PREFIX)
    async with transport.send("POST", path, body, timeout_seconds, request.headers) as answer:
        if answer.status != 200:
            raise error_answer(answer.status, answer.headers, await answer.read())
        if request.path == _EMBEDDINGS:
            return embedded(request.id, read_body(await answer.read()))
        collector = Collector(request.id)
        if send_deltas is not None and answer.headers.get("content-type", "").startswith("text/event-stream"):
            await _read_stream(answer, collector, send_deltas)
        else:
            deltas = collector.add(read_body(await answer.read()), is_whole=True)
            if send_deltas is not None and deltas:
                send_deltas(deltas)
        return collector.finished()


async def _read_stream(answer: Answer, collector: Collector, send_deltas: Callable[[list[Delta]], None]) -> None:
    """Read the chunks until the last one. A stream that just ends is complete if each of its choices is."""
    parser = EventParser()
    try:
        async for piece in answer.pieces:
            if _add_events(parser.feed(piece), collector, send_deltas):
                return
        _add_events(parser.end(), collector, send_deltas)
    except EventTooLong:
        raise Broken(Problem(message="The server of this model sent an event that is too long.")) from None


def _add_events(events: list[bytes], collector: Collector, send_deltas: Callable[[list[Delta]], None]) -> bool:
    """Add chunks; return whether the stream is over."""
    deltas: list[Delta] = []
    try:
        for event in events:
            if event.strip() == _DONE:
                return True
            deltas += collector.add(read_body(event))
        return False
    finally:
        if deltas:
            send_deltas(deltas)
