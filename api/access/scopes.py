"""What a route needs: declared next to it, as a dependency of the router or of the route.

    router = APIRouter(dependencies=[needs(Scope.FILES)])

Whoever holds one of the scopes may use the route; READ_ONLY suffices for a GET, ADMIN for everything. A route that declares
nothing is the administrator's alone (`api.dependencies.get_tenant` sees to it).
"""

from __future__ import annotations

from typing import Any

from fastapi import Depends, Request

from api.access.admission import charge_call
from api.dependencies import CallerDep, StateDep, is_reading
from api.services.key_ring import not_allowed
from core.api_keys import Scope


def require_scopes(*scopes: Scope) -> Any:  # Any: FastAPI's own type of a dependency
    """Raises 401, 403 or, since whatever a key is used for is counted, 429."""

    async def check(request: Request, state: StateDep, caller: CallerDep) -> None:
        if not caller.may(scopes, is_reading=is_reading(request)):
            raise not_allowed(scopes)
        request.state.is_allowed = True
        await charge_call(request, state, caller)

    return Depends(check)
