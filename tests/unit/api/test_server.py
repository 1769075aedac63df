"""The loop of the api's server: it wakes seldom, and a signal ends it at once."""

from __future__ import annotations

import asyncio
import signal
from contextlib import closing
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI

import api.__main__
from core.process.signs_of_life import Role, SignsOfLife


def test_a_signal_ends_the_loop_without_a_tick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.__main__, "_TICK_SECONDS", 3600.0)
    app = FastAPI()
    signs = SignsOfLife(tmp_path, Role.API)
    server = api.__main__.Server(uvicorn.Config(app), app, "http://here", signs)
    server.config.load()

    async def run() -> None:
        server.lifespan = server.config.lifespan_class(server.config)
        loop = asyncio.create_task(server.main_loop())
        await asyncio.sleep(0)  # it begins to wait
        assert any(name == b"date" for name, _ in server.server_state.default_headers)
        server.handle_exit(signal.SIGTERM, None)
        async with asyncio.timeout(20):
            await loop

    with closing(signs):
        asyncio.run(run())
