"""Options that several commands share, the settings they result in, and a client of the server they name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.address import api_key, api_url, local_url
from cli.output import remark

if TYPE_CHECKING:
    from cli.client import Client
    from core.settings import Settings

DEFAULT_URL: Final = "http://127.0.0.1:8000/v1"

_ADDRESS: Final = "the server of this machine"

BaseUrl = Annotated[
    str | None,
    typer.Option(
        "--base-url", envvar="OPENAI_BASE_URL", help="Address of the server.", show_default=_ADDRESS, metavar="URL"
    ),
]
ServerOrStack = Annotated[
    str | None,
    typer.Option(
        "--base-url",
        envvar="OPENAI_BASE_URL",
        help="Address of the server.",
        show_default=f"{_ADDRESS}, which is started if none runs",
        metavar="URL",
    ),
]
ApiKey = Annotated[
    str,
    typer.Option(
        "--api-key",
        envvar="OPENAI_API_KEY",
        help="API key; not needed while the server has no keys.",
        show_default=False,
        metavar="KEY",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON on stdout (JSON Lines where output streams) and remarks on stderr.")
]
BatchId = Annotated[str, typer.Argument(help="An id from `millrace batch list`.", metavar="BATCH_ID")]
FileId = Annotated[str, typer.Argument(help="An id from `millrace files list`.", metavar="FILE_ID")]
Limit = Annotated[int, typer.Option(min=1, help="Show at most this many.")]
StateDir = Annotated[Path | None, typer.Option("--state-dir", help="Folder of the stack's data, sockets and logs.")]
ModelsDir = Annotated[Path | None, typer.Option("--models-dir", help="Folder of model files.")]
Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        help="Devices, separated by commas: cpu, cuda:0, or cuda for all cards; cpu@0-15 is some of the CPUs.",
        show_default="all GPUs, or the CPU where there is none",
        metavar="NAMES",
    ),
]
Cpus = Annotated[
    list[str] | None,
    typer.Option(
        "--cpus",
        help="CPUs of the device's processes: 0-15, or node0 for a NUMA node; several make a device of each.",
        show_default="all",
        metavar="CPUS",
    ),
]


Output = Annotated[Path, typer.Option("-o", "--output", help="File to write; - is stdout.", metavar="FILE")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace existing files without asking.")]


@contextmanager
def connected(base_url: str | None, key: str) -> Iterator[Client]:
    """Yield a client of the server that is named, or of this machine's."""
    from cli.client import Client

    with Client(server_url(base_url), api_key(key)) as client:
        yield client


def server_url(base_url: str | None) -> str:
    """Return the address that was given, completed, or that of this machine's server."""
    return api_url(base_url) if base_url and base_url.strip() else local_url(given_settings())


def server_options(context: typer.Context) -> list[str]:
    """Return the options of a command line that name the server or its stack, as they were typed."""
    words: list[str] = []
    for name in ("base_url", "api_key", "state_dir", "models_dir"):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            words += [f"--{name.replace('_', '-')}", str(context.params[name])]
    return words


def given_settings(**given: Any) -> Settings:  # Any: the fields' own types
    """Load the settings; options that are None are left to the environment and the defaults.

    Warns once about variables that look like settings and are none.
    """
    from core.settings import load_settings

    _warn_of_unknown_variables()
    return load_settings(**{name: value for name, value in given.items() if value is not None})


@cache
def _warn_of_unknown_variables() -> None:
    from core.settings import unknown_variables

    for warning in unknown_variables():
        remark(f"millrace: {warning}")
