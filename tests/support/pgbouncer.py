"""PgBouncer before a Postgres of the tests, with the settings of deploy/pgbouncer."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from cli.stack.postgres import find_binaries
from cli.stack.postgres_user import choose_user
from core.settings import ROOT
from tests.support.stack import wait_for

CONFIG = ROOT / "deploy" / "pgbouncer" / "pgbouncer.ini"


def write_config(folder: Path, sockets: str, port: int, **pooler: str) -> Path:
    """Write the settings of deploy/pgbouncer into a folder, for a Postgres in the directory `sockets`, with other values."""
    parser = configparser.ConfigParser(comment_prefixes=(";",), interpolation=None)
    parser.read_string(CONFIG.read_text())
    for name, value in parser["databases"].items():
        parser["databases"][name] = value.replace("host=127.0.0.1 port=5432", f"host={sockets}")
    values = {"listen_port": str(port), "auth_file": str(folder / "userlist.txt"), **pooler}
    parser["pgbouncer"].update(values)
    file = folder / "pgbouncer.ini"
    with file.open("w") as stream:
        parser.write(stream)
    return file


@contextmanager
def running(
    config: Path, sockets: str, probe: str, *, enter: Callable[[], None] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run PgBouncer until the end of the block; `probe` is a URL that connects when it is ready.

    It refuses to run as root, as Postgres does, and becomes the same user; `enter` runs before that.
    """
    if (program := shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")) is None:
        pytest.skip("needs pgbouncer")
    become = choose_user(find_binaries(), Path(sockets).parent / "postgres", Path(sockets)).prepare

    def prepare() -> None:
        for step in (enter, become):
            if step is not None:
                step()

    with (config.parent / "pgbouncer.log").open("ab") as log:
        process = subprocess.Popen([program, str(config)], stdout=log, stderr=log, preexec_fn=prepare)
    try:
        if probe:
            wait_for(lambda: psycopg.connect(probe, connect_timeout=3).close() is None, "PgBouncer answers", 20)
        yield process
    finally:
        process.terminate()
        process.wait(20)
