"""Backup and restore: a dump of the database, then a copy of the file store. Files in object storage stay there.

The order matters: a file's bytes are stored before its row is committed, so a dump names no file that the later copy lacks,
except files deleted in between. The content of Valkey need not be kept.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

from sqlalchemy import make_url

from cli.stack.postgres import find_binaries
from core.errors import ConfigError, MillraceError, Unreachable
from core.files.file_store import BUCKETS, READ_BYTES, FileStore
from core.ids import is_id

_DUMP: Final = "database.dump"
_FILES: Final = "files"
_PLACE: Final = "files.url"  # names the object storage of a backup without files
_DAY_SECONDS: Final = 86400
_TEMPORARY: Final = "*.part"  # files that a file store is still writing


class BackupFailed(MillraceError):
    """The backup could not be made or restored."""


def backup(database_url: str, files: Path | str, target: Path) -> None:
    """Write a backup into a folder that does not exist yet, while the service runs; a failed backup leaves no folder.

    `files` is the directory of the file store, or the URL of object storage, which is only noted.
    """
    try:
        target.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        raise BackupFailed(f"{target} exists. Name a folder that does not exist yet.") from None
    try:
        _postgres("pg_dump", database_url, "--format=custom", "--no-owner", f"--file={target / _DUMP}")
        if isinstance(files, str):
            (target / _PLACE).write_text(f"{files}\n", encoding="utf-8")
        elif files.is_dir():
            shutil.copytree(files, target / _FILES, ignore=_skip_temporary, copy_function=_copy)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def restore(database_url: str, store: FileStore, source: Path) -> None:
    """Restore into a database without tables and a file store without files; files first, so that no row lacks its bytes.

    A failed restore can be tried again: the database is restored in one transaction, and files of this backup may exist.
    A backup of files in a directory may be restored into object storage. One of object storage has no files.
    """
    if not (source / _DUMP).is_file():
        raise BackupFailed(f"{source} is not a backup: there is no {_DUMP} in it.")
    if _has_tables(database_url):
        raise BackupFailed("The database is not empty. Restore into a new one, or with another --state-dir.")
    if (place := source / _PLACE).is_file() and store.directory is not None:
        url = place.read_text(encoding="utf-8").strip()
        raise BackupFailed(f"The files of this backup are in {url}. Set MILLRACE_FILES_URL to it, or to a copy of it.")
    if not place.is_file():
        _restore_files(store, source / _FILES)
    _postgres("pg_restore", database_url, "--no-owner", "--single-transaction", str(source / _DUMP))


def _restore_files(store: FileStore, source: Path) -> None:
    kept = {path.name: path for path in source.rglob("*") if path.is_file() and is_id(path.name)}
    in_store = {name for bucket in range(BUCKETS) for name in store.old_ids(bucket, older_than_seconds=-_DAY_SECONDS)}
    if in_store - kept.keys():
        raise BackupFailed(f"The file store {store.place} is not empty. Restore with another, or move it away.")
    for name, path in kept.items():
        with path.open("rb") as content, store.write(name) as target:
            shutil.copyfileobj(content, target, READ_BYTES)


def _postgres(program: str, database_url: str, *arguments: str) -> None:
    """Run the bundled program or the one on the path. The password is in its environment, since any user can list arguments.

    These programs change settings of their session, such as search_path, which a shared session would keep for others.
    """
    from db.connections import shares_sessions

    with suppress(Unreachable):  # the program itself has the reason
        if shares_sessions(database_url):
            raise BackupFailed(
                f"A pooler in transaction mode is before this database, and {program} would change the sessions of other "
                "programs. Name Postgres itself in DATABASE_URL, or a database of the pooler with pool_mode=session."
            )
    url = make_url(database_url).set(drivername="postgresql")
    environment = {**os.environ, "PGCONNECT_TIMEOUT": "5"}
    if url.password is not None:
        environment["PGPASSWORD"] = str(url.password)
    address = url._replace(password=None).render_as_string(hide_password=False)
    has_tls = url.query.get("sslmode", "disable") != "disable"
    command = [_find(program, has_tls=has_tls), f"--dbname={address}", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BackupFailed(f"{program} failed: {done.stderr.strip()[-1000:]}")


def _find(program: str, *, has_tls: bool) -> str:
    """Return the bundled program, or the one on the path where there is none or TLS is needed, which it is built without."""
    try:
        bundled = find_binaries() / program
        if bundled.is_file() and not has_tls:
            return str(bundled)
    except ConfigError:
        pass  # an external database needs no bundled one
    if (path := shutil.which(program)) is None:
        reason = f"The bundled {program} has no TLS." if has_tls else f"There is no {program} here."
        raise BackupFailed(f"{reason} Install Postgres's client programs (Debian: postgresql-client).")
    return path


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
