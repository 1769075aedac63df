"""Failpoints: named places where a test makes a process exit, fail or stall. Inert unless the environment arms them.

A point stands before or after each commit, publish, rename and acknowledgement, so that tests can check the state of the
system when a process ends exactly there. Imports no other module of this project, so that the engine may use it, too.

`MILLRACE_FAILPOINT=NAME:ACTION[:hit=K]`, several separated by commas, arms points for the lifetime of a process. ACTION is
`kill` (SIGKILL to itself), `raise` (FailpointRaised), `sleep=SECONDS` or `hold` (both block the calling thread). A process acts
once, on its K-th pass; the default is the first.

`MILLRACE_FAILPOINT_DIR=FOLDER` limits that to once among all processes, so that a restarted one survives: the process that
acts creates `FOLDER/NAME.hit` with its process id, which proves that the point was reached. A file `FOLDER/NAME` with an
action arms the point in processes that run already, and is deleted by the one that acts. `hold` blocks until the proof is
deleted.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

VARIABLE: Final = "MILLRACE_FAILPOINT"
FOLDER_VARIABLE: Final = "MILLRACE_FAILPOINT_DIR"
_LOOK_SECONDS: Final = 0.01


class Point(StrEnum):
    """All points. The first word is the part of the system; each comment states what has happened and what has not."""

    # api
    UPLOAD_STORED = "upload.stored"  # the bytes are in the store, the file has no row
    UPLOAD_COMMITTED = "upload.committed"  # the file exists, its sender has no answer
    PART_STORED = "parts.stored"  # the bytes of a part are in the store, it has no row
    PART_COMMITTED = "parts.committed"  # the part exists, its sender has no answer
    PARTS_JOINED = "parts.joined"  # the joined file is in the store, the upload is still pending
    PARTS_COMPLETED = "parts.completed"  # the upload has its file, its sender has no answer
    BATCH_INSERTED = "batches.inserted"  # a new batch's transaction has not committed
    BATCH_COMMITTED = "batches.committed"  # the batch exists, its ticket was not sent
    BATCH_TICKETED = "batches.ticketed"  # the ticket was sent, the sender has no answer
    BATCH_CANCELLING = "batches.cancelling"  # a cancel's transaction has not committed
    BATCH_CANCELLED = "batches.cancelled"  # the batch is cancelling, its ticket was not sent
    BATCH_RESUMED = "batches.resumed"  # a paused batch runs again, its tickets were not sent
    RETRY_STORED = "retry.stored"  # the lines to retry are in the store, nothing has a row
    RETRY_COMMITTED = "retry.committed"  # the new batch exists, its ticket was not sent
    JOB_COMMITTED = "jobs.committed"  # a job is queued, its ticket was not sent
    JOB_TICKETED = "jobs.ticketed"  # the ticket was sent, the sender has no answer
    JOB_CANCELLED = "jobs.cancelled"  # the row requests the cancel, no message was sent
    RESPONSE_CREATED = "responses.created"  # the job of a response is queued, the sender has no answer
    KEY_CLAIMED = "idempotency.claimed"  # an Idempotency-Key is claimed, its object does not exist
    KEY_USED = "idempotency.used"  # the object exists, its key is not finished
    VALIDATION_ASKED = "validation.asked"  # a validation is open, its ticket was not sent

    # api and clerk
    FILE_WRITTEN = "files.written"  # all bytes are written, none is synced
    FILE_SYNCED = "files.synced"  # the bytes are safe under a temporary name
    FILE_RENAMED = "files.renamed"  # the file has its name, its directory is not synced

    # clerk
    PREPARE_COPIED = "prepare.copied"  # a batch's rows are copied, not committed
    PREPARE_COMMITTED = "prepare.committed"  # the batch runs, its tickets were not sent
    PREPARE_TICKETED = "prepare.ticketed"  # the tickets were sent, the clerk's task has not ended
    PREPARE_FAILING = "prepare.failing"  # a bad file's batch fails in a transaction that has not committed
    PREPARE_FAILED = "prepare.failed"  # the batch has failed, its event was not sent
    FINALIZE_STORED = "finalize.stored"  # both result files are in the store, nothing is committed
    FINALIZE_ENDING = "finalize.ending"  # the transaction that ends the batch has not committed
    FINALIZE_COMMITTED = "finalize.committed"  # the batch has ended, its event was not sent
    VALIDATION_LOOKED = "validation.looked"  # a file was checked, the report is not committed
    SWEEP_BATCHES = "sweep.batches"  # batches count as dispatched again, this one's ticket was not sent
    SWEEP_SHARDS = "sweep.shards"  # a model has shards to take, its ticket was not sent
    SWEEP_JOBS = "sweep.jobs"  # jobs count as dispatched again, this one's ticket was not sent
    RETENTION_FILE = "retention.file"  # the bytes of a deleted file are gone, its row is not
    RETENTION_PART = "retention.part"  # the bytes of a part are gone, its row is not
    RETENTION_ORPHAN = "retention.orphan"  # bytes without a row are about to go
    WEBHOOK_CLAIMED = "webhooks.claimed"  # deliveries are taken for a while, none was sent
    WEBHOOK_SENDING = "webhooks.sending"  # a request is ready, no connection was made
    WEBHOOK_SENT = "webhooks.sent"  # the receiver has answered, the result is not recorded
    WEBHOOK_RECORDING = "webhooks.recording"  # the transaction that records it has not committed
    WEBHOOK_RECORDED = "webhooks.recorded"  # the result is recorded

    # batch worker
    SHARD_CLAIMING = "shards.claiming"  # a lane is about to claim a shard, if there is one
    SHARD_CLAIMED = "shards.claimed"  # the lease is held, no line has started
    SHARD_WRITING = "shards.writing"  # a group of results is written, not committed
    SHARD_WRITTEN = "shards.written"  # the group is committed, the lane still holds it
    SHARD_LEAVING = "shards.leaving"  # every result is committed, the shard is still held
    SHARD_LEFT = "shards.left"  # the shard is released, its batch may have no open one left
    SHARD_FINALIZING = "shards.finalizing"  # the batch is finalizing, its ticket was not sent

    # chat worker
    CHAT_CLAIMED = "chat.claimed"  # the lease is held, the engine has no request
    CHAT_COMPLETING = "chat.completing"  # an answer is written, not committed
    CHAT_COMPLETED = "chat.completed"  # the row has the answer, no event was sent
    CHAT_ENDING = "chat.ending"  # a failure or a cancel is written, not committed
    CHAT_ENDED = "chat.ended"  # the row has the failure or cancel, no event was sent
    CHAT_RELEASED = "chat.released"  # a job is queued again, its ticket was not sent
    PUBLISH_SENDING = "publish.sending"  # events of running jobs are about to go out
    PUBLISH_SENT = "publish.sent"  # they are out

    # chat and batch worker
    LEASES_RENEWING = "leases.renewing"  # the heartbeat is about to renew what is held
    LEASES_RENEWED = "leases.renewed"  # the database has renewed it, the process has no reply

    # launcher
    RETIRE_SAID = "retire.said"  # consumers are to let go of a model, none was waited for
    RETIRE_STOPPING = "retire.stopping"  # no consumer holds it, its engine was asked to end
    RETIRE_FREED = "retire.freed"  # its engine has ended and its bytes are free, nothing else is recorded

    # chat and batch worker
    RETIRE_DRAINING = "retire.draining"  # no more work of the model is begun, the launcher has no report
    RETIRE_LET_GO = "retire.let_go"  # the model is forgotten, the launcher has no report

    # engine
    ENGINE_STEP = "engine.step"  # a step is planned, nothing of it is decoded
    ENGINE_STEPPED = "engine.stepped"  # a step is decoded, its outputs were not sent


class FailpointRaised(Exception):
    """Raised by a failpoint that is armed to."""


class BadFailpoint(ValueError):
    """The environment or a file arms an unknown point or action."""


@dataclass(frozen=True, slots=True)
class Fault:
    """The action at a point, and the pass on which it happens. `seconds` is for `sleep`."""

    action: str
    seconds: float = 0.0
    hit: int = 1


def parse_fault(text: str) -> Fault:
    """Parse `kill`, `raise`, `hold` or `sleep=2.5`, with or without `:hit=K`. Raises BadFailpoint."""
    words = dict(part.strip().partition("=")[::2] for part in text.split(":"))
    hit, seconds = words.pop("hit", "1"), words.get("sleep", "0")
    try:
        (action,) = words
        fault = Fault(action, float(seconds), int(hit))
    except ValueError:
        raise BadFailpoint(f"not an action: {text!r}") from None
    if action not in ("kill", "raise", "hold", "sleep") or fault.hit < 1:
        raise BadFailpoint(f"not an action: {text!r}")
    return fault


def parse_faults(text: str) -> dict[Point, Fault]:
    """Parse the value of MILLRACE_FAILPOINT. Raises BadFailpoint."""
    faults = {}
    for part in filter(None, text.split(",")):
        name, _, action = part.strip().partition(":")
        try:
            point = Point(name)
        except ValueError:
            raise BadFailpoint(f"there is no point {name!r}") from None
        faults[point] = parse_fault(action)
    return faults


class Failpoints:
    """The points that are armed in one process."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._faults = parse_faults(environment.get(VARIABLE, ""))
        folder = environment.get(FOLDER_VARIABLE)
        self._folder = Path(folder) if folder else None
        self._passes: Counter[Point] = Counter()
        self._lock = threading.Lock()
        self.is_inert = not self._faults and self._folder is None

    def reach(self, point: Point) -> None:
        """Act if the point is armed, and this is the pass and the process for it."""
        with self._lock:
            fault = self._faults.get(point) or self._armed_by_file(point)
            if fault is None:
                return
            self._passes[point] += 1
            if self._passes[point] < fault.hit or not self._is_first(point):
                return
        self._act(point, fault)

    def _armed_by_file(self, point: Point) -> Fault | None:
        if self._folder is not None:
            with suppress(FileNotFoundError):
                return parse_fault((self._folder / point).read_text())
        return None

    def _is_first(self, point: Point) -> bool:
        """Is this process the first to act? Without a folder, each process is."""
        if self._folder is None:
            return self._faults.pop(point, None) is not None
        del self._passes[point]  # so that it counts from 0 when it is armed again
        try:
            with self._proof(point).open("x") as proof:
                proof.write(str(os.getpid()))
        except FileExistsError:
            return False
        (self._folder / point).unlink(missing_ok=True)
        return True

    def _act(self, point: Point, fault: Fault) -> None:
        match fault.action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raise":
                raise FailpointRaised(point)
            case "hold":
                while self._folder is not None and self._proof(point).exists():
                    time.sleep(_LOOK_SECONDS)
            case _:
                time.sleep(fault.seconds)

    def _proof(self, point: Point) -> Path:
        assert self._folder is not None, "proofs are in the folder"
        return self._folder / f"{point}.hit"


_process: Final = Failpoints(os.environ)
_IS_INERT: Final = _process.is_inert


def failpoint(point: Point) -> None:
    """Pass a point. In production this only tests a constant."""
    if not _IS_INERT:
        _process.reach(point)
