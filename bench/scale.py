"""Scale: the cost of a line to the database from prepare to finalize, and the time of each query beside many rows.

`--lines N` runs one batch of N lines through a whole stack on the fake model; `--rows N` fills a database with N jobs, and times
the statements and requests of `bench.scale_rows` there. `docs/scale.md` explains the numbers.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, text

from bench.pipeline import PeakMemory, watched_memory, write_input
from bench.result import Result
from bench.scale_rows import Timing, fill, time_requests, time_statements
from bench.stack import running_stack
from cli.client import Client
from cli.output_files import OutputFile
from cli.stack.stack import Stack
from db.connections import database_engine

SLOW_MS: Final = 100
_POLL_SECONDS: Final = 0.2
_REST_SECONDS: Final = 5.0
_ENDED: Final = ("completed", "failed", "expired", "cancelled")
_STAGES: Final = {"validating": "prepare", "in_progress": "run", "finalizing": "finalize"}
_DURATION: Final = re.compile(r"duration: ([\d.]+) ms +(?:execute \w*|statement|parse \w*|bind \w*|<[^>]*>)?:? ?(.*)")
_POSITION: Final = text("SELECT pg_current_wal_lsn() - '0/0'")
_INDEXES: Final = text(
    "SELECT indexrelname, pg_relation_size(indexrelid) AS size FROM pg_stat_user_indexes WHERE relname = 'jobs' ORDER BY 2 DESC"
)
_TABLE: Final = text(
    "SELECT n_tup_upd AS updates, n_tup_hot_upd AS hot_updates, autovacuum_count AS vacuums,"
    " total_autovacuum_time / 1000 AS vacuum_seconds, pg_table_size('jobs') AS table_bytes"
    " FROM pg_stat_user_tables WHERE relname = 'jobs'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of the way of a batch: its seconds, and the WAL that was written meanwhile in bytes."""

    name: str
    seconds: float
    wal: int


@dataclass(slots=True, kw_only=True)
class LineCost:
    """One batch of `lines` lines: its stages, sizes in bytes, updates, vacuum, memory at rest and its peaks, slow statements."""

    lines: int
    stages: list[Stage] = field(default_factory=list)
    table: dict[str, float] = field(default_factory=dict)
    indexes: dict[str, int] = field(default_factory=dict)
    rest: dict[str, int] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    slow: dict[str, tuple[int, float]] = field(default_factory=dict)


def scale(folder: Path, *, lines: int, rows: int) -> list[Result]:
    """Measure a batch of `lines` lines, then a database of `rows` jobs; 0 leaves one of them out."""
    found = _line_results(measure_lines(folder, lines)) if lines else []
    return found + [
        Result(name=f"{rows:,} jobs: {each.name}, p99 (p50 {each.p50:.1f})", value=each.p99, unit="ms", target=50, is_limit=True)
        for each in (measure_rows(rows) if rows else ())
    ]  # fmt: skip


def measure_rows(rows: int) -> Iterator[Timing]:
    """Fill the database of a stack, and time statements and requests."""
    with running_stack() as stack, _database(stack) as engine:
        filled = fill(engine, rows)
        yield from time_statements(engine, filled)
        yield from time_requests(stack.url, filled)


def measure_lines(folder: Path, lines: int) -> LineCost:
    """Run one batch and return its cost."""
    source = folder / "scale.jsonl"
    size = write_input(source, lines)
    cost = LineCost(lines=lines)
    limits: dict[str, Any] = {
        "batch_lines": lines,
        "batch_file_bytes": 2 * size,
        "file_bytes": 2 * size,
    }  # Any: settings
    with watched_memory() as memory, running_stack(**limits) as stack, _database(stack) as engine:
        cost.rest = _memory_at_rest(memory)
        _log_slow_statements(engine)
        with Client(f"{stack.url}/v1", "bench") as client:
            _run(client, engine, source, folder / "out.jsonl", cost)
        cost.peaks = dict(memory.peaks)
        time.sleep(2)  # the statistics of other sessions arrive within a second
        with engine.connect() as connection:
            _read_statistics(connection, cost)
        cost.slow = _read_slow(stack.services.logs / "postgres.log")
    return cost


def _memory_at_rest(memory: PeakMemory) -> dict[str, int]:
    memory.peaks.clear()
    time.sleep(_REST_SECONDS)
    return dict(memory.peaks)


