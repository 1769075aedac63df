"""A response whose frames are lost is polled from its row, until shutdown ends the wait."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from api.app import create_app
from api.http.sse import PING
from api.live.follower import JobEnded, JobUpdate
from api.live.response_records import find, record_of
from api.live.responses_stream import ResponseStream
from api.live.shutdown import SHUTTING_DOWN
from core.errors import SERVER_ERROR, Problem
from core.queue.events import EventKind
from core.settings import Settings
from db.tables import DEFAULT_TENANT
from tests.service.db.test_response_events import keep
from workers.context import Database


async def lost_frames() -> AsyncIterator[JobUpdate]:
    yield JobEnded(EventKind.FAILED, Problem(status=500, message="x", type=SERVER_ERROR, code="stream_interrupted"))


async def test_a_stream_that_polls_its_row_ends_with_an_error_at_shutdown(
    settings: Settings, database: Database
) -> None:
    with database.begin() as connection:
        _, response_id = keep(connection, request='{"model": "fake", "input": ""}')

    async def read_stream() -> list[bytes]:
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            state, received = app.state, []
            record = record_of(await find(state.database, response_id, DEFAULT_TENANT), DEFAULT_TENANT)
            async for data in ResponseStream(state.jobs, state.waiters, record, None).events(lost_frames()):
                received.append(data)
                if data == PING:
                    state.waiters.end_all(SHUTTING_DOWN.problem)
            return received

    *_, ping, last = await read_stream()
    assert ping == PING
    kind, data = last.decode().splitlines()[:2]
    assert kind == "event: error"
    assert SHUTTING_DOWN.problem.message == json.loads(data.removeprefix("data: "))["message"]
