"""Scopes of a route, declared as a dependency of its router:

    router = APIRouter(dependencies=[require_scopes(Scope.FILES)])

A key needs one of them; READ_ONLY is enough for a GET, ADMIN for everything. A route that declares none requires ADMIN
(`api.dependencies.get_tenant`).
"""

from __future__ import annotations

from typing import Any

from fastapi import Depends, Request

from api.access.admission import AdmissionDep
from api.dependencies import CallerDep
from api.services.key_ring import not_allowed
from core.api_keys import Scope


def require_scopes(*scopes: Scope) -> Any:  # Any: FastAPI's own type of a dependency
    """A check of the scopes that also counts the call; it raises 401, 403 or 429."""

    async def check(request: Request, admission: AdmissionDep, caller: CallerDep) -> None:
        if not caller.may(scopes, is_reading=request.method in ("GET", "HEAD")):
            raise not_allowed(scopes)
        request.state.is_allowed = True
        await admission.charge_call(request, caller)

    return Depends(check)
