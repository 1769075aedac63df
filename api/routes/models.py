"""`/v1/models`: what is served."""

from __future__ import annotations

from fastapi import APIRouter

from api.access.admission import visible_models
from api.access.scopes import require_scopes
from api.dependencies import AppState, CallerDep, StateDep, TenantDep
from core.api_keys import Scope
from core.errors import not_found
from core.schemas.objects import ListObject, ModelObject

router = APIRouter(tags=["models"], dependencies=[require_scopes(Scope.INFERENCE, Scope.FILES)])


@router.get("/v1/models")
async def list_models(state: StateDep, _: TenantDep, caller: CallerDep) -> ListObject[ModelObject]:
    """Every model the caller may use, by name; aliases are not listed."""
    models = [_to_object(state, name) for name in visible_models(state, caller).names()]
    return ListObject(data=models, first_id=models[0].id if models else None, last_id=models[-1].id if models else None)


@router.get("/v1/models/{name}")
async def get_model(name: str, state: StateDep, _: TenantDep, caller: CallerDep) -> ModelObject:
    """A model by name or alias."""
    model = visible_models(state, caller).get(name)
    if model is None:
        raise not_found(f"The model '{name[:96]}' does not exist here.", code="model_not_found", param="model")
    return _to_object(state, model.name)


def _to_object(state: AppState, name: str) -> ModelObject:
    return ModelObject(id=name, created=state.started_at)
