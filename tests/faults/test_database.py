"""The database stops, loses connections, is locked or full: nothing is written partly or twice, and no request waits for
long.
"""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx2
import psycopg
import pytest

from core import ids
from core.failpoints import Point
from tests.faults.load import (
    Chats,
    ask,
    batch_content,
    chat_body,
    check_everyday,
    create_batch,
    expected_answer,
    new_prompt,
    start_batch,
    stream_chat,
    upload,
    wait_batch,
)
from tests.faults.oracle import Oracle
from tests.faults.proxy import Direction
from tests.faults.stack import FaultStack, Role
from tests.faults.stages import create_job, wait_job
from tests.support.stack import wait_for

pytestmark = pytest.mark.timeout(120)

LONG = {"max_tokens": 3900, "ignore_eos": True}  # four seconds: two leases
COMMIT = b"COMMIT\0"


def statuses(stack: FaultStack) -> Counter[int]:
    """Return the statuses of requests that read and write; each refusal has Retry-After and no internal detail."""
    seen: Counter[int] = Counter()
    with stack.http(timeout=20) as http:
        file = {"files": {"file": ("in.jsonl", batch_content(1))}, "data": {"purpose": "batch"}}
        for method, path, more in (
            ("GET", "/v1/batches", {}),
            ("GET", "/v1/files", {}),
            ("POST", "/v1/files", file),
            ("POST", "/v1/jobs", {"json": chat_body(new_prompt())}),
            ("POST", "/v1/chat/completions", {"json": chat_body(new_prompt())}),
            ("POST", "/v1/chat/completions", {"json": chat_body(new_prompt(), stream=True)}),
        ):
            response = http.request(method, path, **more)
            seen[response.status_code] += 1
            if response.status_code >= 400:
                assert response.headers["retry-after"], path
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}
                assert "Traceback" not in response.text
    return seen


def tracebacks(stack: FaultStack) -> int:
    """Return the number of tracebacks in the api's log."""
    return dict(stack.logs())["api.log"].count("Traceback")


def counts(stack: FaultStack, batch_id: str) -> tuple[int, int]:
    """Return the number of ended lines, as counted by shards and by rows."""
    ((counted, ended),) = stack.query(
        "SELECT (SELECT sum(lines_completed + lines_failed) FROM shards WHERE batch_id = :id), "
        "(SELECT count(*) FROM jobs WHERE batch_id = :id AND finished_at IS NOT NULL)",
        id=batch_id,
    )
    return int(counted or 0), int(ended)


@pytest.mark.parametrize("point", [Point.SHARD_WRITING, Point.SHARD_WRITTEN, Point.CHAT_COMPLETING])
def test_a_database_that_stops_during_a_commit_has_all_of_it_or_nothing(
    point: Point, stack: FaultStack, oracle: Oracle
) -> None:
    """F28."""
    with stack.armed(point, "sleep=1"):
        batch_id, job_id = start_batch(stack, 24), create_job(stack)
        wait_for(lambda: stack.hit_by(point) is not None, "a group of results is being written", 20)
        with stack.without(Role.POSTGRES, signal.SIGQUIT):
            pass
    counted, ended = counts(stack, batch_id)
    assert counted == ended
    assert wait_batch(stack, batch_id) == "completed"
    assert counts(stack, batch_id) == (24, 24)
    assert wait_job(stack, job_id) == "completed"
    oracle.check()


def test_without_a_database_requests_get_a_503_with_retry_after(stack: FaultStack, oracle: Oracle) -> None:
    """F29: a batch and chats that were running go on; the text that a chat got is correct, or the chat ends in a clear
    error.
    """
    batch_id, before = start_batch(stack, 40, max_tokens=400, ignore_eos=True), tracebacks(stack)
    with Chats(stack) as chats:
        wait_for(lambda: counts(stack, batch_id)[1] > 0 and chats.ends["answered"] > 2, "the batch and the chats run")
        with stack.without(Role.POSTGRES, signal.SIGQUIT):
            began = time.monotonic()
            assert statuses(stack) == {503: 6}
            print(f"six refusals in {time.monotonic() - began:.1f} s")
            time.sleep(max(0.0, 4 - (time.monotonic() - began)))  # two leases
        began = time.monotonic()
        wait_for(lambda: set(statuses(stack)) <= {200, 202}, "everything works again", 30)
        print(f"works again after {time.monotonic() - began:.1f} s")
        answered = chats.ends["answered"]
        wait_for(lambda: chats.ends["answered"] > answered + 2, "chats are answered again")
    print(dict(chats.ends), f"{chats.longest_seconds:.1f} s")
    assert wait_batch(stack, batch_id) == "completed"
    assert tracebacks(stack) == before
    oracle.check()


