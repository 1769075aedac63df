"""What many commands take: the server, the key, JSON; and a client of that server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from cli.client import Client

DEFAULT_URL: Final = "http://127.0.0.1:8000/v1"

BaseUrl = Annotated[str, typer.Option("--base-url", envvar="OPENAI_BASE_URL", help="The server's address.")]
ApiKey = Annotated[
    str, typer.Option("--api-key", envvar="OPENAI_API_KEY", help="Any text while the server has no keys.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON on stdout, as JSON Lines where it streams; words go to stderr.")
]
BatchId = Annotated[str, typer.Argument(help="As `millrace batch list` shows it.", metavar="BATCH_ID")]
FileId = Annotated[str, typer.Argument(help="As `millrace files list` shows it.", metavar="FILE_ID")]
Limit = Annotated[int, typer.Option(min=1, help="Show at most this many.")]


@contextmanager
def connected(base_url: str, api_key: str) -> Iterator[Client]:
    """A client of a server that runs already; nothing is started."""
    from cli.client import Client

    with Client(base_url, api_key) as client:
        yield client
