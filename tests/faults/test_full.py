"""Full disks under the file store, the logs and Postgres, and a full table of open files."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx2
import openai
import psutil
import pytest

from api.http.open_files import RESERVED
from tests.faults.load import (
    MARKER,
    batch_content,
    chat_body,
    check_everyday,
    start_batch,
    upload,
    wait_batch,
)
from tests.faults.oracle import Oracle
from tests.faults.stack import MODEL, QUICK, FaultStack, Role
from tests.support.stack import StackProcess, batch_lines, result_lines, wait_for, write_lines
from tests.support.stack import start_batch as start_lines

pytestmark = pytest.mark.timeout(120)


class Disk:
    """A small file system."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        """Write until no byte fits."""
        with self._filler.open("ab", buffering=0) as stream:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while True:
                        stream.write(b"\0" * size)
                except OSError:
                    continue

    def clear(self) -> None:
        """Free the space."""
        self._filler.unlink(missing_ok=True)


@contextmanager
def disk(path: Path, *, megabytes: int) -> Iterator[Disk]:
    """Mount a tmpfs of this size at `path`. The test needs the mark `mount`."""
    path.mkdir(mode=0o700, parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", str(path)], check=True)
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@contextmanager
def watched(stack: FaultStack) -> Iterator[Oracle]:
    """Yield an oracle for a stack that is not the shared one."""
    oracle = Oracle(stack)
    yield oracle
    oracle.close()


def dispatched_at(stack: FaultStack, batch_id: str) -> object:
    """Return the time of the last ticket for the next step of the batch."""
    return stack.query("SELECT dispatched_at FROM batches WHERE id = :id", id=batch_id)[0][0]


def wait_tries(stack: FaultStack, batch_id: str, number: int = 2) -> None:
    """Wait until the clerk has been given that many further tickets for the batch, so that earlier attempts have failed."""
    for _ in range(number):
        before = dispatched_at(stack, batch_id)
        wait_for(lambda before=before: dispatched_at(stack, batch_id) != before, "another attempt", 20)  # type: ignore[misc]


@pytest.mark.mount
def test_a_full_disk_under_the_file_store_and_the_logs_refuses_uploads_and_loses_nothing(tmp_path: Path) -> None:
    """F41: uploads get 507 and leave no partial file; stored files are readable; batches write their files later.

    An engine that is killed meanwhile is restarted and works.
    """
    with (
        disk(tmp_path / "state", megabytes=24) as full,
        FaultStack(tmp_path, MILLRACE_FREE_DISK_BYTES="0") as stack,
        watched(stack) as oracle,
    ):
        earlier = start_batch(stack, 4)
        assert wait_batch(stack, earlier) == "completed"
        waiting = upload(stack, batch_content(4))
        batch_id = start_batch(stack, 16, max_tokens=300, ignore_eos=True)
        full.fill()
        stack.kill(Role.ENGINE)

        with pytest.raises(openai.APIStatusError) as refused:
            stack.client.files.create(file=("in.jsonl", batch_content(3000)), purpose="batch")
        assert (refused.value.status_code, refused.value.code) == (507, "disk_full")
        file_id = stack.client.batches.retrieve(earlier).output_file_id
        assert file_id is not None
        assert len(stack.client.files.content(file_id).content.splitlines()) == 4
        late = stack.client.batches.create(
            input_file_id=waiting, endpoint="/v1/chat/completions", completion_window="24h"
        ).id
        for each in (batch_id, late):
            assert wait_batch(stack, each, "finalizing", timeout_seconds=60) == "finalizing"
            wait_tries(stack, each)
        wait_for(lambda: not list(stack.files.root.glob("*/*.part")), "no partial file is left", 20)

        full.clear()
        for each in (batch_id, late):
            assert wait_batch(stack, each) == "completed"
        oracle.check()


def has_logged(stack: FaultStack, process: str, event: str) -> bool:
    """Has this process logged the event?"""
    return any(name.startswith(process) and event in text for name, text in stack.logs())


def refusal(stack: FaultStack) -> httpx2.Response:
    """Return the refusal of a job that is larger than the space left; some jobs may still fit."""
    with stack.http() as http:
        for _ in range(200):
            answer = http.post("/v1/jobs", json=chat_body(f"{MARKER} {secrets.token_hex(200_000)}"))
            if answer.is_error:
                return answer
    raise AssertionError("the database's disk is not full")


@pytest.mark.mount
def test_a_full_disk_under_the_database_is_a_503_and_work_resumes_when_there_is_room(tmp_path: Path) -> None:
    """F42: no data is corrupt, and batches resume."""
    data = tmp_path / "services" / "postgres"
    with disk(data, megabytes=144) as full, FaultStack(tmp_path) as stack, watched(stack) as oracle:
        if not (data / "PG_VERSION").exists():
            pytest.skip("Postgres keeps its data outside the mounted disk, since user namespaces are refused here")
        earlier = start_batch(stack, 4)
        assert wait_batch(stack, earlier) == "completed"
        batch_id = start_batch(stack, 200, max_tokens=300, ignore_eos=True)
        wait_for(lambda: bool(stack.query("SELECT 1 FROM shards WHERE lines_completed > 0")), "the batch has begun")
        full.fill()

        refused = refusal(stack)
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True), refused.text
        assert stack.client.batches.retrieve(earlier).status == "completed"

        def has_worker_failed() -> bool:
            full.fill()  # a checkpoint removes old segments of the log, and the batch would end in their room
            return has_logged(stack, "batch", "commit_failed")

        wait_for(has_worker_failed, "the worker has failed to commit too", 30)

        full.clear()
        stack.services.restart_dead()
        assert wait_batch(stack, batch_id) == "completed"
        oracle.check()


@pytest.mark.mount
def test_a_bundled_postgres_that_stops_on_a_full_disk_is_restarted_when_there_is_room(tmp_path: Path) -> None:
    """F42: `millrace serve` retries, without a manual step."""
    data, models = tmp_path / "state" / "postgres", tmp_path / "models"
    models.mkdir()
    (models / "fake.yaml").write_text(MODEL)
    with disk(data, megabytes=144) as full, closing(StackProcess(tmp_path, models, **QUICK)) as stack:
        stack.start()
        if not (data / "PG_VERSION").exists():
            pytest.skip("Postgres keeps its data outside the mounted disk, since user namespaces are refused here")
        with stack.client() as client:
            lines = write_lines(tmp_path / "in.jsonl", batch_lines(100, max_tokens=60, ignore_eos=True))
            batch_id = start_lines(client, lines)
            full.fill()
            stack.find("/postgres", "-D").send_signal(signal.SIGQUIT)
            wait_for(lambda: "service_not_restarted" in stack.output, "Postgres cannot be started", 40)
            full.clear()
            wait_for(lambda: client.batches.retrieve(batch_id).status == "completed", "the batch completes", 60)
            batch = client.batches.retrieve(batch_id)
            assert len(result_lines(client, batch.output_file_id)) == 100


WRITE_INFLIGHT_LOG: Final = """
import sys
from pathlib import Path
from engine.process.inflight_log import InflightLog, Section
log = InflightLog(Path(sys.argv[1]), "boot")
for section in Section:
    for name in ("one", "two"):
        log.record(section, [("c", name)])
