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
_PAUSE_SECONDS: Final = 0.05
_POLL_SECONDS: Final = 0.002


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat of the other tenant; `code` is the reason of its failure."""

    began: float
    seconds: float
    code: str | None = None


@dataclass(slots=True)
class EngineOutages:
    """Times without an engine, by the monotonic clock."""

    spans: list[tuple[float, float]] = field(default_factory=list)

    def overlaps(self, chat: Chat) -> bool:
        """Was the engine down during this chat?"""
        return any(since < chat.began + chat.seconds and chat.began < until for since, until in self.spans)


def is_down(client: EngineClient) -> bool:
    try:
        client.wait_ready(0)
    except TimeoutError:
        return True
    return False


@contextmanager
def recorded_outages(stack: FaultStack) -> Iterator[EngineOutages]:
    """Record during the block when the engine is down."""
    settings = Settings(state_dir=stack.process.state_dir, models_dir=stack.folder / "models")
    outages, stop = EngineOutages(), threading.Event()
    with closing(EngineClient(engine_endpoint(settings, "fake", "cpu"), "poison")) as client:
        client.wait_ready(20)

        def poll() -> None:
            while not stop.wait(_POLL_SECONDS):
                if is_down(client):
                    since = time.monotonic()
                    while is_down(client) and not stop.wait(_POLL_SECONDS):
                        pass
                    outages.spans.append((since - _POLL_SECONDS, time.monotonic()))

        thread = threading.Thread(target=poll)
        thread.start()
        try:
            yield outages
        finally:
            stop.set()
            thread.join()


@contextmanager
def chatting(stack: FaultStack) -> Iterator[list[Chat]]:
    """Send chats of the other tenant one after the other during the block."""
    chats: list[Chat] = []
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(_PAUSE_SECONDS):
            began, code = time.monotonic(), None
            try:
                stack.other_tenant.chat.completions.create(**chat_body(new_prompt(), max_tokens=16))
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


def poison_batch() -> bytes:
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
        with recorded_outages(stack) as outages, chatting(stack) as chats:
            began = time.monotonic()
            batch_id = create_batch(stack, upload(stack, poison_batch()))
            assert wait_batch(stack, batch_id, timeout_seconds=300) == "completed"
            print(f"{_LINES} lines, {len(_POISON)} of them poison, in {time.monotonic() - began:.1f} s")
        counts = stack.client.batches.retrieve(batch_id).request_counts
        crashes = stack.query("SELECT exit_code, count(*) FROM engine_crashes GROUP BY exit_code ORDER BY exit_code")
        print(f"{counts}; crashes by exit code: {dict(tuple(row) for row in crashes)}")
        oracle.check()
        oracle.close()
    beside = [chat for chat in chats if not outages.overlaps(chat)]
    inside = [chat for chat in chats if outages.overlaps(chat)]
    down_seconds = sum(until - since for since, until in outages.spans)
    print(f"the engine was down {len(outages.spans)} times, {down_seconds:.1f} s in all")
    for name, some in (("idle", idle), ("beside the batch", beside), ("in a restart", inside)):
        if len(some) > 1:
            codes = dict(Counter(chat.code for chat in some if chat.code))
            print(f"chats {name}: {len(some)}, p99 {p99(some):.0f} ms, failed: {codes}")
    print(f"beside the batch / idle: {p99(beside) / p99(idle):.2f}")


if __name__ == "__main__":
    main()
