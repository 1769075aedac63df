"""The published OpenAPI document: what FastAPI derives from the signatures, and the request bodies that dependencies read.

FastAPI shows only bodies that it parses itself; it would do so before the key of the request is checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, get_type_hints

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from core.schemas.objects import ErrorEnvelope

_REF: Final = "#/components/schemas/{model}"
_Node = dict[str, Any]  # Any: a piece of an OpenAPI document
_Responses = dict[int | str, _Node]

# Tools for OpenAPI read this as the schema of each event of a stream.
_EVENT: Final = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
    "required": ["data"],
}

# Responses of every operation. They also keep FastAPI from documenting its own 422.
ERRORS: Final[_Responses] = {
    "4XX": {"model": ErrorEnvelope, "description": "The request cannot be answered; the error has the reason."},
    "5XX": {"model": ErrorEnvelope, "description": "Nothing is wrong with the request; try again."},
}


@dataclass(frozen=True)
class RequestBody:
    """Annotation of a parameter that a dependency reads from the body: the model or schema of each media type."""

    content: Mapping[str, type[BaseModel] | _Node]
    is_required: bool = True

    def models(self) -> list[type[BaseModel]]:
        """The models among its content."""
        return [schema for schema in self.content.values() if isinstance(schema, type)]


def form_schema(required: Mapping[str, _Node], optional: Mapping[str, _Node] | None = None) -> _Node:
    """The schema of a multipart form, from the schemas of its fields."""
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def response_docs(
    kind: type[BaseModel] | None = None, *, streams: bool = False, media_type: str | None = None
) -> _Responses:
    """The 200 of an operation with `response_class=Response`: an object, server-sent events, bytes, or several of these."""
    content: _Node = {}
    if streams:
        content["text/event-stream"] = {"schema": _EVENT}
    if media_type is not None:
        content[media_type] = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"description": "The answer.", "content": content, **({} if kind is None else {"model": kind})}}


def install_openapi(app: FastAPI) -> None:
    """Publish the document at /openapi.json."""

    def openapi() -> _Node:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _add_request_bodies(document, list(iter_route_contexts(app.routes)))
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add_request_bodies(document: _Node, routes: list[RouteContext]) -> None:
    found = [(route, body) for route in routes for body in _request_bodies(route)]
    kinds = {kind for _, body in found for kind in body.models()}
    references, definitions = models_json_schema([(kind, "validation") for kind in kinds], ref_template=_REF)
    document["components"]["schemas"] |= definitions["$defs"]
    for route, body in found:
        content = {
            media_type: {"schema": references[schema, "validation"] if isinstance(schema, type) else schema}
            for media_type, schema in body.content.items()
        }
        for method in route.methods or ():
            operation = document["paths"][route.path_format][method.lower()]
            operation["requestBody"] = {"content": content, **({"required": True} if body.is_required else {})}


def _request_bodies(route: RouteContext) -> Iterator[RequestBody]:
    if isinstance(route.original_route, APIRoute) and route.endpoint is not None:
        for hint in get_type_hints(route.endpoint, include_extras=True).values():
            yield from (each for each in getattr(hint, "__metadata__", ()) if isinstance(each, RequestBody))
