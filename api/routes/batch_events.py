"""`GET /v1/batches/{id}/events`: the progress of a batch, as server-sent events read from its rows.

The only state between two polls is the client's cursor, which is the id of each event: a place in the order in which lines ended,
and the last status sent. So a stream resumes on any api process without losing or repeating an event.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, Literal

from fastapi import APIRouter, Header
from fastapi.responses import Response
from sqlalchemy.ext.asyncio import AsyncEngine

from api.access.scopes import require_scopes
from api.batches.cursor import POLL_SECONDS, format_cursor, parse_cursor
from api.batches.lookup import existing_batch, show_batch
from api.dependencies import CallerDep, DatabaseDep, ModelStatesDep, SettingsDep, TenantDep, WaitersDep
from api.http.event_stream import EventStream
from api.http.openapi import response_docs
from api.http.pagination import unix_seconds
from api.http.sse import PING_WITH_IDS, encode_event, error_event
from api.schemas.batch_extensions import BatchLineEnded, BatchProgress, BatchStatusChanged
from api.services.key_ring import Caller
from api.services.model_states import ModelStates
from api.services.waiters import WaitEnded, Waiter, Waiters
from core.api_keys import Scope
from core.errors import Problem, bad_request
from core.schemas.objects import BatchObject, ResponseModel
from core.states import FINAL_BATCH_STATES, BatchState, JobState
from db import batch_results
from db.batch_results import BEGINNING, EndedAt, EndedMark
from db.batches import BatchRow

router = APIRouter(tags=["batch events"], dependencies=[require_scopes(Scope.INFERENCE)])

_PAGE_LINES: Final = 1000
_ESTIMATES: Final = {"tokens_per_second", "eta_at", "model_ready_at"}
_ORDER: Final = (
    BatchState.VALIDATING, BatchState.IN_PROGRESS, BatchState.FINALIZING, BatchState.CANCELLING, *FINAL_BATCH_STATES,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EventCursor:
    """The events a client has received: up to the last line and the last status (none at the beginning)."""

    ended: EndedAt = BEGINNING
    status: BatchState | None = None

    def __str__(self) -> str:
        return f"{format_cursor(self.ended)}.{self.status or ''}"


@router.get("/v1/batches/{batch_id}/events", response_class=Response, responses=response_docs(streams=True))
async def get_batch_events(
    batch_id: str,
    database: DatabaseDep,
    waiters: WaitersDep,
    states: ModelStatesDep,
    settings: SettingsDep,
    tenant: TenantDep,
    caller: CallerDep,
    lines: Literal["failed", "all"] = "failed",
    last_event_id: str | None = Header(None),
) -> Response:
    """`batch.status`, `batch.progress` and `batch.line` events, from the beginning or after `Last-Event-ID`."""
    cursor = _parse_cursor(last_event_id)
    async with database.connect() as connection:
        await existing_batch(connection, batch_id, tenant)
    events = _Events(
        database,
        states,
        batch_id,
        caller,
        cursor,
        shows_all=lines == "all",
        keep_alive_seconds=settings.keep_alive_seconds,
    )
    return EventStream(events.stream(waiters))


def _parse_cursor(text: str | None) -> EventCursor:
    if text is None:
        return EventCursor()
    cursor, _, status = text.rpartition(".")
    if status and status not in tuple(BatchState):
        message = "'Last-Event-ID' must be an id that this stream has sent."
        raise bad_request(message, code="invalid_value", param="Last-Event-ID")
    return EventCursor(parse_cursor(cursor, "Last-Event-ID"), BatchState(status) if status else None)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The batch, and the next page of lines that have ended."""

    row: BatchRow
    shown: BatchObject
    ended: list[EndedMark]


