"""llama.cpp's own server, as a command for the backend openai."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest

from tests.contract.clients.install import FOLDER

# llama.cpp's server inside a Python module
_XLLAMACPP: Final = """
import signal, sys, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.port = sys.argv[1], int(sys.argv[2])
parameters.n_ctx, parameters.n_parallel, parameters.cpuparams.n_threads = 4096, 4, 1
server = xllamacpp.Server(parameters)
signal.pause()
"""


def llama_server(model: Path) -> tuple[str, ...]:
    """The command that serves a model at `{port}`; skips the test where the server is not installed."""
    if binary := os.environ.get("MILLRACE_BENCH_LLAMA_SERVER"):
        return (binary, "-m", str(model), "-c", "4096", "-np", "4", "-t", "1", "--port", "{port}")
    python = installed_client("llama_server") / "bin" / "python"
    return (str(python), "-c", _XLLAMACPP, str(model), "{port}")


def installed_client(name: str) -> Path:
    """The environment of a client or server of others; skips the test where it is not installed."""
    if not (FOLDER / name / "installed").exists():
        pytest.skip(f"the server {name} is not installed: run `python -m tests.contract.clients.install`")
    return FOLDER / name
