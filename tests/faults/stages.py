"""For each failpoint, the process that passes it and the work during which it does.

A stage is a generator: the code before its `yield` runs before the point is armed, the code after it while the point is
armed.
Its requests are repeated until they succeed (see `FaultStack.retry`), so that a stage ends whatever process dies.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import httpx2

from core import ids
from core.failpoints import Point
from tests.faults.load import (
    ask,
    batch_content,
    chat_body,
    create_batch,
    expected_answer,
    new_prompt,
    retry_with_key,
    start_batch,
    stream_chat,
    upload,
    wait_batch,
)
from tests.faults.stack import FaultStack, Role
from tests.support.stack import wait_for

Stage = Callable[[FaultStack], Iterator[None]]
LONG: Final = {"ignore_eos": True, "max_tokens": 1500}  # a second and a half


def uploading(stack: FaultStack) -> Iterator[None]:
    yield
    upload(stack, batch_content(2))


def uploading_in_parts(stack: FaultStack) -> Iterator[None]:
    yield
    client, content = stack.client, batch_content(2)
    whole = {"bytes": len(content), "filename": "in.jsonl", "mime_type": "application/jsonl", "purpose": "batch"}
    upload_id = stack.retry(lambda: client.uploads.create(**whole)).id  # type: ignore[arg-type]
    halves = (content[:50], content[50:])
    parts = [stack.retry(lambda half=half: client.uploads.parts.create(upload_id, data=half)).id for half in halves]  # type: ignore[misc]
    done = stack.retry(lambda: client.uploads.complete(upload_id, part_ids=parts))
    assert done.file is not None
    assert stack.retry(lambda: client.files.content(done.file.id)).content == content  # type: ignore[union-attr]


def running_a_batch(stack: FaultStack) -> Iterator[None]:
    file_id = upload(stack, batch_content(6))
    yield
    assert wait_batch(stack, create_batch(stack, file_id)) == "completed"


def cancelling_a_batch(stack: FaultStack) -> Iterator[None]:
    batch_id = start_batch(stack, 30, **LONG)
    wait_batch(stack, batch_id, "in_progress")
    yield
    stack.retry(lambda: stack.client.batches.cancel(batch_id))
    assert wait_batch(stack, batch_id) == "cancelled"


def resuming_a_batch(stack: FaultStack) -> Iterator[None]:
    batch_id = start_batch(stack, 80)  # more than a worker takes at a time
    wait_batch(stack, batch_id, "in_progress", "completed")
    post(stack, f"/v1/batches/{batch_id}/pause")
    yield
    with suppress(
        httpx2.HTTPStatusError
    ):  # a repeated request comes too late if the first one was executed and the batch has ended
        post(stack, f"/v1/batches/{batch_id}/resume")
    assert wait_batch(stack, batch_id) == "completed"


def retrying_a_batch(stack: FaultStack) -> Iterator[None]:
    batch_id = start_batch(stack, 3)
    wait_batch(stack, batch_id)
    yield
    again = post(stack, f"/v1/batches/{batch_id}/retry", {"custom_ids": ["line-1"]})
    assert wait_batch(stack, again["id"]) == "completed"


def failing_a_batch(stack: FaultStack) -> Iterator[None]:
    file_id = upload(stack, b"this is not JSON\n")
    yield
    batch_id = create_batch(stack, file_id)
    assert wait_batch(stack, batch_id) == "failed"


def validating_a_file(stack: FaultStack) -> Iterator[None]:
    file_id = upload(stack, batch_content(2))
    yield
    report = post(stack, "/v1/batches/validate", {"input_file_id": file_id, "endpoint": "/v1/chat/completions"})
    assert report["is_valid"], report


def running_a_job(stack: FaultStack) -> Iterator[None]:
    yield
    assert wait_job(stack, create_job(stack)) == "completed"


def running_a_long_job(stack: FaultStack) -> Iterator[None]:
    yield
    assert wait_job(stack, create_job(stack, **LONG)) == "completed"


def running_a_long_batch(stack: FaultStack) -> Iterator[None]:
    file_id = upload(stack, batch_content(2, **LONG))
    yield
    assert wait_batch(stack, create_batch(stack, file_id)) == "completed"


def cancelling_a_job(stack: FaultStack) -> Iterator[None]:
    job_id = create_job(stack, **LONG)
    wait_job(stack, job_id, "running")
    yield
    post(stack, f"/v1/jobs/{job_id}/cancel")
    assert wait_job(stack, job_id) == "cancelled"


def stopping_a_worker_with_a_job(stack: FaultStack) -> Iterator[None]:
    job_id = create_job(stack, ignore_eos=True, max_tokens=3900)  # still runs when the second signal is sent
    wait_job(stack, job_id, "running")
    worker = stack.find(Role.CHAT)
    num_drains = _num_drains(stack)
    yield
    worker.send_signal(signal.SIGTERM)
    # A second signal that came before the first one is handled would be one with it.
    wait_for(lambda: _num_drains(stack) > num_drains, "it drains")
    worker.send_signal(signal.SIGTERM)  # hurries the worker
    assert wait_job(stack, job_id) == "completed"


def _num_drains(stack: FaultStack) -> int:
    """How often workers with the log of this role have begun to drain."""
    return dict(stack.logs())["chat.log"].count("draining")


def creating_a_response(stack: FaultStack) -> Iterator[None]:
    yield
    client, body = stack.client, {"model": "fake", "input": new_prompt(), "background": True}
    response_id = stack.retry(lambda: client.responses.create(**body)).id  # type: ignore[call-overload]
    wait_for(lambda: client.responses.retrieve(response_id).status == "completed", "the response is completed")


def chatting(stack: FaultStack) -> Iterator[None]:
    whole, streamed = new_prompt(), new_prompt()
    yield
    assert stack.retry(lambda: ask(stack, whole)) == expected_answer(whole)
    assert "".join(stack.retry(lambda: stream_chat(stack, streamed))) == expected_answer(streamed)


def unloading_a_model(stack: FaultStack) -> Iterator[None]:
    stack.retry(lambda: ask(stack, new_prompt()))  # it is in memory
    yield
    post(stack, "/v1/models/fake/unload")


def unloading_past(point: Point, frozen: Role) -> Stage:
    """The stage in which one consumer passes the point first, since the other one is frozen."""

    def unloading(stack: FaultStack) -> Iterator[None]:
        stack.retry(lambda: ask(stack, new_prompt()))
        yield
        with stack.frozen(frozen):
            post(stack, "/v1/models/fake/unload")
            wait_for(lambda: stack.hit_by(point) is not None, "the consumer passes the point")

    return unloading


def losing_the_ticket_of_a_batch(stack: FaultStack) -> Iterator[None]:
    """Leave a batch without its ticket, as an api that crashed between the commit and the ticket some time ago."""
    file_id, batch_id = upload(stack, batch_content(2)), ids.new_id(ids.BATCH)
    yield
    stack.execute(
        "INSERT INTO batches (id, tenant_id, endpoint, input_file_id, completion_window, window_seconds, dispatched_at) "
        "VALUES (:id, 'default', '/v1/chat/completions', :file, '24h', 86400, now() - interval '1 minute')",
        id=batch_id,
        file=file_id,
    )
    assert wait_batch(stack, batch_id) == "completed"


def losing_the_ticket_of_a_job(stack: FaultStack) -> Iterator[None]:
    """Leave a job without its ticket; the worker is frozen until the clerk has found the job."""
    job_id, body = ids.new_id(ids.CHAT), '{"model":"fake","messages":[{"role":"user","content":"hello"}]}'
    yield
    with stack.frozen(Role.CHAT):
        stack.execute(
            "INSERT INTO jobs (id, tenant_id, model, body, dispatched_at) "
            "VALUES (:id, 'default', 'fake', :body, now() - interval '1 minute')",
            id=job_id,
            body=body,
        )
        wait_for(lambda: stack.hit_by(Point.SWEEP_JOBS) is not None, "the clerk finds it")
    assert wait_job(stack, job_id) == "completed"


def leaving_a_shard_unclaimed(stack: FaultStack) -> Iterator[None]:
    """Leave a shard without its ticket; the worker is frozen until the clerk has found the shard."""
    yield
    with stack.frozen(Role.BATCH):
        batch_id = start_batch(stack, 2)
        wait_for(lambda: stack.hit_by(Point.SWEEP_SHARDS) is not None, "the clerk finds it")
    assert wait_batch(stack, batch_id) == "completed"


def deleting_a_file(stack: FaultStack) -> Iterator[None]:
    file_id = upload(stack, batch_content(1))
    yield
    stack.retry(lambda: stack.client.files.delete(file_id))
    wait_for(lambda: not stack.query("SELECT 1 FROM files WHERE id = :id", id=file_id), "its row goes")
    assert not stack.files.path(file_id).exists()


def leaving_bytes_without_a_row(stack: FaultStack) -> Iterator[None]:
    """Leave bytes without a row; a clerk searches for such files when these exist."""
    file_id = next(name for name in iter(lambda: ids.new_id(ids.FILE), "") if _bucket(name) == "00")
    with stack.files.write(file_id) as stream:
        stream.write(b"bytes without a row\n")
    old = time.time() - 3 * 3600
    os.utime(stack.files.path(file_id), (old, old))
    stack.send(Role.CLERK, signal.SIGSTOP)
    yield
    stack.kill(Role.CLERK)
    wait_for(lambda: not stack.files.path(file_id).exists(), "the bytes are swept")


def _bucket(file_id: str) -> str:
    return hashlib.sha256(file_id.encode()).hexdigest()[:2]


def post(stack: FaultStack, path: str, body: object = None) -> Any:
    """Send a request that the official client has no method for; return the JSON of the response."""

    def once() -> Any:
        with stack.http() as http:
            return http.post(path, json=body).raise_for_status().json()

    return stack.retry(once)


def create_job(stack: FaultStack, **more: object) -> str:
    """Create a background job, once however often the request is repeated; return its id."""
    body, headers = chat_body(new_prompt(), **more), {"Idempotency-Key": ids.new_id("once_")}

    def create() -> str:
        return str(stack.client.post("/jobs", cast_to=object, body=body, options={"headers": headers})["id"])  # type: ignore[index]

    return str(retry_with_key(stack, create))


def wait_job(stack: FaultStack, job_id: str, *statuses: str) -> str:
    """Wait until the job has one of these statuses, by default any final one; return it."""
    wanted = statuses or ("completed", "failed", "cancelled")

    def status() -> str:
        return str(stack.client.get(f"/jobs/{job_id}", cast_to=object)["status"])  # type: ignore[index]

    wait_for(lambda: status() in wanted, f"{job_id} is {' or '.join(wanted)}")
    return stack.retry(status)


_BY_FAMILY: Final[dict[str, tuple[Role, Stage]]] = {
    "upload": (Role.API, uploading),
    "parts": (Role.API, uploading_in_parts),
    "batches": (Role.API, running_a_batch),
    "retry": (Role.API, retrying_a_batch),
    "jobs": (Role.API, running_a_job),
    "responses": (Role.API, creating_a_response),
    "idempotency": (Role.API, running_a_batch),
    "validation": (Role.CLERK, validating_a_file),
    "prepare": (Role.CLERK, running_a_batch),
    "finalize": (Role.CLERK, running_a_batch),
    "webhooks": (Role.CLERK, running_a_batch),
    "shards": (Role.BATCH, running_a_batch),
    "chat": (Role.CHAT, chatting),
    "publish": (Role.CHAT, chatting),
    "retire": (Role.WORKER, unloading_a_model),
    "engine": (Role.ENGINE, chatting),
}

_BY_POINT: Final[dict[Point, list[tuple[Role, Stage]]]] = {
    Point.BATCH_CANCELLING: [(Role.API, cancelling_a_batch)],
    Point.BATCH_CANCELLED: [(Role.API, cancelling_a_batch)],
    Point.BATCH_RESUMED: [(Role.API, resuming_a_batch)],
    Point.JOB_CANCELLED: [(Role.API, cancelling_a_job)],
    Point.VALIDATION_ASKED: [(Role.API, validating_a_file)],
    Point.FILE_WRITTEN: [(Role.API, uploading), (Role.CLERK, running_a_batch)],
    Point.FILE_SYNCED: [(Role.API, uploading), (Role.CLERK, running_a_batch)],
    Point.FILE_RENAMED: [(Role.API, uploading), (Role.CLERK, running_a_batch)],
    Point.PREPARE_FAILING: [(Role.CLERK, failing_a_batch)],
    Point.PREPARE_FAILED: [(Role.CLERK, failing_a_batch)],
    Point.SWEEP_BATCHES: [(Role.CLERK, losing_the_ticket_of_a_batch)],
    Point.SWEEP_SHARDS: [(Role.CLERK, leaving_a_shard_unclaimed)],
    Point.SWEEP_JOBS: [(Role.CLERK, losing_the_ticket_of_a_job)],
    Point.RETENTION_FILE: [(Role.CLERK, deleting_a_file)],
    Point.RETENTION_PART: [(Role.CLERK, uploading_in_parts)],
    Point.RETENTION_ORPHAN: [(Role.CLERK, leaving_bytes_without_a_row)],
    Point.CHAT_ENDING: [(Role.CHAT, cancelling_a_job)],
    Point.CHAT_ENDED: [(Role.CHAT, cancelling_a_job)],
    Point.CHAT_RELEASED: [(Role.CHAT, stopping_a_worker_with_a_job)],
    Point.RETIRE_DRAINING: [(Role.CHAT, unloading_past(Point.RETIRE_DRAINING, Role.BATCH))],
    Point.RETIRE_LET_GO: [(Role.BATCH, unloading_past(Point.RETIRE_LET_GO, Role.CHAT))],
    Point.LEASES_RENEWING: [(Role.CHAT, running_a_long_job), (Role.BATCH, running_a_long_batch)],
    Point.LEASES_RENEWED: [(Role.CHAT, running_a_long_job), (Role.BATCH, running_a_long_batch)],
}


def passes_of(point: Point) -> list[tuple[Role, Stage]]:
    """Return the roles that pass a point, each with its stage. Raises KeyError for a new family of points without a stage."""
    return _BY_POINT.get(point) or [_BY_FAMILY[point.partition(".")[0]]]
