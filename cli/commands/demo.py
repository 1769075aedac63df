"""`millrace demo`: a batch and a chat on the small model that ships with the project."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cli.options import ApiKey, ModelsDir, ServerOrStack, StateDir, given_settings, server_options

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from cli.client import Client
    from cli.errors import ExitCode

_ROOT = Path(__file__).resolve().parent.parent.parent
_TICKETS = _ROOT / "batch_inputs" / "support_tickets.jsonl"
_SHOWN = 8
_QUESTION = "What is the capital of France?"


def demo(
    context: typer.Context,
    base_url: ServerOrStack = None,
    api_key: ApiKey = "none",
    state_dir: StateDir = None,
    models_dir: ModelsDir = None,
) -> None:
    """Label 240 support tickets and answer a question, with the small model that ships with the project."""
    from cli.output import console
    from cli.stack.session import server_session

    terminal = console()
    settings = given_settings(state_dir=state_dir, models_dir=models_dir)
    output = settings.state_dir / "demo_answers.jsonl"
    output.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = ["run", str(_TICKETS), "-o", str(output), *server_options(context)]
    with server_session(terminal, base_url, api_key, settings) as session:
        code = run_demo(session.client, terminal, output, command, session.restart_dead)
        running = None if session.is_started else session.client.base_url.removesuffix("/v1")
    page = running or f"http://127.0.0.1:{settings.port}"
    where = f"open {page}/" if running else f"start the server (make serve, or millrace serve) and open {page}/"
    message = f"\nTo see this batch, {where}\nA JSONL or CSV file that is dropped there becomes the next one."
    terminal.print(message, markup=False, highlight=False)
    raise typer.Exit(code)


def run_demo(
    client: Client, console: Console, output: Path, command: list[str], restart_dead: Callable[[], None]
) -> ExitCode:
    """Label support tickets in a batch, then stream the answer to one question."""
    from cli.batches.results import ResultFiles, error_path
    from cli.batches.run import BatchRun, summarise
    from cli.output_files import OutputFile

    console.print(f"\nLabelling {_TICKETS.relative_to(_ROOT)} through the Batch API:", highlight=False)
    answers, failed = (OutputFile(path=path, may_replace=True) for path in (output, error_path(output)))
    files = ResultFiles(answers, failed)
    work = BatchRun(
        client=client,
        console=console,
        name=_TICKETS.name,
        files=files,
        command=command,
        restart_dead=restart_dead,
    )
    batch = work.finish(work.start(_TICKETS, None))
    if batch["output_file_id"]:
        console.print(_table(output))
    code = summarise(console, batch, files)
    console.print(f"\nAnd a chat, streamed. [bold]{_QUESTION}[/]", highlight=False)
    for piece in client.chat({"model": "demo", "messages": [{"role": "user", "content": _QUESTION}]}):
        console.print(piece, end="", markup=False, highlight=False)
    console.print()
    return code


def _table(output: Path) -> Table:
    """Show the first tickets with their labels."""
    from rich.table import Table

    table = Table("ticket", "category", "priority", title=f"The first {_SHOWN} answers")
    texts = {line["custom_id"]: line["body"]["messages"][-1]["content"] for line in _read(_TICKETS)}
    for answer in _read(output)[:_SHOWN]:
        content = answer["response"]["body"]["choices"][0]["message"]["content"]
        labels = _labels(content)
        table.add_row(_short(texts[answer["custom_id"]]), labels.get("category", content), labels.get("priority", ""))
    return table


def _labels(content: str) -> dict[str, str]:
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _read(path: Path) -> list[dict[str, Any]]:  # Any: lines of a batch file
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _short(text: str, width: int = 64) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
