"""`/v1/models`: the models that this server serves; admins load and unload them."""

from __future__ import annotations

import json

from fastapi import APIRouter

from api.access.scopes import require_scopes
from api.dependencies import (
    CallerDep,
    CatalogDep,
    DatabaseDep,
    ModelStatesDep,
    SettingsDep,
    StartedAtDep,
    TenantDep,
)
from api.services.model_states import ServiceState
from core.api_keys import Scope
from core.errors import ApiError, Problem, bad_request
from core.models.model_files import ModelCatalog, ModelConfig, unknown_model
from core.schemas.endpoints import served_endpoints
from core.schemas.objects import ListObject, ModelObject
from core.settings import Settings
from core.states import ModelAction
from db import model_requests

router = APIRouter(tags=["models"], dependencies=[require_scopes(Scope.INFERENCE, Scope.FILES)])
control_router = APIRouter(tags=["models"], dependencies=[require_scopes(Scope.ADMIN)])


@router.get("/v1/models")
async def list_models(
    catalog: CatalogDep,
    started_at: StartedAtDep,
    _: TenantDep,
    caller: CallerDep,
    settings: SettingsDep,
    states: ModelStatesDep,
) -> ListObject[ModelObject]:
    """Every model the caller may use, by name; each is followed by its aliases, whose `root` is that name. An alias of several
    models follows the first of them."""
    state, allowed = await states.read(), catalog.only(caller.models)
    roots = {name: model for model in reversed(allowed.models) for name in (model.name, *model.aliases)}
    models = [
        _object(allowed, name, started_at, settings, state)
        for model in allowed.models
        for name in (model.name, *model.aliases)
        if roots[name] is model
    ]
    return ListObject(data=models, first_id=models[0].id if models else None, last_id=models[-1].id if models else None)


@router.get("/v1/models/{name:path}")
async def get_model(
    name: str,
    catalog: CatalogDep,
    started_at: StartedAtDep,
    _: TenantDep,
    caller: CallerDep,
    settings: SettingsDep,
    states: ModelStatesDep,
) -> ModelObject:
    """A model by name or alias."""
    models = catalog.only(caller.models)
    _find(models, name)
    return _object(models, name, started_at, settings, await states.read())


@control_router.post("/v1/models/{name:path}/{action}", status_code=202)
async def change_model(
    name: str,
    action: ModelAction,
    catalog: CatalogDep,
    started_at: StartedAtDep,
    _: TenantDep,
    caller: CallerDep,
    settings: SettingsDep,
    states: ModelStatesDep,
    database: DatabaseDep,
) -> ModelObject:
    """Load a model, or drain and unload it, or both, on every device that has it. It happens after the answer: `status` shows
    how far it is. An unloaded model is loaded again when a request needs it. A pinned one is loaded, also after a restart, and
    never unloaded, until it is unpinned."""
    models = catalog.only(caller.models)
    model = _find(models, name)
    if len(called := models.called(name)) > 1:
        names = ", ".join(each.name for each in called)
        raise bad_request(
            f"'{name}' is an alias of several models. Name one of them: {names}.", code="invalid_value", param="name"
        )
    service = await states.read()
    if (problem := _pin_problem(model, action, is_pinned=model.name in service.pinned)) is not None:
        raise ApiError(Problem(status=409, message=problem, code="model_pinned", param="model"))
    state = service.model(model.name)
    if action in (ModelAction.LOAD, ModelAction.RELOAD, ModelAction.PIN) and state.is_too_large:
        message = f"The model '{model.name}' cannot be loaded: {state.reason}. {state.advice}"
        raise ApiError(Problem(status=409, message=message, code="model_too_large", param="model"))
    async with database.begin() as connection:
        await connection.execute(model_requests.add_request(model.name, action))
    return _object(models, name, started_at, settings, await states.read_now())


def _pin_problem(model: ModelConfig, action: ModelAction, *, is_pinned: bool) -> str | None:
    """The reason why a pin forbids the action; None if it does not. Only the file's owner may change the pin of a file."""
    if action is ModelAction.UNLOAD and (model.pinned or is_pinned):
        remedy = "Remove `pinned` from its file first." if model.pinned else "Unpin it first."
        return f"The model '{model.name}' is pinned, so it is not unloaded. {remedy}"
    if action is ModelAction.UNPIN and model.pinned:
        return f"The model '{model.name}' is pinned by its file. Remove `pinned` there, or run: millrace models unpin"
    return None


def _find(models: ModelCatalog, name: str) -> ModelConfig:
    model = models.get(name)
    if model is None:
        raise ApiError(unknown_model(name, models))
    return model


def _object(models: ModelCatalog, name: str, started_at: int, settings: Settings, service: ServiceState) -> ModelObject:
    """The object of a name or alias. Of an alias that several models share, it shows the first that is not down."""
    called = models.called(name)
    model = next((each for each in called if not service.model(each.name).is_down), called[0])
    state, place = service.model(model.name), service.place(model.name)
    return ModelObject(
        id=name,
        created=started_at,
        root=model.name,
        aliases=model.aliases,
        context_size=model.known_context and (place.context_size or model.known_context),
        slots=place.slots or model.planned_slots(settings.slots),
        device=next(iter(place.devices), None),
        devices=place.devices,
        memory_bytes=place.memory_bytes,
        settings=None if place.settings_json is None else json.loads(place.settings_json),
        backend=model.backend,
        endpoints=served_endpoints(model),
        status=state.status,
        reason=state.reason or None,
        warning=state.warning,
        fallback=model.fallback,
        weight=model.weight,
        shared_by=tuple(each.name for each in called) if len(called) > 1 else (),
        load_requested=model.name in service.requested,
        pinned=model.pinned or model.name in service.pinned,
    )
