"""Lines of your own through the whole stack and straight at llama-server, on a real model: `python -m bench real`.

MILLRACE_BENCH_REAL names a folder with one GGUF file, any number of `NAME.jsonl` in the format of batches, and perhaps a
`template.jinja`, for a model without a chat template. Each file is a row. Both run it with the same numbers of slots, in
turns; the best number of each counts. Each round has lines of its own, a third of the file's: a batch is not asked twice, and a
server that has seen a prompt before answers it much faster.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2
import yaml

from bench.llama_server import LlamaServer, RunningServer
from bench.stack import running_stack
from cli.client import Client
from cli.output_files import OutputFile

_SLOTS: Final = (16, 32)
_ROUNDS: Final = 3
_CONTEXT: Final = 2048
_ENDED: Final = ("completed", "failed", "expired", "cancelled")


@dataclass(frozen=True, slots=True)
class RealRow:
    """Median seconds for a third of the lines of a file at the best number of slots; `theirs` is None without a llama-server."""

    name: str
    lines: int
    ours: float
    our_slots: int
    theirs: float | None
    their_slots: int


@dataclass(frozen=True, slots=True)
class _Work:
    """The lines of a file, renamed to the model `bench`."""

    name: str
    url: str
    lines: list[dict[str, Any]]  # Any: JSON

    @staticmethod
    def read(path: Path) -> _Work:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line]
        for line in lines:
            line["body"]["model"] = "bench"
        return _Work(path.stem, lines[0]["url"], lines)

    def rounds(self) -> list[_Work]:
        """The work of each round: lines from all over the file."""
        count = len(self.lines) // _ROUNDS
        return [_Work(self.name, self.url, self.lines[first::_ROUNDS][:count]) for first in range(_ROUNDS)]


def compare_real(folder: Path) -> list[RealRow]:
    """A row for each file of the folder that MILLRACE_BENCH_REAL names; none without it."""
    given = os.environ.get("MILLRACE_BENCH_REAL")
    if not given:
        return []
    source = Path(given)
    (model,) = source.glob("*.gguf")
    template = source / "template.jinja"
    works = [_Work.read(path) for path in sorted(source.glob("*.jsonl"))]
    ours: dict[tuple[str, int], float] = {}
    theirs: dict[tuple[str, int], float] = {}
    for slots in _SLOTS:
        with _stack(model, template, slots) as client, _server(model, template, slots) as server:
            for work in works:
                times: tuple[list[float], list[float]] = ([], [])
                for part in work.rounds():
                    times[0].append(_batch_seconds(client, folder, part))
                    if server is not None:
                        times[1].append(_server_seconds(server, part))
                ours[work.name, slots] = statistics.median(times[0])
                if times[1]:
                    theirs[work.name, slots] = statistics.median(times[1])
                print(
                    f"{work.name}, {slots} slots: {_shown(times[0])} s; llama-server {_shown(times[1])} s", flush=True
                )
    return [_best(work, ours, theirs) for work in works]


def _best(work: _Work, ours: dict[tuple[str, int], float], theirs: dict[tuple[str, int], float]) -> RealRow:
    mine = min(_SLOTS, key=lambda slots: ours[work.name, slots])
    other = min(_SLOTS, key=lambda slots: theirs.get((work.name, slots), 0.0))
    return RealRow(
        work.name, len(work.lines) // _ROUNDS, ours[work.name, mine], mine, theirs.get((work.name, other)), other
    )


def _shown(seconds: list[float]) -> str:
    return " ".join(f"{each:.1f}" for each in seconds) or "-"


@contextmanager
def _stack(model: Path, template: Path, slots: int) -> Iterator[Client]:
    file = {"name": "bench", "parameters": {"model": str(model.resolve())}, "slots": slots, "context_size": _CONTEXT}
    if template.exists():
        file["chat_template"] = template.read_text()
    with running_stack(yaml.safe_dump(file)) as stack, Client(f"{stack.url}/v1", "bench") as client:
        yield client


@contextmanager
def _server(model: Path, template: Path, slots: int) -> Iterator[RunningServer | None]:
    found = LlamaServer.find()
    if found is None:
        yield None
        return
    extra = ["--jinja", "--chat-template-file", str(template)] if template.exists() else []
    with found.running(model, slots, _CONTEXT, len(os.sched_getaffinity(0)), extra) as server:
        yield server


def _batch_seconds(client: Client, folder: Path, work: _Work) -> float:
    source, output = folder / f"{work.name}.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in work.lines))
    began = time.perf_counter()
    batch = client.create_batch(client.upload(source), work.url, "24h")
    while batch["status"] not in _ENDED:
        time.sleep(0.2)
        batch = client.batch(batch["id"])
    OutputFile(path=output, may_replace=True).write(client.content(batch["output_file_id"]))
    seconds = time.perf_counter() - began
    assert batch["request_counts"]["completed"] == len(work.lines), batch
    return seconds


def _server_seconds(server: RunningServer, work: _Work) -> float:
    with httpx2.Client(timeout=1200, limits=httpx2.Limits(max_connections=server.slots)) as http:

        def ask(line: dict[str, Any]) -> None:  # Any: JSON
            http.post(f"{server.url}{work.url}", json=line["body"]).raise_for_status()

        with ThreadPoolExecutor(server.slots) as pool:
            began = time.perf_counter()
            list(pool.map(ask, work.lines))
            return time.perf_counter() - began
