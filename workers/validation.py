"""The clerk's side of a validation: a row asks, a process of its own looks at the file, the row gets its report."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import structlog

from core.failpoints import Point, failpoint
from db import batches, validations
from db.sessions import patient
from workers.context import ClerkContext

log = structlog.get_logger()

_SECONDS: Final = 300.0
_LISTED_ERRORS: Final = 1000


def answer_validation(context: ClerkContext, validation_id: str) -> None:
    """Answer a question that waits; does nothing when it is answered, taken back, or in other hands."""
    with context.database.begin() as connection:
        connection.execute(patient())
        if not connection.execute(batches.try_lock(validation_id)).scalar_one():
            return
        question = connection.execute(validations.find_question(validation_id)).one_or_none()
        if question is None:
            return
        file_id, endpoint = question
        report, failure = _look(context, context.files.path(file_id), endpoint)
        failpoint(Point.VALIDATION_LOOKED)
        connection.execute(validations.answer(validation_id, report=report, failure=failure))
    log.info("validation_answered", validation=validation_id, failure=failure)


def _look(context: ClerkContext, path: Path, endpoint: str | None) -> tuple[str | None, str | None]:
    """The report, or why there is none."""
    if not path.is_file():
        return None, "The input file does not exist any more."
    command = [sys.executable, "-P", "-m", "workers.validate", str(path), "--max-errors", str(_LISTED_ERRORS)]
    if endpoint is not None:
        command += ["--endpoint", endpoint]
    settings = context.settings
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",  # a vocabulary needs no GPU, and must not take memory of one
        "MILLRACE_MODELS_DIR": str(settings.models_dir.resolve()),
        "MILLRACE_BATCH_LINES": str(settings.batch_lines),
        "MILLRACE_LINE_BYTES": str(settings.line_bytes),
    }
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None, f"The file took longer than {_SECONDS:.0f} seconds to check."
    if done.returncode:
        log.error("validation_failed", reason=done.stderr[-500:])
        return None, "The file could not be checked; the clerk's log says why."
    return done.stdout, None
