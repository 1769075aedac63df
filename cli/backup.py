"""Backup and restore: a dump of the database, then a copy of the file store.

The order matters: a file's bytes are stored before its row is committed, so a dump names no file that the later copy lacks,
except files deleted in between. The content of Valkey need not be kept.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from sqlalchemy import make_url

from cli.stack.postgres import find_binaries
from core.errors import ConfigError, MillraceError

_DUMP: Final = "database.dump"
_FILES: Final = "files"
_TEMPORARY: Final = "*.part"  # files that a file store is still writing


class BackupFailed(MillraceError):
    """The backup could not be made or restored."""


def backup(database_url: str, files_root: Path, target: Path) -> None:
    """Write a backup into a folder that does not exist yet, while the service runs; a failed backup leaves no folder."""
    try:
        target.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        raise BackupFailed(f"{target} exists. Name a folder that does not exist yet.") from None
    try:
        _postgres("pg_dump", database_url, "--format=custom", "--no-owner", f"--file={target / _DUMP}")
        if files_root.is_dir():
            shutil.copytree(files_root, target / _FILES, ignore=_skip_temporary, copy_function=_copy)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def restore(database_url: str, files_root: Path, source: Path) -> None:
    """Restore into a database without tables and a file store without files; files first, so that no row lacks its bytes.

    A failed restore can be tried again: the database is restored in one transaction, and files of this backup may exist.
    """
    if not (source / _DUMP).is_file():
        raise BackupFailed(f"{source} is not a backup: there is no {_DUMP} in it.")
    if _has_tables(database_url):
        raise BackupFailed("The database is not empty. Restore into a new one, or with another --state-dir.")
    if _paths(files_root) - _paths(source / _FILES):
        raise BackupFailed(f"The file store {files_root} is not empty. Restore with another, or move it away.")
    if (source / _FILES).is_dir():
        shutil.copytree(source / _FILES, files_root, dirs_exist_ok=True)
    _postgres("pg_restore", database_url, "--no-owner", "--single-transaction", str(source / _DUMP))


def _postgres(program: str, database_url: str, *arguments: str) -> None:
    """Run the bundled program or the one on the path. The password is in its environment, since any user can list arguments."""
    url = make_url(database_url).set(drivername="postgresql")
    environment = {**os.environ, "PGCONNECT_TIMEOUT": "5"}
    if url.password is not None:
        environment["PGPASSWORD"] = str(url.password)
    address = url._replace(password=None).render_as_string(hide_password=False)
    command = [_find(program), f"--dbname={address}", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BackupFailed(f"{program} failed: {done.stderr.strip()[-1000:]}")


def _find(program: str) -> str:
    try:
        bundled = find_binaries() / program
        if bundled.is_file():
            return str(bundled)
    except ConfigError:
        pass  # an external database needs no bundled one
    if (path := shutil.which(program)) is None:
        raise BackupFailed(f"There is no {program} here. Install Postgres's client programs.")
    return path


def _paths(root: Path) -> set[Path]:
    """List all files below a folder; empty without the folder."""
    return {path.relative_to(root) for path in root.rglob("*") if not path.is_dir()}


def _has_tables(database_url: str) -> bool:
    from sqlalchemy import inspect

    from db.connections import database_engine, first_connection

    engine = database_engine(database_url, pool_size=1)
    try:
        with first_connection(engine) as connection:
            return bool(inspect(connection).get_table_names())
    finally:
        engine.dispose()


def _skip_temporary(_: str, names: list[str]) -> set[str]:
    return {name for name in names if Path(name).match(_TEMPORARY)}


def _copy(source: str, target: str) -> str:
    """Copy one file, unless it was deleted meanwhile."""
    try:
        return str(shutil.copy2(source, target))
    except FileNotFoundError:
        return target
