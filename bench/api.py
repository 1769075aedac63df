"""Measurements of the api under load: a million jobs in the table, two hundred streams, a thousand readers of pending jobs."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import psutil
from sqlalchemy import Engine, text

from bench.chat import Connection
from bench.stack import running_stack
from cli.stack.stack import Stack
from db.connections import database_engine

_BATCHES: Final = 20
_LINES: Final = 50_000
_NUM_REQUESTS: Final = 400
_FAKE: Final = "name: fake\nbackend: fake\nslots: 64\n"
# A model that is busy: its jobs wait.
_BUSY: Final = "name: fake\nbackend: fake\nslots: 1\nstep_seconds: 50\n"

_FILL: Final = """
INSERT INTO jobs (id, tenant_id, batch_id, line, custom_id, model, state, body, answer, problem, finished_at,
                  prompt_tokens, completion_tokens, cached_tokens)
SELECT 'batch_req_' || md5(:batch || n), 'default', :batch, n, 'line-' || n, 'fake',
       CASE WHEN n % 100 = 0 THEN 'failed' ELSE 'completed' END, :body,
       CASE WHEN n % 100 = 0 THEN NULL ELSE :body END, CASE WHEN n % 100 = 0 THEN :problem END, now(), 10, 10, 0
FROM generate_series(1, :lines) n
"""


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles in milliseconds."""

    name: str
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Streams:
    """Lost tokens of concurrent streams, and the duration of the slowest one over the median."""

    tokens_lost: int
    slowest_over_median: float


def lookups() -> list[Latency]:
    """Measure lists and single objects over HTTP, with 1,000,000 jobs in the table."""
    with running_stack(_FAKE) as stack, _database(stack) as engine:
        batch_ids = _fill(engine)
        with httpx2.Client(base_url=stack.url, timeout=60) as client:
            some = batch_ids[_BATCHES // 2]
            paths: dict[str, Callable[[int], str]] = {
                "list batches": lambda n: f"/v1/batches?limit=20&after={batch_ids[-1 - n % 3]}",
                "get a batch": lambda n: f"/v1/batches/{batch_ids[n % _BATCHES]}",
                "list files": lambda n: f"/v1/files?limit={20 + n % 3}",
                "list a batch's requests": lambda n: f"/v1/batches/{some}/requests?after=line-{97 * n + 1}&limit=20",
                "list its failed requests": lambda n: f"/v1/batches/{some}/requests?status=failed&limit={20 + n % 3}",
                "get one request": lambda n: f"/v1/batches/{some}/requests/line-{97 * n + 1}",
            }
            return [_latency(client, name, path) for name, path in paths.items()]


def _fill(engine: Engine) -> list[str]:
    body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "x" * 100}]})
    batch_ids = []
    for number in range(_BATCHES):
        batch = f"batch_bench{number:04}"
        batch_ids.append(batch)
        with engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO batches (id, tenant_id, endpoint, status, input_file_id, completion_window, window_seconds, "
                    "lines, lines_completed, lines_failed, completed_at) VALUES (:batch, 'default', "
                    "'/v1/chat/completions', 'completed', 'file-x', '24h', 86400, :lines, :good, :bad, now())"
                ),
                {"batch": batch, "lines": _LINES, "good": _LINES - _LINES // 100, "bad": _LINES // 100},
            )
            problem = json.dumps({"status": 500, "message": "x", "type": "server_error", "code": "x", "param": None})
            connection.execute(text(_FILL), {"batch": batch, "body": body, "lines": _LINES, "problem": problem})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE jobs"))
    return batch_ids


def _latency(client: httpx2.Client, name: str, path: Callable[[int], str]) -> Latency:
    seconds = []
    for number in range(_NUM_REQUESTS + 20):
        began = time.perf_counter()
        answer = client.get(path(number))
        if number >= 20:
            seconds.append(time.perf_counter() - began)
        assert answer.status_code == 200, (name, answer.text)
    percentiles = statistics.quantiles(seconds, n=100)
    return Latency(name, 1000 * percentiles[49], 1000 * percentiles[98])


def streams(number: int = 200, tokens: int = 200) -> Streams:
    """Run chat streams side by side through one api process."""

    async def run(url: str) -> tuple[int, list[float]]:
        connections = [Connection(url) for _ in range(number)]
        for connection in connections:
            await connection.open()

        async def one(index: int, connection: Connection) -> tuple[int, float]:
            began = time.perf_counter()
            _, count = await connection.stream(f"question {index}", tokens)
            return count, time.perf_counter() - began

        await asyncio.gather(*[one(index, each) for index, each in enumerate(connections[:64])])
        seen = await asyncio.gather(*[one(index, each) for index, each in enumerate(connections)])
        for connection in connections:
            await connection.close()
        return sum(count for count, _ in seen), [seconds for _, seconds in seen]

    model = _FAKE.replace("slots: 64", f"slots: {number}")
    with running_stack(model, chat_threads=number) as stack:
        count, seconds = asyncio.run(run(stack.url))
    return Streams(number * tokens - count, max(seconds) / statistics.median(seconds))


def idle_readers(number: int = 1000) -> float:
    """MiB of the api process while `number` clients read the events of jobs that do not start."""

    async def run(stack: Stack) -> float:
        async with httpx2.AsyncClient(base_url=stack.url, timeout=60) as client:
            body = {"model": "fake", "messages": [{"role": "user", "content": "hello"}]}
            jobs = [(await client.post("/v1/jobs", json=body)).json()["id"] for _ in range(10)]
        parts = urlsplit(stack.url)
        readers = []
        for index in range(number):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(f"GET /v1/jobs/{jobs[index % 10]}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            readers.append((reader, writer))
        for reader, _ in readers:
            assert b"200" in await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(20)  # a keep-alive of each has been sent
        found = max(_api_memory())
        for _, writer in readers:
            writer.close()
        return found

    with running_stack(_BUSY) as stack:
        return asyncio.run(run(stack))


def _api_memory() -> Iterator[float]:
    for process in psutil.Process().children(recursive=True):
        command = process.cmdline()
        if command[-2:] == ["-m", "api"]:
            yield process.memory_info().rss / (1 << 20)


@contextmanager
def _database(stack: Stack) -> Iterator[Any]:  # Any: an engine
    engine = database_engine(stack.services.database_url, pool_size=1)
    yield engine
    engine.dispose()
