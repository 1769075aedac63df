"""Schemas of `/v1/me` and `/v1/api_keys`. Times are unix seconds."""

from __future__ import annotations

from typing import Literal

from core.api_keys import Scope
from core.schemas.objects import ResponseModel


class CallerObject(ResponseModel):
    """The sender of a request and its rights. Without a key, `api_key_id` and `name` are null; `models` null is all of them."""

    object: Literal["caller"] = "caller"
    tenant: str
    api_key_id: str | None
    name: str | None
    scopes: list[Scope]
    models: list[str] | None
    keys_required: bool
