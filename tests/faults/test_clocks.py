"""Clocks of machines that are wrong by an hour. F44: leases use the database's clock and monotonic clocks alone."""

from __future__ import annotations

import ast
import base64
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from core.settings import ROOT
from tests.faults.load import start_batch, wait_batch
from tests.faults.oracle import Oracle
from tests.faults.second_worker import second_worker
from tests.faults.stack import MODEL, FaultStack, Role
from tests.support.stack import wait_for

pytestmark = pytest.mark.timeout(180)

HOUR = 3600
LEASE_SECONDS = 4.0
SLOW_MODEL = MODEL.replace("0.001", "0.005")
LONG = {"max_tokens": 3900, "ignore_eos": True}  # with the slow model ten seconds, longer than the lease

# The modules that read the clock of their machine, and the purpose. None of them decides about a lease.
WALL_CLOCKS = {
    "api/app.py": "start time of this api, for display",
    "api/batches/estimates.py": "estimated end of a batch, for display",
    "api/batches/timeline.py": "the end of the last bucket of a running batch, for display",
    "api/batches/waiting.py": "when a batch's model is in memory, for display",
    "api/services/activity.py": "when the activity was read, for display",
    "api/services/rate_limiter.py": "when a rate is full again while Valkey is down, in one process",
    "api/live/response_records.py": "created_at of a response",
    "api/routes/api_keys.py": "when a new key ends, as the command line computes it",
    "api/routes/batch_control.py": "when a file expires, in days",
    "api/routes/batch_validation.py": "when a report expires, in days",
    "api/routes/uploads.py": "whether an upload is late, by the hour; the clerk decides by the database's clock",
    "api/routes/usage.py": "today's date",
    "api/routes/webhooks.py": "created_at of an event",
    "api/services/stream_limiter.py": "when the stream of a dead process is dropped, within a quarter of an hour",
    "api/files/multipart.py": "when a file or an upload expires",
    "api/tables/mapped_batch.py": "when a file expires, in days",
    "core/files/directory.py": "the age of leftovers, beside the file system's own times, with an hour to spare",
    "core/files/object_store.py": "the age of objects, beside the storage's own times, with an hour to spare",
    "core/telemetry/sdk.py": "the end of a span, for display",
    "core/ids.py": "the order of ids, for display",
    "core/models/folder_files.py": "whether a file was just written, and is read once more",
    "db/keys.py": "whether a key is shown as expired; it is refused by the clock of the database",
    "engine/inputs/jinja_environment.py": "the date in a prompt",
    "engine/tuning/store.py": "whether a search that ended with its process is a day old, by the clock of the file",
    "engine/upstream/trouble.py": "the pause until a date that a server names, an hour at most",
    "workers/generation/endpoints/base.py": "created of a response",
    "workers/batches/finalize.py": "when a file expires, in days",
    "workers/maintenance/webhook_sender.py": "the timestamp of a signature, as the standard requires",
    "workers/runtime/webhook_outbox.py": "created_at of an event",
}
CLOCK_CALLS = {
    ("time", "time"),
    ("time", "time_ns"),
    ("datetime", "now"),
    ("datetime", "utcnow"),
    ("datetime", "today"),
}

# The code that runs first on a machine with a wrong clock.
WRONG_CLOCK = """
import os, time
shift, now, now_ns = int(os.environ["SHIFT_SECONDS"]), time.time, time.time_ns
time.time = lambda: now() + shift
time.time_ns = lambda: now_ns() + shift * 10**9
"""


def wall_clocks(path: Path) -> Iterator[str]:
    """Find the calls that read a wall clock."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if (owner, node.attr) in CLOCK_CALLS or (owner, node.attr) == ("date", "today"):
                yield f"{owner}.{node.attr}"


def test_wall_clocks_are_read_only_where_no_lease_depends_on_them() -> None:
    """F44: a module that is added here must be correct with a clock that is wrong by an hour."""
    rooms = ("api", "core", "db", "engine", "mapping", "workers")
    readers = {
        str(path.relative_to(ROOT))
        for room in rooms
        for path in (ROOT / room).rglob("*.py")
        if any(wall_clocks(path)) or "import time as" in path.read_text() or "from time import" in path.read_text()
    }
    assert readers == set(WALL_CLOCKS)


def wrong_clock(stack: FaultStack, seconds: int) -> dict[str, str]:
    """Return the environment of a worker with a wrong clock."""
    folder = stack.folder / "wrong-clock"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(WRONG_CLOCK)
    models = folder / "models"
    models.mkdir(exist_ok=True)
    (models / "fake.yaml").write_text(SLOW_MODEL)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        "PYTHONPATH": path,
        "SHIFT_SECONDS": str(seconds),
        "MILLRACE_MODELS_DIR": str(models),
        "MILLRACE_LEASE_SECONDS": str(LEASE_SECONDS),
        "MILLRACE_BATCH_LANES": "1",
    }


def id_created_at(owner: str) -> float:
    """Return the wall-clock time in the id of a lease owner (see `core.ids`)."""
    text = owner.rpartition(":")[2].upper()
    raw = base64.b32hexdecode(text + "=" * (-len(text) % 8))
    return int.from_bytes(raw[:6], "big") / 1000


def running_shards(stack: FaultStack) -> dict[str, Any]:
    """Return owner, fence and remaining seconds of each running shard, by the database's clock."""
    rows = stack.query(
        "SELECT id, owner, fence, extract(epoch FROM lease_until - now()) AS seconds FROM shards WHERE state = 'running'"
    )
    return {row.id: row for row in rows}


def test_a_worker_clock_that_is_wrong_by_an_hour_does_not_affect_its_leases(stack: FaultStack, oracle: Oracle) -> None:
    """F44: it keeps its leases beside other workers, and loses them in time after it has died."""
    with ExitStack() as workers:
        processes = [
            workers.enter_context(second_worker(stack, name, **wrong_clock(stack, shift)))
            for name, shift in (("early", -HOUR), ("late", HOUR))
        ]
        with stack.frozen(Role.BATCH):  # so that the two workers get the shards
            batch_id = start_batch(stack, 16, **LONG)
            wait_for(lambda: len(running_shards(stack)) == 2, "each has a shard")
        before, began = running_shards(stack), time.monotonic()
        wrong = Counter(round((id_created_at(row.owner) - time.time()) / HOUR) for row in before.values())
        assert wrong == {-1: 1, 1: 1}, "one clock is an hour slow and one is an hour fast"
        while time.monotonic() - began < LEASE_SECONDS + 1:
            now = running_shards(stack)
            assert {(row.id, row.owner, row.fence) for row in now.values()} == {
                (row.id, row.owner, row.fence) for row in before.values()
            }
            assert all(row.seconds <= LEASE_SECONDS for row in now.values())
            time.sleep(0.2)
        for process in processes:
            process.kill()
        assert wait_batch(stack, batch_id, timeout_seconds=90) == "completed"
        fences = dict(stack.query("SELECT id, fence FROM shards WHERE batch_id = :id", id=batch_id))
        assert all(fences[row.id] > row.fence for row in before.values()), "other workers have taken over"
    oracle.check()
