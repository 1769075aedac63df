"""Another worker of the same stack, as on another machine."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.stack import QUICK, FaultStack
from tests.support.stack import clean_environment, wait_for


@contextmanager
def second_worker(stack: FaultStack, name: str = "second", **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a worker, which is ready inside the block and ended after it; the test may kill it."""
    folder = stack.folder / name
    folder.mkdir(exist_ok=True)
    settings = {
        "MILLRACE_STATE_DIR": str(folder),
        "MILLRACE_MODELS_DIR": str(stack.folder / "models"),
        "MILLRACE_FILES_DIR": str(stack.files.root),
        "MILLRACE_DATABASE_URL": stack.services.database_url,
        "MILLRACE_REDIS_URL": stack.services.redis_url,
    }
    with (folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "workers", "--device", "cpu"],
            env={**clean_environment(), **QUICK, **settings, **environment},
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: "worker_ready" in (folder / "worker.log").read_text(), f"the {name} worker is ready")
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        (folder / "worker.log").unlink()
