"""PgBouncer before a Postgres of the tests, with the settings of deploy/pgbouncer."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
import pytest

from cli.stack.postgres_user import PostgresUser
from core.settings import ROOT
from tests.support.stack import wait_for

CONFIG = ROOT / "deploy" / "pgbouncer" / "pgbouncer.ini"


class PgBouncer:
    """A PgBouncer from `start` to `close`, or inside a `with`, in a folder that Postgres's user may read.

    It refuses to run as root, as Postgres does, and becomes the same user; `enter` runs in its process before that.
    """

    def __init__(
        self,
        postgres: PostgresUser,
        port: int,
        *,
        users: Mapping[str, str],
        files: Mapping[str, bytes] | None = None,
        enter: Callable[[], None] | None = None,
        pooler: Mapping[str, str],
    ) -> None:
        """`users` are passwords by name, `files` are put beside the configuration, `pooler` replaces its settings."""
        if (program := shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")) is None:
            pytest.skip("needs pgbouncer")
        self._program, self._user, self._enter = program, postgres, enter
        self.folder = Path(tempfile.mkdtemp(prefix="millrace-pgbouncer-"))
        self.folder.chmod(0o755)
        for name, content in (files or {}).items():
            (self.folder / name).write_bytes(content)
        lines = [f'"{name}" "{password}"\n' for name, password in users.items()]
        (self.folder / "userlist.txt").write_text("".join(lines))
        self.config = self._write_config({"listen_port": str(port), **pooler})
        self._process: subprocess.Popen[bytes] | None = None

    def _write_config(self, pooler: Mapping[str, str]) -> Path:
        parser = configparser.ConfigParser(comment_prefixes=(";",), interpolation=None)
        parser.read_string(CONFIG.read_text().replace("/etc/pgbouncer/", f"{self.folder}/"))
        for name, value in parser["databases"].items():
            parser["databases"][name] = value.replace("host=127.0.0.1 port=5432", f"host={self._user.sockets}")
        parser["pgbouncer"].update(pooler)
        with (self.folder / "pgbouncer.ini").open("w") as stream:
            parser.write(stream)
        return self.folder / "pgbouncer.ini"

    def start(self, probe: str = "") -> None:
        """Start it; with `probe`, a URL of a database, return when it answers there."""

        def prepare() -> None:
            for step in (self._enter, self._user.prepare):
                if step is not None:
                    step()

        with (self.folder / "pgbouncer.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, str(self.config)], stdout=log, stderr=log, preexec_fn=prepare, cwd="/"
            )
        if probe:
            wait_for(lambda: psycopg.connect(probe, connect_timeout=3).close() is None, "PgBouncer answers", 20)

    def close(self) -> None:
        """End it, and delete its folder."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