class _Events:
    """The stream of one client."""

    def __init__(
        self,
        database: AsyncEngine,
        states: ModelStates,
        batch_id: str,
        caller: Caller,
        cursor: EventCursor,
        *,
        shows_all: bool,
        keep_alive_seconds: float,
    ) -> None:
        self._database = database
        self._states = states
        self._batch_id = batch_id
        self._caller = caller
        self._cursor = cursor
        self._shows_all = shows_all
        self._keep_alive_seconds = keep_alive_seconds
        self._last_progress: BatchProgress | None = None

    async def stream(self, waiters: Waiters) -> AsyncIterator[bytes]:
        """Yield events until the final status is sent, or the wait is ended by a shutdown or a revoked key."""
        with waiters.open(self._caller.key_id) as waiter:
            try:
                async for event in self._events(waiter):
                    yield event
            except WaitEnded as ended:
                yield error_event(ended.problem)

    async def _events(self, waiter: Waiter) -> AsyncIterator[bytes]:
        sent_at = time.monotonic()
        while not self._has_ended():
            async for event in self._poll():
                sent_at = time.monotonic()
                yield event
            if self._has_ended():
                return
            with suppress(TimeoutError):
                await waiter.wait(POLL_SECONDS)
            if time.monotonic() - sent_at >= self._keep_alive_seconds:
                sent_at = time.monotonic()
                yield PING_WITH_IDS

    def _has_ended(self) -> bool:
        return self._cursor.status in FINAL_BATCH_STATES

    async def _poll(self) -> AsyncIterator[bytes]:
        """Yield the new events. The status is read before the lines, so that the final one comes after all of them."""
        snapshot = await self._read()
        for event in self._statuses(snapshot.row, is_end=False):
            yield event
        ended = snapshot.ended
        while ended:
            if events := b"".join(self._lines(ended)):
                yield events
            ended = (await self._read()).ended if len(ended) == _PAGE_LINES else []
        if progress := self._progress(snapshot.shown):
            yield progress
        for event in self._statuses(snapshot.row, is_end=True):
            yield event

    def _statuses(self, row: BatchRow, *, is_end: bool) -> Iterator[bytes]:
        """Yield the statuses since the cursor: those before the end, or the final one."""
        last = -1 if self._cursor.status is None else _ORDER.index(self._cursor.status)
        for status in _ORDER[last + 1 :]:
            at = row.created_at if status is BatchState.VALIDATING else getattr(row, f"{status}_at")
            if at is not None and (status in FINAL_BATCH_STATES) == is_end:
                self._cursor = replace(self._cursor, status=status)
                yield self._event("batch.status", BatchStatusChanged(status=status, at=unix_seconds(at) or 0))

    async def _read(self) -> _Snapshot:
        async with self._database.connect() as connection:
            row = await existing_batch(connection, self._batch_id, self._caller.tenant)
            shown = await show_batch(connection, row, self._states)
            is_over = row.status in FINAL_BATCH_STATES
            statement = batch_results.ended_marks(self._batch_id, self._cursor.ended, _PAGE_LINES, is_over=is_over)
            return _Snapshot(row, shown, await statement.async_fetch_all(connection))

    def _lines(self, ended: list[EndedMark]) -> Iterator[bytes]:
        for xact, line, custom_id, state, problem in ended:
            self._cursor = replace(self._cursor, ended=EndedAt(xact, line))
            if self._shows_all or state != JobState.COMPLETED:
                code = Problem.from_json(problem).code if problem else None
                event = BatchLineEnded(custom_id=custom_id, line=line, status=str(state), code=code)
                yield self._event("batch.line", event)

    def _progress(self, shown: BatchObject) -> bytes | None:
        """The progress of the batch, if more than estimates has changed since it was last sent."""
        now = BatchProgress(**{name: getattr(shown, name) for name in BatchProgress.model_fields})
        last = self._last_progress
        if last is not None and last.model_dump(exclude=_ESTIMATES) == now.model_dump(exclude=_ESTIMATES):
            return None
        self._last_progress = now
        return self._event("batch.progress", now)

    def _event(self, name: str, data: ResponseModel) -> bytes:
        return encode_event(data.model_dump_json().encode(), name=name, event_id=str(self._cursor))
