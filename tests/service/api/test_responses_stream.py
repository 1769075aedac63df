"""A response whose frames are lost is waited for at its row, and not for longer than its reader may stay."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from api.app import create_app
from api.http.sse import PING
from api.live.follower import JobEnded, JobUpdate
from api.live.responses_stream import find, known_of, response_events
from api.live.shutdown import SHUTTING_DOWN
from core.errors import SERVER_ERROR, Problem
from core.queue.events import EventKind
from core.settings import Settings
from db.tables import DEFAULT_TENANT
from tests.service.db.test_response_events import keep
from workers.context import Database


async def lost_frames() -> AsyncIterator[JobUpdate]:
    yield JobEnded(EventKind.FAILED, Problem(status=500, message="x", type=SERVER_ERROR, code="stream_interrupted"))


async def test_a_reader_at_the_row_is_told_when_the_process_leaves(settings: Settings, database: Database) -> None:
    with database.begin() as connection:
        _, response_id = keep(connection, request='{"model": "fake", "input": ""}')

    async def listen() -> list[bytes]:
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            state, heard = app.state.millrace, []
            known = known_of(await find(state, response_id, DEFAULT_TENANT), DEFAULT_TENANT)
            async for data in response_events(state, known, None, lost_frames()):
                heard.append(data)
                if data == PING:
                    state.readers.end_all(SHUTTING_DOWN.problem)
            return heard

    *_, ping, last = await listen()
    assert ping == PING
    kind, data = last.decode().splitlines()[:2]
    assert kind == "event: error"
    assert SHUTTING_DOWN.problem.message == json.loads(data.removeprefix("data: "))["message"]
