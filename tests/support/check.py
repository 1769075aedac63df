"""Check of error responses."""

from __future__ import annotations

from typing import Any

import httpx2


def check_problem(response: httpx2.Response, status: int, code: str | None, param: str | None = None) -> dict[str, Any]:
    """Check the error envelope with its four fields, and the headers of every response; return the error."""
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert error["message"]
    assert response.headers["x-request-id"].startswith("req_")
    return error
