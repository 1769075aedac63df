"""An app in the test's own process: for settings that no stack shares. No worker runs; what is created waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx2

from api.app import create_app
from core.settings import Settings

Scene = Callable[[httpx2.AsyncClient], Awaitable[None]]


def inside(settings: Settings, scene: Scene, *, key: str | None = None) -> None:
    """Play a scene with a client of an app of these settings."""

    async def run() -> None:
        app = create_app(settings)
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(
                transport=httpx2.ASGITransport(app), base_url="http://localhost", headers=headers
            ) as http,
        ):
            await scene(http)

    asyncio.run(run())
