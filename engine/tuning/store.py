"""The file of a tuning, in the state of a deployment: written by the engine that measured, read before the next load."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from engine.config import Tuning


def read_tuning(path: Path) -> Tuning | None:
    """The tuning in a file; None where there is none, or one of another version."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Tuning)
    except (OSError, msgspec.MsgspecError):
        return None


def write_tuning(path: Path, tuning: Tuning) -> None:
    """Write a tuning, whole or not at all. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(tuning), indent=1))
    part.replace(path)
