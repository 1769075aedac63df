"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.stack import StackProcess, clean_environment

MILLRACE = str(Path(sys.executable).with_name("millrace"))
NO_SERVER = "http://127.0.0.1:9/v1"


def millrace(
    *arguments: str | Path, cwd: Path, stdin: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command until it ends."""
    return subprocess.run(
        [MILLRACE, *map(str, arguments)],
        cwd=cwd,
        env=clean_environment() | environment,
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


class Terminal:
    """Commands in a folder, against a server; `ask` expects success, `json` expects one document."""

    def __init__(self, folder: Path, server: StackProcess) -> None:
        self.folder = folder
        self._environment = {"OPENAI_BASE_URL": f"{server.url}/v1"}

    def run(self, *arguments: str | Path, stdin: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        return millrace(*arguments, cwd=self.folder, stdin=stdin, **self._environment, **more)

    def start(self, *arguments: str, stdin: int = subprocess.PIPE) -> subprocess.Popen[str]:
        environment = clean_environment() | self._environment
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [MILLRACE, *arguments], cwd=self.folder, env=environment, stdin=stdin, stdout=pipe, stderr=pipe, text=True
        )

    def ask(self, *arguments: str | Path, stdin: str | None = None) -> str:
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *arguments: str | Path, stdin: str | None = None) -> Any:
        return json.loads(self.ask(*arguments, "--json", stdin=stdin))
