"""`millrace db`: the schema of the database, backup and restore."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cli.options import StateDir, given_settings

database = typer.Typer(help="The database schema, backup and restore.", no_args_is_help=True)


@database.command()
def upgrade(state_dir: StateDir = None) -> None:
    """Upgrade the database to the schema that this version needs."""
    from db.connections import database_engine
    from db.schema_version import needed_version
    from db.schema_version import upgrade as upgrade_schema

    with _exclusive_database(state_dir) as url:
        upgrade_schema(database_engine(url, pool_size=1))
    print(f"The database now has schema {needed_version()}.")


@database.command()
def check(state_dir: StateDir = None) -> None:
    """Check that the database has the schema that this version needs."""
    from cli.stack.services import database_url
    from db.connections import database_engine
    from db.schema_version import check_schema, needed_version

    with database_url(given_settings(state_dir=state_dir)) as (url, _):
        check_schema(database_engine(url, pool_size=1))
    print(f"The database has schema {needed_version()}, which this version needs.")


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
