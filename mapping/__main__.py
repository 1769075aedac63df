"""Run one job: `python -m mapping`, started by the api (`mapping.jobs.messages` has its input and output).

Tables and templates come from clients, so the process limits itself before it looks at them. Nothing of them is printed but the
result: an unexpected error is reported by its class and place.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Final

import msgspec

from core.process.clone import set_parent_death_signal
from core.process.hardening import harden_process
from mapping.jobs.input import Refused
from mapping.jobs.messages import (
    DISK_FULL,
    FAILED,
    REFUSED,
    TOO_LARGE,
    JobLimits,
    JoinTable,
    ListResults,
    PrepareTable,
    TableJob,
)
from mapping.jobs.prepare import prepare
from mapping.jobs.results import join_table, list_results

_EXIT_CODES: Final = {errno.EFBIG: TOO_LARGE, errno.ENOSPC: DISK_FULL, errno.EDQUOT: DISK_FULL}
_NICENESS: Final = 5  # the api and the engines come first
_encode: Final = msgspec.json.Encoder(enc_hook=str).encode


def main() -> None:
    """Run the job on standard input; end with 0, an exit code of `mapping.jobs.messages`, or a signal."""
    source, target = sys.stdin.buffer, sys.stdout.buffer
    job = msgspec.json.decode(source.readline(), type=TableJob)
    _limit(job.limits, job.parent)
    try:
        match job:
            case PrepareTable():
                target.write(_encode(prepare(job)))
            case JoinTable():
                join_table(job, source, target)
            case ListResults():
                list_results(job, source, target)
        target.flush()
    except Refused as error:
        _end(REFUSED, _encode(error.refusal))
    except MemoryError:
        signal.raise_signal(signal.SIGKILL)  # the allocator of polars ends the process as well
    except BaseException as error:  # the panics of polars are no Exception
        place = traceback.extract_tb(error.__traceback__)[-1]
        cause = f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}"
        _end(_EXIT_CODES.get(getattr(error, "errno", 0), FAILED), cause.encode())


def _limit(limits: JobLimits, parent: int) -> None:
    set_parent_death_signal(parent, signal.SIGKILL)
    harden_process()
    os.nice(_NICENESS)
    # the hard limit of the processor time would be SIGKILL; RLIMIT_AS would count files that are mapped into memory
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_seconds, limits.cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_DATA, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.output_bytes, limits.output_bytes))


def _end(code: int, line: bytes) -> None:
    sys.stderr.buffer.write(b"\n" + line)
    sys.stderr.buffer.flush()
    os._exit(code)  # no flush of what was written to a closed pipe


if __name__ == "__main__":
    main()
