"""A server for the length of a command: the one that runs, or a stack that is started and stopped again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cli.address import api_key, api_url, local_url
from cli.errors import CommandFailed, ExitCode
from cli.options import DEFAULT_URL

if TYPE_CHECKING:
    from rich.console import Console

    from cli.client import Client
    from core.settings import Settings


@dataclass(frozen=True, slots=True)
class Session:
    """A client of the server. Call `restart_dead` now and then: it restarts processes of a stack that have ended.

    `is_started`: the server was started for the command, and stops with it.
    """

    client: Client
    restart_dead: Callable[[], None]
    is_started: bool


@contextmanager
def server_session(console: Console, base_url: str | None, key: str, settings: Settings) -> Iterator[Session]:
    """Use the server that is named, or this machine's; where none runs, start a stack on a free port.

    Raises CommandFailed when another address was given and no server answers there.
    """
    from cli.client import Client

    url = api_url(base_url) if base_url and base_url.strip() else local_url(settings)
    with Client(url, api_key(key)) as client:
        absence = client.absence()
        if not absence:
            yield Session(client, lambda: None, is_started=False)
            return
    if base_url and url != DEFAULT_URL:
        message = f"There is no server at {url}: {absence}. Start it, or omit --base-url (OPENAI_BASE_URL)"
        raise CommandFailed(f"{message} to start one here.", ExitCode.UNREACHABLE)
    from cli.stack.stack import Stack
    from core.logs import configure_logging

    configure_logging(settings.log_level)
    stack = Stack(settings.model_copy(update={"port": 0}))
    started_at = time.monotonic()
    with console.status("Starting Postgres, Valkey, the engine and the api …"):
        stack.start()
    console.print(f"The stack is ready after {time.monotonic() - started_at:.1f} s, at {stack.url}", highlight=False)
    try:
        with Client(f"{stack.url}/v1", api_key(key)) as client:
            client.restart_server = stack.restart_dead
            yield Session(client, stack.restart_dead, is_started=True)
    finally:
        with console.status("Stopping the stack …"):
            stack.stop()
