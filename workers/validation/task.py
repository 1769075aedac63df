"""The clerk's side of a validation: a row asks, a process of its own looks at the file, the row gets its report.

That may take minutes, so no transaction is open meanwhile: a lease on the row holds the question, renewed while the process runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple

import structlog
from sqlalchemy.exc import SQLAlchemyError

from core.failpoints import Point, failpoint
from core.queue.events import outcome_event
from db import validations
from workers.context import ClerkContext

log = structlog.get_logger()

_SECONDS: Final = 300.0
_LISTED_ERRORS: Final = 1000


class _Answer(NamedTuple):
    """The report, or why there is none."""

    report: str | None
    failure: str | None


def answer_validation(context: ClerkContext, validation_id: str) -> None:
    """Answer a question that waits; does nothing when it is answered, taken back, or in other hands."""
    lease = timedelta(seconds=context.settings.lease_seconds)
    with context.database.begin() as connection:
        question = validations.claim_validation(validation_id, lease).fetch_optional(connection)
    if question is None:
        return
    answer = _look(context, validation_id, context.files.path(question.file_id), question.endpoint)
    if answer is None:
        log.info("validation_left", validation=validation_id)
        return
    failpoint(Point.VALIDATION_LOOKED)
    with context.database.begin() as connection:
        connection.execute(validations.set_result(validation_id, report=answer.report, failure=answer.failure))
    context.publisher.publish(outcome_event(validation_id))
    log.info("validation_answered", validation=validation_id, failure=answer.failure)


def _look(context: ClerkContext, validation_id: str, path: Path, endpoint: str | None) -> _Answer | None:
    """None when nobody waits for it any more."""
    if not path.is_file():
        return _Answer(None, "The input file does not exist any more.")
    command = [sys.executable, "-P", "-m", "workers.validation.report", str(path), "--max-errors", str(_LISTED_ERRORS)]
    if endpoint is not None:
        command += ["--endpoint", endpoint]
    deadline = time.monotonic() + _SECONDS
    process = subprocess.Popen(
        command, env=_environment(context), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            while True:
                try:
                    report, complaint = process.communicate(timeout=context.settings.heartbeat_seconds)
                    break
                except subprocess.TimeoutExpired:
                    if time.monotonic() > deadline:
                        return _Answer(None, f"The file took longer than {_SECONDS:.0f} seconds to check.")
                    if not _is_wanted(context, validation_id):
                        return None
        finally:
            process.kill()
    if process.returncode:
        log.error("validation_failed", reason=complaint[-500:])
        return _Answer(None, "The file could not be checked; the clerk's log says why.")
    return _Answer(report, None)


def _environment(context: ClerkContext) -> dict[str, str]:
    settings = context.settings
    return os.environ | {
        "CUDA_VISIBLE_DEVICES": "",  # a vocabulary needs no GPU, and must not take memory of one
        "MILLRACE_MODELS_DIR": str(settings.models_dir.resolve()),
        "MILLRACE_BATCH_LINES": str(settings.batch_lines),
        "MILLRACE_LINE_BYTES": str(settings.line_bytes),
    }


def _is_wanted(context: ClerkContext, validation_id: str) -> bool:
    """Renew the lease. Nobody knows while the database is away: then another clerk may look too, and the first answer stays."""
    lease = timedelta(seconds=context.settings.lease_seconds)
    try:
        with context.database.begin() as connection:
            return connection.execute(validations.renew_claim(validation_id, lease)).one_or_none() is not None
    except SQLAlchemyError:
        return True