"""


@pytest.mark.mount
def test_an_engine_that_starts_on_a_full_disk_is_not_killed_by_its_inflight_log(tmp_path: Path) -> None:
    """F41: otherwise SIGBUS would end the engine, and requests that did no harm would become suspects."""
    with disk(tmp_path / "run", megabytes=1) as full:
        full.fill()
        done = subprocess.run([sys.executable, "-c", WRITE_INFLIGHT_LOG, str(full.path)], check=False, timeout=60)
    assert done.returncode == 0


@contextmanager
def files_limit(process: psutil.Process, number: int) -> Iterator[None]:
    """Limit the number of open files of the process."""
    before = process.rlimit(psutil.RLIMIT_NOFILE)
    process.rlimit(psutil.RLIMIT_NOFILE, (number, before[1]))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_NOFILE, before)


_TAKEN = 8  # files that a process keeps open for its whole life: a new file gets no number below this


def test_connections_beyond_the_file_limit_get_a_503(stack: FaultStack, oracle: Oracle) -> None:
    """F43: open connections are served; others get a 503 and can retry."""
    api = stack.find(Role.API)
    address = urlsplit(stack.url)
    assert address.hostname is not None
    assert address.port is not None
    answers = []
    with ExitStack() as connections, files_limit(api, RESERVED + 24):
        for _ in range(40):
            connection = HTTPConnection(address.hostname, address.port, timeout=20)
            connections.callback(connection.close)
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            answers.append((answer.status, answer.headers["retry-after"], json.loads(answer.read() or b"{}")))
    assert answers[0][0] == 200
    status, retry_after, body = answers[-1]
    assert (status, retry_after, body["error"]["code"]) == (503, "5", "service_unavailable")
    check_everyday(stack)
    assert stack.find(Role.API).pid == api.pid, "the api did not restart"
    oracle.check()


def test_an_api_without_free_file_descriptors_returns_503_and_recovers(stack: FaultStack, oracle: Oracle) -> None:
    """F43: on a connection that is already open."""
    api = stack.find(Role.API)
    file_id = upload(stack, batch_content(2))
    with stack.http(timeout=20) as http:
        assert http.get(f"/v1/files/{file_id}/content").status_code == 200
        with files_limit(api, _TAKEN):
            answers = [http.get(f"/v1/files/{file_id}/content") for _ in range(3)]
            uploaded = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", batch_content(2))})
        for answer in (*answers, uploaded):
            assert answer.status_code == 503, answer.text
            assert answer.json()["error"]["code"] == "service_unavailable"
            assert "retry-after" in answer.headers
        assert http.get(f"/v1/files/{file_id}/content").status_code == 200
    check_everyday(stack)
    assert stack.find(Role.API).pid == api.pid, "the api did not restart"
    oracle.check()
