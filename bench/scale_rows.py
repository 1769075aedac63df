"""Rows: the time of each query of the service beside N jobs in the database, in SQL and over HTTP.

One in ten batches is open, a twentieth of the rows belongs to one large batch, and one row in a hundred is a single request.
The model of the open batches is not served, so that their lines wait.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import httpx2
from sqlalchemy import Connection, Engine, Executable, Result, text

from core.states import BatchState, JobState
from db import backlog, batch_lists, batch_requests, batch_results, batches, demand, jobs, keys, shards
from db.batch_lists import BatchFilter
from db.batch_requests import LineFilter
from db.query import Query

LINES: Final = 50_000  # of a batch
_SHARD_LINES: Final = 128
_REPEATS: Final = 200
_TENANT: Final = "default"
_LEASE: Final = timedelta(seconds=60)
_BATCH: Final = text(
    "INSERT INTO batches (id, tenant_id, endpoint, model, status, input_file_id, input_file_name, completion_window,"
    " window_seconds, lines, lines_completed, lines_failed, metadata_json, in_progress_at, expires_at, completed_at)"
    " VALUES (:batch, 'default', '/v1/chat/completions', :model, :status, 'file-x', 'rows.jsonl', '24h', 86400, :lines,"
    " CASE WHEN :status = 'completed' THEN :lines - :lines / 100 ELSE 0 END,"
    " CASE WHEN :status = 'completed' THEN :lines / 100 ELSE 0 END, jsonb_build_object('name', 'run ' || :first)::text, now(),"
    " now() + interval '1 day', CASE WHEN :status = 'completed' THEN now() END)"
)
_SHARDS: Final = text(
    "INSERT INTO shards (id, batch_id, tenant_id, model, position, first_line, state, lines, lines_completed)"
    " SELECT 'shard_' || lpad(to_hex((:first + n) / 128), 36, '0'), :batch, 'default', :model, n / 128, n + 1,"
    " CASE WHEN :status = 'completed' THEN 'done' ELSE 'ready' END, least(128, :lines - n),"
    " CASE WHEN :status = 'completed' THEN least(128, :lines - n) ELSE 0 END FROM generate_series(0, :lines - 1, 128) n"
)
_LINES: Final = text(
    "INSERT INTO jobs (id, tenant_id, batch_id, shard_id, position, line, custom_id, model, state, attempt, body, answer,"
    " problem, started_at, finished_at, prompt_tokens, completion_tokens, cached_tokens, engine_build, finish_xact)"
    " SELECT 'batch_req_' || lpad(to_hex(:first + n), 36, '0'), 'default', :batch,"
    " 'shard_' || lpad(to_hex((:first + n) / 128), 36, '0'), n, n + 1, 'line-' || n + 1, :model, state, 1, :body,"
    " CASE state WHEN 'completed' THEN :body END, CASE state WHEN 'failed' THEN :problem END,"
    " now() - interval '1 second', CASE WHEN state <> 'queued' THEN now() END, 10, 10, 0, 'fake-1',"
    " CASE WHEN state <> 'queued' THEN 1000 + n / 32 ELSE 0 END"
    " FROM generate_series(0, :lines - 1) n,"
    " LATERAL (SELECT CASE WHEN :status <> 'completed' THEN 'queued' WHEN n % 100 = 99 THEN 'failed'"
    " ELSE 'completed' END) s(state)"
)
_CHATS: Final = text(
    "INSERT INTO jobs (id, tenant_id, model, state, attempt, body, answer, finished_at, prompt_tokens, completion_tokens)"
    " SELECT 'chatcmpl-' || lpad(to_hex(n), 36, '0'), 'default', 'fake', 'completed', 1, :body, :answer, now(), 10, 10"
    " FROM generate_series(1, :number) n"
)
_STORED: Final = text(
    "INSERT INTO stored_chats (job_id, tenant_id, model, metadata_json)"
    " SELECT 'chatcmpl-' || lpad(to_hex(n), 36, '0'), 'default', 'fake', '{}' FROM generate_series(1, :number) n"
)
_BODY: Final = '{"model":"fake","messages":[{"role":"user","content":"hello"}]}'
_ANSWER: Final = json.dumps(
    {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 1,
        "model": "fake",
        "system_fingerprint": "fp_0",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20},
    }
)
_PROBLEM: Final = '{"status":500,"message":"x","type":"server_error","code":"engine_crash","param":null}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Milliseconds of one kind of query."""

    name: str
    p50: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """The batches that were inserted; `big` is the large one."""

    ended: list[str]
    open: list[str]
    big: str
    num_chats: int


