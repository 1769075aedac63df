"""`millrace run`: a batch file in, a file of answers out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import ApiKey, AsJson, Force, ModelsDir, ServerOrStack, StateDir, given_settings, server_options


def run(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(help="A batch file: JSON Lines in OpenAI's format; - is stdin.", metavar="FILE.jsonl")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="File for the answers; - is stdout.", metavar="FILE")],
    model: Annotated[str | None, typer.Option(help="Use this model, whatever the lines name.")] = None,
    base_url: ServerOrStack = None,
    api_key: ApiKey = "none",
    resume: Annotated[
        str | None, typer.Option(help="Resume this batch instead of sending the file.", metavar="BATCH_ID")
    ] = None,
    force: Force = False,
    state_dir: StateDir = None,
    models_dir: ModelsDir = None,
    as_json: AsJson = False,
) -> None:
    """Send a batch file, wait, and save the answers; failed lines go to a file beside them.

    Starts a server for the length of the batch where none runs.
    """
    from cli.batches.results import choose_results
    from cli.batches.run import BatchRun, summarise
    from cli.output import console, no_file, opened, print_json
    from cli.output_files import STDOUT
    from cli.stack.session import server_session

    is_stdout = output == STDOUT
    if source != STDOUT and not source.is_file():
        raise no_file(source)
    flags = [flag for flag, is_set in (("--force", force), ("--json", as_json)) if is_set]
    terminal = console(as_json=as_json or is_stdout)
    files = None if resume else choose_results(output, force=force, inputs=[source])
    settings = given_settings(state_dir=state_dir, models_dir=models_dir)
    with server_session(terminal, base_url, api_key, settings) as session:
        client = session.client
        if resume:
            batch = client.batch(resume)
            files = choose_results(output, force=force, inputs=[source], of_batch=(client, resume))
        assert files is not None, "chosen before or just now"
        work = BatchRun(
            client=client,
            console=terminal,
            name="stdin.jsonl" if source == STDOUT else source.name,
            files=files,
            command=["run", str(source), "-o", str(output), *server_options(context), *flags],
            restart_dead=session.restart_dead,
        )
        if not resume:
            with opened(source) as content:
                batch = work.start(content.path, model)
        batch = work.finish(batch)
        code = summarise(terminal, batch, files)
    if as_json and not is_stdout:
        print_json(batch)
    raise typer.Exit(code)
