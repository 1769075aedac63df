"""Check of responses against the OpenAPI document that the server publishes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx2
import jsonschema_rs

_Node = dict[str, Any]  # Any: a piece of an OpenAPI document


class Published:
    """The OpenAPI document of one server; `check` is an event hook of an HTTP client."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.document: _Node = httpx2.get(f"{url}/openapi.json").raise_for_status().json()
        self._validators: dict[str, jsonschema_rs.Draft202012Validator] = {}
        # A fixed path wins over a path with parameters: /v1/batches/validate is no batch.
        self._paths = sorted(
            self.document["paths"], key=lambda path: [part.startswith("{") for part in path.split("/")]
        )

    def operations(self) -> Iterator[tuple[str, str, _Node]]:
        """Yield (method, path, operation) of everything that is published."""
        for path, methods in self.document["paths"].items():
            for method, operation in methods.items():
                yield method, path, operation

    def check(self, response: httpx2.Response) -> None:
        """Raise AssertionError when a response is not as published. The bodies of streams are not read."""
        path = self._path(response.request.url.path)
        operation = self.document["paths"].get(path, {}).get(response.request.method.lower())
        if operation is None:
            assert response.status_code in (404, 405), f"{response.request.method} {path} is not published"
            return
        where = f"{response.request.method} {path} -> {response.status_code}"
        content = self._content(operation, response.status_code, where)
        kind = response.headers.get("content-type", "").partition(";")[0]
        if not content and not kind:
            return
        assert kind in content, f"{where}: {kind} is not one of {list(content)}"
        if kind == "application/json":
            errors = self._validator(content[kind]["schema"]).iter_errors(jsonschema_value(response))
            assert not (found := [f"{'/'.join(map(str, e.instance_path))}: {e.message}" for e in errors]), (
                where,
                found,
            )

    def _path(self, path: str) -> str:
        return next((known for known in self._paths if _pattern(known).fullmatch(path)), path)

    def _content(self, operation: _Node, status: int, where: str) -> _Node:
        for key in (str(status), f"{status // 100}XX"):
            if key in operation["responses"]:
                found: _Node = operation["responses"][key].get("content", {})
                return found
        raise AssertionError(f"{where}: this status is not published")

    def _validator(self, schema: _Node) -> jsonschema_rs.Draft202012Validator:
        key = repr(schema)
        if key not in self._validators:
            whole = {**schema, "components": self.document["components"]}
            self._validators[key] = jsonschema_rs.Draft202012Validator(whole)
        return self._validators[key]


def jsonschema_value(response: httpx2.Response) -> Any:  # Any: JSON
    """Return the body, read here since hooks run before the client reads it."""
    response.read()
    return response.json()


@cache
def _pattern(path: str) -> re.Pattern[str]:
    """The name of a model may contain slashes, no other parameter does."""
    parts = re.split(r"(\{[^}]+\})", path)
    any_part = {"{name}": ".+"}
    return re.compile(
        "".join(any_part.get(part, "[^/]+") if part.startswith("{") else re.escape(part) for part in parts)
    )