def test_a_stream_survives_a_short_loss_of_the_database(stack: FaultStack, oracle: Oracle) -> None:
    """F29: the stream needs no database while it runs, and its end waits until it can be written."""
    prompt = new_prompt()
    with stack.armed(Point.CHAT_COMPLETING, "sleep=0.1"):
        stream = stack.client.chat.completions.create(**chat_body(prompt, stream=True))
        wait_for(lambda: stack.hit_by(Point.CHAT_COMPLETING) is not None, "the end of the stream is written", 20)
        stack.postgres.reset()
        with stream:
            pieces = [choice.delta.content or "" for chunk in stream for choice in chunk.choices]
    assert "".join(pieces) == expected_answer(prompt)
    check_everyday(stack)
    oracle.check()


def test_terminated_connections_cost_one_retry_at_most(stack: FaultStack, oracle: Oracle) -> None:
    """F30."""
    batch_id = start_batch(stack, 60)
    retries: Counter[str] = Counter()
    for _ in range(2):
        for path, more in (("/v1/jobs", {}), ("/v1/chat/completions", {"stream": True})):
            statuses(stack)  # connections are in use
            stack.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = 'millrace' AND pid <> pg_backend_pid()"
            )
            with stack.http() as http:
                responses = [http.post(path, json=chat_body(new_prompt(), **more)) for _ in range(2)]
            if responses[0].status_code == 503:
                retries[path] += 1
            assert responses[0].status_code in (200, 202, 503)
            assert responses[1].status_code in (200, 202), responses[1].text
    print(f"retries: {dict(retries)}")
    assert wait_batch(stack, batch_id) == "completed"
    oracle.check()


# --- F31 --------------------------------------------------------------------------------------------------------------


@contextmanager
def commit_without_reply(stack: FaultStack, mark: str) -> Iterator[None]:
    """Commit the transaction that contains this text, and reset its connection before the reply."""
    before = stack.postgres.num_cuts
    stack.postgres.cut(Direction.TO_SERVER, behind=COMMIT, only_after=mark.encode())
    yield
    wait_for(lambda: stack.postgres.num_cuts == before + 1, "the commit is cut", 20)


def upload_again(stack: FaultStack, http: httpx2.Client, mark: str) -> str:
    file = {"files": {"file": (f"{mark}.jsonl", batch_content(1))}, "data": {"purpose": "batch"}}
    assert http.post("/v1/files", **file).raise_for_status().json()["filename"] == f"{mark}.jsonl"  # type: ignore[arg-type]
    return f"SELECT id FROM files WHERE filename = '{mark}.jsonl'"


def create_batch_again(stack: FaultStack, http: httpx2.Client, mark: str) -> str:
    batch = {
        "input_file_id": upload(stack, batch_content(2)),
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": {"mark": mark},
    }
    made = http.post("/v1/batches", json=batch).raise_for_status().json()
    assert wait_batch(stack, made["id"]) == "completed"
    return f"SELECT id FROM batches WHERE metadata_json LIKE '%{mark}%'"


def create_job_again(stack: FaultStack, http: httpx2.Client, mark: str) -> str:
    job = http.post("/v1/jobs", json=chat_body(f"{new_prompt()} {mark}")).raise_for_status().json()
    assert wait_job(stack, job["id"]) == "completed"
    return f"SELECT id FROM jobs WHERE body LIKE '%{mark}%'"


def create_response_again(stack: FaultStack, http: httpx2.Client, mark: str) -> str:
    body = {"model": "fake", "input": f"{new_prompt()} {mark}", "background": True}
    made = http.post("/v1/responses", json=body).raise_for_status().json()
    wait_for(
        lambda: http.get(f"/v1/responses/{made['id']}").json()["status"] == "completed", "the response is completed"
    )
    return f"SELECT id FROM jobs WHERE body LIKE '%{mark}%'"


def validate_again(stack: FaultStack, http: httpx2.Client, mark: str) -> str:
    file = {"files": {"file": (f"{mark}.jsonl", batch_content(1))}, "data": {"purpose": "batch"}}
    assert http.post("/v1/batches/validate", **file).raise_for_status().json()["is_valid"]  # type: ignore[arg-type]
    return "SELECT 1"


@pytest.mark.parametrize(
    "create", [upload_again, create_batch_again, create_job_again, create_response_again, validate_again]
)
def test_a_create_committed_without_a_reply_succeeds_and_exists_once(
    create: Callable[[FaultStack, httpx2.Client, str], str], stack: FaultStack, oracle: Oracle
) -> None:
    """F31: the outcome is read from the database."""
    mark = ids.new_id("mark_")
    with stack.http() as http, commit_without_reply(stack, mark):
        made = create(stack, http, mark)
    assert len(stack.query(made)) == 1
    oracle.check()


def test_a_retry_that_was_committed_without_a_reply_keeps_its_file(stack: FaultStack, oracle: Oracle) -> None:
    """F31."""
    parent = start_batch(stack, 3)
    assert wait_batch(stack, parent) == "completed"
    with stack.http() as http, commit_without_reply(stack, f"{parent}_retry.jsonl"):
        response = http.post(f"/v1/batches/{parent}/retry", json={"custom_ids": ["line-1"]})
    (batch_id,) = [row[0] for row in stack.query("SELECT id FROM batches WHERE parent_batch_id = :id", id=parent)]
    assert response.raise_for_status().json()["id"] == batch_id
    assert wait_batch(stack, batch_id) == "completed"
    oracle.check()


