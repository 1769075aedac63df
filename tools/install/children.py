"""Child processes of an installation: their output line by line, their errors, and their end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from threading import Lock
from typing import Final

_ERROR: Final = re.compile(r"\berror\b[: ](?! pip's dependency resolver)|no space left", re.IGNORECASE)
_PIPS_OWN: Final = "error: subprocess-exited-with-error"  # pip describes its child behind this line
_LINES_AFTER: Final = 3
_LINES: Final = 16
_GRACE_SECONDS: Final = 5


class Failed(Exception):
    """The installation ends with this sentence."""


class Children:
    """Running children, each with a process group of its own; `stop` ends all of them, and their children."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._is_stopped = False
        self._lock = Lock()

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Interrupt every running child, as Ctrl-C does, so that it removes its temporary files; start no other."""
        with self._lock:
            self._is_stopped = True
            for process in self._running:
                _end(process)

    def run(
        self,
        command: Sequence[str],
        *,
        on_line: Callable[[str], None] = lambda _: None,
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Run a command, with standard output and errors given to `on_line`; returns the exit status."""
        with self._lock:
            if self._is_stopped:
                raise Failed("The installation was stopped.")
            process = subprocess.Popen(
                command, env=env, text=True, errors="replace", start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            self._running.add(process)
        try:
            assert process.stdout
            for line in process.stdout:
                on_line(line.rstrip("\n"))
        except BaseException:
            _end(process)
            raise
        finally:
            process.communicate()
            with self._lock:
                self._running.discard(process)
        return process.returncode

    def need(self, command: Sequence[str], problem: str) -> None:
        """Run a command; raises Failed, with `problem` and its errors, unless it succeeds."""
        lines: list[str] = []
        if self.run(command, on_line=lines.append):
            raise Failed(f"{problem}:\n{errors_in(lines)}")


def _end(process: subprocess.Popen[str]) -> None:
    """Interrupt a child and its children, or terminate them: a shell may have made them ignore interrupts."""
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(_GRACE_SECONDS)
            return


def errors_in(lines: Iterable[str]) -> str:
    """The first lines of an output that look like errors, with the lines that follow each; else the last lines."""
    given = [line.strip() for line in takewhile(lambda line: _PIPS_OWN not in line, lines) if line.strip()]
    kept: dict[int, str] = {}
    for number, line in enumerate(given):
        if _ERROR.search(line):
            kept |= {at: given[at] for at in range(number, min(number + _LINES_AFTER, len(given)))}
    shown = [kept[at] for at in sorted(kept)][:_LINES] or given[-_LINES:]
    return "\n".join(f"  {line}" for line in shown)
