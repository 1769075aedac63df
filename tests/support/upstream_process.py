"""The engine process of an upstream, started by a test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from engine.config import BackendKind, EngineConfig, UpstreamConfig
from engine.process.client import EngineClient, EngineLost
from engine.types import Embedded, Failed, Finished, ForwardRequest
from tests.support.recorder import Recorder
from tests.support.upstream import forward


class UpstreamProcess:
    """`python -m engine.upstream.server` and a client of it. `log` has what it prints."""

    def __init__(
        self,
        folder: Path,
        *urls: str,
        environment: dict[str, str] | None = None,
        hang_seconds: float = 60,
        **upstream: Any,
    ) -> None:
        config = EngineConfig(
            model="m",
            endpoint=str(folder),
            backend=BackendKind.OPENAI,
            hang_seconds=hang_seconds,
            upstream=UpstreamConfig(**{"model": "theirs", "base_urls": urls, **upstream}),
        )
        self._log = folder / "log"
        self._command = [sys.executable, "-m", "engine.upstream.server", msgspec.json.encode(config).decode()]
        self._environment = {**os.environ, **(environment or {})}
        self.start()
        self.client = EngineClient(str(folder), "tester")

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environment)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def submit(self, request: ForwardRequest) -> Recorder:
        recorder = Recorder()
        self.client.submit(request, recorder)
        return recorder

    def ask(self, request_id: str = "r", **given: Any) -> Finished | Embedded | Failed | EngineLost:
        return self.submit(forward(request_id, **given)).outcome

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
