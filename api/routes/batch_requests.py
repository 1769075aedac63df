"""Lines of a batch: list, get, stream, and the output so far."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from fastapi.responses import Response
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.access.scopes import require_scopes
from api.batches.cursor import POLL_SECONDS, format_cursor, parse_cursor
from api.batches.lookup import existing_batch
from api.batches.reproducibility import reproducibility_record
from api.batches.text_search import with_text
from api.dependencies import CallerDep, DatabaseDep, RelayDep, SettingsDep, TenantDep
from api.http.event_stream import EventStream
from api.http.openapi import response_docs
from api.http.pagination import page, unix_seconds
from api.http.sse import DONE, PING, data_events, error_event
from api.live.follower import Follower, FramesReceived, Idle, JobEnded
from api.live.submission import cancelled_problem
from api.schemas.batch_extensions import BatchRequestContent, BatchRequestDetail, BatchRequestObject
from api.services.relay import Relay
from core.api_keys import Scope
from core.errors import Problem, bad_request, not_found
from core.queue.events import EventKind
from core.schemas.batch import MAX_CUSTOM_ID, answered_line, failed_line
from core.schemas.chunks import chunks_of
from core.schemas.objects import CompletionTokensDetails, ErrorObject, ListObject, PromptTokensDetails, Usage
from core.states import FINAL_BATCH_STATES, JobState
from db import batch_requests, batch_results
from db.batch_requests import LineFilter, LineSummary
from db.batch_results import EndedAt, EndedLine
from db.jobs import JobRow
from db.query import Query as Statement

router = APIRouter(tags=["batch requests"], dependencies=[require_scopes(Scope.INFERENCE)])

_TEXT: Final = r"^[^\x00]*$"
_MAX_WANTED: Final = 512  # characters
_MAX_LINE: Final = (1 << 31) - 1


@router.get("/v1/batches/{batch_id}/requests")
async def list_requests(
    batch_id: str,
    database: DatabaseDep,
    tenant: TenantDep,
    status: JobState | None = None,
    code: Annotated[str | None, Query(max_length=64, pattern=_TEXT)] = None,
    q: Annotated[str | None, Query(max_length=MAX_CUSTOM_ID, pattern=_TEXT)] = None,
    text: Annotated[str | None, Query(min_length=1, max_length=_MAX_WANTED, pattern=_TEXT)] = None,
    after: Annotated[str | None, Query(max_length=MAX_CUSTOM_ID, pattern=_TEXT)] = None,
    after_line: Annotated[int | None, Query(ge=0, le=_MAX_LINE)] = None,
    include: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> ListObject[BatchRequestContent | BatchRequestObject]:
    """Lines in the order of the file; `q` is part of a custom_id, `text` of a prompt or an answer, in any case.

    `after` is a custom_id or the id of a line, `after_line` its number. `include=body,response` adds these two.
    """
    names = _parse_include(include)
    if after is not None and after_line is not None:
        message = "Invalid value for 'after_line': send 'after' or 'after_line', not both."
        raise bad_request(message, code="invalid_value", param="after_line")
    async with database.connect() as connection:
        await existing_batch(connection, batch_id, tenant)
        place = after_line or 0 if after is None else await _line_after(connection, batch_id, after)
        chosen = LineFilter(after_line=place, status=status, code=code, query=q)
        if text is not None:
            chosen = await with_text(connection, batch_id, chosen, text, limit + 1)
        list_lines = batch_requests.list_rows if names else batch_requests.list_requests
        rows = await list_lines(batch_id, chosen, limit + 1).async_fetch_all(connection)
    return page([_shown(row, names) for row in rows], limit)


@router.get(
    "/v1/batches/{batch_id}/requests/{custom_id:path}/stream",
    response_class=Response,
    responses=response_docs(streams=True),
)
async def stream_request(
    batch_id: str,
    custom_id: str,
    database: DatabaseDep,
    relay: RelayDep,
    settings: SettingsDep,
    tenant: TenantDep,
    caller: CallerDep,
) -> Response:
    """The answer of a line as a stream: at once if the line has ended, else as it is generated."""
    async with database.connect() as connection:
        await existing_batch(connection, batch_id, tenant)
        row = await _existing_request(connection, batch_id, custom_id)
    line_stream = _LineStream(database, relay, caller.key_id, settings.keep_alive_seconds)
    return EventStream(line_stream.events(row))


@router.get("/v1/batches/{batch_id}/requests/{custom_id:path}")
async def get_request(batch_id: str, custom_id: str, database: DatabaseDep, tenant: TenantDep) -> BatchRequestDetail:
    """One line, with its body and its response."""
    async with database.connect() as connection:
        await existing_batch(connection, batch_id, tenant)
        row = await _existing_request(connection, batch_id, custom_id)
    body, response = json.loads(row.body), json.loads(row.answer) if row.answer else None
    record = reproducibility_record(row, body, response) if response else None
    return BatchRequestDetail(**_columns(row), body=body, response=response, reproducibility=record)


@router.get(
    "/v1/batches/{batch_id}/output", response_class=Response, responses=response_docs(media_type="application/jsonl")
)
async def get_output(
    batch_id: str,
    database: DatabaseDep,
    tenant: TenantDep,
    after: Annotated[str | None, Query(max_length=32)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
    *,
    merged: bool = False,
) -> Response:
    """Results so far as JSON Lines, answers and errors; the header `x-millrace-after` is the `after` of the next call."""
    place = parse_cursor(after, "after")
    async with database.connect() as connection:
        batch = await existing_batch(connection, batch_id, tenant)
        if merged:
            rows = await _merged(connection, batch_id, place.line, limit)
        else:
            is_over = batch.status in FINAL_BATCH_STATES
            statement = batch_results.ended_lines(batch_id, place, limit, is_over=is_over)
            rows = await statement.async_fetch_all(connection)
    if rows:
        place = EndedAt(rows[-1].finish_xact, rows[-1].line)
    content = b"".join(_result_line(row) for row in rows)
    return Response(content, media_type="application/jsonl", headers={"x-millrace-after": format_cursor(place)})


async def _merged(connection: AsyncConnection, batch_id: str, after_line: int, limit: int) -> list[EndedLine]:
    """Lines of the first batch of the family, each with the result of its last retry."""
    members = list((await connection.execute(batch_results.family(batch_id))).scalars())
    return await batch_results.merged_lines(members[0], members, after_line, limit).async_fetch_all(connection)


def _result_line(row: EndedLine) -> bytes:
    if row.answer is not None:
        return answered_line(row.id, row.custom_id, row.answer)
    assert row.problem is not None, "a line that ended without an answer has a problem"
    return failed_line(row.id, row.custom_id, Problem.from_json(row.problem))


@dataclass(frozen=True, slots=True)
class _LineStream:
    """Streams the answer of a line to one client."""

    database: AsyncEngine
    relay: Relay
    key_id: str | None
    keep_alive_seconds: float

    async def events(self, row: JobRow) -> AsyncIterator[bytes]:
        """The stored answer or problem, or the frames of a line that has not ended."""
        if row.finished_at is None:
            async for data in self._follow(row):
                yield data
        elif row.answer is not None:
            yield data_events(chunks_of(row.answer, include_usage=True))
            yield DONE
        else:
            assert row.problem is not None, "a line that ended without an answer has a problem"
            yield error_event(Problem.from_json(row.problem))

    async def _follow(self, row: JobRow) -> AsyncIterator[bytes]:
        """Frames of the line's worker, which only sends them while it is asked to by `send_watch`.

        The row is read beside them, since that hint may be lost and the line may move to another worker.
        """
        assert row.batch_id is not None, "a line has a batch"
        assert row.custom_id is not None, "a line has a custom_id"
        find, line_id = partial(batch_requests.find_request, row.batch_id, row.custom_id), row.id
        sent_at = time.monotonic()
        async with self.relay.follow(line_id, self.key_id) as subscription:
            await self.relay.send_watch(line_id)
            follower = Follower(self.database, subscription, find, silence_seconds=POLL_SECONDS)
            async for item in follower.updates(from_replay=True):
                match item:
                    case FramesReceived(frames=frames):
                        yield data_events(frames)
                    case Idle():
                        if time.monotonic() - sent_at >= self.keep_alive_seconds:
                            sent_at = time.monotonic()
                            await self.relay.send_watch(line_id)
                            yield PING
                    case JobEnded(kind=EventKind.DONE):
                        if follower.next_seq == 0:
                            yield data_events(chunks_of(await self._answer(item, find), include_usage=True))
                        yield DONE
                    case JobEnded(problem=problem, row=ended):
                        stored = Problem.from_json(ended.problem) if ended is not None and ended.problem else None
                        yield error_event(problem or stored or cancelled_problem())

    async def _answer(self, ended: JobEnded, find: Callable[[], Statement[JobRow]]) -> str:
        row = ended.row
        if row is None:
            async with self.database.connect() as connection:
                row = await find().async_fetch_one(connection)
        return str(row.answer)


def _parse_include(include: str | None) -> frozenset[str]:
    names = frozenset(name.strip() for name in include.split(",")) if include is not None else frozenset()
    if not names <= {"body", "response"}:
        message = "Invalid value for 'include': use 'body', 'response' or 'body,response'."
        raise bad_request(message, code="invalid_value", param="include")
    return names


def _shown(row: JobRow | LineSummary, include: frozenset[str]) -> BatchRequestContent | BatchRequestObject:
    if not include or isinstance(row, LineSummary):
        return BatchRequestObject(**_columns(row))
    body = json.loads(row.body) if "body" in include else None
    response = json.loads(row.answer) if "response" in include and row.answer else None
    return BatchRequestContent(**_columns(row), body=body, response=response)


async def _line_after(connection: AsyncConnection, batch_id: str, name: str) -> int:
    row = await batch_requests.find_request(batch_id, name).async_fetch_optional(connection)
    if row is None or row.line is None:
        raise bad_request("Invalid value for 'after': the batch has no such line.", code="invalid_value", param="after")
    return row.line


async def _existing_request(connection: AsyncConnection, batch_id: str, name: str) -> JobRow:
    row = None
    if "\0" not in name and len(name) <= MAX_CUSTOM_ID:
        row = await batch_requests.find_request(batch_id, name).async_fetch_optional(connection)
    if row is None:
        raise not_found(f"The batch has no line '{name[:64]}'.", param="custom_id")
    return row


def _columns(row: JobRow | LineSummary) -> dict[str, Any]:  # Any: the fields' own types
    """The fields of a line's object."""
    problem = Problem.from_json(row.problem).envelope()["error"] if row.problem else None
    return {
        "id": row.id,
        "custom_id": row.custom_id,
        "line": row.line,
        "model": row.model,
        "status": str(row.state),
        "attempt": row.attempt,
        "usage": _usage(row),
        "error": ErrorObject(**problem) if problem else None,
        "finished_at": unix_seconds(row.finished_at),
    }


def _usage(row: JobRow | LineSummary) -> Usage | None:
    if not row.prompt_tokens:
        return None
    completion_tokens = row.completion_tokens or 0
    return Usage(
        prompt_tokens=row.prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=row.prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=row.cached_tokens or 0),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=row.reasoning_tokens or 0),
    )
