"""Six models of which two fit: random chats and a batch of each model, on the real processes.

Nothing may be lost or doubled, loads must be few for that order of chats, and chats of a model in memory must not wait for the
others: neither for their batches, nor while another model loads.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import httpx2

from bench.least_loads import least_loads
from bench.models import DEMO
from bench.result import Result
from cli.client import Client
from cli.stack.stack import Stack
from core.settings import load_settings

NAMES: Final = ("amber", "birch", "cedar", "daisy", "elder", "fern")
PLACES: Final = 2
_NEED: Final = "100MiB"
_CHATS_PER_SECOND: Final = 0.3
_TOKENS: Final = 16
_LINES_PER_MINUTE: Final = 60  # of each batch
_IDLE_CHATS: Final = 60
_ROUNDS: Final = 3  # of loads of the other models
_SLACK_SECONDS: Final = 0.5  # between the end of a load and consumers that take its chats
_WAIT_SECONDS: Final = 600.0

_FAKE: Final = "backend: fake\nslots: 4\nstep_seconds: 0.02\nload_seconds: 3\ncontext_size: 2048\n"
_GGUF: Final = "parameters: {{model: {name}.gguf, temperature: 0}}\nslots: 4\ncontext_size: 512\n"


@dataclass(slots=True)
class Chat:
    """A chat, and the times that its client saw."""

    model: str
    sent_at: float
    first_at: float = 0.0
    num_tokens: int = 0
    gaps: list[float] = field(default_factory=list)
    failure: str = ""

    @property
    def seconds(self) -> float:
        """Time to the first token."""
        return self.first_at - self.sent_at


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstTokens:
    """Times to the first token of some chats, in seconds; 0 without any."""

    number: int
    p50: float
    p95: float
    worst: float

    @classmethod
    def of(cls, chats: list[Chat]) -> FirstTokens:
        """Sum up the times of these chats."""
        seconds = sorted(chat.seconds for chat in chats) or [0.0]
        p95 = statistics.quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]
        return cls(number=len(chats), p50=statistics.median(seconds), p95=p95, worst=seconds[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """What was measured: chats to models in `memory`, those `beside_load` of another model, all `others`, and `idle`.

    Most of those beside a load are of a client that chats with one model, after the batches, while the others load in turns.
    `step` is the median time between two tokens of a chat to a model in memory, in seconds.
    """

    chats: int
    failed: list[str]
    lines: int
    lines_lost: int
    lines_doubled: int
    loads: int
    least: int
    memory: FirstTokens
    beside_load: FirstTokens
    others: FirstTokens
    idle: FirstTokens
    step: float


def measure(folder: Path, *, minutes: float, is_real: bool, seed: int = 1) -> Residency:
    """Run chats for so many minutes beside six batches, wait for all of them, then measure chats alone and beside loads."""
    with _stack(folder, is_real=is_real) as stack, Client(f"{stack.url}/v1", "none") as client:
        lines = max(20, round(_LINES_PER_MINUTE * minutes))
        batches = [_create_batch(client, folder, name, lines) for name in NAMES]
        chats = _random_chats(stack.url, 60 * minutes, seed)
        ended = [_wait_batch(client, batch_id) for batch_id in batches]
        loads = _loads(stack.services.logs / "worker.log")
        num_loads = len(loads)
        lost, doubled = _check_answers(client, ended, lines)
        idle = _idle_chats(stack.url)
        steady = _chats_beside_loads(stack.url)
        loads = _loads(stack.services.logs / "worker.log")
    answered = [chat for chat in chats if not chat.failure]
    resident = _of_resident_models(answered, loads)
    others = [chat for chat in answered if chat not in resident]
    steady_resident = _of_resident_models([chat for chat in steady if not chat.failure], loads)
    beside = [chat for chat in (*resident, *steady_resident) if _overlaps_load(chat, loads)]
    return Residency(
        chats=len(chats),
        failed=[chat.failure for chat in (*chats, *idle, *steady) if chat.failure],
        lines=lines * len(NAMES),
        lines_lost=lost,
        lines_doubled=doubled,
        loads=num_loads,
        least=least_loads([chat.model for chat in sorted(chats, key=lambda chat: chat.sent_at)], PLACES),
        memory=FirstTokens.of(resident),
        beside_load=FirstTokens.of(beside),
        others=FirstTokens.of(others),
        idle=FirstTokens.of([chat for chat in idle if not chat.failure]),
        step=statistics.median([gap for chat in resident for gap in chat.gaps] or [0.0]),
    )


@contextmanager
def _stack(folder: Path, *, is_real: bool) -> Iterator[Stack]:
    models = folder / "models"
    models.mkdir()
    for name in NAMES:
        keys = _GGUF.format(name=name) if is_real else _FAKE
        (models / f"{name}.yaml").write_text(f"name: {name}\nload: lazy\nmemory_bytes: {_NEED}\n{keys}")
        if is_real:
            shutil.copy(DEMO, models / f"{name}.gguf")
    given = {"state_dir": folder / "state", "models_dir": models, "port": 0, "device_memory": "200MiB"}
    with Stack(load_settings(**given), devices=["cpu"]) as stack:
        yield stack


@dataclass(frozen=True, slots=True)
class _Load:
    """A load of a model, from its start to the moment at which it may be used."""

    model: str
    start: float
    end: float

    def overlaps(self, start: float, end: float) -> bool:
        return self.start <= end and start <= self.end


def _loads(log: Path) -> list[_Load]:
    """Read the loads that the worker has logged."""
    began, loads = dict[str, float](), list[_Load]()
    for line in log.read_text().splitlines():
        if not line.startswith("{"):
            continue
        event = json.loads(line)
        at = datetime.fromisoformat(event["timestamp"]).timestamp()
        if event["event"] == "model_loading":
            began[event["load"]] = at
        elif event["event"] == "model_loaded":
            loads.append(_Load(event["model"], began[event["load"]], at))
    return loads


def _of_resident_models(chats: list[Chat], loads: list[_Load]) -> list[Chat]:
    """The chats before whose first token their own model was not loaded."""
    return [
        chat
        for chat in chats
        if not any(
            load.model == chat.model and load.overlaps(chat.sent_at - _SLACK_SECONDS, chat.first_at) for load in loads
        )
    ]


def _overlaps_load(chat: Chat, loads: list[_Load]) -> bool:
    """Was another model loaded before the first token of this chat?"""
    return any(load.model != chat.model and load.overlaps(chat.sent_at, chat.first_at) for load in loads)


def _random_chats(url: str, seconds: float, seed: int) -> list[Chat]:
    """Send chats at random times to random models, and wait for all of them."""
    chosen, end = random.Random(seed), time.time() + seconds
    with ThreadPoolExecutor(64) as threads, httpx2.Client(base_url=url, timeout=_WAIT_SECONDS) as http:
        running: list[Future[Chat]] = []
        while time.time() < end:
            running.append(threads.submit(_chat, http, chosen.choice(NAMES), len(running)))
            time.sleep(min(chosen.expovariate(_CHATS_PER_SECOND), max(0.0, end - time.time())))
        return [each.result() for each in running]


def _idle_chats(url: str) -> list[Chat]:
    """Send chats to one model, one after the other, while nothing else runs; the first ones warm it up."""
    with httpx2.Client(base_url=url, timeout=_WAIT_SECONDS) as http:
        for number in range(5):
            _chat(http, NAMES[0], -number)
        return [_chat(http, NAMES[0], 100_000 + number) for number in range(_IDLE_CHATS)]


def _chats_beside_loads(url: str) -> list[Chat]:
    """Send chats to one model, one after the other, while chats to the others make these load in turns."""
    with httpx2.Client(base_url=url, timeout=_WAIT_SECONDS) as http, ThreadPoolExecutor(1) as threads:
        others = enumerate(NAMES[1:] * _ROUNDS, 200_000)
        loading = threads.submit(lambda: [_chat(http, name, number) for number, name in others])
        chats: list[Chat] = []
        while not loading.done():
            chats.append(_chat(http, NAMES[0], 300_000 + len(chats)))
        failed = [chat for chat in loading.result() if chat.failure]
        return [*chats, *failed]


def _chat(http: httpx2.Client, model: str, number: int) -> Chat:
    chat = Chat(model, time.time())
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"Question {number} of a client, please answer it."}],
        "stream": True,
        "max_tokens": _TOKENS,
        "ignore_eos": True,
        "seed": number % 1000,
    }
    num_ends, last = 0, 0.0
    try:
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    num_ends += line == "data: [DONE]"
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    chat.failure = f"chat {number} of {model}: {chunk['error']['message']}"
                elif chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                    now = time.time()
                    chat.first_at = chat.first_at or now
                    chat.gaps += [now - last] if last else []
                    chat.num_tokens, last = chat.num_tokens + 1, now
    except (httpx2.HTTPError, ValueError) as error:
        chat.failure = f"chat {number} of {model}: {error!r}"
    if not chat.failure and (num_ends, bool(chat.first_at)) != (1, True):
        chat.failure = f"chat {number} of {model}: {chat.num_tokens} tokens and {num_ends} ends"
    return chat


def _create_batch(client: Client, folder: Path, model: str, lines: int) -> str:
    path = folder / f"{model}.jsonl"
    with path.open("w") as file:
        for number in range(lines):
            messages = [{"role": "user", "content": f"Line {number} for {model}."}]
            body = {"model": model, "messages": messages, "max_tokens": _TOKENS, "ignore_eos": True}
            line = {"custom_id": f"{model}-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return str(client.create_batch(client.upload(path), "/v1/chat/completions", "24h")["id"])


def _wait_batch(client: Client, batch_id: str) -> str:
    """Wait for the end of a batch; return its output file. Raises RuntimeError for one that does not complete."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while (batch := client.batch(batch_id))["status"] in ("validating", "in_progress", "finalizing"):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{batch_id} did not end: {batch['request_counts']}, waits for {batch['waiting_for']}")
        time.sleep(1)
    if batch["status"] != "completed" or batch["request_counts"]["failed"]:
        raise RuntimeError(f"{batch_id} is {batch['status']}: {batch['request_counts']}")
    return str(batch["output_file_id"])


