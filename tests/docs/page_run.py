"""Runs the blocks of one page in their order: one shell and one Python namespace, in a folder of its own."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import psycopg

from cli.stack.services import running_database
from core.settings import ROOT
from tests.docs.blocks import Block, transcript
from tests.docs.expected import mismatch
from tests.docs.kernel import BLOCK_SECONDS, PythonKernel
from tests.support.stack import StackProcess, clean_environment

_WRITTEN_ADDRESS: Final = re.compile(r"(127\.0\.0\.1|localhost):8000\b")
_EXPLAINED: Final = ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE")


class PageRun:
    """The state of a page: its folder, shell and namespace. `stack` is the server, and `python` runs Python."""

    def __init__(self, page: Path, folder: Path, stack: StackProcess, python: PythonKernel) -> None:
        self._name = str(page.relative_to(ROOT))
        self._folder = folder
        self._stack = stack
        self._python = python
        self._address = stack.url.removeprefix("http://")
        (folder / ".venv").symlink_to(sys.prefix)
        shutil.copytree(ROOT / "batch_inputs", folder / "batch_inputs")
        (folder / "models").symlink_to(stack.models_dir)
        self.environment = {
            **clean_environment(),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OPENAI_BASE_URL": f"{stack.url}/v1",
            "OPENAI_API_KEY": "any",
            "MILLRACE_STATE_DIR": str(stack.state_dir),
            "MILLRACE_MODELS_DIR": str(stack.models_dir),
            "MILLRACE_PORT": stack.url.rsplit(":", 1)[1],
            "NO_COLOR": "1",
            "COLUMNS": "200",
            "CURL_HOME": str(folder),
        }
        (folder / ".curlrc").write_text("silent\nshow-error\nfail-with-body\n")  # as on a terminal, but errors count
        self._shell: subprocess.Popen[str] | None = None

    def run(self, block: Block) -> str:
        """Run a block; returns what is wrong, empty if nothing is."""
        match block.language:
            case "sh":
                return self._checked(block, *self._bash(block.code, as_script=True))
            case "console":
                return self._transcript(block)
            case "python":
                output, error = self._python.run(
                    self._here(block.code),
                    folder=self._folder,
                    environment=self.environment,
                    name=self._name,
                    line=block.line,
                )
                return self._checked(block, output, error)
            case "sql":
                return self._sql(block.code)
        return ""

    def close(self) -> None:
        """End the shell, with what it left in the background."""
        if self._shell is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGKILL)
        self._shell.wait()
        for stream in (self._shell.stdin, self._shell.stdout):
            if stream is not None:
                stream.close()

    def _here(self, text: str) -> str:
        return _WRITTEN_ADDRESS.sub(self._address, text)

    def _checked(self, block: Block, output: str, error: str) -> str:
        if bool(error) is not block.fails:
            return f"{error}\nprinted:\n{output}" if error else f"it was to fail, and printed:\n{output}"
        if block.output is None:
            return ""
        return mismatch(block.output, output.replace(self._address, "127.0.0.1:8000"))

    def _transcript(self, block: Block) -> str:
        commands = list(transcript(block.code))
        for number, (line, command, shown) in enumerate(commands):
            output, error = self._bash(command)
            may_fail = block.fails and number == len(commands) - 1
            if bool(error) is not may_fail:
                return f"line {block.line + line}: {error or 'it was to fail'}\nprinted:\n{output}"
            if shown and (problem := mismatch(shown, output.replace(self._address, "127.0.0.1:8000"))):
                return f"line {block.line + line}: {problem}"
        return ""

    def _bash(self, script: str, *, as_script: bool = False) -> tuple[str, str]:
        """Run a script in the page's shell; returns its output, and its failure, which ends the shell.

        As a script, stderr is no output, and a failure within a pipe counts; otherwise it is as in a terminal.
        """
        if self._shell is None or self._shell.poll() is not None:
            pipe = subprocess.PIPE
            self._shell = subprocess.Popen(
                ["bash", "--norc", "--noprofile"],
                cwd=self._folder,
                env=self.environment,
                stdin=pipe,
                stdout=pipe,
                text=True,
                start_new_session=True,
            )
        shell = self._shell
        assert shell.stdin is not None
        assert shell.stdout is not None
        source, printed, errors, failed = (
            self._folder / f".{name}" for name in ("block.sh", "output", "errors", "failed")
        )
        source.write_text(self._here(script) + "\n")
        errors.write_text("")
        failed.write_text("the shell ended")
        pipes, stderr = ("-o", f"'{errors}'") if as_script else ("+o", "&1")
        shell.stdin.write(
            f'set -eE {pipes} pipefail; trap \'echo "failed: $BASH_COMMAND" >"{failed}"\' ERR; exec 3>&1; '
            f". '{source}' >'{printed}' 2>{stderr} 3>&- </dev/null; trap - ERR; set +e; echo done >&3\n"
        )
        shell.stdin.flush()
        if not select.select([shell.stdout], [], [], BLOCK_SECONDS)[0]:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
            return printed.read_text(), f"it did not end within {BLOCK_SECONDS:.0f} s"
        if shell.stdout.readline().strip() == "done":
            return printed.read_text(), ""
        shell.wait()
        return printed.read_text(), f"{failed.read_text()}\n{errors.read_text()}"

    def _sql(self, code: str) -> str:
        url = running_database(self._stack.state_dir)
        assert url is not None
        with psycopg.connect(url.replace("postgresql+psycopg", "postgresql")) as connection:
            for statement in filter(None, (part.strip() for part in re.sub(r"--.*", "", code).split(";"))):
                verb = statement.split(None, 1)[0].upper()
                if verb not in (*_EXPLAINED, "SHOW"):
                    return f"{verb} is neither explained nor run; mark the block"
                try:
                    connection.execute(f"EXPLAIN {statement}" if verb in _EXPLAINED else statement)
                except psycopg.Error as error:
                    return f"{error}\nin: {statement}"
        return ""
