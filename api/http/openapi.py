"""The published OpenAPI: what FastAPI finds by itself, and what it cannot see, since we read and write some bodies ourselves.

A route says the rest where it is declared: `openapi_extra=takes(ChatRequest)`, `responses=gives(ChatCompletion, streams=True)`.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from core.schemas.objects import ErrorEnvelope

_REF: Final = "#/components/schemas/{model}"
_Node = dict[str, Any]  # Any: a piece of an OpenAPI document

_Responses = dict[int | str, _Node]

# What tools for OpenAPI take for the schema of each event of a stream.
_EVENT: Final = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
    "required": ["data"],
}

# Of every operation: the envelope. It also keeps FastAPI from promising its own 422.
ERRORS: Final[_Responses] = {
    "4XX": {"model": ErrorEnvelope, "description": "The request cannot be answered; the error says why."},
    "5XX": {"model": ErrorEnvelope, "description": "Nothing is wrong with the request; try again."},
}


def request_docs(kind: type[BaseModel]) -> _Node:
    """The JSON body of an operation that parses it itself."""
    schema = kind.model_json_schema(ref_template=_REF)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def form_docs(required: dict[str, _Node], optional: dict[str, _Node] | None = None) -> _Node:
    """The multipart form of an upload: names of its fields, with a schema each."""
    schema = {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def response_docs(
    kind: type[BaseModel] | None = None, *, streams: bool = False, media_type: str | None = None
) -> _Responses:
    """The 200 of an operation that writes it itself: an object, server-sent events, something else, or several of these."""
    content: _Node = {}
    if kind is not None:
        schema = kind.model_json_schema(ref_template=_REF, mode="serialization")
        content["application/json"] = {"schema": schema}
    if streams:
        content["text/event-stream"] = {"schema": _EVENT}
    if media_type is not None:
        content[media_type] = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"description": "The answer.", "content": content}}


def install_openapi(app: FastAPI) -> None:
    """Publish at /openapi.json what the routes say."""

    def openapi() -> _Node:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            _hoist(document["paths"], schemas)
            _forget_guesses(document["paths"])
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _hoist(node: Any, schemas: _Node) -> None:  # Any: a piece of an OpenAPI document
    """Bring definitions that stand within a schema to where their references look."""
    if isinstance(node, list):
        for item in node:
            _hoist(item, schemas)
    elif isinstance(node, dict):
        schemas.update(node.pop("$defs", {}))
        for item in node.values():
            _hoist(item, schemas)


def _forget_guesses(paths: _Node) -> None:
    """FastAPI takes every answer for JSON of some kind; where a route says better, that goes."""
    for methods in paths.values():
        for operation in methods.values():
            for answer in operation["responses"].values():
                content = answer.get("content", {})
                if any(kind["schema"] for kind in content.values()):
                    answer["content"] = {name: kind for name, kind in content.items() if kind["schema"]}
