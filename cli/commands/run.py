"""`millrace run`: a batch file in, a file of answers out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.errors import CommandFailed, ExitCode
from cli.options import DEFAULT_URL, ApiKey, AsJson, ModelsDir, ServerOrStack, StateDir, given_settings


def run(
    source: Annotated[Path, typer.Argument(help="A batch file: JSON Lines in OpenAI's format.", metavar="FILE.jsonl")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File for the answers.")],
    model: Annotated[str | None, typer.Option(help="Use this model, whatever the lines name.")] = None,
    base_url: ServerOrStack = DEFAULT_URL,
    api_key: ApiKey = "none",
    resume: Annotated[str | None, typer.Option(help="Resume this batch instead of sending the file.")] = None,
    state_dir: StateDir = None,
    models_dir: ModelsDir = None,
    as_json: AsJson = False,
) -> None:
    """Send a file, wait, fetch the answers."""
    from cli.commands.batch_run import run_batch, summarise
    from cli.output import console, print_json
    from cli.stack.session import server_session

    if not source.is_file():
        raise CommandFailed(f"There is no file {source}.", ExitCode.USAGE)
    if not output.parent.is_dir():
        raise CommandFailed(f"There is no folder {output.parent} to write the answers to.", ExitCode.USAGE)
    terminal = console(as_json=as_json)
    settings = given_settings(port=0, state_dir=state_dir, models_dir=models_dir)
    with server_session(terminal, base_url, api_key, settings) as session:
        batch = run_batch(
            session.client, terminal, source, output, model=model, resume=resume, restart_dead=session.restart_dead
        )
        code = summarise(terminal, batch, output)
    if as_json:
        print_json(batch)
    raise typer.Exit(code)
