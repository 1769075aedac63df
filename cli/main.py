"""The `millrace` command. Each verb imports what it needs when it is called, so that `--help` is quick."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cli.commands.batches import batches
from cli.commands.chat import chat
from cli.commands.db import database
from cli.commands.demo import demo
from cli.commands.files import files
from cli.commands.health import health
from cli.commands.keys import keys
from cli.commands.logs import logs
from cli.commands.map import map_table
from cli.commands.models import models
from cli.commands.process import api, clerk, worker
from cli.commands.run import run
from cli.commands.serve import serve
from cli.commands.status import status
from cli.commands.validate import estimate, validate
from cli.doctor.doctor import doctor
from cli.errors import CommandFailed, ExitCode, Terminated
from cli.interrupts import raise_on_signals
from core.errors import MillraceError, Unreachable

app = typer.Typer(
    name="millrace",
    help="Batch inference and chat on the GGUF models you own, behind OpenAI's API.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(batches, name="batch")
app.add_typer(files, name="files")
app.add_typer(database, name="db")
app.add_typer(keys, name="keys")
app.add_typer(models, name="models")
app.command("map")(map_table)
for verb in (serve, run, demo, status, logs, chat, validate, estimate, doctor, health, api, worker, clerk):
    app.command()(verb)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import version

        print(f"millrace {version('millrace')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Batch inference and chat on the GGUF models you own, behind OpenAI's API."""


def main() -> None:
    """Run the command; errors become one message and an exit code."""
    raise_on_signals()
    try:
        app()
    except MillraceError as error:
        print(f"millrace: {error}", file=sys.stderr)
        sys.exit(_exit_code(error))
    except OSError as error:  # a missing folder, a full disk: the reason names the file
        print(f"millrace: {error}", file=sys.stderr)
        sys.exit(ExitCode.ERROR)
    except Terminated:
        sys.exit(ExitCode.TERMINATED)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except SystemExit as ended:
        cause = ended.__context__
        while cause is not None and not isinstance(cause, Terminated):
            cause = cause.__context__
        sys.exit(ended.code if cause is None else ExitCode.TERMINATED)


def _exit_code(error: MillraceError) -> ExitCode:
    if isinstance(error, CommandFailed):
        return error.code
    return ExitCode.UNREACHABLE if isinstance(error, Unreachable) else ExitCode.ERROR