def plan_fill(rows: int, lines: int = LINES) -> Filled:
    """Name the batches of a database of `rows` jobs, with `lines` each."""
    number = max(rows * 94 // 100 // lines, 2)
    names = [f"batch_{number:036x}" for number in range(1, number + 1)]
    num_open = max(number // 10, 1)
    return Filled(
        ended=names[num_open:], open=names[:num_open], big=f"batch_{number + 1:036x}", num_chats=max(rows // 100, 100)
    )


def fill(engine: Engine, rows: int, lines: int = LINES) -> Filled:
    """Insert the rows, and gather statistics."""
    filled, first = plan_fill(rows, lines), 0
    for batch in (*filled.open, *filled.ended, filled.big):
        is_open, number = batch in filled.open, rows // 20 if batch == filled.big else lines
        values = {
            "batch": batch,
            "lines": number,
            "first": first,
            "status": "in_progress" if is_open else "completed",
            "model": "absent" if is_open else "fake",
        }
        with engine.begin() as connection:
            _prepare(connection)
            connection.execute(_BATCH, values)
            connection.execute(_SHARDS, values)
            connection.execute(_LINES, {**values, "body": _BODY, "problem": _PROBLEM})
        first += (number + _SHARD_LINES) // _SHARD_LINES * _SHARD_LINES
    with engine.begin() as connection:
        _prepare(connection)
        connection.execute(_CHATS, {"number": filled.num_chats, "body": _BODY, "answer": _ANSWER})
        connection.execute(_STORED, {"number": filled.num_chats})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        for table in ("jobs", "batches", "shards", "stored_chats"):
            connection.execute(text(f"VACUUM ANALYZE {table}"))
    return filled


def _prepare(connection: Connection) -> None:
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    connection.execute(text("SET LOCAL synchronous_commit = off"))
    connection.execute(text("SET LOCAL session_replication_role = replica"))  # without look-ups of foreign keys


def statements(filled: Filled) -> dict[str, Callable[[int], Executable | Query[Any]]]:
    """The queries of workers, clerk and metrics, by name; the argument is the number of the repeat."""
    lost = timedelta(seconds=15)
    return {
        "claim a shard": lambda _: shards.claim_next_shard("absent", "bench", _LEASE),
        "read the lines of a shard": lambda n: shards.queued_lines(f"shard_{n % 100:036x}"),
        "models with shards": lambda _: shards.models_with_claimable_shards(),
        "demand: waiting shards": lambda _: demand.waiting_shards(),
        "demand: waiting chats": lambda _: demand.waiting_chats(),
        "metrics: backlog": lambda _: backlog.backlog(),
        "metrics: chats by model": lambda _: backlog.chats_by_model(),
        "metrics: lines by model": lambda _: backlog.lines_by_model(),
        "activity: open work": lambda _: batches.open_work(),
        "quota of a tenant": lambda _: keys.open_batches(_TENANT),
        "quota of a key": lambda _: keys.queued_in_jobs("key"),
        "sweep: due batches": lambda _: batches.batches_due(lost, 4 * lost, 500),
        "sweep: expired batches": lambda _: batches.expire_batches(),
        "sweep: lost jobs": lambda _: jobs.requeue_lost_jobs(3),
        "sweep: overdue jobs": lambda _: jobs.overdue_jobs(["fake", "absent"], lost, 500),
        "end of a shard": lambda n: shards.leave_shard(f"shard_{n % 100:036x}", 0),
        "pace of a batch": lambda n: batch_requests.recent_pace([filled.big, filled.open[n % len(filled.open)]]),
        "totals of 20 batches": lambda n: batches.running_totals((filled.open + filled.ended)[n % 20 :][:20]),
        "page of results": lambda n: batches.result_rows(filled.big, 499 * n, 500),
        "live batches": lambda _: batch_lists.list_batches(_TENANT, BatchFilter(), after=None, limit=100),
        "results since a cursor": lambda n: batch_results.ended_lines(
            filled.big, batch_results.EndedAt(1000 + n, 0), 1000, is_over=True
        ),
        "find by custom_id": lambda n: batch_requests.find_request(filled.big, f"line-{97 * n + 1}"),
        "running batches": lambda _: batch_lists.list_batches(
            _TENANT, BatchFilter(statuses=(BatchState.IN_PROGRESS,)), after=None, limit=100
        ),
        "failed lines": lambda _: batch_requests.list_requests(filled.big, LineFilter(status=JobState.FAILED), 100),
        "expired lines": lambda _: batch_requests.list_requests(filled.big, LineFilter(status=JobState.EXPIRED), 100),
        "waiting lines": lambda _: batch_requests.list_requests(filled.big, LineFilter(status=JobState.QUEUED), 100),
    }


def paths(filled: Filled) -> dict[str, Callable[[int], str]]:
    """What clients ask for, by name."""
    big, several = f"/v1/batches/{filled.big}", filled.open + filled.ended
    return {
        "list batches": lambda n: f"/v1/batches?limit={20 + n % 3}",
        "list batches, deep": lambda n: f"/v1/batches?limit=20&after={several[len(several) // 4 + n % 3]}",
        "list batches, running": lambda n: f"/v1/batches?status=in_progress&limit={20 + n % 3}",
        "list batches, by model": lambda n: f"/v1/batches?model=fake&limit={20 + n % 3}",
        "list batches, by metadata": lambda n: f"/v1/batches?metadata[name]=run%20{n % 3}&limit=20",
        "get a batch": lambda n: f"/v1/batches/{several[n % len(several)]}",
        "get the largest batch": lambda _: big,
        "requests, first page": lambda n: f"{big}/requests?limit={20 + n % 3}",
        "requests, deep page": lambda n: f"{big}/requests?after=line-{97 * n + 20_000}&limit=20",
        "requests, failed": lambda n: f"{big}/requests?status=failed&limit={20 + n % 3}",
        "requests, by code": lambda n: f"{big}/requests?code=engine_crash&limit={20 + n % 3}",
        "requests, completed, deep": lambda n: f"{big}/requests?status=completed&after_line={97 * n + 20_000}&limit=20",
        "requests, expired (none)": lambda n: f"{big}/requests?status=expired&limit={20 + n % 3}",
        "requests, queued (none)": lambda n: f"{big}/requests?status=queued&limit={20 + n % 3}",
        "requests, part of a custom_id": lambda n: f"{big}/requests?q=line-{97 * n + 20_000}&limit=20",
        "get one request": lambda n: f"{big}/requests/line-{97 * n + 1}",
        "output, a page": lambda n: f"{big}/output?limit={100 + n % 3}",
        "get a chat": lambda n: f"/v1/chat/completions/chatcmpl-{n + 1:036x}",
        "list chats": lambda n: f"/v1/chat/completions?limit={20 + n % 3}",
        "get a job": lambda n: f"/v1/jobs/chatcmpl-{n + 1:036x}",
        "activity": lambda _: "/v1/activity",
        "readyz": lambda _: "/readyz",
        "metrics": lambda _: "/metrics",
    }


def time_statements(engine: Engine, filled: Filled) -> Iterator[Timing]:
    """Run each statement in a transaction that is rolled back."""
    for name, make in statements(filled).items():
        seconds = []
        for number in range(_REPEATS + 5):
            query = make(number)
            with engine.connect() as connection:
                connection.begin()
                began = time.perf_counter()
                run(connection, query).all()
                seconds.append(time.perf_counter() - began)
                connection.rollback()
        yield _timing(name, seconds[5:])


def run(connection: Connection, query: Executable | Query[Any]) -> Result[Any]:  # Any: rows of any type
    """Execute a statement, or a query with its values."""
    return (
        connection.execute(query.statement, query.parameters) if isinstance(query, Query) else connection.execute(query)
    )


def time_requests(url: str, filled: Filled) -> Iterator[Timing]:
    """Send each request to an api, one after another."""
    with httpx2.Client(base_url=url, timeout=60) as client:
        for name, path in paths(filled).items():
            seconds = []
            for number in range(_REPEATS + 5):
                began = time.perf_counter()
                answer = client.get(path(number))
                seconds.append(time.perf_counter() - began)
                assert answer.status_code == 200 or name == "readyz", (name, answer.text)  # a model is not served
            yield _timing(name, seconds[5:])


def _timing(name: str, seconds: list[float]) -> Timing:
    percentiles = statistics.quantiles(seconds, n=100)
    return Timing(name=name, p50=1000 * percentiles[49], p99=1000 * percentiles[98])
