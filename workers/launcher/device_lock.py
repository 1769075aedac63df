"""Lock of a device: a state directory has one launcher for each, since sockets and logs are named after device and model."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from typing import IO

from core.errors import ConfigError
from core.process.runtime_dirs import socket_directory


def lock_device(state_dir: Path, device: str) -> IO[str]:
    """Take the lock, held until the returned file is closed or the process ends. Raises ConfigError if another has it."""
    digest = hashlib.sha256(device.encode()).hexdigest()[:10]
    stream = (socket_directory(state_dir) / f"d-{digest}.lock").open("a+")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.seek(0)
        pid = stream.read(20).strip()
        stream.close()
        raise ConfigError(
            f"A worker (pid {pid}) uses the device {device} with the state directory {state_dir}. "
            "Use another --device, or give each worker its own MILLRACE_STATE_DIR."
        ) from None
    stream.truncate(0)
    stream.write(str(os.getpid()))
    stream.flush()
    return stream
