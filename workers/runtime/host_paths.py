"""Paths and hashes of a worker host: the socket folder of an engine, the hash of a model file."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from core.models.hf_folder import answer_files, find_folder
from core.process.runtime_dirs import socket_directory
from core.settings import Settings


def engine_endpoint(settings: Settings, model: str, device: str) -> str:
    """The folder of an engine's sockets. It is short, since the path of a socket has at most about a hundred bytes."""
    digest = hashlib.sha256(f"{model}@{device}".encode()).hexdigest()[:10]
    return str(socket_directory(settings.state_dir) / f"e-{digest}")


def model_hash(settings: Settings, path: str) -> str | None:
    """SHA-256 of a model file, cached by size and modification time; None where there is no file.

    That of a folder, or of a name of the hub, is made of the names and hashes of its files.
    """
    folder = find_folder(path)
    if folder is not None:
        names = ((each.relative_to(folder), model_hash(settings, str(each))) for each in answer_files(folder))
        return hashlib.sha256("\n".join(f"{name} {digest}" for name, digest in names).encode()).hexdigest()
    if not Path(path).is_file():
        return None
    status = Path(path).stat()
    key = f"{path}:{status.st_size}:{status.st_mtime_ns}"
    cache = settings.state_dir / "model_hashes.json"
    hashes: dict[str, str] = {}
    with suppress(OSError, ValueError):
        hashes = json.loads(cache.read_text())
    if key not in hashes:
        with Path(path).open("rb") as stream:
            hashes[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        temporary = cache.with_suffix(f".{os.getpid()}.part")  # another launcher may write it, too
        temporary.write_text(json.dumps(hashes))
        temporary.rename(cache)
    return hashes[key]
