"""A backup is its owner's alone, and a restore overwrites nothing. What a restored service does is in tests/e2e."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from sqlalchemy import text

from cli.backup import BackupFailed, _find, backup, restore
from cli.stack.postgres import find_binaries
from cli.stack.services import Services
from core.files.directory import DirectoryStore
from core.ids import FILE, new_id
from db.connections import database_engine
from db.schema_version import check_schema
from tests.support.processes import command_of
from workers.context import Database


@pytest.fixture(autouse=True)
def private() -> Iterator[None]:
    """As the command is: see `core.process.hardening`."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture
def made(services: Services, database: Database, tmp_path: Path) -> Path:
    with DirectoryStore(tmp_path / "files").write(new_id(FILE)) as stream:
        stream.write(b"x")
    backup(services.database_url, tmp_path / "files", tmp_path / "kept")
    return tmp_path / "kept"


def empty(services: Services) -> str:
    return services.database_url.replace("/millrace?", "/postgres?")


def test_a_backup_is_for_its_owner_alone(made: Path) -> None:
    modes = {path.stat().st_mode & 0o077 for path in (made, *made.rglob("*"))}
    assert modes == {0}
    assert len([path for path in made.rglob("*") if path.is_file()]) == 2


def test_a_backup_goes_over_no_other_and_leaves_nothing_when_it_fails(
    services: Services, made: Path, tmp_path: Path
) -> None:
    with pytest.raises(BackupFailed, match="exists"):
        backup(services.database_url, tmp_path / "files", made)
    assert (made / "database.dump").exists()
    with pytest.raises(BackupFailed, match="pg_dump failed"):
        backup("postgresql://nobody@127.0.0.1:9/none", tmp_path / "files", tmp_path / "another")
    assert not (tmp_path / "another").exists()


def test_a_half_written_file_is_not_in_a_backup(services: Services, database: Database, tmp_path: Path) -> None:
    with DirectoryStore(tmp_path / "files").write(new_id(FILE)) as stream:
        stream.write(b"x")
        backup(services.database_url, tmp_path / "files", tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").rglob("*") if path.is_file()] == ["database.dump"]


def test_a_restore_overwrites_neither_a_database_nor_files(services: Services, made: Path, tmp_path: Path) -> None:
    with pytest.raises(BackupFailed, match="The database is not empty"):
        restore(services.database_url, DirectoryStore(tmp_path / "new"), made)
    with DirectoryStore(tmp_path / "files").write(new_id(FILE)) as stream:
        stream.write(b"of nobody's backup")
    with pytest.raises(BackupFailed, match="files is not empty"):
        restore(empty(services), DirectoryStore(tmp_path / "files"), made)
    with pytest.raises(BackupFailed, match="is not a backup"):
        restore(empty(services), DirectoryStore(tmp_path / "new"), tmp_path)
    assert not list((tmp_path / "new").rglob("*"))


@pytest.fixture
def another(services: Services, database: Database) -> Iterator[str]:
    """The address of an empty database of its own."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
        admin.execute(text("CREATE DATABASE another"))
        yield services.database_url.replace("/millrace?", "/another?")
        admin.execute(text("DROP DATABASE another"))


def test_a_restore_that_failed_can_be_tried_again(another: str, made: Path, tmp_path: Path) -> None:
    whole = (made / "database.dump").read_bytes()
    (made / "database.dump").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BackupFailed, match="pg_restore failed"):
        restore(another, DirectoryStore(tmp_path / "new"), made)
    (kept,) = [path for path in (tmp_path / "new").rglob("*") if path.is_file()]
    kept.write_bytes(b"")  # as when the copying itself was interrupted
    (made / "database.dump").write_bytes(whole)
    restore(another, DirectoryStore(tmp_path / "new"), made)
    assert kept.read_bytes() == b"x"
    engine = database_engine(another, pool_size=1)
    check_schema(engine)
    engine.dispose()


def test_no_argument_of_a_process_has_the_password_of_the_database(tmp_path: Path) -> None:
    """Every user of the machine can list arguments; an environment is readable by its owner only."""

    def dumps() -> list[psutil.Process]:
        children = psutil.Process().children(recursive=True)
        return [child for child in children if any("pg_dump" in part for part in command_of(child)[:1])]

    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as thread:
        silent.settimeout(20)
        url = f"postgresql+psycopg://someone:pass%40word@127.0.0.1:{silent.getsockname()[1]}/none"
        made = thread.submit(backup, url, tmp_path / "files", tmp_path / "kept")
        silent.accept()[0].close()  # the look for a pooler
        client, _ = silent.accept()
        (dump,) = dumps()
        arguments, environment = " ".join(dump.cmdline()), dump.environ()
        client.close()
        silent.close()
        with pytest.raises(BackupFailed, match="pg_dump failed"):
            made.result()
    assert "127.0.0.1" in arguments
    assert "pass" not in arguments
    assert environment["PGPASSWORD"] == "pass@word"


def test_a_database_with_tls_is_dumped_by_a_program_with_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled pg_dump is built without it."""
    assert Path(_find("pg_dump", has_tls=False)).is_relative_to(find_binaries())
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/pg_dump")
    assert _find("pg_dump", has_tls=True) == "/usr/bin/pg_dump"
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(BackupFailed, match=r"has no TLS\. Install Postgres's client programs"):
        _find("pg_dump", has_tls=True)
