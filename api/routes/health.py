"""Liveness, readiness and metrics, for monitoring; they need no key."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from api.dependencies import (
    CatalogDep,
    DatabaseDep,
    FilesDep,
    LiveCatalogDep,
    MetricsDep,
    RelayDep,
    ServiceMetricsDep,
    SettingsDep,
)
from api.http.openapi import response_docs
from api.readiness import ReadyStatus, run_checks
from core.schemas.objects import ResponseModel
from core.version import VERSION

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process responds."""
    return {"status": "ok"}


class Readiness(ResponseModel):
    """`checks` has `ok` or the failure of each check; `advice` has the remedy of each failure."""

    status: ReadyStatus
    checks: dict[str, str]
    advice: dict[str, str]


@router.get("/health", include_in_schema=False)
@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
async def readyz(
    database: DatabaseDep, relay: RelayDep, catalog: LiveCatalogDep, file_store: FilesDep, settings: SettingsDep
) -> JSONResponse:
    """Check database, schema, queue, file store and clerk, and for each model a worker that polls for work and an engine that
    runs. Each failure is named, with its remedy, and so is each file of the models folder that cannot be used. 200 with
    `degraded` while only models fail, and not all of them."""
    report = await run_checks(database, relay, catalog, file_store, settings)
    body = {
        "status": report.status,
        "checks": {check.name: check.message or "ok" for check in report.checks},
        "advice": {check.name: check.advice for check in report.checks if check.message},
    }
    return JSONResponse(body, 503 if report.status is ReadyStatus.UNAVAILABLE else 200)


@router.get("/version")
async def show_version() -> dict[str, str]:
    """The version of this server."""
    return {"version": VERSION}


@router.get("/metrics", response_class=Response, responses=response_docs(media_type="text/plain"))
async def metrics(
    metrics: MetricsDep, service_metrics: ServiceMetricsDep, database: DatabaseDep, catalog: CatalogDep
) -> Response:
    """Prometheus's text format."""
    await service_metrics.refresh(database, catalog.names())
    return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
