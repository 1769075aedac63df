"""`GET /v1/batches/{id}/events`: what becomes of a batch, as server-sent events read from its rows.

Nothing is kept between two looks but the reader's place, which is the id of each event: how far it has come in the order of
ending, and the last status it was told. So a stream goes on from any api process, with nothing lost and nothing twice.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, Literal

from fastapi import APIRouter, Header
from fastapi.responses import Response

from api.access.scopes import require_scopes
from api.batches.cursor import LOOK_SECONDS, format_cursor, parse_cursor
from api.batches.lookup import existing_batch, show_batch
from api.dependencies import AppState, CallerDep, StateDep, TenantDep
from api.http.event_stream import EventStream
from api.http.openapi import response_docs
from api.http.pagination import unix_seconds
from api.http.sse import PING_WITH_IDS, error_event
from api.schemas.batch_extensions import BatchLineEnded, BatchProgress, BatchStatusChanged
from api.services.key_ring import Caller
from api.services.waiters import WaitEnded, Waiter
from core.api_keys import Scope
from core.errors import Problem, bad_request
from core.schemas.objects import BatchObject, ResponseModel
from core.states import FINAL_BATCH_STATES, BatchState, JobState
from db import batch_results
from db.batch_results import BEGINNING, EndedAt, EndedMark
from db.batches import BatchRow

router = APIRouter(tags=["batch events"], dependencies=[require_scopes(Scope.INFERENCE)])

_PAGE_LINES: Final = 1000
_ORDER: Final = (
    BatchState.VALIDATING, BatchState.IN_PROGRESS, BatchState.FINALIZING, BatchState.CANCELLING, *FINAL_BATCH_STATES,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EventCursor:
    """How far a reader has come: the last line it knows of, and the last status (none at the beginning)."""

    ended: EndedAt = BEGINNING
    status: BatchState | None = None

    def __str__(self) -> str:
        return f"{format_cursor(self.ended)}.{self.status or ''}"


@router.get("/v1/batches/{batch_id}/events", responses=response_docs(streams=True))
async def get_batch_events(
    batch_id: str,
    state: StateDep,
    tenant: TenantDep,
    caller: CallerDep,
    lines: Literal["failed", "all"] = "failed",
    last_event_id: str | None = Header(None),
) -> Response:
    """`batch.status`, `batch.progress` and `batch.line` events, from the beginning or from behind `Last-Event-ID`."""
    place = _parse_place(last_event_id)
    async with state.database.connect() as connection:
        await existing_batch(connection, batch_id, tenant)
    return EventStream(_Events(state, batch_id, caller, place, shows_all=lines == "all").stream())


def _parse_place(text: str | None) -> EventCursor:
    if text is None:
        return EventCursor()
    cursor, _, status = text.rpartition(".")
    if status and status not in tuple(BatchState):
        raise bad_request(
            "'Last-Event-ID' must be an id this stream sent.", code="invalid_value", param="Last-Event-ID"
        )
    return EventCursor(parse_cursor(cursor, "Last-Event-ID"), BatchState(status) if status else None)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a look found: the batch, and the next page of lines that have ended."""

    row: BatchRow
    shown: BatchObject
    ended: list[EndedMark]


class _Events:
    """One reader's stream."""

    def __init__(self, state: AppState, batch_id: str, caller: Caller, place: EventCursor, *, shows_all: bool) -> None:
        self._state = state
        self._batch_id = batch_id
        self._caller = caller
        self._place = place
        self._shows_all = shows_all
        self._told: BatchProgress | None = None

    async def stream(self) -> AsyncIterator[bytes]:
        """Until the terminal status was told, or the reader is told that nothing more is said."""
        with self._state.readers.open(self._caller.key_id) as reader:
            try:
                async for event in self._events(reader):
                    yield event
            except WaitEnded as told:
                yield error_event(told.problem)

    async def _events(self, reader: Waiter) -> AsyncIterator[bytes]:
        said_at = time.monotonic()
        while not self._is_told_the_end():
            async for event in self._look():
                said_at = time.monotonic()
                yield event
            if self._is_told_the_end():
                return
            with suppress(TimeoutError):
                await reader.wait(LOOK_SECONDS)
            if time.monotonic() - said_at >= self._state.settings.keep_alive_seconds:
                said_at = time.monotonic()
                yield PING_WITH_IDS

    def _is_told_the_end(self) -> bool:
        return self._place.status in FINAL_BATCH_STATES

    async def _look(self) -> AsyncIterator[bytes]:
        """What is new: the status is read before the lines, so that the last one is told after all of them."""
        seen = await self._read()
        for event in self._statuses(seen.row, is_end=False):
            yield event
        ended = seen.ended
        while ended:
            if events := b"".join(self._lines(ended)):
                yield events
            ended = (await self._read()).ended if len(ended) == _PAGE_LINES else []
        if progress := self._progress(seen.shown):
            yield progress
        for event in self._statuses(seen.row, is_end=True):
            yield event

    def _statuses(self, row: BatchRow, *, is_end: bool) -> Iterator[bytes]:
        """Statuses the batch has been in that the reader was not told of, before the end or the end itself."""
        told = -1 if self._place.status is None else _ORDER.index(self._place.status)
        for status in _ORDER[told + 1 :]:
            at = row.created_at if status is BatchState.VALIDATING else getattr(row, f"{status}_at")
            if at is not None and (status in FINAL_BATCH_STATES) == is_end:
                self._place = replace(self._place, status=status)
                yield self._event("batch.status", BatchStatusChanged(status=status, at=unix_seconds(at) or 0))

    async def _read(self) -> _Seen:
        """The batch, and the next page of lines that have ended."""
        async with self._state.database.connect() as connection:
            row = await existing_batch(connection, self._batch_id, self._caller.tenant)
            shown = await show_batch(connection, row)
            is_over = row.status in FINAL_BATCH_STATES
            statement = batch_results.ended_marks(self._batch_id, self._place.ended, _PAGE_LINES, is_over=is_over)
            return _Seen(row, shown, await statement.async_fetch_all(connection))

    def _lines(self, ended: list[EndedMark]) -> Iterator[bytes]:
        for xact, line, custom_id, state, problem in ended:
            self._place = replace(self._place, ended=EndedAt(xact, line))
            if self._shows_all or state != JobState.COMPLETED:
                code = Problem.from_json(problem).code if problem else None
                told = BatchLineEnded(custom_id=custom_id, line=line, status=str(state), code=code)
                yield self._event("batch.line", told)

    def _progress(self, shown: BatchObject) -> bytes | None:
        """Where the batch is, if it has moved since it was last told."""
        now = BatchProgress(
            request_counts=shown.request_counts, tokens_per_second=shown.tokens_per_second, eta_at=shown.eta_at
        )
        if self._told is not None and self._told.request_counts == now.request_counts:
            return None
        self._told = now
        return self._event("batch.progress", now)

    def _event(self, name: str, data: ResponseModel) -> bytes:
        return f"id: {self._place}\nevent: {name}\ndata: {data.model_dump_json()}\n\n".encode()
