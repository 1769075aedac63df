"""Findings about the single-machine stack: its programs, its state directory, its database schema."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cli.doctor.findings import Finding, Level
from cli.state_lock import last_pid, running_launcher
from core.errors import ConfigError, SchemaMismatch, Unreachable

if TYPE_CHECKING:
    from core.settings import Settings


def services(settings: Settings) -> list[Finding]:
    """Check for the bundled programs, unless the settings name external services."""
    from cli.stack.postgres import find_binaries
    from cli.stack.valkey import find_binary

    return [
        _service("postgres", settings.database_url, "DATABASE_URL", find_binaries),
        _service("valkey", settings.redis_url, "REDIS_URL", find_binary),
    ]


def state(state_dir: Path) -> Finding:
    """Report whether a stack uses the state directory; the files of a stack that was killed are harmless."""
    if not (state_dir / "lock").exists():
        return Finding(Level.OK, "state", f"{state_dir} is new; the first start creates it")
    try:
        if (launcher := running_launcher(state_dir)) is not None:
            return Finding(Level.OK, "state", f"{state_dir} is in use by a running Millrace ({launcher})")
    except OSError as error:
        advice = "Run as its owner, or choose another --state-dir."
        return Finding(Level.BAD, "state", f"{state_dir} cannot be read ({error.strerror})", advice)
    leftover = state_dir / "postgres" / "postmaster.pid"
    if leftover.exists():
        message = f"{state_dir}: the last stack (pid {last_pid(state_dir)}) did not shut down cleanly"
        return Finding(Level.WARNING, "state", message, "Nothing to do: the next start recovers and continues.")
    return Finding(Level.OK, "state", f"{state_dir} exists and is not in use")


def schema(settings: Settings) -> Finding:
    """Check the schema of an external database; each start upgrades the bundled one."""
    from sqlalchemy.exc import SQLAlchemyError

    from db.connections import database_engine
    from db.schema_version import check_schema, needed_version

    needed = needed_version()
    if not settings.database_url:
        return Finding(Level.OK, "schema", f"this version needs {needed}; serve upgrades the bundled database")
    engine = database_engine(settings.database_url, pool_size=1)
    try:
        version = check_schema(engine)
    except SchemaMismatch as error:
        return Finding(Level.BAD, "schema", str(error), "millrace db upgrade")
    except Unreachable as error:
        return Finding(Level.BAD, "schema", error.problem, error.advice)
    except SQLAlchemyError as error:
        message = f"the database refuses to show its schema ({type(error).__name__})"
        return Finding(Level.BAD, "schema", message, "Look at its log.")
    finally:
        engine.dispose()
    return Finding(Level.OK, "schema", f"{version}, which this version {'needs' if version == needed else 'can use'}")


def _service(name: str, url: str | None, variable: str, find: Callable[[], Path]) -> Finding:
    if url:
        return Finding(Level.OK, name, f"external ({variable})")
    try:
        return Finding(Level.OK, name, f"bundled, {find()}")
    except ConfigError as error:
        return Finding(Level.BAD, name, str(error), f"pip install the package, or set {variable}.")
