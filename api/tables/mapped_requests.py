"""The requests that the rows of a table become: mapped in a child process, then the first one checked as a chat's is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import IO, Annotated, Final

import msgspec
from fastapi import Depends, Request

from api.dependencies import CallerDep, CatalogDep, SettingsDep, TenantDep
from api.http.event_stream import unless_disconnected
from api.schemas.batch_tables import MapOptions, as_document
from api.tables.table_input import TableInput
from api.tables.table_processes import TableProcesses, TableProcessesDep, job_limits
from core.errors import ApiError, unavailable
from core.models.model_files import ModelCatalog, ModelConfig, unknown_model
from core.schemas.base import parse_body
from core.schemas.endpoints import EMBEDDINGS_ENDPOINT, ENDPOINTS
from mapping.jobs.messages import MapSummary, PrepareTable

_CPU_SECONDS: Final = 60
_WALL_SECONDS: Final = 100.0  # shorter than an Idempotency-Key is locked
_SUMMARY_BYTES: Final = 8 << 20
# fields of a request that a mapping has under another name than `parameters`
_FIELDS: Final = {"model": "model", "messages": "prompt", "input": "embed", "response_format": "schema"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedRequests:
    """The requests of a table, their model, and the most tokens that their answers may have together."""

    summary: MapSummary
    model: ModelConfig | None
    max_output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapper:
    """Maps the table of one request."""

    request: Request
    tenant: str
    catalog: ModelCatalog
    processes: TableProcesses
    max_requests: int
    max_bytes: int

    async def map(
        self, source: TableInput[MapOptions], *, sample: int = 0, output: IO[bytes] | None = None
    ) -> MappedRequests:
        """Map a table, and write the lines of a batch's input file to an empty file, if one is given.

        Raises the 404 of an unknown model, the 400 of a table, mapping or request that is refused, and the 503 of a client that
        has left.
        """
        mapping = source.options.mapping
        model = None if mapping is None else self._model(mapping.model, source.name)
        files = [source.stream.fileno(), *([] if output is None else [output.fileno()])]
        job = PrepareTable(
            parent=os.getpid(),
            limits=job_limits(_CPU_SECONDS, _SUMMARY_BYTES if output is None else self.max_bytes),
            table=source.for_job,
            mapping=None if mapping is None else as_document(mapping),
            max_requests=self.max_requests,
            sample=sample,
            output=None if output is None else output.fileno(),
        )
        running = self.processes.run(self.tenant, job, files, wall_seconds=_WALL_SECONDS)
        printed = await unless_disconnected(self.request, running)
        if printed is None:
            raise unavailable("The client has left.")
        summary = msgspec.json.decode(printed, type=MapSummary)
        longest = 0 if model is None else _longest_answer(summary, model)
        return MappedRequests(summary=summary, model=model, max_output_tokens=summary.requests * longest)

    def _model(self, name: str, key: str) -> ModelConfig:
        model = self.catalog.pick(name, key)
        if model is None:
            raise _in_mapping(ApiError(unknown_model(name, self.catalog)))
        return model


def _longest_answer(summary: MapSummary, model: ModelConfig) -> int:
    """The most tokens of an answer; raises the 400 of requests that would fail as lines of the batch."""
    if summary.first_body is None or summary.endpoint is None:
        return 0
    endpoint = ENDPOINTS[summary.endpoint]
    try:
        body = parse_body(endpoint.body_for(model), summary.first_body)
        endpoint.check(model, body)
    except ApiError as error:
        raise _in_mapping(error) from None
    if summary.endpoint == EMBEDDINGS_ENDPOINT:
        return 0
    return min(body.max_answer_tokens or model.parameters.max_tokens or model.context_size, model.context_size)


def _in_mapping(error: ApiError) -> ApiError:
    """The same problem, with its field as the mapping has it."""
    name = error.problem.param or ""
    field = _FIELDS.get(name.partition(".")[0].partition("[")[0], f"parameters.{name}")
    return ApiError(msgspec.structs.replace(error.problem, param=f"mapping.{field}"))


async def get_mapper(
    request: Request,
    tenant: TenantDep,
    caller: CallerDep,
    catalog: CatalogDep,
    processes: TableProcessesDep,
    settings: SettingsDep,
) -> Mapper:
    """The mapper of a request; a class as dependency would be constructed in a thread."""
    return Mapper(
        request=request,
        tenant=tenant,
        catalog=catalog.only(caller.models),
        processes=processes,
        max_requests=settings.batch_lines,
        max_bytes=settings.batch_file_bytes,
    )


MapperDep = Annotated[Mapper, Depends(get_mapper)]
