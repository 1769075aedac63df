"""`millrace db`: the schema of the database, backup and restore."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from cli.options import StateDir, given_settings
from core.errors import SchemaLocked, SchemaMismatch, Unreachable

if TYPE_CHECKING:
    from sqlalchemy import Engine

database = typer.Typer(help="The database schema, backup and restore.", no_args_is_help=True)

Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait until that is possible.", show_default="0")]

_PAUSE_SECONDS: Final = 1.0
_T = TypeVar("_T")


@database.command()
def upgrade(
    state_dir: StateDir = None,
    wait: Wait = 0,
    create_key: Annotated[
        bool, typer.Option("--create-key", help="Create a first API key and print it, if there is none.")
    ] = False,
) -> None:
    """Upgrade the database to the schema that this version needs."""
    from db.connections import database_engine
    from db.schema_version import check_schema
    from db.schema_version import upgrade as upgrade_schema

    with _exclusive_database(state_dir) as url:
        engine = database_engine(url, pool_size=1)
        _persist(lambda: upgrade_schema(engine), wait)
        print(f"The database now has schema {check_schema(engine)}.")
        if create_key and (key := _first_key(engine)):
            print(f"The first API key, shown only now: {key}")


@database.command()
def check(state_dir: StateDir = None, wait: Wait = 0) -> None:
    """Check that this version can run on the schema of the database."""
    from cli.stack.services import database_url
    from db.connections import database_engine
    from db.schema_version import check_schema, needed_version

    with database_url(given_settings(state_dir=state_dir)) as (url, _):
        engine = database_engine(url, pool_size=1)
        version = _persist(lambda: check_schema(engine), wait)
    is_needed = version == needed_version()
    print(f"The database has schema {version}, which this version {'needs' if is_needed else 'can use'}.")


@database.command()
def backup(
    target: Annotated[Path, typer.Argument(help="A folder that does not exist yet.", metavar="FOLDER")],
    state_dir: StateDir = None,
) -> None:
    """Copy the database, then the file store, into a new folder. The service may run meanwhile. Object storage is not copied."""
    from cli.backup import backup as make_backup
    from cli.stack.services import database_url
    from core.process.hardening import harden_process

    settings = given_settings(state_dir=state_dir)
    harden_process()
    with database_url(settings) as (url, _):
        make_backup(url, settings.files_root or str(settings.files_url), target)
    print(f"The backup is in {target}.")
    if settings.files_root is None:
        print(f"The files stay in {settings.files_url}: back them up with the tools of that storage.")


@database.command()
def restore(
    source: Annotated[Path, typer.Argument(help="A folder that `db backup` made.", metavar="FOLDER")],
    state_dir: StateDir = None,
) -> None:
    """Restore a backup into an empty database and an empty file store, while no service runs."""
    from cli.backup import restore as restore_backup
    from core.files.open_store import open_file_store
    from core.process.hardening import harden_process

    settings = given_settings(state_dir=state_dir)
    harden_process()
    with _exclusive_database(state_dir) as url:
        restore_backup(url, open_file_store(settings), source)
    print("The backup is restored. The next start continues from there.")


def _persist(action: Callable[[], _T], wait_seconds: float) -> _T:
    """Call it until it succeeds, and return its result; raises its last error when the time is over."""
    until = time.monotonic() + wait_seconds
    while True:
        try:
            return action()
        except (Unreachable, SchemaMismatch, SchemaLocked):
            if time.monotonic() + _PAUSE_SECONDS > until:
                raise
            time.sleep(_PAUSE_SECONDS)


def _first_key(engine: Engine) -> str | None:
    """Create a key, unless there is one. Return its text."""
    from cli.stack.first_key import create_first_key
    from db.keys import any_key

    with engine.begin() as connection:
        return None if connection.execute(any_key()).scalar_one() else create_first_key(connection)


@contextmanager
def _exclusive_database(state_dir: Path | None) -> Iterator[str]:
    """Yield the database of the settings, or start the bundled one meanwhile; refuses a stack that runs."""
    from cli.stack.services import Services

    settings = given_settings(state_dir=state_dir)
    if settings.database_url:
        yield settings.database_url
        return
    with Services(settings.state_dir, None, "not needed") as services:
        yield services.database_url
