"""The command line, run as a user runs it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import suppress
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

    def start(self, *arguments: str, stdin: int = subprocess.PIPE, **more: str) -> subprocess.Popen[str]:
        environment = clean_environment() | self._environment | more
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [MILLRACE, *arguments], cwd=self.folder, env=environment, stdin=stdin, stdout=pipe, stderr=pipe, text=True
        )

    def screen(self, *arguments: str, columns: int = 80) -> str:
        """Run the command on a terminal of this width; returns the text on it, without colours."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        environment = clean_environment() | self._environment | {"NO_COLOR": "1", "TERM": "xterm"}
        environment.pop("COLUMNS", None)
        with subprocess.Popen(
            [MILLRACE, *arguments], cwd=self.folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
        ):
            os.close(theirs)
            text = b""
            with suppress(OSError):  # the terminal is gone
                while chunk := os.read(ours, 65536):
                    text += chunk
        os.close(ours)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.decode()).replace("\r\n", "\n")

    def ask(self, *arguments: str | Path, stdin: str | None = None) -> str:
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *arguments: str | Path, stdin: str | None = None) -> Any:
        return json.loads(self.ask(*arguments, "--json", stdin=stdin))