def test_results_that_were_committed_without_a_reply_count_once(stack: FaultStack, oracle: Oracle) -> None:
    """F31: lines of a batch, and a chat whose caller has its response."""
    content = batch_content(6)
    line = json.loads(content.splitlines()[2])["body"]["messages"][0]["content"]
    with commit_without_reply(stack, json.dumps(expected_answer(line))[1:-1]):
        batch_id = create_batch(stack, upload(stack, content))
        assert wait_batch(stack, batch_id) == "completed"
    assert counts(stack, batch_id) == (6, 6)
    for chat in (ask, lambda stack, prompt: "".join(stream_chat(stack, prompt))):
        prompt = new_prompt()
        with commit_without_reply(stack, json.dumps(expected_answer(prompt))[1:-1]):
            assert chat(stack, prompt) == expected_answer(prompt)
    oracle.check()


# --- locks, connections, deadlocks ------------------------------------------------------------------------------------


@contextmanager
def session(stack: FaultStack) -> Iterator[psycopg.Connection[Any]]:
    """Open a connection beside those of the stack; its transaction is rolled back."""
    with psycopg.connect(stack.services.database_url) as connection:
        yield connection
        connection.rollback()


def test_a_locked_table_delays_requests_for_no_longer_than_the_lock_timeout(stack: FaultStack, oracle: Oracle) -> None:
    """F32: requests get a 503 after the lock's time-out, and threads do not pile up."""
    batch_id = start_batch(stack, 40)
    threads = stack.find(Role.API).num_threads()
    with ThreadPoolExecutor(24) as pool, session(stack) as other:
        other.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        with stack.http(timeout=30) as http:
            responses = list(
                pool.map(lambda _: http.post("/v1/jobs", json=chat_body(new_prompt())).status_code, range(24))
            )
        seconds = time.monotonic() - began
        assert set(responses) == {503}
        assert stack.find(Role.API).num_threads() <= threads + 8
    print(f"24 refusals in {seconds:.1f} s")
    assert seconds < 12, "3 s for the lock, 5 s for a connection of the pool"
    check_everyday(stack)
    assert wait_batch(stack, batch_id) == "completed"
    oracle.check()


@contextmanager
def no_connection_left(stack: FaultStack) -> Iterator[int]:
    """Occupy every connection of the database, including those for its superuser."""
    with ExitStack() as idle:
        number = 0
        while True:
            try:
                idle.enter_context(psycopg.connect(stack.services.database_url, autocommit=True))
            except psycopg.OperationalError:
                break
            number += 1
        yield number


def test_a_database_without_a_free_connection_refuses_in_time_and_leases_are_kept(
    stack: FaultStack, oracle: Oracle
) -> None:
    """F33: a heartbeat has its own connection from the start, so that work longer than two leases is not lost."""
    pid = stack.restart(Role.BATCH)
    is_there = "SELECT 1 FROM workers WHERE pid = :pid AND last_poll_at IS NOT NULL"
    wait_for(lambda: bool(stack.query(is_there, pid=pid)), "the consumer polls")
    file_id = upload(stack, batch_content(4, **LONG))
    with no_connection_left(stack) as number:
        assert number > 0
        batch_id = create_batch(stack, file_id)
        with ThreadPoolExecutor(48) as pool, stack.http(timeout=30) as http:
            began = time.monotonic()
            responses = Counter(
                pool.map(lambda _: http.post("/v1/jobs", json=chat_body(new_prompt())).status_code, range(48))
            )
            print(f"{dict(responses)} in {time.monotonic() - began:.1f} s")
            assert set(responses) <= {202, 503}
            assert time.monotonic() - began < 12
        wait_batch(stack, batch_id, timeout_seconds=40)
    assert wait_batch(stack, batch_id) == "completed"
    assert {row[0] for row in stack.query("SELECT fence FROM shards WHERE batch_id = :id", id=batch_id)} == {1}
    check_everyday(stack)
    oracle.check()


def test_a_transaction_ended_by_a_deadlock_is_retried(stack: FaultStack, oracle: Oracle) -> None:
    """F34: the end of a chat locks its row and waits for the usage row, whose holder waits for the chat's row."""
    assert ask(stack, prompt := new_prompt()) == expected_answer(prompt)
    with session(stack) as other:
        other.execute("SET deadlock_timeout = '10s'")
        other.execute("SELECT 1 FROM usage_daily FOR UPDATE")
        job_id = create_job(stack)
        wait_for(
            lambda: bool(stack.query("SELECT 1 FROM pg_locks WHERE NOT granted")), "the result waits for a lock", 20
        )
        began = time.monotonic()
        other.execute("SELECT 1 FROM jobs WHERE id = %s FOR UPDATE", (job_id,))
        print(f"the deadlock was ended in {time.monotonic() - began:.1f} s")
    assert wait_job(stack, job_id) == "completed"
    assert "write_failed" in dict(stack.logs())["chat.log"]
    oracle.check()
