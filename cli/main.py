"""The `millrace` command. Each verb loads what it needs when it is called, so `--help` is quick."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from cli.commands.batches import batches
from cli.commands.chat import chat, models
from cli.commands.files import files
from cli.commands.keys import keys
from cli.commands.validate import estimate, validate
from cli.doctor.doctor import doctor
from cli.errors import CommandFailed, ExitCode
from cli.options import DEFAULT_URL, ApiKey, AsJson
from core.errors import ConfigError, MillraceError
from core.process.hardening import harden_process

if TYPE_CHECKING:
    from rich.console import Console

    from cli.client import Client
    from core.settings import Settings

app = typer.Typer(
    name="millrace",
    help="Batch inference and chat on the GGUF models you own, behind OpenAI's API.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
database = typer.Typer(help="The database schema.", no_args_is_help=True)
app.add_typer(batches, name="batch")
app.add_typer(files, name="files")
app.add_typer(database, name="db")
app.add_typer(keys, name="keys")
for verb in (chat, models, validate, estimate, doctor):
    app.command()(verb)

StateDir = Annotated[Path | None, typer.Option("--state-dir", help="Data, sockets and logs of the stack.")]
ModelsDir = Annotated[Path | None, typer.Option("--models-dir", help="The folder of model files.")]
BaseUrl = Annotated[
    str, typer.Option("--base-url", envvar="OPENAI_BASE_URL", help="The server; without one there, a stack is started.")
]


def main() -> None:
    """The console script: errors become one message and an exit code."""
    try:
        app()
    except MillraceError as error:
        print(f"millrace: {error}", file=sys.stderr)
        sys.exit(error.code if isinstance(error, CommandFailed) else ExitCode.ERROR)
    except OSError as error:  # a folder that is not there, a full disk: the reason names the file
        print(f"millrace: {error}", file=sys.stderr)
        sys.exit(ExitCode.ERROR)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks a free one.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda:0, …; default: the first GPU, else the CPU.")] = None,
    state_dir: StateDir = None,
    models_dir: ModelsDir = None,
) -> None:
    """Run everything on this machine, in the foreground."""
    from cli.stack.stack import Stack

    settings = _settings(host=host, port=port, state_dir=state_dir, models_dir=models_dir)
    harden_process()
    stopping = _stop_on_signals()
    stack = Stack(settings, device=device)
    began = time.monotonic()
    print(f"Starting in {settings.state_dir} …", flush=True)
    with stack:
        served = [model for model in stack.models if model not in stack.unloaded]
        _print_welcome(stack.url, served, stack.services.describe(), stack.services.logs, time.monotonic() - began)
        if stack.unloaded:
            print(f"Not loaded, see {stack.services.logs}/worker.log: {', '.join(stack.unloaded)}\n", flush=True)
        stack.run(stopping)
        print("\nFinishing what runs, then stopping …", flush=True)


@app.command()
def run(
    source: Annotated[Path, typer.Argument(help="A batch file: JSON Lines in OpenAI's format.", metavar="FILE.jsonl")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the answers go.")],
    model: Annotated[str | None, typer.Option(help="Ask this model, whatever the lines say.")] = None,
    base_url: BaseUrl = DEFAULT_URL,
    api_key: ApiKey = "none",
    resume: Annotated[str | None, typer.Option(help="Go on with this batch instead of sending the file.")] = None,
    state_dir: StateDir = None,
    models_dir: ModelsDir = None,
    as_json: AsJson = False,
) -> None:
    """Send a file, wait, fetch the answers."""
    from cli.commands.batch_run import run_batch, summarise
    from cli.output import print_json

    if not source.is_file():
        raise CommandFailed(f"There is no file {source}.", ExitCode.USAGE)
    if not output.parent.is_dir():
        raise CommandFailed(f"There is no folder {output.parent} to write the answers to.", ExitCode.USAGE)
    console = _console(as_json=as_json)
    with _server(console, base_url, api_key, _settings(port=0, state_dir=state_dir, models_dir=models_dir)) as server:
        batch = run_batch(
            server.client, console, source, output, model=model, resume=resume, restart_dead=server.restart_dead
        )
        code = summarise(console, batch, output)
    if as_json:
        print_json(batch)
    raise typer.Exit(code)


@app.command()
def demo(
    base_url: BaseUrl = DEFAULT_URL, api_key: ApiKey = "none", state_dir: StateDir = None, models_dir: ModelsDir = None
) -> None:
    """Label 240 support tickets and answer a question, with the small model that comes along."""
    from cli.commands.demo import demo as run_demo

    console = _console()
    settings = _settings(port=0, state_dir=state_dir, models_dir=models_dir)
    with _server(console, base_url, api_key, settings) as server:
        code = run_demo(server.client, console, settings.state_dir / "demo_answers.jsonl", server.restart_dead)
    raise typer.Exit(code)


@app.command()
def api() -> None:
    """Run an api process (DATABASE_URL and REDIS_URL must be set)."""
    _become("api", "-m", "api")


@app.command()
def worker(
    device: Annotated[str | None, typer.Option(help="cpu, cuda:0, …; default: the first GPU, else the CPU.")] = None,
    models: Annotated[str | None, typer.Option(help="Names, separated by commas; default: all.")] = None,
) -> None:
    """Run a worker of one device (DATABASE_URL and REDIS_URL must be set)."""
    arguments = [
        part for name, value in (("--device", device), ("--models", models)) if value for part in (name, value)
    ]
    _become("worker", "-m", "workers", *arguments)


@app.command()
def clerk() -> None:
    """Run a clerk: prepares and ends batches, needs no engine (DATABASE_URL and REDIS_URL must be set)."""
    _become("clerk", "-m", "workers.consumers.main", "clerk")


@database.command()
def upgrade(state_dir: StateDir = None) -> None:
    """Bring the database to the schema this version needs."""
    from db.connections import database_engine
    from db.schema_version import needed_version
    from db.schema_version import upgrade as upgrade_schema

    with _database_url(state_dir) as url:
        upgrade_schema(database_engine(url, pool_size=1))
    print(f"The database is at {needed_version()}.")


@database.command()
def check(state_dir: StateDir = None) -> None:
    """Say whether the database has the schema this version needs."""
    from db.connections import database_engine
    from db.schema_version import check_schema, needed_version

    with _database_url(state_dir) as url:
        check_schema(database_engine(url, pool_size=1))
    print(f"The database is at {needed_version()}, as it should be.")


@database.command()
def backup(
    target: Annotated[Path, typer.Argument(help="A folder that is made for it.", metavar="FOLDER")],
    state_dir: StateDir = None,
) -> None:
    """Copy the database, then the file store, into a new folder; the service may run meanwhile."""
    from cli.backup import backup as make_backup
    from cli.commands.keys import database_url

    settings = _settings(state_dir=state_dir)
    harden_process()
    with database_url(settings) as (url, _):
        make_backup(url, settings.files_root, target)
    print(f"The backup is in {target}.")


@database.command()
def restore(
    source: Annotated[Path, typer.Argument(help="A folder that `db backup` made.", metavar="FOLDER")],
    state_dir: StateDir = None,
) -> None:
    """Bring a backup into an empty database and an empty file store, of a service that does not run."""
    from cli.backup import restore as bring_back

    settings = _settings(state_dir=state_dir)
    harden_process()
    with _database_url(state_dir) as url:
        bring_back(url, settings.files_root, source)
    print("The backup is restored. The next start goes on from there.")


class _Server:
    """A server to talk to: one that runs already, or a stack of our own."""

    def __init__(self, client: Client, restart_dead: Callable[[], None]) -> None:
        self.client = client
        self.restart_dead = restart_dead


@contextmanager
def _server(console: Console, base_url: str, api_key: str, settings: Settings) -> Iterator[_Server]:
    from cli.client import Client

    with Client(base_url, api_key) as client:
        if client.is_there():
            yield _Server(client, lambda: None)
            return
    if base_url != DEFAULT_URL:
        message = f"There is no server at {base_url}. Start it, or leave --base-url away to use this machine."
        raise CommandFailed(message, ExitCode.UNREACHABLE)
    from cli.stack.stack import Stack

    signal.signal(signal.SIGTERM, _raise_interrupt)
    stack = Stack(settings)
    began = time.monotonic()
    with console.status("Starting Postgres, Valkey, the engine and the api …"):
        stack.start()
    console.print(f"The stack is ready after {time.monotonic() - began:.1f} s, at {stack.url}", highlight=False)
    try:
        with Client(f"{stack.url}/v1", api_key) as client:
            yield _Server(client, stack.restart_dead)
    finally:
        with console.status("Stopping the stack …"):
            stack.stop()


@contextmanager
def _database_url(state_dir: Path | None) -> Iterator[str]:
    """The database of the settings, or the bundled one, started for as long as this takes."""
    from cli.stack.services import Services

    settings = _settings(state_dir=state_dir)
    if settings.database_url:
        yield settings.database_url
        return
    with Services(settings.state_dir, None, "not needed") as services:
        yield services.database_url


def _settings(**given: Any) -> Settings:  # Any: the fields' own types
    from core.settings import load_settings

    return load_settings(**{name: value for name, value in given.items() if value is not None})


def _console(*, as_json: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=as_json)


def _become(name: str, *arguments: str) -> NoReturn:
    """Become one of the services; it needs to be told where the database and the queue are."""
    settings = _settings()
    if not settings.database_url or not settings.redis_url:
        raise ConfigError(f"millrace {name} needs DATABASE_URL and REDIS_URL. On one machine, run: millrace serve")
    harden_process()
    os.execv(sys.executable, [sys.executable, "-P", *arguments])  # noqa: S606 - our own program


def _stop_on_signals() -> threading.Event:
    """Set by the first Ctrl-C or SIGTERM; the second Ctrl-C ends the process, and with it everything it started."""
    stopping = threading.Event()

    def stop(*_: object) -> None:
        stopping.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return stopping


def _raise_interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _print_welcome(url: str, models: list[str], services: list[str], logs: Path, seconds: float) -> None:
    body = f'{{"model": "{models[0]}", "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'
    print(f"""
Millrace is ready after {seconds:.1f} s:  {url}/v1

  models    {", ".join(models)}
  services  {"; ".join(services)}
  logs      {logs}

Try it:

  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'

Ctrl-C stops it; nothing that was accepted is lost.
""", flush=True)  # fmt: skip
