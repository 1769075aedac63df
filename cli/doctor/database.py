"""Findings about the database: its version, connections and clock, the workers that report, and the files it lists."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from cli.doctor.files import newest_file
from cli.doctor.findings import Finding, Level
from cli.stack.postgres import needed_connections
from core.errors import ConfigError
from core.memory_sizes import format_bytes
from core.readiness import WorkerSeen, check_clerk, check_model, model_state

if TYPE_CHECKING:
    from core.settings import Settings

_OLDEST: Final = 140000
_SKEW_SECONDS: Final = 2.0


def database_findings(settings: Settings, url: str, num_devices: int = 1) -> tuple[list[Finding], bool | None]:
    """Return findings, and whether a key exists; None when the database does not answer or has no schema."""
    from db.connections import database_engine
    from db.keys import any_key

    engine = database_engine(url, pool_size=1)
    try:
        with engine.connect() as connection:
            room = pooler(connection) or connections(connection, num_devices)
            findings = [version(connection), room, clock(connection)]
            if not _has_schema(connection):
                return findings, None
            findings += [*workers(connection, settings), *newest_file(connection, settings)]
            return findings, bool(connection.execute(any_key()).scalar_one())
    except SQLAlchemyError:
        return [], None  # the finding about the schema reports that it does not answer
    finally:
        engine.dispose()


def version(connection: Connection) -> Finding:
    """Require Postgres 14 or later."""
    number, name = (
        connection.execute(text(f"SHOW {what}")).scalar_one() for what in ("server_version_num", "server_version")
    )
    if int(number) < _OLDEST:
        return Finding(Level.BAD, "database", f"Postgres {name} is too old", "Use Postgres 14 or later.")
    return Finding(Level.OK, "database", f"Postgres {name}")


def connections(connection: Connection, num_devices: int = 1) -> Finding:
    """Check that there is room for our pools beside other clients."""
    most = int(connection.execute(text("SHOW max_connections")).scalar_one())
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND application_name <> 'millrace'"
    )
    others = connection.execute(text(query)).scalar_one()
    ours = needed_connections(num_devices)
    devices = "one device" if num_devices == 1 else f"{num_devices} devices"
    message = (
        f"{most} at most, {others} of them used by other programs; an api and a worker of {devices} may use {ours}"
    )
    if most - others >= ours:
        return Finding(Level.OK, "connections", message)
    advice = f"Set max_connections of Postgres to {ours + others} or more, and {ours} more for each further host."
    return Finding(Level.BAD if most - others < ours / 2 else Level.WARNING, "connections", message, advice)


def pooler(connection: Connection) -> Finding | None:
    """Check a pooler between: it shares sessions, and must give each of them a timeout. None for a direct connection."""
    from db.connections import is_pooled

    if not is_pooled(connection.connection, connection.connection.driver_connection):
        return None
    message = "a pooler is between; statements are not prepared"
    if connection.execute(text("SHOW statement_timeout")).scalar_one() != "0":
        return Finding(Level.OK, "connections", message)
    advice = "Set connect_query as deploy/pgbouncer/pgbouncer.ini does, or: ALTER ROLE … SET statement_timeout = '10s'."
    return Finding(Level.WARNING, "connections", f"{message}, and none has a time limit", advice)


def clock(connection: Connection, now: Callable[[], float] = time.time) -> Finding:
    """Compare the clocks: leases and deadlines use the database's clock, logs and signed webhooks this machine's."""
    before = now()
    theirs = float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
    skew = theirs - (before + now()) / 2
    message = f"this machine and the database differ by {abs(skew):.1f} s"
    if abs(skew) < _SKEW_SECONDS:
        return Finding(Level.OK, "clock", message)
    advice = "Run chrony or systemd-timesyncd on both: signatures of webhooks are refused when they seem old."
    return Finding(Level.WARNING, "clock", message, advice)


def workers(connection: Connection, settings: Settings) -> list[Finding]:
    """List models without a worker, and workers that stopped reporting."""
    from core.models.models_folder import FolderReader
    from db import workers as statements

    seen = statements.list_workers().fetch_all(connection)
    if not seen:
        return [Finding(Level.OK, "workers", "no worker has reported: none runs, or none of this version")]
    try:
        models = sorted(model.name for model in FolderReader(settings.models_dir).read().models.values())
    except ConfigError:
        models = []  # reported by another finding
    states = [model_state(seen, name, settings.silence_seconds) for name in models]
    checks = [check_clerk(seen, settings.silence_seconds), *map(check_model, states)]
    found = [Finding(Level.BAD, c.name, c.message, c.advice) for c in checks if c.message]
    found += [Finding(Level.WARNING, f"model {state.model}", state.warning) for state in states if state.warning]
    found += [_silent(worker) for worker in _once(seen) if worker.seen_seconds > settings.silence_seconds]
    found += models_of_hosts([worker for worker in seen if worker.seen_seconds <= settings.silence_seconds], models)
    hosts = sorted({worker.host for worker in seen})
    working = Finding(Level.OK, "workers", f"{len(_once(seen))} processes on {', '.join(hosts)}")
    return [*_devices(connection, settings.silence_seconds), *(found or [working])]


def models_of_hosts(seen: Sequence[WorkerSeen], models: Sequence[str]) -> list[Finding]:
    """Compare the models of the hosts with one another, and with `models`, those that this host has files of."""
    hosts: dict[str, set[str]] = {}
    for worker in seen:
        if worker.model is not None:
            hosts.setdefault(worker.host, set()).add(worker.model)
    found = []
    if missing := sorted(set().union(*hosts.values()) - set(models)):
        message = f"workers serve {', '.join(missing)}, and no file of models_dir here describes it"
        advice = "Copy the model's YAML file here: an api answers only for models that it has a file of."
        found.append(Finding(Level.WARNING, "models of hosts", message, advice))
    if len(set(map(frozenset, hosts.values()))) > 1:
        message = "; ".join(f"{host} serves {', '.join(sorted(served))}" for host, served in sorted(hosts.items()))
        advice = "If this is not meant (worker --models), copy the same model files to all hosts."
        found.append(Finding(Level.WARNING, "models of hosts", message, advice))
    return found


def _devices(connection: Connection, silence_seconds: float) -> list[Finding]:
    """List the devices of all workers that report, with the models in their memory."""
    from db import workers as statements

    found = []
    for seen in statements.list_devices().fetch_all(connection):
        if seen.seen_seconds <= silence_seconds:
            parts = [seen.card] if seen.card else []
            if seen.free_bytes is not None and seen.total_bytes is not None:
                parts.append(f"{format_bytes(seen.free_bytes)} of {format_bytes(seen.total_bytes)} free")
            if seen.budget_bytes is not None:
                parts.append(f"models use {format_bytes(seen.engine_bytes)} of {format_bytes(seen.budget_bytes)}")
            parts.append(", ".join(seen.models) or "no model")
            found.append(Finding(Level.OK, f"{seen.host} {seen.device}", "; ".join(parts)))
    return found


def _silent(worker: WorkerSeen) -> Finding:
    here = " on this host" if worker.host == socket.gethostname() else ""
    message = f"{worker.kind} {worker.pid} on {worker.host} last reported {worker.seen_seconds:.0f} s ago"
    advice = f"If it still runs{here}, look at its log; if not, its row is deleted within an hour."
    return Finding(Level.WARNING, "workers", message, advice)


def _once(seen: list[WorkerSeen]) -> list[WorkerSeen]:
    return list({worker.id: worker for worker in seen}.values())


def _has_schema(connection: Connection) -> bool:
    from db.schema_version import schema_problem

    return schema_problem(connection) is None
