"""`GET /v1/activity`: what devices and models do now, for the page and for other programs that show it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastapi import APIRouter

from api.access.scopes import require_scopes
from api.dependencies import ActivityDep, CallerDep, CatalogDep, TenantDep
from api.schemas.activity import (
    Activity,
    DeviceActivity,
    DeviceEngine,
    KvCache,
    LastCrash,
    ModelActivity,
    QuarantinedRequests,
    Queues,
    Tokens,
    TokensPerSecond,
    Waiting,
)
from api.services.activity import ServiceActivity
from core.api_keys import Scope
from core.models.engine_options import BackendKind
from core.models.model_files import ModelConfig
from core.readiness import WorkerSeen
from db.workers import DeviceSeen

router = APIRouter(tags=["models"], dependencies=[require_scopes(Scope.INFERENCE)])


@router.get("/v1/activity")
async def get_activity(catalog: CatalogDep, reader: ActivityDep, _: TenantDep, caller: CallerDep) -> Activity:
    """The devices of all workers, and the models that the caller may use: what is in memory where, slots, tokens per second,
    caches, queues, crashes. Nothing of a tenant is in it but counts. It is read at most once per second."""
    found, models = await reader.read(), catalog.only(caller.models).models
    engines = [each for each in found.engines() if any(each.model == model.name for model in models)]
    return Activity(
        read_at=int(found.read_at),
        devices=[_device(found, device, engines) for device in found.devices],
        models=[
            _model(found, model, [each for each in engines if each.model == model.name])
            for model in sorted(models, key=lambda model: model.name)
        ],
    )


def _device(found: ServiceActivity, device: DeviceSeen, engines: Sequence[WorkerSeen]) -> DeviceActivity:
    here = [each for each in engines if (each.host, each.device) == (device.host, device.device)]
    return DeviceActivity(
        host=device.host,
        device=device.device,
        card=device.card or None,
        total_bytes=device.total_bytes,
        free_bytes=device.free_bytes,
        budget_bytes=device.budget_bytes,
        engine_bytes=device.engine_bytes,
        engines=[
            DeviceEngine(model=each.model or "", state=str(each.state), memory_bytes=each.memory_bytes) for each in here
        ],
        seen_at=int(found.read_at - device.seen_seconds),
        is_silent=device.seen_seconds > found.silence_seconds,
    )


def _model(found: ServiceActivity, model: ModelConfig, engines: Sequence[WorkerSeen]) -> ModelActivity:
    state, place = found.state.model(model.name), found.state.place(model.name)
    running, embeddings = _sum(each.num_running for each in engines), _sum(each.num_embeddings for each in engines)
    has_slots = model.backend is not BackendKind.OPENAI and bool(place.slots)
    prompt, cached = (_sum(each.prompt_tokens for each in engines), _sum(each.cached_tokens for each in engines))
    lines = found.lines.get(model.name)
    return ModelActivity(
        model=model.name,
        status=state.status,
        reason=state.reason or None,
        warning=state.warning,
        pinned=model.pinned or model.name in found.state.pinned,
        load_requested=model.name in found.state.requested,
        backend=model.backend,
        devices=list(place.devices),
        memory_bytes=place.memory_bytes,
        slots=place.slots if has_slots else None,
        busy_slots=running if has_slots else None,
        running_requests=running + embeddings,
        waiting_requests=_sum(each.num_waiting for each in engines),
        tokens_per_second=TokensPerSecond(
            prompt=round(sum(each.prompt_tokens_per_second or 0.0 for each in engines), 1),
            output=round(sum(each.output_tokens_per_second or 0.0 for each in engines), 1),
        ),
        tokens=Tokens(prompt=prompt, cached=cached, output=_sum(each.output_tokens for each in engines)),
        kv_cache=_kv_cache(engines),
        prefix_cache_hit_rate=round(cached / prompt, 4) if prompt else None,
        queue=_queues(found, model.name),
        running_batches=0 if lines is None else lines.running,
        waiting_batches=0 if lines is None else lines.waiting,
        last_crash=_last_crash(found, model.name),
        quarantined_requests=QuarantinedRequests(
            suspect=found.quarantined.get((model.name, False), 0), refused=found.quarantined.get((model.name, True), 0)
        ),
    )


def _kv_cache(engines: Sequence[WorkerSeen]) -> KvCache | None:
    total = _sum(each.kv_total_tokens for each in engines)
    if not total:
        return None
    used = _sum(each.kv_tokens for each in engines)
    reusable = _sum(each.kv_reusable_tokens for each in engines)
    return KvCache(used_tokens=used, reusable_tokens=reusable, total_tokens=total, usage=round(used / total, 4))


def _queues(found: ServiceActivity, model: str) -> Queues:
    chats, lines = found.chats.get(model), found.lines.get(model)
    return Queues(
        chats=Waiting(waiting=0 if chats is None else chats.waiting, oldest_seconds=chats and round(chats.seconds, 1)),
        lines=Waiting(
            waiting=0 if lines is None else lines.lines,
            oldest_seconds=round(lines.seconds, 1) if lines is not None and lines.waiting else None,
        ),
    )


def _last_crash(found: ServiceActivity, model: str) -> LastCrash | None:
    crash = found.crashes.get(model)
    if crash is None:
        return None
    host, _, device = crash.worker.rpartition("/")
    reason = crash.reason or "look at the engine's log"
    return LastCrash(at=int(crash.crashed_at.timestamp()), host=host, device=device, reason=reason)


def _sum(numbers: Iterable[int | None]) -> int:
    return sum(number or 0 for number in numbers)
