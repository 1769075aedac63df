"""A server for the length of a command: the one that runs, or a stack that is started and stopped again."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from cli.errors import CommandFailed, ExitCode
from cli.options import DEFAULT_URL

if TYPE_CHECKING:
    from rich.console import Console

    from cli.client import Client
    from core.settings import Settings


@dataclass(frozen=True, slots=True)
class Session:
    """A client of the server. Call `restart_dead` now and then: it restarts processes of a stack that have ended."""

    client: Client
    restart_dead: Callable[[], None]


@contextmanager
def server_session(console: Console, base_url: str, api_key: str, settings: Settings) -> Iterator[Session]:
    """Use the server at `base_url`; without one at the default address, start a stack.

    Raises CommandFailed when another address was given and no server answers there.
    """
    from cli.client import Client

    with Client(base_url, api_key) as client:
        if client.is_there():
            yield Session(client, lambda: None)
            return
    if base_url != DEFAULT_URL:
        message = f"There is no server at {base_url}. Start it, or omit --base-url to start one on this machine."
        raise CommandFailed(message, ExitCode.UNREACHABLE)
    from cli.stack.stack import Stack

    signal.signal(signal.SIGTERM, _raise_interrupt)
    stack = Stack(settings)
    started_at = time.monotonic()
    with console.status("Starting Postgres, Valkey, the engine and the api …"):
        stack.start()
    console.print(f"The stack is ready after {time.monotonic() - started_at:.1f} s, at {stack.url}", highlight=False)
    try:
        with Client(f"{stack.url}/v1", api_key) as client:
            yield Session(client, stack.restart_dead)
    finally:
        with console.status("Stopping the stack …"):
            stack.stop()


def _raise_interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt
