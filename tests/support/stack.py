"""A stack for a test: `millrace serve` as a user starts it, on a free port, in a temporary folder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import httpx2
import psutil
from openai import DefaultHttpxClient, OpenAI

from core.process.clone import set_parent_death_signal
from tests.support.processes import command_of
from tests.support.published import Published

READY_SECONDS = 60.0

QUICK_RECOVERY = {
    "MILLRACE_LEASE_SECONDS": "3",
    "MILLRACE_HEARTBEAT_SECONDS": "0.5",
    "MILLRACE_SWEEP_SECONDS": "0.5",
    "MILLRACE_TUNING": "false",  # it would compute beside the tests
    "MILLRACE_TICKET_SECONDS": "1.5",
    "MILLRACE_POLL_SECONDS": "1",
    "MILLRACE_ENGINE_RESTART_SECONDS": "0.1",
    "MILLRACE_KEEP_ALIVE_SECONDS": "1",
    "MILLRACE_DRAIN_SECONDS": "10",
}


class StackProcess:
    """A `millrace serve` process, which may be killed and started again in the same folder."""

    def __init__(self, folder: Path, models: Path, *, device: str = "cpu", **settings: str) -> None:
        self.folder = folder
        self.state_dir = folder / "state"
        self.models_dir = models
        self._device = device
        self.environment = {**clean_environment(), **QUICK_RECOVERY, **settings}
        self._process: subprocess.Popen[str] | None = None
        self.output = ""
        self.url = ""
        self._published: Published | None = None
        self._clients: list[DefaultHttpxClient] = []

    def start(self) -> None:
        """Start the stack and wait until it reports that it is ready."""
        command = [str(Path(sys.executable).with_name("millrace")), "serve", "--port", "0"]
        command += ["--state-dir", str(self.state_dir), "--models-dir", str(self.models_dir), "--device", self._device]
        self._process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=partial(set_parent_death_signal, os.getpid(), signal.SIGINT),
        )
        ready = threading.Event()
        self._listener = threading.Thread(target=self._listen, args=(self._process, ready), daemon=True)
        self._listener.start()
        if not ready.wait(READY_SECONDS) or not self.url:
            raise AssertionError(f"the stack did not start:\n{self.output}\n{self.logs()}")

    def _listen(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.output += line
            if match := re.search(r"ready after .*?(http://\S+)/v1", line):
                self.url = match[1]
            if "Ctrl-C stops it" in line:
                ready.set()
        ready.set()
        process.stdout.close()

    @property
    def pid(self) -> int:
        """The process id of the launcher."""
        assert self._process is not None
        return self._process.pid

    def client(self) -> OpenAI:
        """Return the official client as users create it; its responses must be as published."""
        http = DefaultHttpxClient(event_hooks={"response": [self.published.check]})
        self._clients.append(http)
        return OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=2, timeout=60, http_client=http)

    @property
    def published(self) -> Published:
        """The OpenAPI document of the server that runs now."""
        if self._published is None or self._published.url != self.url:
            self._published = Published(self.url)
        return self._published

    def descendants(self) -> list[psutil.Process]:
        """Return all processes that the launcher and its children started."""
        return psutil.Process(self.pid).children(recursive=True)

    def find(self, *words: str) -> psutil.Process:
        """Return the first descendant whose command line contains all these words; raises AssertionError."""
        for process in self.descendants():
            line = " ".join(command_of(process))
            if all(word in line for word in words):
                return process
        raise AssertionError(f"no process with {words}")

    def interrupt(self, timeout_seconds: float = 30) -> int:
        """Send SIGINT, as Ctrl-C does, and return the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(timeout_seconds)

    def kill(self) -> None:
        """Send SIGKILL to the launcher alone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the stack in whatever state it is."""
        for client in self._clients:
            client.close()
        if self._process is not None and self._process.poll() is None:
            try:
                self.interrupt()
            except subprocess.TimeoutExpired:
                self.kill()
        self._listener.join(10)

    def logs(self) -> str:
        """Return the end of each log file."""
        folder = self.state_dir / "logs"
        return "\n".join(f"== {path.name}\n{path.read_text()[-1500:]}" for path in sorted(folder.glob("*.log")))

    def metrics(self) -> str:
        """Return the metrics of the api."""
        return httpx2.get(f"{self.url}/metrics").text


def clean_environment() -> dict[str, str]:
    """Return the environment without settings of the machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MILLRACE_", "PG", "OPENAI_"))}
    kept.pop("DATABASE_URL", None)
    kept.pop("REDIS_URL", None)
    return kept


def batch_lines(number: int, model: str = "fake", **body: object) -> list[dict[str, object]]:
    """Return batch lines with different prompts."""
    return [
        {
            "custom_id": f"line-{index}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": [{"role": "user", "content": f"Question {index}?"}], **body},
        }
        for index in range(number)
    ]


def write_lines(path: Path, lines: Sequence[Mapping[str, object]]) -> Path:
    """Write lines as JSON Lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def start_batch(client: OpenAI, path: Path) -> str:
    """Upload a file and create a batch; return its id."""
    with path.open("rb") as stream:
        file = client.files.create(file=stream, purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"test": "yes"}
    )
    return batch.id


def wait_for(condition: Callable[[], bool], what: str, timeout_seconds: float = 60) -> None:
    """Wait until a condition is true. An exception, which a fault may cause, counts as false.

    Raises AssertionError at the deadline; its cause is the exception of the last check, if that one failed.
    """
    deadline = time.monotonic() + timeout_seconds
    cause: Exception | None = None
    while time.monotonic() < deadline:
        try:
            if condition():
                return
            cause = None
        except Exception as error:
            cause = error
            time.sleep(0.2)
        time.sleep(0.05)
    failed_by = f" (the last check raised {cause!r})" if cause is not None else ""
    raise AssertionError(f"not within {timeout_seconds:.0f} s: {what}{failed_by}") from cause


def result_lines(client: OpenAI, file_id: str | None) -> list[dict[str, object]]:
    """Return the lines of a result file; none without a file."""
    if file_id is None:
        return []
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
