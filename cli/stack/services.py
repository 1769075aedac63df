"""Postgres and Valkey of a single machine: the bundled ones, unless the settings name external ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from cli.stack.postgres import Postgres
from cli.stack.valkey import Valkey
from cli.state_lock import StateLock, running_launcher
from core.errors import ConfigError
from core.process.child_process import ChildFailed
from core.process.runtime_dirs import private_directory, socket_directory

if TYPE_CHECKING:
    from core.settings import Settings


class Services:
    """Starts the bundled services in order and stops them in reverse: the broker before the database."""

    def __init__(
        self, state_dir: Path, database_url: str | None = None, redis_url: str | None = None, *, num_devices: int = 1
    ) -> None:
        self.state_dir = state_dir.resolve()
        self._lock = StateLock(self.state_dir)
        self.logs = private_directory(self.state_dir / "logs")
        sockets = socket_directory(self.state_dir)
        data = self.state_dir / "postgres"
        self._postgres = (
            None if database_url else Postgres(data, sockets, self.logs / "postgres.log", num_devices=num_devices)
        )
        self._valkey = None if redis_url else Valkey(self.state_dir / "valkey", sockets, self.logs / "valkey.log")
        self._is_started = False
        self.database_url = database_url or (self._postgres.url if self._postgres else "")
        self.redis_url = redis_url or (self._valkey.url if self._valkey else "")

    def start(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Return when both answer; on failure nothing is left running. `meanwhile` is called while they start."""
        services = [service for service in (self._postgres, self._valkey) if service is not None]
        try:
            for service in services:
                service.launch()
            meanwhile()
            for service in services:
                service.wait()
        except BaseException:
            self.stop()
            raise
        self._is_started = True

    def stop(self) -> None:
        """Stop both; may be called more than once."""
        self._is_started = False
        for service in (self._valkey, self._postgres):
            if service is not None:
                service.stop()
        self._lock.release()

    def announce(self, url: str) -> None:
        """Record the address of the api in the state directory, where commands find it."""
        self._lock.write(url)

    def check(self) -> None:
        """Raise ChildFailed when a service has ended."""
        for service in (self._postgres, self._valkey):
            if service is not None and service.child is not None and service.child.exit_code() is not None:
                raise ChildFailed(service.child.exit_report())

    def restart_dead(self) -> list[str]:
        """Restart services that have ended; returns their names. Raises ChildFailed when one does not start."""
        names = []
        for name, service in (("postgres", self._postgres), ("valkey", self._valkey)):
            if service is None or not self._is_started:
                continue
            if service.child is None or service.child.exit_code() is not None:
                names.append(name)
                service.stop()
                service.launch()
                service.wait()
        return names

    def describe(self) -> list[str]:
        """Return one line per service: which one, and how it runs."""
        postgres = f"bundled, {self._postgres.user.how}" if self._postgres else "external (DATABASE_URL)"
        return [f"postgres: {postgres}", f"valkey: {'bundled' if self._valkey else 'external (REDIS_URL)'}"]

    def __enter__(self) -> Services:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class NoDatabase(ConfigError):
    """There is no database in this state directory yet."""


@contextmanager
def database_url(settings: Settings, *, may_create: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield the URL of the database, and whether this process alone uses it.

    Takes the database of the settings, that of a running stack, or starts the bundled one meanwhile. Raises NoDatabase where
    there is none yet, unless it may be created.
    """
    if settings.database_url:
        yield settings.database_url, False
    elif (url := running_database(settings.state_dir)) is not None:
        yield url, False
    else:
        if not may_create and not _has_database(settings.state_dir):
            raise NoDatabase(
                f"There is no database in {settings.state_dir} yet. "
                "`millrace serve` or `millrace db upgrade` creates it; --state-dir names another folder."
            )
        with Services(settings.state_dir, None, "not needed") as services:
            yield services.database_url, True


def _has_database(state_dir: Path) -> bool:
    postgres = state_dir / "postgres"
    return (postgres / "PG_VERSION").exists() or postgres.with_name("postgres.location").exists()


def running_database(state_dir: Path) -> str | None:
    """Return the URL of the bundled Postgres of a stack that runs in this state directory; None when none runs."""
    state_dir = state_dir.resolve()
    if running_launcher(state_dir) is None:
        return None
    return Postgres(state_dir / "postgres", socket_directory(state_dir), state_dir / "logs" / "postgres.log").url


def running_queue(state_dir: Path) -> str | None:
    """Return the URL of the bundled Valkey of a stack that runs in this state directory; None when none runs."""
    state_dir = state_dir.resolve()
    if running_launcher(state_dir) is None:
        return None
    return Valkey(state_dir / "valkey", socket_directory(state_dir), state_dir / "logs" / "valkey.log").url
