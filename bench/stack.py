"""A stack for a measurement: the real processes in a temporary folder, by default on the fake model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cli.stack.stack import Stack
from core.settings import load_settings

FAKE_MODEL = "name: fake\nbackend: fake\nslots: 64\ncontext_size: 8192\nbatch_tokens: 8192\n"


@contextmanager
def running_stack(model: str = FAKE_MODEL, **settings: Any) -> Iterator[Stack]:  # Any: the settings' own types
    """Start a stack with data of its own, and stop it at the end."""
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
        models = Path(folder) / "models"
        models.mkdir()
        (models / "fake.yaml").write_text(model)
        quiet = {"tuning": False}  # an engine that measures itself would disturb
        given = {"state_dir": Path(folder) / "state", "models_dir": models, "port": 0, **quiet, **settings}
        with Stack(load_settings(**given), devices=["cpu"]) as stack:
            yield stack
