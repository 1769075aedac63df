"""A worker runs batches without a file store: it has no directory, no credentials, and no package for object storage."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from openai import OpenAI

from cli.stack.services import Services
from tests.support.s3_server import S3Server
from tests.support.stack import (
    QUICK_RECOVERY,
    batch_lines,
    clean_environment,
    result_lines,
    start_batch,
    wait_for,
    write_lines,
)
from workers.context import Database

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


@contextmanager
def running(log: Path, arguments: list[str], environment: dict[str, str]) -> Iterator[None]:
    """Run a module of ours as a process, until the block ends."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", *arguments], env=environment, stdout=output, stderr=output
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def test_a_batch_runs_while_its_worker_cannot_reach_the_files(
    services: Services, database: Database, models_dir: Path, tmp_path: Path
) -> None:
    forbidden = tmp_path / "forbidden"
    forbidden.mkdir()
    (forbidden / "obstore.py").write_text("raise SystemExit('a worker has loaded the client of object storage')\n")
    state = tmp_path / "state"
    settings = {
        **clean_environment(),
        **QUICK_RECOVERY,
        "MILLRACE_STATE_DIR": str(state),
        "MILLRACE_MODELS_DIR": str(models_dir),
        "MILLRACE_DATABASE_URL": services.database_url,
        "MILLRACE_REDIS_URL": services.redis_url,
        "MILLRACE_PORT": "0",
    }
    log = tmp_path / "api.log"
    with ExitStack() as stack:
        s3 = stack.enter_context(S3Server())
        files = {"MILLRACE_FILES_URL": s3.create_bucket("far-away"), **s3.environment}
        without = {"MILLRACE_FILES_DIR": "/proc/no/such/place", "PYTHONPATH": str(forbidden)}
        for name, arguments, more in (
            ("api", ["api"], files),
            ("clerk", ["workers.consumers.main", "clerk"], files),
            ("worker", ["workers", "--device", "cpu"], without),
        ):
            stack.enter_context(running(tmp_path / f"{name}.log", arguments, {**settings, **more}))
        wait_for(lambda: "listening on" in log.read_text(), "the api listens", 30)
        url = log.read_text().partition("listening on ")[2].split()[0]
        client = stack.enter_context(OpenAI(base_url=f"{url}/v1", api_key="any", timeout=30))
        batch_id = start_batch(client, write_lines(tmp_path / "in.jsonl", batch_lines(20)))
        wait_for(lambda: client.batches.retrieve(batch_id).status == "completed", "the batch completes")
        assert len(result_lines(client, client.batches.retrieve(batch_id).output_file_id)) == 20
    assert not (state / "files").exists()
    assert "object storage" not in "".join(path.read_text() for path in tmp_path.glob("*.log"))
