"""The broker dies, freezes, loses its data, is full or unreachable: batches end, and requests are answered in time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx2
import openai
import pytest
import redis

from core import ids
from core.queue.celery_app import make_sender
from core.queue.names import CLERK_QUEUE, batch_queue, chat_queue
from core.queue.tickets import Tickets
from core.settings import Settings
from tests.faults.load import (
    Chats,
    ask,
    batch_content,
    chat_body,
    check_everyday,
    expected_answer,
    new_prompt,
    start_batch,
    wait_batch,
)
from tests.faults.oracle import Oracle
from tests.faults.stack import FaultStack, Role
from tests.faults.stages import create_job, wait_job
from tests.support.stack import wait_for

pytestmark = pytest.mark.timeout(120)

QUEUES = [Settings().key_prefix + queue for queue in (CLERK_QUEUE, chat_queue("fake"), batch_queue("fake"))]
SLOWEST_SECONDS = 3.0
LONG = {"max_tokens": 3000, "ignore_eos": True}  # three seconds and more


class Timed:
    """Requests to an api, each of which must get a response soon, whatever the response is."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http
        self.longest: tuple[float, str] = (0.0, "")

    def __call__(self, method: str, path: str, **more: Any) -> httpx2.Response:
        began = time.monotonic()
        response = self._http.request(method, path, **more)
        self.longest = max(self.longest, (time.monotonic() - began, f"{method} {path}"))
        return response

    def check(self) -> None:
        print(f"slowest: {self.longest[1]}, {self.longest[0]:.2f} s")
        assert self.longest[0] < SLOWEST_SECONDS, self.longest


@contextmanager
def timed(stack: FaultStack) -> Iterator[Timed]:
    with stack.http() as http:
        requests = Timed(http)
        yield requests
        requests.check()


def use_everything(stack: FaultStack, request: Timed) -> str:
    """Check that each request works without a broker or returns a clear error. Return a batch, which must end."""
    file_id = request(
        "POST", "/v1/files", files={"file": ("in.jsonl", batch_content(4))}, data={"purpose": "batch"}
    ).json()["id"]
    batch = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    kept, stopped = (request("POST", "/v1/batches", json=batch) for _ in range(2))
    assert kept.status_code == stopped.status_code == 200
    assert request("GET", f"/v1/batches/{kept.json()['id']}").status_code == 200
    assert request("GET", "/v1/batches").status_code == 200
    assert request("POST", f"/v1/batches/{stopped.json()['id']}/cancel").json()["status"] in ("cancelling", "cancelled")
    job = request("POST", "/v1/jobs", json=chat_body(new_prompt()))
    assert job.status_code == 202
    assert request("POST", f"/v1/jobs/{job.json()['id']}/cancel").status_code == 200
    for is_stream in (True, False):
        chat = request("POST", "/v1/chat/completions", json=chat_body(new_prompt(), stream=is_stream))
        assert (chat.status_code, chat.headers["retry-after"] != "") == (503, True)
    assert request("GET", "/healthz").status_code == 200
    request("GET", "/readyz")
    return str(kept.json()["id"])


@pytest.mark.parametrize("state", ["down", "frozen", "half open"])
def test_without_a_broker_batches_end_and_requests_are_answered_in_time(
    state: str, stack: FaultStack, oracle: Oracle
) -> None:
    """F18, F19, F20."""
    faults: dict[str, Callable[[], Any]] = {
        "down": lambda: stack.without(Role.VALKEY),
        "frozen": lambda: stack.frozen(Role.VALKEY),
        "half open": lambda: black_hole(stack),
    }
    with faults[state]():
        with timed(stack) as request:
            batch_id = use_everything(stack, request)
        began = time.monotonic()
        assert wait_batch(stack, batch_id, timeout_seconds=60) == "completed"
        print(f"{state}: a batch ends in {time.monotonic() - began:.1f} s")
    began = time.monotonic()
    check_everyday(stack)
    print(f"{state}: everything works {time.monotonic() - began:.1f} s later")
    oracle.check()


@contextmanager
def black_hole(stack: FaultStack) -> Iterator[None]:
    """Lose everything that is sent to Valkey."""
    stack.valkey.black_hole()
    try:
        yield
    finally:
        stack.valkey.heal()


def empty(stack: FaultStack) -> None:
    with stack.without(Role.VALKEY):
        pass


def flush(stack: FaultStack) -> None:
    stack.redis.flushall()


@pytest.mark.parametrize("lose", [empty, flush])
def test_a_broker_that_loses_everything_only_delays_work(
    lose: Callable[[FaultStack], None], stack: FaultStack, oracle: Oracle
) -> None:
    """F17, F21: its queues are full of tickets; every reader of a stream gets the end of the stream."""
    with stack.frozen(Role.CLERK, Role.CHAT, Role.BATCH):
        batch_ids = [start_batch(stack, 4) for _ in range(3)]
        job_id = create_job(stack)
        lose(stack)
    long = start_batch(stack, 30)
    with Chats(stack) as chats:
        wait_for(lambda: chats.ends["answered"] > 2, "chats are answered")
        lose(stack)
        answered = chats.ends["answered"]
        wait_for(lambda: chats.ends["answered"] > answered + 2, "chats are answered again")
        for batch_id in (*batch_ids, long):
            assert wait_batch(stack, batch_id) == "completed"
        assert wait_job(stack, job_id) == "completed"
    print(f"{lose.__name__}: {dict(chats.ends)}, longest {chats.longest_seconds:.1f} s")
    assert chats.longest_seconds < 15
    oracle.check()


