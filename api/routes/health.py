"""Is it alive, is it ready, what does it count. For machines that watch machines; no key needed."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from api.dependencies import StateDep
from api.http.openapi import response_docs
from api.readiness import run_checks
from core.schemas.objects import ResponseModel

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


class Readiness(ResponseModel):
    """`checks` says of each thing that is needed `ok`, or what is wrong with it; `advice`, what to do about the latter."""

    status: Literal["ok", "unavailable"]
    checks: dict[str, str]
    advice: dict[str, str]


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
async def readyz(state: StateDep) -> JSONResponse:
    """Whether work gets done: database, schema, queue, clerk, and for each model a worker that looks for work and an engine
    that turns. What is not well is named, with what to do."""
    checks = await run_checks(state)
    is_ready = not any(check.message for check in checks)
    body = {
        "status": "ok" if is_ready else "unavailable",
        "checks": {check.name: check.message or "ok" for check in checks},
        "advice": {check.name: check.advice for check in checks if check.message},
    }
    return JSONResponse(body, 200 if is_ready else 503)


@router.get("/metrics", responses=response_docs(media_type="text/plain"))
async def metrics(state: StateDep) -> Response:
    """Prometheus's text format."""
    await state.fleet.refresh(state.database, state.catalog.names())
    return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