def _check_answers(client: Client, files: list[str], lines: int) -> tuple[int, int]:
    """Count the lines without an answer, and the answers too many."""
    lost = doubled = 0
    for model, file_id in zip(NAMES, files, strict=True):
        answers = Counter(json.loads(line)["custom_id"] for line in client.content_lines(file_id))
        wanted = {f"{model}-{number}" for number in range(lines)}
        lost += len(wanted - answers.keys())
        doubled += answers.total() - len(answers.keys() & wanted)
    return lost, doubled


def residency(folder: Path, *, minutes: float, is_real: bool) -> list[Result]:
    """Measure, and make the rows of the table; prints what was lost."""
    found = measure(folder, minutes=minutes, is_real=is_real)
    for failure in found.failed:
        print(f"lost: {failure}", flush=True)
    kind = "copies of the demo model" if is_real else "fake models"
    name = f"{len(NAMES)} {kind}, {PLACES} fit, {minutes:g} min"
    limit = round(1000 * (2 * found.idle.p95 + found.step))
    idle = f"idle: p50 {1000 * found.idle.p50:.0f} ms, p95 {1000 * found.idle.p95:.0f} ms"
    loaded = f"others: p50 {found.others.p50:.1f} s, worst {found.others.worst:.1f} s"
    beside = f"p50 {1000 * found.beside_load.p50:.0f} ms, worst {1000 * found.beside_load.worst:.0f} ms"
    return [
        Result(name=f"{name}: chats lost, of {found.chats}", value=len(found.failed), unit="", target=0, is_limit=True),
        Result(name=f"{name}: lines lost, of {found.lines}", value=found.lines_lost, unit="", target=0, is_limit=True),
        Result(name=f"{name}: lines doubled", value=found.lines_doubled, unit="", target=0, is_limit=True),
        Result(
            name=f"{name}: loads (least possible for the chats: {found.least})",
            value=found.loads,
            unit="",
            target=int(1.5 * found.least) + len(NAMES),
            is_limit=True,
        ),
        Result(
            name=f"{name}: first token of {found.memory.number} chats to a model in memory, p95 ({idle}; {loaded})",
            value=1000 * found.memory.p95,
            unit="ms",
            target=limit,
            is_limit=True,
        ),
        Result(
            name=f"{name}: the same of the {found.beside_load.number} beside a load of another model, p95 ({beside}; {idle})",
            value=1000 * found.beside_load.p95,
            unit="ms",
            target=limit,
            is_limit=True,
        ),
    ]
