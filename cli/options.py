"""Options that several commands share, the settings they result in, and a client of the server they name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from cli.client import Client
    from core.settings import Settings

DEFAULT_URL: Final = "http://127.0.0.1:8000/v1"

BaseUrl = Annotated[str, typer.Option("--base-url", envvar="OPENAI_BASE_URL", help="Address of the server.")]
ServerOrStack = Annotated[
    str,
    typer.Option("--base-url", envvar="OPENAI_BASE_URL", help="Address of the server; without one, starts a stack."),
]
ApiKey = Annotated[
    str, typer.Option("--api-key", envvar="OPENAI_API_KEY", help="API key; any text while the server has no keys.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON on stdout (JSON Lines where output streams) and remarks on stderr.")
]
BatchId = Annotated[str, typer.Argument(help="An id from `millrace batch list`.", metavar="BATCH_ID")]
FileId = Annotated[str, typer.Argument(help="An id from `millrace files list`.", metavar="FILE_ID")]
Limit = Annotated[int, typer.Option(min=1, help="Show at most this many.")]
StateDir = Annotated[Path | None, typer.Option("--state-dir", help="Folder of the stack's data, sockets and logs.")]
ModelsDir = Annotated[Path | None, typer.Option("--models-dir", help="Folder of model files.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda:0, …; default: the first GPU, or the CPU where there is none.")
]


@contextmanager
def connected(base_url: str, api_key: str) -> Iterator[Client]:
    """Yield a client of a running server."""
    from cli.client import Client

    with Client(base_url, api_key) as client:
        yield client


def given_settings(**given: Any) -> Settings:  # Any: the fields' own types
    """Load the settings; options that are None are left to the environment and the defaults."""
    from core.settings import load_settings

    return load_settings(**{name: value for name, value in given.items() if value is not None})
