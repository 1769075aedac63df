"""Cost of a poison batch for others: `python -m tests.faults.poison` prints it.

Five of a thousand lines end the engine; another tenant sends chats before and during the batch. Chats during which the engine
was down are counted separately: they wait for its restart, or fail with it.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Final

import openai

from core.settings import Settings
from engine.process.client import EngineClient
from tests.faults.load import batch_content, chat_body, create_batch, new_prompt, upload, wait_batch
from tests.faults.oracle import Oracle
from tests.faults.stack import FaultStack
from workers.runtime.host_paths import engine_endpoint

_LINES: Final = 1000
_POISON: Final = {7: "segfault", 8: "abort", 300: "memory", 301: "segfault", 999: "abort"}
_IDLE_SECONDS: Final = 20.0
_THINKING_SECONDS: Final = 0.05
_LOOK_SECONDS: Final = 0.002


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat of the other tenant; `code` is the reason of its failure."""

    began: float
    seconds: float
    code: str | None = None


@dataclass(slots=True)
class Absences:
    """Times without an engine, by the monotonic clock."""

    spans: list[tuple[float, float]] = field(default_factory=list)

    def touch(self, chat: Chat) -> bool:
        """Was the engine down during this chat?"""
        return any(since < chat.began + chat.seconds and chat.began < until for since, until in self.spans)


def is_away(client: EngineClient) -> bool:
    try:
        client.wait_ready(0)
    except TimeoutError:
        return True
    return False


@contextmanager
def engine_watched(stack: FaultStack) -> Iterator[Absences]:
    """Record during the block when the engine is down."""
    settings = Settings(state_dir=stack.process.state_dir, models_dir=stack.folder / "models")
    absences, stop = Absences(), threading.Event()
    with closing(EngineClient(engine_endpoint(settings, "fake", "cpu"), "poison")) as client:
        client.wait_ready(20)

        def look() -> None:
            while not stop.wait(_LOOK_SECONDS):
                if is_away(client):
                    since = time.monotonic()
                    while is_away(client) and not stop.wait(_LOOK_SECONDS):
                        pass
                    absences.spans.append((since - _LOOK_SECONDS, time.monotonic()))

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield absences
        finally:
            stop.set()
            thread.join()


@contextmanager
def chatting(stack: FaultStack) -> Iterator[list[Chat]]:
    """Send chats of the other tenant one after the other during the block."""
    chats: list[Chat] = []
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(_THINKING_SECONDS):
            began, code = time.monotonic(), None
            try:
                stack.stranger.chat.completions.create(**chat_body(new_prompt(), max_tokens=16))
            except openai.APIError as error:
                code = str(error.code)
            chats.append(Chat(began, time.monotonic() - began, code))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield chats
    finally:
        stop.set()
        thread.join()


def poisonous_batch() -> bytes:
    """Return the batch as JSON Lines."""
    lines = [json.loads(line) for line in batch_content(_LINES).splitlines()]
    for index, fault in _POISON.items():
        lines[index]["body"]["messages"][0]["content"] += f" <<{fault}>>"
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def p99(chats: list[Chat]) -> float:
    """Return the 99th percentile in milliseconds."""
    return 1000 * quantiles([chat.seconds for chat in chats], n=100)[98]


def main() -> None:
    """Run from the command line."""
    with tempfile.TemporaryDirectory(prefix="poison-") as folder, FaultStack(Path(folder)) as stack:
        oracle = Oracle(stack)
        with chatting(stack) as idle:
            time.sleep(_IDLE_SECONDS)
        with engine_watched(stack) as absences, chatting(stack) as chats:
            began = time.monotonic()
            batch_id = create_batch(stack, upload(stack, poisonous_batch()))
            assert wait_batch(stack, batch_id, timeout_seconds=300) == "completed"
            print(f"{_LINES} lines, {len(_POISON)} of them poison, in {time.monotonic() - began:.1f} s")
        counts = stack.client.batches.retrieve(batch_id).request_counts
        deaths = stack.query("SELECT exit_code, count(*) FROM engine_crashes GROUP BY exit_code ORDER BY exit_code")
        print(f"{counts}; deaths by exit code: {dict(tuple(row) for row in deaths)}")
        oracle.check()
        oracle.close()
    beside = [chat for chat in chats if not absences.touch(chat)]
    inside = [chat for chat in chats if absences.touch(chat)]
    away = sum(until - since for since, until in absences.spans)
    print(f"the engine was away {len(absences.spans)} times, {away:.1f} s in all")
    for name, some in (("idle", idle), ("beside the batch", beside), ("in a restart", inside)):
        if len(some) > 1:
            codes = dict(Counter(chat.code for chat in some if chat.code))
            print(f"chats {name}: {len(some)}, p99 {p99(some):.0f} ms, failed: {codes}")
    print(f"beside the batch / idle: {p99(beside) / p99(idle):.2f}")


if __name__ == "__main__":
    main()
