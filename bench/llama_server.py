"""The server of llama.cpp as a reference, if MILLRACE_BENCH_LLAMA_SERVER names its binary."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2

from tools.install.llama import PACKAGE, installed_kind
from tools.install.toolkits import CPU, TOOLKITS

_READY_SECONDS = 120


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server at `url` that runs `slots` requests side by side."""

    url: str
    slots: int

    def run(self, bodies: list[dict[str, Any]]) -> float:  # Any: JSON
        """Seconds for all completions, with as many at a time as there are slots."""

        def post(body: dict[str, Any]) -> None:  # Any: JSON
            client.post(f"{self.url}/completion", json=body).raise_for_status()

        with httpx2.Client(timeout=600) as client, ThreadPoolExecutor(self.slots) as pool:
            began = time.perf_counter()
            list(pool.map(post, bodies))
            return time.perf_counter() - began


@dataclass(frozen=True, slots=True)
class LlamaServer:
    """The binary of a llama-server."""

    binary: str

    @staticmethod
    def find() -> LlamaServer | None:
        """The binary that the environment names; None if there is none."""
        binary = os.environ.get("MILLRACE_BENCH_LLAMA_SERVER")
        return LlamaServer(binary) if binary else None

    @contextmanager
    def running(
        self, model: Path, slots: int, context_size: int, threads: int, extra: Sequence[str] = ()
    ) -> Iterator[RunningServer]:
        """Start the server on a free port of this machine, with `extra` arguments, and stop it at the end."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        sizes = ["-np", slots, "-c", context_size * slots, "-t", threads, "-tb", threads, "-b", 2048, "-ub", 512]
        command = [self.binary, "-m", model, "--host", "127.0.0.1", "--port", port, *sizes, *extra]
        with subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            url = f"http://127.0.0.1:{port}"
            try:
                _wait(url, process)
                yield RunningServer(url, slots)
            finally:
                process.terminate()


def build_llama_server(folder: Path = Path(".bench")) -> str:
    """Build llama-server from the sources of the installed llama-cpp-python, for the same kind of GPU; returns its path."""
    release = version(PACKAGE)
    binary = folder / f"llama-server-{release}"
    if binary.exists():
        return str(binary)
    kind = installed_kind() or CPU
    options = [
        "-DCMAKE_BUILD_TYPE=Release",
        "-DBUILD_SHARED_LIBS=OFF",
        "-DLLAMA_BUILD_TESTS=OFF",
        "-DLLAMA_OPENSSL=OFF",
    ]
    options += [TOOLKITS[kind].option] if kind in TOOLKITS else []
    print(f"building llama-server of {release} …", flush=True)
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as temporary:
        source = (f"{PACKAGE}=={release}", "--no-deps", "--no-binary", PACKAGE)
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--dest", temporary, *source], check=True)
        (archive,) = Path(temporary).glob("*.tar.gz")
        with tarfile.open(archive) as sources:
            sources.extractall(temporary, filter="data")
        (llama,) = Path(temporary).glob("*/vendor/llama.cpp")
        build = Path(temporary) / "build"
        subprocess.run(["cmake", "-S", llama, "-B", build, *options], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(
            ["cmake", "--build", build, "--target", "llama-server", "--parallel", str(os.cpu_count())], check=True
        )
        folder.mkdir(exist_ok=True)
        shutil.move(build / "bin" / "llama-server", binary)
    return str(binary)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "llama-server ended"
        try:
            if httpx2.get(f"{url}/health").status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.2)
    raise TimeoutError("llama-server was not ready")
