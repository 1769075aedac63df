"""An app in the process of the test, for settings that no stack shares. No worker runs, so what is created waits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2

from api.app import create_app
from core.settings import Settings


@asynccontextmanager
async def inside(
    settings: Settings, *, key: str | None = None, peer: str = "127.0.0.1"
) -> AsyncIterator[httpx2.AsyncClient]:
    """Start an app of these settings and yield a client of it, whose address is `peer`."""
    app = create_app(settings)
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app, client=(peer, 50000)), base_url="http://localhost", headers=headers
        ) as http,
    ):
        yield http
