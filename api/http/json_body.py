"""Reading JSON request bodies: the right content type, within the limit, through the one strict parser."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request

from core.errors import ApiError, Problem, bad_request
from core.schemas.base import RequestModel, parse_body
from core.strict_json import InvalidJson, parse_json

_Wire = TypeVar("_Wire", bound=RequestModel)


async def read_json(request: Request) -> Any:  # Any: parsed JSON of unknown shape
    """The parsed body, or the 4xx that says what is wrong with it."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(_unsupported("Send the body as JSON, with 'Content-Type: application/json'."))
    check_not_compressed(request)
    try:
        return parse_json(await request.body())
    except InvalidJson as error:
        raise bad_request(f"The request body is not valid JSON: {error}.", code="invalid_json") from None


def check_not_compressed(request: Request) -> None:
    """Raise the 415 of a body that would have to be inflated first: nobody knows to what size."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(_unsupported("Compressed request bodies are not accepted."))


async def read_wire(request: Request, kind: type[_Wire]) -> _Wire:
    """The body as a wire type."""
    return parse_body(kind, await read_json(request))


def _unsupported(message: str) -> Problem:
    return Problem(status=415, message=message, code="unsupported_media_type")
