"""Invariants of a stack that has come to rest, after any faults.

Checks client-visible state (files, counts, responses), rows, the file store, logs and processes. Each object is checked once,
so
that `Oracle.check` can follow every test of a session.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import openai
import psutil
from openai import OpenAI
from sqlalchemy.exc import SQLAlchemyError

from core.files.file_store import BUCKETS
from core.models.live_catalog import LiveCatalog
from core.settings import Settings
from core.states import BATCH_MOVES, BatchState
from tests.faults.load import FINAL, MARKER, expected_answer
from tests.faults.stack import FaultStack, Role
from tests.support.stack import wait_for
from tests.support.stored import size_in
from workers.context import ClerkContext, Database
from workers.maintenance.retention import Retention

_WATCH_SECONDS: Final = 0.05
_MOST_DESCRIPTORS: Final = 96  # pools at full width, clients, the broker; a leak grows beyond this during a session
_OLD_SECONDS: Final = 3 * 3600
_MOST_FOREIGN_JOBS: Final = 20  # jobs of each check, with two requests each
_UNKNOWN_ID: Final = "0" * 32


class Watcher:
    """Records values that may only move one way while faults happen: fences and statuses of batches."""

    def __init__(self, stack: FaultStack) -> None:
        self._stack = stack
        self._stop = threading.Event()
        self._fences: dict[str, int] = {}
        self._statuses: dict[str, BatchState] = {}
        self.wrong: list[str] = []
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(_WATCH_SECONDS):
            try:
                self._poll()
            except SQLAlchemyError:
                continue  # the database may be down

    def _poll(self) -> None:
        rows = self._stack.query(
            "SELECT id, fence FROM shards UNION ALL SELECT id, fence FROM jobs WHERE batch_id IS NULL AND fence > 0"
        )
        for row_id, fence in rows:
            if fence < self._fences.get(row_id, 0):
                self.wrong.append(f"the fence of {row_id} went from {self._fences[row_id]} to {fence}")
            self._fences[row_id] = fence
        for batch_id, status in self._stack.query("SELECT id, status FROM batches"):
            new = BatchState(status)
            old = self._statuses.setdefault(batch_id, new)
            if old is not new and new not in _reachable(old):
                self.wrong.append(f"{batch_id} went from {old} to {new}")
            self._statuses[batch_id] = new


def _reachable(start: BatchState) -> set[BatchState]:
    found: set[BatchState] = set()
    frontier = {start}
    while frontier:
        frontier = {new for state in frontier for new in BATCH_MOVES[state]} - found
        found |= frontier
    return found


class Oracle:
    """Checks of one stack for as long as it lives. `check` raises AssertionError."""

    def __init__(self, stack: FaultStack) -> None:
        self._stack = stack
        self._checked: set[str] = set()
        self._read: dict[str, int] = {}
        self._watcher = Watcher(stack)

    def close(self) -> None:
        """Stop watching and close the clients."""
        self._watcher.close()

    def check(self, timeout_seconds: float = 60) -> None:
        """Wait until no work is left, then check everything since the last call."""
        self.wait_settled(timeout_seconds)
        self._check_store()
        for batch_id, status, tenant in self._new("SELECT id, status, tenant_id FROM batches"):
            self._check_batch(batch_id, status, tenant)
        for number, job in enumerate(
            self._new("SELECT id, state, body, answer, problem, tenant_id FROM jobs WHERE batch_id IS NULL")
        ):
            self._check_job(*job[:-1])
            if number < _MOST_FOREIGN_JOBS:
                self._check_foreign(f"/jobs/{job.id}", job.tenant_id)
        self._check_usage()
        self._check_logs()
        self._check_processes()
        assert not self._watcher.wrong, self._watcher.wrong[:3]

    def wait_settled(self, timeout_seconds: float = 60) -> None:
        """Wait until no batch, job, delivery or lease is open."""
        open_rows = """
            SELECT id, status FROM batches WHERE status NOT IN ('completed', 'failed', 'expired', 'cancelled')
            UNION ALL SELECT id, state FROM jobs WHERE batch_id IS NULL AND state IN ('queued', 'running')
            UNION ALL SELECT id, state FROM shards WHERE state <> 'done' OR owner IS NOT NULL
            UNION ALL SELECT id, state FROM jobs WHERE owner IS NOT NULL
            UNION ALL SELECT event_id, 'undelivered' FROM webhook_deliveries WHERE finished_at IS NULL
        """
        try:
            wait_for(lambda: not self._stack.query(open_rows), "all work ends", timeout_seconds)
        except AssertionError:
            raise AssertionError(f"still open: {self._stack.query(open_rows)[:5]}") from None

    # --- what clients see ---------------------------------------------------------------------------------------------

    def _check_batch(self, batch_id: str, status: str, tenant: str) -> None:
        client = self._stack.client_of(tenant)
        batch = client.batches.retrieve(batch_id)
        assert batch.status == status
        assert status in FINAL
        rows = self._stack.query("SELECT custom_id, state FROM jobs WHERE batch_id = :id ORDER BY line", id=batch_id)
        output, errors = (_download(client, file_id) for file_id in (batch.output_file_id, batch.error_file_id))
        counts = batch.request_counts
        assert counts is not None
        assert (counts.total, counts.completed, counts.failed) == (len(rows), len(output), len(errors)), batch_id
        bodies = self._input_lines(batch.input_file_id, [row[0] for row in rows])
        if rows:
            ended = Counter(str(line["custom_id"]) for line in (*output, *errors))
            assert ended == Counter(list(bodies)), f"{batch_id}: each line must have one result"
        else:
            assert status in ("failed", "cancelled"), f"{batch_id} ended without lines"
        assert status != "completed" or len(output) == sum(state == "completed" for _, state in rows)
        for lines in (output, errors):
            ids = [str(line["custom_id"]) for line in lines]
            assert ids == [custom_id for custom_id in bodies if custom_id in set(ids)], (
                f"{batch_id}: lines must be in input order"
            )
        for line in output:
            self._check_answer(bodies[line["custom_id"]], line["response"]["body"])
        for object_id in filter(None, (batch.output_file_id, batch.error_file_id, batch.input_file_id)):
            self._check_foreign(f"/files/{object_id}", tenant)
        self._check_foreign(f"/batches/{batch_id}", tenant)

    def _input_lines(self, file_id: str, custom_ids: list[str]) -> dict[str, Any]:
        """Return the bodies by custom_id in the order of the file; None for each where the file is deleted."""
        try:
            with self._stack.files.open(file_id) as stream:
                lines = [json.loads(line) for line in stream]
        except (FileNotFoundError, ValueError):
            return dict.fromkeys(custom_ids)
        return {line.get("custom_id"): line.get("body") for line in lines}

    def _check_answer(self, body: Any, answer: Any) -> None:
        """Compare with the output of the fake model, where it depends on the prompt alone."""
        if body is None or len(body["messages"]) > 1 or {"max_tokens", "ignore_eos", "n"} & set(body):
            return
        text, prompt = answer["choices"][0]["message"]["content"], body["messages"][0]["content"]
        assert text == expected_answer(prompt), f"{prompt!r} was answered {text!r}"

    def _check_job(self, job_id: str, state: str, body: str, answer: str | None, problem: str | None) -> None:
        match state:
            case "completed":
                assert answer is not None
                self._check_answer(json.loads(body), json.loads(answer)) if job_id.startswith("chatcmpl") else None
            case "failed":
                assert json.loads(problem or "{}")["code"], f"{job_id} failed without a code"
            case _:
                assert state == "cancelled", f"{job_id} is {state}"

    def _check_foreign(self, path: str, tenant: str) -> None:
        """Check that another tenant gets the same response as for an unknown id."""
        other = self._stack.other_tenant if tenant == "default" else self._stack.client
        prefix, object_id = path.rsplit("/", 1)
        unknown = object_id.rpartition("_")[0] + "_" + _UNKNOWN_ID
        answers = []
        for name in (object_id, unknown):
            try:
                other.get(f"{prefix}/{name}", cast_to=object)
                raise AssertionError(f"another tenant can read {path}")
            except openai.NotFoundError as error:
                answers.append(error.response.text.replace(name, "it"))
        assert answers[0] == answers[1], f"another tenant can distinguish an unknown id from {path}"

    # --- rows, bytes, logs, processes ---------------------------------------------------------------------------------

    def _check_usage(self) -> None:
        """Check that the usage of a tenant counts each response once."""
        counted = self._stack.query(
            "SELECT coalesce(sum(requests), 0), coalesce(sum(completion_tokens), 0) FROM usage_daily"
        )
        answered = self._stack.query(
            "SELECT count(*), coalesce(sum(completion_tokens), 0) FROM jobs "
            "WHERE state = 'completed' OR (state = 'failed' AND shard_id IS NOT NULL)"
        )
        assert [tuple(map(int, row)) for row in counted] == [tuple(map(int, row)) for row in answered]

    def _check_store(self) -> None:
        """Check that every row has its bytes, and that bytes without a row are deleted when they are old."""
        for file_id, size in self._stack.query("SELECT id, bytes FROM files WHERE deleted_at IS NULL"):
            assert size_in(self._stack.files, file_id) == size, f"{file_id} does not have the size in its row"
        known = {row[0] for row in self._stack.query("SELECT id FROM files UNION ALL SELECT id FROM upload_parts")}
        leftovers = [path for path in self._stack.files.root.glob("*/*") if path.name not in known]
        if not leftovers:
            return
        old = time.time() - _OLD_SECONDS
        for path in leftovers:
            os.utime(path, (old, old))
        self._sweep()
        left = [path.name for path in leftovers if path.exists()]
        assert not left, f"leftovers that are not swept: {left}"

    def _sweep(self) -> None:
        """Run at once the sweeps that a clerk runs within three hours."""
        retention = Retention(_clerk(self._stack))
        retention.sweep()
        for bucket in range(BUCKETS):
            retention.sweep_orphans(bucket)

    def _check_logs(self) -> None:
        """Check that no log contains text of a prompt."""
        for name, text in self._stack.logs():
            seen = self._read.get(name, 0)
            self._read[name] = len(text)
            assert MARKER not in text[max(0, seen - len(MARKER)) :], f"{name} contains text of a prompt"

    def _check_processes(self) -> None:
        """Check that each process runs, with no more open files than its pools and clients need."""
        for role in (Role.API, Role.CLERK, Role.CHAT, Role.BATCH, Role.ENGINE):
            wait_for(lambda role=role: self._has_few_descriptors(role), f"{role} has few files open", 10)  # type: ignore[misc]

    def _has_few_descriptors(self, role: Role) -> bool:
        try:
            return bool(self._stack.find(role).num_fds() <= _MOST_DESCRIPTORS)
        except psutil.Error:
            return False

    def _new(self, statement: str) -> Iterator[Any]:
        for row in self._stack.query(statement):
            if row[0] not in self._checked:
                yield row
                self._checked.add(row[0])


def _download(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """Return the lines of a result file, which must be the same when read twice."""
    if file_id is None:
        return []
    first, second = (client.files.content(file_id).content for _ in range(2))
    assert first == second, f"{file_id}: two downloads differ"
    assert first, f"{file_id} is empty"
    return [json.loads(line) for line in first.splitlines()]


def _clerk(stack: FaultStack) -> ClerkContext:
    """Yield a clerk in this process, for sweeps that the test starts."""
    settings = Settings(state_dir=stack.process.state_dir, models_dir=stack.folder / "models")
    unused: Any = None
    return ClerkContext(
        settings=settings,
        database=Database(stack.database),
        live_catalog=LiveCatalog(settings.models_dir),
        files=stack.files,
        tickets=unused,
        publisher=unused,
    )
