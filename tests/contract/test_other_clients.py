"""Third-party clients, in Python and JavaScript, work unchanged; each is installed in its own environment."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.contract.clients.install import FOLDER
from tests.support.stack import StackProcess, clean_environment

_PROGRAMS: Final = Path(__file__).parent / "clients"
_SECONDS: Final = 90


def _run(name: str, command: str, program: str, server: StackProcess) -> None:
    """Run a copy of a program in its environment: Node looks for packages beside the program."""
    folder = FOLDER / name
    if name == "node" and shutil.which("npm") is None:
        pytest.skip("needs npm")
    if not (folder / "installed").exists():
        pytest.skip(f"the client {name} is not installed: run `python -m tests.contract.clients.install`")
    shutil.copy(_PROGRAMS / program, folder / program)
    done = subprocess.run(
        [command.format(folder), program, server.url],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize("name", ["langchain", "litellm", "instructor", "pydantic_ai"])
def test_a_python_client_works_unchanged(name: str, server: StackProcess) -> None:
    _run(name, "{}/bin/python", f"{name}_client.py", server)


@pytest.mark.parametrize("program", ["openai_client.mjs", "ai_client.mjs"])
def test_a_node_client_works_unchanged(program: str, server: StackProcess) -> None:
    _run("node", "node", program, server)