def _run(client: Client, engine: Engine, source: Path, output: Path, cost: LineCost) -> None:
    clock = _Clock(engine, cost.stages)
    file_id = client.upload(source)
    clock.end("upload")
    batch = client.create_batch(file_id, "/v1/chat/completions", "24h")
    stage = "validating"
    while batch["status"] not in _ENDED:
        time.sleep(_POLL_SECONDS)
        batch = client.batch(batch["id"])
        if batch["status"] != stage:
            clock.end(_STAGES[stage])
            stage = batch["status"]
    assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", cost.lines), batch
    OutputFile(path=output, may_replace=True).write(client.content(batch["output_file_id"]))
    clock.end("download")


class _Clock:
    """Ends the stages of a run."""

    def __init__(self, engine: Engine, stages: list[Stage]) -> None:
        self._engine = engine
        self._stages = stages
        self._at, self._wal = time.perf_counter(), self._position()

    def end(self, name: str) -> None:
        """Record the stage that ends now."""
        now, wal = time.perf_counter(), self._position()
        self._stages.append(Stage(name=name, seconds=now - self._at, wal=wal - self._wal))
        print(f"{name}: {now - self._at:.1f} s, {(wal - self._wal) / 1e6:.0f} MB of WAL", flush=True)
        self._at, self._wal = now, wal

    def _position(self) -> int:
        with self._engine.connect() as connection:
            return int(connection.execute(_POSITION).scalar_one())


def _read_statistics(connection: Connection, cost: LineCost) -> None:
    cost.indexes = {row.indexrelname: row.size for row in connection.execute(_INDEXES)}
    cost.table = {name: float(value) for name, value in connection.execute(_TABLE).one()._mapping.items()}


@contextmanager
def _database(stack: Stack) -> Iterator[Engine]:
    engine = database_engine(stack.services.database_url, pool_size=2)
    try:
        yield engine
    finally:
        engine.dispose()


def _log_slow_statements(engine: Engine) -> None:
    """Let the database log the statements that take longer than SLOW_MS, without their parameters."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"ALTER SYSTEM SET log_min_duration_statement = {SLOW_MS}"))
        connection.execute(text("ALTER SYSTEM SET log_parameter_max_length = 0"))
        connection.execute(text("SELECT pg_reload_conf()"))


def _read_slow(log: Path) -> dict[str, tuple[int, float]]:
    """Read the logged statements: by their beginning, how many there were and the milliseconds of the slowest."""
    found: dict[str, tuple[int, float]] = {}
    for match in _DURATION.finditer(log.read_text(errors="replace")):
        milliseconds, statement = float(match[1]), " ".join(match[2].split())[:100]
        number, slowest = found.get(statement, (0, 0.0))
        found[statement] = (number + 1, max(slowest, milliseconds))
    return found


def _line_results(cost: LineCost) -> list[Result]:
    lines, table = cost.lines, cost.table
    for statement, (number, slowest) in cost.slow.items():
        print(f"slower than {SLOW_MS} ms: {number} times, up to {slowest:,.0f} ms: {statement}", flush=True)
    for name, size in cost.indexes.items():
        print(f"{name}: {size / lines:.0f} bytes per line", flush=True)
    updates = f"{table['updates'] / lines:.2f} updates per line, {table['hot_updates'] / lines:.2f} of them in place"
    print(f"{updates}; {table['vacuums']:.0f} vacuums of jobs in {table['vacuum_seconds']:.0f} s", flush=True)
    least = {"prepare": 10_000, "run": 500, "finalize": 15_000}
    most = {"prepare": 1200, "run": 2500, "finalize": 100}
    found = []
    for stage in cost.stages:
        if stage.name in least:
            name = f"{lines:,} lines: {stage.name}"
            found += [
                Result(name=name, value=lines / stage.seconds, unit="lines/s", target=least[stage.name]),
                Result(name=name, value=stage.wal / lines, unit="WAL B/line", target=most[stage.name], is_limit=True),
            ]
    sizes = {"table": table["table_bytes"], "indexes": sum(cost.indexes.values())}
    found += [
        Result(name=f"{lines:,} lines: {name}", value=size / lines, unit="B/line", target=limit, is_limit=True)
        for (name, size), limit in zip(sizes.items(), (1300, 600), strict=True)
    ]
    num_slow = sum(number for number, _ in cost.slow.values())
    name = f"{lines:,} lines: statements slower than {SLOW_MS} ms"
    found.append(Result(name=name, value=num_slow, unit="", target=0, is_limit=True))
    return found + [
        Result(
            name=f"{lines:,} lines: peak of {process} (at rest {cost.rest.get(process, 0) / 2**20:.0f})",
            value=peak / 2**20,
            unit="MiB",
            target=300,
            is_limit=True,
        )
        for process, peak in sorted(cost.peaks.items())
    ]
