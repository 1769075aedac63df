"""Table processes: children of the api, `python -m mapping`, that read tables and render templates of clients.

The api itself looks into no table and no template. A child gets a job and open files; before it reads them it limits its own
processor time, memory and output. It has none of the api's environment, is killed when the client leaves, and by the kernel
when the api ends.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from tempfile import TemporaryFile
from typing import IO, Annotated, Final

import msgspec
import structlog

from api.dependencies import from_app
from api.files.disk_space import full_disk_is_a_problem
from api.services.rate_limiter import too_many
from core.errors import SERVER_ERROR, ApiError, Problem, bad_request
from mapping.jobs.messages import DISK_FULL, FAILED, REFUSED, TOO_LARGE, JobLimits, Refusal, TableJob

log = structlog.get_logger()

_OF_A_TENANT: Final = 4
_OF_ALL: Final = 8
_RETRY_SECONDS: Final = 5.0
_MEMORY_BYTES: Final = 1 << 30
_CHUNK_BYTES: Final = 1 << 16
_INHERITED: Final = ("PATH", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
_ADVICE: Final = "Use a smaller table or a simpler template, or `millrace map`, which has no such limit."


class TableProcesses:
    """The table processes of this api process. A tenant has at most `of_a_tenant` at a time, and all have `of_all`."""

    def __init__(self, *, of_a_tenant: int = _OF_A_TENANT, of_all: int = _OF_ALL) -> None:
        self._of_a_tenant = of_a_tenant
        self._of_all = of_all
        self._running: Counter[str] = Counter()

    async def run(self, tenant: str, job: TableJob, files: Sequence[int], *, wall_seconds: float) -> bytes:
        """Run a job to its end, and return its output. `files` are the descriptors that the job names.

        Raises the 400 of a table or mapping that is refused or exceeds the limits, and the 429 of a tenant with too many jobs.
        """
        with full_disk_is_a_problem(), TemporaryFile() as stdin, TemporaryFile() as stdout, TemporaryFile() as stderr:
            stdin.write(_first_line(job))
            stdin.seek(0)
            async with self._start(tenant, stdin, stdout, stderr, files) as process:
                try:
                    await asyncio.wait_for(process.wait(), wall_seconds)
                except TimeoutError:
                    raise _too_slow(wall_seconds) from None
            _check(process, stderr, job)
            stdout.seek(0)
            return stdout.read()

    async def stream(
        self, tenant: str, job: TableJob, files: Sequence[int], lines: AsyncIterator[bytes]
    ) -> AsyncGenerator[bytes]:
        """Feed `lines` to a job, and yield its output. Raises as `run` does: before the first chunk, or in the middle."""
        with full_disk_is_a_problem(), TemporaryFile() as stderr:
            async with self._start(tenant, PIPE, PIPE, stderr, files) as process:
                assert process.stdout is not None, "a pipe"
                feeding = asyncio.create_task(_feed(process, job, lines))
                try:
                    while chunk := await process.stdout.read(_CHUNK_BYTES):
                        yield chunk
                    await process.wait()
                    if feeding.done():
                        feeding.result()  # raises the error that ended the lines, and so the child
                    _check(process, stderr, job)
                finally:
                    feeding.cancel()

    @asynccontextmanager
    async def _start(
        self, tenant: str, stdin: IO[bytes] | int, stdout: IO[bytes] | int, stderr: IO[bytes], files: Sequence[int]
    ) -> AsyncIterator[Process]:
        if self._running[tenant] >= self._of_a_tenant or self._running.total() >= self._of_all:
            message = "Too many tables are being read at the moment. Ask again when one of them is done."
            raise too_many("tables", message, _RETRY_SECONDS)
        self._running[tenant] += 1
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "mapping",
                stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=files, start_new_session=True, env=_environment(),
            )  # fmt: skip
            try:
                yield process
            finally:
                with suppress(ProcessLookupError):
                    process.kill()
                if process.stdout is not None:
                    await process.stdout.read()  # a pipe that is not read to its end stays open
                await process.wait()
        finally:
            self._running -= Counter([tenant])  # leaves out zeros


TableProcessesDep = Annotated[TableProcesses, from_app("table_processes")]


def job_limits(cpu_seconds: int, output_bytes: int) -> JobLimits:
    """The limits of a job; its memory is enough for polars and some hundred MiB of cells."""
    return JobLimits(cpu_seconds=cpu_seconds, memory_bytes=_MEMORY_BYTES, output_bytes=output_bytes)


def _environment() -> dict[str, str]:
    """The environment of a child: no address or secret of this deployment, and one thread for polars."""
    return {name: os.environ[name] for name in _INHERITED if name in os.environ} | {"POLARS_MAX_THREADS": "1"}


def _first_line(job: TableJob) -> bytes:
    return msgspec.json.encode(job) + b"\n"


async def _feed(process: Process, job: TableJob, lines: AsyncIterator[bytes]) -> None:
    """Write the job and the lines; a child that ended early reads no more, and its exit code has the reason."""
    stdin = process.stdin
    assert stdin is not None, "a pipe"
    try:
        with suppress(ConnectionError):
            stdin.write(_first_line(job))
            async for line in lines:
                stdin.write(line)
                await stdin.drain()
    except BaseException:
        with suppress(ProcessLookupError):
            process.kill()  # it would take the end of its input for the end of the answers
        raise
    stdin.close()


def _check(process: Process, stderr: IO[bytes], job: TableJob) -> None:
    """Raise the problem of a job that did not end well. Above its last line, standard error may have text of the client."""
    code = process.returncode
    if code == 0:
        return
    stderr.seek(0)
    reason = stderr.read().rpartition(b"\n")[2]
    if code == REFUSED:
        refusal = msgspec.json.decode(reason, type=Refusal)
        raise bad_request(refusal.message, code=refusal.code, param=refusal.param)
    if code == DISK_FULL:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if code == -signal.SIGXCPU:
        raise _too_slow(job.limits.cpu_seconds)
    if code == TOO_LARGE:
        raise _too_large("writes", job.limits.output_bytes)
    if code is not None and code < 0:
        raise _too_large("needs", job.limits.memory_bytes)
    log.error("table_job_failed", exit_code=code, reason=reason.decode() if code == FAILED else None)
    message = "The table could not be read; the log of the server has the reason."
    raise ApiError(Problem(status=500, message=message, type=SERVER_ERROR, code="table_failed"))


def _too_slow(seconds: float) -> ApiError:
    return _over_limit(f"takes more than {seconds:.0f} seconds")


def _too_large(verb: str, num_bytes: int) -> ApiError:
    return _over_limit(f"{verb} more than {num_bytes >> 20} MiB")


def _over_limit(what: str) -> ApiError:
    return bad_request(
        f"Reading the table and rendering its rows {what}. {_ADVICE}", code="table_too_large", param="file"
    )
