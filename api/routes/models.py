"""`/v1/models`: the models that this server serves."""

from __future__ import annotations

from fastapi import APIRouter

from api.access.scopes import require_scopes
from api.dependencies import CallerDep, CatalogDep, StartedAtDep, TenantDep
from core.api_keys import Scope
from core.errors import not_found
from core.schemas.objects import ListObject, ModelObject

router = APIRouter(tags=["models"], dependencies=[require_scopes(Scope.INFERENCE, Scope.FILES)])


@router.get("/v1/models")
async def list_models(
    catalog: CatalogDep, started_at: StartedAtDep, _: TenantDep, caller: CallerDep
) -> ListObject[ModelObject]:
    """Every model the caller may use, by name; aliases are not listed."""
    models = [ModelObject(id=name, created=started_at) for name in catalog.only(caller.models).names()]
    return ListObject(data=models, first_id=models[0].id if models else None, last_id=models[-1].id if models else None)


@router.get("/v1/models/{name}")
async def get_model(
    name: str, catalog: CatalogDep, started_at: StartedAtDep, _: TenantDep, caller: CallerDep
) -> ModelObject:
    """A model by name or alias."""
    model = catalog.only(caller.models).get(name)
    if model is None:
        raise not_found(f"The model '{name[:96]}' does not exist here.", code="model_not_found", param="model")
    return ModelObject(id=model.name, created=started_at)
