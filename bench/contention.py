"""Engines on cores that are in use: beside busy loops, and beside the engine of another model."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, Final

from bench.engine import RunningEngine, greedy, running_engine, salted
from bench.interactive import Discard, seconds_to_first
from bench.models import random_prompts
from core.cpu_cores import usable_cores
from engine.types import Request

_TURN_KEY: Final = 0x6D72_6263  # of the engines of this module alone
_ROUNDS: Final = 5
_SLOTS: Final = 8
_PROMPT: Final = 24
_GENERATED: Final = 48
_CHATS: Final = 9


def beside_busy_loops(path: Path, num_tokens: int, number: int) -> float:
    """Seconds beside a busy loop on each core, over seconds without; medians of alternating runs."""
    requests = greedy(random_prompts(number, _PROMPT, below=num_tokens - 8), _GENERATED)
    quiet, busy = [], []
    with _engine(path) as engine:
        engine.run(salted(requests))
        for _ in range(_ROUNDS):
            quiet.append(engine.run(salted(requests))[0])
            with _busy_loops():
                busy.append(engine.run(salted(requests))[0])
    return statistics.median(busy) / statistics.median(quiet)


def two_models(path: Path, num_tokens: int, number: int) -> float:
    """Seconds of two engines at the same time, over seconds of one after the other; medians of alternating runs."""
    requests = greedy(random_prompts(number, _PROMPT, below=num_tokens - 8), _GENERATED)
    one_by_one, together = [], []
    with _engine(path) as first, _engine(path) as second:
        first.run(salted(requests))
        second.run(salted(requests))
        for _ in range(_ROUNDS):
            one_by_one.append(first.run(salted(requests))[0] + second.run(salted(requests))[0])
            began = time.perf_counter()
            threads = [Thread(target=engine.run, args=(salted(requests),)) for engine in (first, second)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            together.append(time.perf_counter() - began)
    return statistics.median(together) / statistics.median(one_by_one)


def chat_beside_batch(
    chat_path: Path, chat_tokens: int, batch_path: Path, batch_tokens: int
) -> tuple[float, float, float]:
    """Median seconds to the first token of a chat, idle and while another model runs a batch, and seconds of a step of that."""
    chats = random_prompts(2 * _CHATS + 1, 64, below=chat_tokens - 8, seed=5)
    load = greedy(random_prompts(32 * _SLOTS, _PROMPT, below=batch_tokens - 8, seed=6), 65)
    with _engine(chat_path) as chat, _engine(batch_path) as batch:
        seconds_to_first(chat, chats[:1], "warm")
        idle = statistics.median(seconds_to_first(chat, chats[1 : _CHATS + 1], "idle"))
        step = _step_seconds(batch, load[:_SLOTS])
        for request in salted(load):
            batch.client.submit(request, Discard())
        time.sleep(1)
        busy = statistics.median(seconds_to_first(chat, chats[_CHATS + 1 :], "busy"))
    return idle, busy, step


def _step_seconds(engine: RunningEngine, requests: list[Request]) -> float:
    seconds, countdown = engine.run(salted(requests))
    return seconds / (countdown.num_tokens / len(requests))


@contextmanager
def _engine(path: Path) -> Iterator[RunningEngine]:
    """An engine on all cores, as the launcher starts it."""
    cores = usable_cores()
    config: dict[str, Any] = {
        "threads": cores.threads,
        "cores": cores.cpus,
        "turn_key": _TURN_KEY,
    }  # Any: fields
    with running_engine(path, slots=_SLOTS, context_size=256, **config) as engine:
        yield engine


@contextmanager
def _busy_loops() -> Iterator[None]:
    """A process on each core that computes without end."""
    command = [sys.executable, "-c", "while True: pass"]
    loops = [subprocess.Popen(command) for _ in usable_cores().cpus]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
