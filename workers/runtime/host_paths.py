"""Where things of a worker host are found: an engine's sockets, a model file's hash."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from core.process.runtime_dirs import socket_directory
from core.settings import Settings


def engine_endpoint(settings: Settings, model: str, device: str) -> str:
    """The directory of an engine's sockets; short, since a socket's path has about a hundred bytes."""
    digest = hashlib.sha256(f"{model}@{device}".encode()).hexdigest()[:10]
    return str(socket_directory(settings.state_dir) / f"e-{digest}")


def model_hash(settings: Settings, path: str) -> str | None:
    """SHA-256 of a model file, remembered by size and time of change; None where there is no file."""
    if not Path(path).is_file():
        return None
    status = Path(path).stat()
    key = f"{path}:{status.st_size}:{status.st_mtime_ns}"
    cache = settings.state_dir / "model_hashes.json"
    known: dict[str, str] = {}
    with suppress(OSError, ValueError):
        known = json.loads(cache.read_text())
    if key not in known:
        with Path(path).open("rb") as stream:
            known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        temporary = cache.with_suffix(".part")
        temporary.write_text(json.dumps(known))
        temporary.rename(cache)
    return known[key]
