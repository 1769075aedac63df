"""JSON request bodies: `body: JsonBody[BatchCreate]` is parsed strictly, and shown in the OpenAPI document.

The body is read by a dependency, not by FastAPI, so that a request without a valid key is refused before its body is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

from fastapi import Depends, Request

from api.http.errors import TOO_LARGE
from api.http.openapi import RequestBody
from core.errors import ApiError, Problem, bad_request
from core.schemas.base import RequestModel, parse_body
from core.strict_json import InvalidJson, parse_json

_Model = TypeVar("_Model", bound=RequestModel)

JSON = "application/json"


async def read_json(request: Request) -> Any:  # Any: parsed JSON of unknown shape
    """The parsed body; raises the 415 of another content type and the 400 of invalid JSON."""
    _check_json(request)
    return _parse(await request.body())


async def read_small_json(request: Request, max_bytes: int) -> Any:  # Any: parsed JSON of unknown shape
    """The same for a route whose own limit is that of a file; raises the 413 of a body over `max_bytes`."""
    _check_json(request)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise ApiError(TOO_LARGE)
    return _parse(bytes(body))


def _check_json(request: Request) -> None:
    """Raise the 415 of a body that is not declared as JSON, or is compressed."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise ApiError(_unsupported("Send the body as JSON, with 'Content-Type: application/json'."))
    check_not_compressed(request)


def _parse(body: bytes) -> Any:  # Any: parsed JSON of unknown shape
    try:
        return parse_json(body)
    except InvalidJson as error:
        raise bad_request(f"The request body is not valid JSON: {error}.", code="invalid_json") from None


def check_not_compressed(request: Request) -> None:
    """Raise the 415 of a compressed body, whose inflated size is unknown."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(_unsupported("Compressed request bodies are not accepted."))


if TYPE_CHECKING:

    class JsonDocument(dict[str, Any], Generic[_Model]):  # Any: parsed JSON
        """A body that is checked later."""

    JsonBody = Annotated[_Model, "the body"]
    OptionalJsonBody = Annotated[_Model, "the body, or the defaults of its model"]
else:

    class JsonDocument:
        """`JsonDocument[T]`: the body as parsed JSON, documented as a `T`. The model that it names decides how it is checked."""

        def __class_getitem__(cls, kind: type[_Model]) -> Any:
            return Annotated[Any, Depends(read_json), RequestBody({JSON: kind})]

    class JsonBody:
        """`JsonBody[T]`: the body as a `T`; raises the 4xx that names the invalid field."""

        def __class_getitem__(cls, kind: type[_Model]) -> Any:
            async def read(document: Annotated[Any, Depends(read_json)]) -> RequestModel:
                return parse_body(kind, document)

            return Annotated[kind, Depends(read), RequestBody({JSON: kind})]

    class OptionalJsonBody:
        """`OptionalJsonBody[T]`: the same, or `T()` for an empty body."""

        def __class_getitem__(cls, kind: type[_Model]) -> Any:
            async def read(request: Request) -> RequestModel:
                return parse_body(kind, await read_json(request)) if await request.body() else kind()

            return Annotated[kind, Depends(read), RequestBody({JSON: kind}, is_required=False)]


def _unsupported(message: str) -> Problem:
    return Problem(status=415, message=message, code="unsupported_media_type")
