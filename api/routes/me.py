"""`GET /v1/me`: the rights of the key that a request has, whatever its scopes."""

from __future__ import annotations

from fastapi import APIRouter

from api.access.scopes import require_scopes
from api.dependencies import CallerDep
from api.http.pagination import unix_seconds
from api.schemas.api_keys import CallerObject
from core.api_keys import Scope

router = APIRouter(tags=["keys"], dependencies=[require_scopes(*Scope)])


@router.get("/v1/me")
async def get_me(caller: CallerDep) -> CallerObject:
    """The tenant and the rights of the caller; without a key those of every program of this machine."""
    return CallerObject(
        tenant=caller.tenant,
        api_key_id=caller.key_id,
        name=caller.name,
        scopes=[scope for scope in Scope if scope in caller.scopes],
        models=None if caller.models is None else sorted(caller.models),
        expires_at=unix_seconds(caller.expires_at),
        keys_required=caller.key_id is not None,
    )
