"""A batch through everything except a model: upload, prepare, shards, results, download; its speed and its memory."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.stack import running_stack
from cli.client import Client
from cli.output_files import OutputFile

_ENDED = ("completed", "failed", "expired", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRun:
    """Seconds of each stage of one batch, and of processor time by process."""

    lines: int
    upload_seconds: float
    prepare_seconds: float
    total_seconds: float
    cpu_seconds: dict[str, float]

    @property
    def lines_per_second(self) -> float:
        """Lines per second from the first byte of the upload to the last byte of the download."""
        return self.lines / self.total_seconds

    @property
    def cpu_microseconds(self) -> dict[str, float]:
        """Microseconds of processor time per line, by process; largest first."""
        per_line = {name: 1e6 * seconds / self.lines for name, seconds in self.cpu_seconds.items()}
        return dict(sorted(per_line.items(), key=lambda each: -each[1]))


def write_input(path: Path, lines: int, *, padding: int = 0) -> int:
    """Write lines that generate one token each, with `padding` characters; return the size of the file in bytes."""
    filler = "x" * padding
    with path.open("w") as stream:
        for number in range(lines):
            messages = [{"role": "user", "content": f"Question {number}? {filler}"}]
            body = {"model": "fake", "messages": messages, "max_tokens": 1}
            line = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            stream.write(json.dumps(line) + "\n")
    return path.stat().st_size


def run_batch(client: Client, source: Path, output: Path, lines: int) -> PipelineRun:
    """Run one batch and check that every line has a result."""
    used, began = _cpu_seconds(), time.perf_counter()
    file_id = client.upload(source)
    uploaded = time.perf_counter()
    batch = client.create_batch(file_id, "/v1/chat/completions", "24h")
    prepared = None
    while batch["status"] not in _ENDED:
        time.sleep(0.05)
        batch = client.batch(batch["id"])
        if prepared is None and batch["status"] != "validating":
            prepared = time.perf_counter()
    OutputFile(path=output, may_replace=True).write(client.content(batch["output_file_id"]))
    ended = time.perf_counter()
    with output.open("rb") as stream:
        answered = sum(1 for _ in stream)
    assert (batch["status"], answered) == ("completed", lines), batch
    return PipelineRun(
        lines=lines,
        upload_seconds=uploaded - began,
        prepare_seconds=(prepared or ended) - uploaded,
        total_seconds=ended - began,
        cpu_seconds={name: seconds - used.get(name, 0.0) for name, seconds in _cpu_seconds().items()},
    )


def pipeline(folder: Path, lines: int = 20_000, runs: int = 3) -> list[PipelineRun]:
    """Run batches one by one through one stack."""
    source = folder / "pipeline.jsonl"
    write_input(source, lines)
    with running_stack() as stack, Client(f"{stack.url}/v1", "bench") as client:
        warm = folder / "warm.jsonl"
        write_input(warm, 200)
        run_batch(client, warm, folder / "warm.out", 200)
        return [run_batch(client, source, folder / "out.jsonl", lines) for _ in range(runs)]


@dataclass(slots=True)
class PeakMemory:
    """The largest resident set of each of our processes, by name, in bytes."""

    peaks: dict[str, int] = field(default_factory=dict)

    def sample(self, root: psutil.Process) -> None:
        """Record the present size of each process."""
        for process in root.children(recursive=True):
            try:
                name, rss = _name(process.cmdline()), process.memory_info().rss
            except psutil.Error:
                continue
            if name:
                self.peaks[name] = max(self.peaks.get(name, 0), rss)


@contextmanager
def watched_memory() -> Iterator[PeakMemory]:
    """Sample every descendant twenty times a second."""
    peak, stopping = PeakMemory(), threading.Event()

    def watch() -> None:
        while not stopping.wait(0.05):
            peak.sample(psutil.Process())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stopping.set()
        thread.join()


def _cpu_seconds() -> dict[str, float]:
    """Seconds of processor time that the descendants have used, with those of their children that have ended, by name."""
    seconds: Counter[str] = Counter()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            seconds[_name(process.cmdline()) or process.name()] += sum(process.cpu_times()[:4])
    return dict(seconds)


def _name(command: list[str]) -> str | None:
    """Name of one of our own processes; None for others such as Postgres and Valkey."""
    if "-m" not in command:
        return None
    module, *rest = command[command.index("-m") + 1 :]
    return f"{module} {rest[0]}" if module == "workers.consumers.main" else module


def big_file(folder: Path, lines: int = 50_000, size: int = 200 * 1024 * 1024) -> tuple[PipelineRun, PeakMemory]:
    """Run a batch of the largest accepted file."""
    source = folder / "big.jsonl"
    plain = write_input(source, 1)
    written = write_input(source, lines, padding=size // lines - plain - 8)
    assert size * 0.99 <= written <= size, written
    with watched_memory() as peak, running_stack() as stack, Client(f"{stack.url}/v1", "bench") as client:
        return run_batch(client, source, folder / "big.out", lines), peak
