"""The api process, `python -m api`: it prints its address, notifies its parent when ready, and drains on SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import importlib
import socket
import sys
from contextlib import suppress
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI

from api.app import check_database, check_files, create_app
from api.http.connection_limits import hardened_protocol, set_tcp_user_timeout
from api.http.open_files import raise_limit
from api.live.shutdown import end_waiters
from core.errors import MillraceError
from core.logs import configure_logging
from core.process.child_process import exit_with, notify_ready
from core.process.hangup import on_hangup
from core.process.listening import bound_socket
from core.process.signs_of_life import Phase, Role, SignsOfLife
from core.settings import load_settings
from core.telemetry.tracing import start_tracing

# Modules that others import when they first use them. Imported here, the clones of a fork server share them.
_LOADED_LATE: Final = (
    "encodings.utf_8_sig",
    "fastapi.telemetry._runtime",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
)
for _module in _LOADED_LATE:
    importlib.import_module(_module)

_IDLE_SECONDS = 75
_SIGN_SECONDS = 5.0
_TICK_SECONDS = 1.0
_TICKS_PER_DATE = 10  # uvicorn takes the time for the Date header with every tenth of its own ticks


class Server(uvicorn.Server):
    """Uvicorn that reports its address when it is ready, ends waiters at shutdown, and wakes once a second, not ten times."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, url: str, signs: SignsOfLife) -> None:
        super().__init__(config)
        self._app = app
        self._url = url
        self._signs = signs
        self._giving: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._exit = asyncio.Event()

    async def main_loop(self) -> None:
        """Serve until a signal comes, which ends the wait at once."""
        self._loop = asyncio.get_running_loop()
        while not await self.on_tick(_TICKS_PER_DATE):
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._exit.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by Python between two instructions of the main thread, whatever that does."""
        super().handle_exit(sig, frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._exit.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, then report readiness."""
        await super().startup(sockets)
        if self.started:
            on_hangup(self._app.state.live_catalog.refresh_soon)
            gc.freeze()  # objects so far are permanent; each full collection over them would stop all streams for 0.1 s
            print(f"listening on {self._url}", flush=True)
            notify_ready(self._url)
            self._giving = asyncio.create_task(self._give_signs(), name="signs_of_life")

    async def _give_signs(self) -> None:
        while True:
            self._signs.give(url=self._url)
            await asyncio.sleep(_SIGN_SECONDS)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting connections; open streams have some time to complete."""
        state = self._app.state
        if self._giving is not None:
            self._giving.cancel()
        self._signs.give(Phase.STOPPING)
        ending = asyncio.create_task(end_waiters(state.waiters, state.shutting_down, state.settings.drain_seconds))
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()


def main() -> None:
    """Run the process."""
    try:
        settings = load_settings()
        configure_logging(settings.log_level)
        start_tracing("api")
        raise_limit()
        check_database(settings)
        check_files(settings)
        app = create_app(settings)
        listener = bound_socket(settings.host, settings.port)
        signs = SignsOfLife(settings.state_dir, Role.API)
    except MillraceError as error:
        exit_with("api", error)
    set_tcp_user_timeout(listener, settings.unread_seconds)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    config = uvicorn.Config(
        app,
        http=hardened_protocol(settings.head_seconds, settings.unread_seconds),
        ws="none",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=int(settings.drain_seconds),
        server_header=False,
    )
    server = Server(config, app, f"http://{host}:{listener.getsockname()[1]}", signs)
    server.run(sockets=[listener])
    if not server.started:
        sys.exit(3)


if __name__ == "__main__":
    main()
