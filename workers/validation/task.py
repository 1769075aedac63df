"""Validate an uploaded file for the api: claim the validation's row, run the report in a child process, store its result.

That may take minutes, so no transaction is open meanwhile: a lease on the row is renewed while the process runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import timedelta
from tempfile import TemporaryFile
from typing import BinaryIO, Final, NamedTuple

import structlog
from sqlalchemy.exc import SQLAlchemyError

from core.failpoints import Point
from core.files.file_store import FileStoreUnavailable
from core.queue.events import outcome_event
from db import validations
from workers.context import ClerkContext
from workers.runtime.clerk_metrics import TASK_FAILURES, TASK_SECONDS
from workers.runtime.recorder import timed

log = structlog.get_logger()

_TIMEOUT_SECONDS: Final = 300.0
_LISTED_ERRORS: Final = 1000


class _Result(NamedTuple):
    """The report, or the reason why there is none."""

    report: str | None
    failure: str | None


@timed(TASK_SECONDS, TASK_FAILURES, "validate")
def answer_validation(context: ClerkContext, validation_id: str) -> None:
    """Run a waiting validation; do nothing when it has a result, was deleted, or another clerk runs it."""
    lease = timedelta(seconds=context.settings.lease_seconds)
    with context.database.begin() as connection:
        row = validations.claim_validation(validation_id, lease).fetch_optional(connection)
    if row is None:
        return
    try:
        with context.files.open(row.file_id) as stream:
            result = _run_report(context, validation_id, stream, row.endpoint)
    except FileNotFoundError:
        result = _Result(None, "The input file does not exist any more.")
    except FileStoreUnavailable as error:
        log.warning("validation_failed", reason=error.problem)
        result = _Result(None, "The file store does not answer. Try again shortly.")
    if result is None:
        log.info("validation_abandoned", validation=validation_id)
        return
    with context.database.begin(committing=Point.VALIDATION_LOOKED) as connection:
        connection.execute(validations.set_result(validation_id, report=result.report, failure=result.failure))
    context.publisher.publish(outcome_event(validation_id))
    log.info("validation_ended", validation=validation_id, failure=result.failure)


def _run_report(context: ClerkContext, validation_id: str, stream: BinaryIO, endpoint: str | None) -> _Result | None:
    """Return the result, or None when the validation is not wanted any more."""
    path = f"/dev/fd/{stream.fileno()}"  # a copy of an object has no name
    command = [sys.executable, "-P", "-m", "workers.validation.report", path, "--max-errors", str(_LISTED_ERRORS)]
    command += ["--models-from-stdin"]  # those served, whatever state their files are in now
    if endpoint is not None:
        command += ["--endpoint", endpoint]
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    with TemporaryFile() as models:
        models.write(f"[{','.join(model.model_dump_json() for model in context.look_at_models().models)}]".encode())
        models.seek(0)
        process = subprocess.Popen(
            command,
            env=_environment(context),
            stdin=models,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=(stream.fileno(),),
        )
    with process:
        try:
            while True:
                try:
                    report, stderr = process.communicate(timeout=context.settings.heartbeat_seconds)
                    break
                except subprocess.TimeoutExpired:
                    if time.monotonic() > deadline:
                        return _Result(None, f"The file took longer than {_TIMEOUT_SECONDS:.0f} seconds to check.")
                    if not _is_wanted(context, validation_id):
                        return None
        finally:
            process.kill()
    if process.returncode:
        log.error("validation_failed", reason=stderr[-500:])
        return _Result(None, "The file could not be checked; the clerk's log has the reason.")
    return _Result(report, None)


def _environment(context: ClerkContext) -> dict[str, str]:
    settings = context.settings
    return os.environ | {
        "CUDA_VISIBLE_DEVICES": "",  # a vocabulary needs no GPU, and must not take its memory
        "MILLRACE_BATCH_LINES": str(settings.batch_lines),
        "MILLRACE_BODY_BYTES": str(settings.body_bytes),
    }


def _is_wanted(context: ClerkContext, validation_id: str) -> bool:
    """Renew the lease. True while the database is away: another clerk may run it too, and the first result is kept."""
    lease = timedelta(seconds=context.settings.lease_seconds)
    try:
        with context.database.begin() as connection:
            return connection.execute(validations.renew_claim(validation_id, lease)).one_or_none() is not None
    except SQLAlchemyError:
        return True
