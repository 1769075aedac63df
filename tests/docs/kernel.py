"""Runs the Python blocks of pages in one process, `python kernel.py`, with a namespace for each page."""

from __future__ import annotations

import ast
import json
import os
import select
import subprocess
import sys
import traceback
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Final

BLOCK_SECONDS: Final = 100.0


class PythonKernel:
    """The process; it is started when the first block runs, and again after one that did not end."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, code: str, *, folder: Path, environment: Mapping[str, str], name: str, line: int) -> tuple[str, str]:
        """Run a block; returns its output and the traceback that ended it, empty if it succeeded."""
        if self._process is None:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, text=True)
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        request = {"code": code, "folder": str(folder), "environment": dict(environment), "name": name, "line": line}
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], BLOCK_SECONDS)[0]:
            self.close()
            return "", f"it did not end within {BLOCK_SECONDS:.0f} s"
        answer = process.stdout.readline()
        if not answer:
            self.close()
            return "", "it ended the interpreter"
        output, error = json.loads(answer)
        return output, error

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process = None


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a block's children print must not be read as an answer
    spaces: dict[str, dict[str, Any]] = {}  # Any: the objects of a page
    for line in sys.stdin:
        request = json.loads(line)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        space = spaces.setdefault(request["name"], {"__name__": "__main__"})
        printed, error = StringIO(), ""
        with redirect_stdout(printed):
            try:
                tree = ast.parse(request["code"], request["name"])
                ast.increment_lineno(tree, request["line"] - 1)
                exec(compile(tree, request["name"], "exec", dont_inherit=True), space)
            except BaseException:
                error = traceback.format_exc()
        answers.write(json.dumps((printed.getvalue(), error)) + "\n")


if __name__ == "__main__":
    _serve()