def test_a_full_broker_refuses_tickets_and_nothing_else_breaks(stack: FaultStack, oracle: Oracle) -> None:
    """F22: no process ends because of it."""
    pids = {role: stack.pid(role) for role in (Role.API, Role.CLERK, Role.CHAT, Role.BATCH)}
    assert stack.redis.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    had = stack.redis.config_get("maxmemory")["maxmemory"]
    stack.redis.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            stack.redis.set("x", "x")
        batch_id, job_id = start_batch(stack, 12), create_job(stack)
        assert wait_batch(stack, batch_id) == "completed"
        assert wait_job(stack, job_id) == "completed"
    finally:
        stack.redis.config_set("maxmemory", had)  # type: ignore[arg-type]
    check_everyday(stack)
    assert pids == {role: stack.find(role).pid for role in pids}
    oracle.check()


def stream_through(stack: FaultStack, prompt: str, kill_every: int) -> tuple[str, float]:
    """Stream a chat while its subscriptions are closed again and again; return the text and the longest pause in
    seconds.
    """
    pieces, longest, at = [], 0.0, time.monotonic()
    with (
        suppress(openai.APIError),
        stack.client.chat.completions.create(**chat_body(prompt, stream=True), extra_body=LONG) as stream,
    ):
        for chunk in stream:
            longest, at = max(longest, time.monotonic() - at), time.monotonic()
            pieces += [choice.delta.content or "" for choice in chunk.choices]
            if len(pieces) % kill_every == 50:
                stack.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    return "".join(pieces), max(longest, time.monotonic() - at)


def test_a_stream_survives_the_loss_of_its_subscription(stack: FaultStack, oracle: Oracle) -> None:
    """F23: subscriptions are closed again and again. The stream ends complete or with an error, and never pauses for
    long.
    """
    pieces, longest = stream_through(stack, new_prompt(), 700)
    print(f"{len(pieces)} characters, longest gap {longest:.2f} s")
    assert pieces
    assert longest < 15
    with Chats(stack) as chats:
        for _ in range(5):
            ended = chats.ends.total()
            wait_for(lambda ended=ended: chats.ends.total() > ended + 1, "chats come to an end", 15)  # type: ignore[misc]
            stack.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    print(dict(chats.ends), f"{chats.longest_seconds:.2f} s")
    assert chats.longest_seconds < 15
    check_everyday(stack)
    oracle.check()


class TicketInterceptor:
    """Takes every ticket before a consumer does: Valkey serves the longest waiting client first, and a consumer asks
    once a second.
    """

    def __init__(self, stack: FaultStack, client: redis.Redis) -> None:
        self._client = client
        self._stop = threading.Event()
        self.taken: list[str] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(16)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            if (found := self._client.brpop(QUEUES, timeout=random.uniform(1.5, 2.5))) is not None:
                self.taken.append(found[0].decode())  # type: ignore[union-attr]

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)


def test_consumers_that_get_no_tickets_find_their_work_by_polling(stack: FaultStack, oracle: Oracle) -> None:
    """F24: no consumer gets a ticket."""
    with redis.Redis.from_url(stack.services.redis_url, socket_timeout=None) as client:
        interceptor = TicketInterceptor(stack, client)
        try:
            time.sleep(1.5)  # the longest time that a consumer may have waited when the tickets came
            prompt = new_prompt()
            batch_id = start_batch(stack, 12)
            assert ask(stack, prompt) == expected_answer(prompt)
            assert wait_batch(stack, batch_id) == "completed"
        finally:
            interceptor.close()
    assert set(interceptor.taken) == set(QUEUES)
    oracle.check()


def test_a_half_open_connection_is_given_up(stack: FaultStack, oracle: Oracle) -> None:
    """F20: for every process, while new connections would work; consumers poll until tickets arrive again."""
    stack.valkey.strand()
    began = time.monotonic()
    batch_id = start_batch(stack, 12)
    tickets = Tickets(make_sender(Settings(redis_url=stack.services.redis_url)))
    assert tickets.prepare(batch_id)
    assert tickets.run_shards("fake")
    assert tickets.run_chat(ids.new_id(ids.CHAT), "fake")
    assert wait_batch(stack, batch_id) == "completed"
    print(f"a batch ends in {time.monotonic() - began:.1f} s")
    for queue in QUEUES:
        wait_for(lambda queue=queue: not stack.redis.llen(queue), f"{queue} is consumed", 40)  # type: ignore[misc]
    print(f"consumers get tickets after {time.monotonic() - began:.1f} s")
    check_everyday(stack)
    oracle.check()


def test_a_cancel_without_a_broker_takes_one_heartbeat(stack: FaultStack, oracle: Oracle) -> None:
    """F47."""
    batch_id, job_id = start_batch(stack, 8, **LONG), create_job(stack, **LONG)
    wait_job(stack, job_id, "running")
    wait_for(lambda: bool(stack.query("SELECT 1 FROM shards WHERE state = 'running'")), "the batch runs")
    with stack.without(Role.VALKEY), stack.http() as http:
        http.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
        http.post(f"/v1/batches/{batch_id}/cancel").raise_for_status()
        began = time.monotonic()
        wait_for(
            lambda: not stack.query("SELECT 1 FROM jobs WHERE id = :id AND owner IS NOT NULL", id=job_id),
            "the job stops",
        )
        wait_for(lambda: not stack.query("SELECT 1 FROM shards WHERE owner IS NOT NULL"), "the batch stops")
        print(f"cancelled in {time.monotonic() - began:.2f} s")
        assert time.monotonic() - began < 2, "a heartbeat is 0.4 s; both would run for three"
        assert wait_job(stack, job_id) == "cancelled"
        assert wait_batch(stack, batch_id) == "cancelled"
    check_everyday(stack)
    oracle.check()
