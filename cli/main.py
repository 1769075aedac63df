"""The `millrace` command. Each verb imports what it needs when it is called, so that `--help` is quick."""

from __future__ import annotations

import sys

import typer

from cli.commands.batches import batches
from cli.commands.chat import chat, models
from cli.commands.db import database
from cli.commands.demo import demo
from cli.commands.files import files
from cli.commands.keys import keys
from cli.commands.process import api, clerk, worker
from cli.commands.run import run
from cli.commands.serve import serve
from cli.commands.validate import estimate, validate
from cli.doctor.doctor import doctor
from cli.errors import CommandFailed, ExitCode
from core.errors import MillraceError

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
for verb in (serve, run, demo, chat, models, validate, estimate, doctor, api, worker, clerk):
    app.command()(verb)


def main() -> None:
    """Run the command; errors become one message and an exit code."""
    try:
        app()
    except MillraceError as error:
        print(f"millrace: {error}", file=sys.stderr)
        sys.exit(error.code if isinstance(error, CommandFailed) else ExitCode.ERROR)
    except OSError as error:  # a missing folder, a full disk: the reason names the file
        print(f"millrace: {error}", file=sys.stderr)
        sys.exit(ExitCode.ERROR)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
