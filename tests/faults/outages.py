"""Outages of realistic length, too long for a test: `python -m tests.faults.outages wipes|postgres`.

`wipes` runs the same batches twice, once with all data in Valkey deleted every ten seconds; chats run during both.
`postgres` stops the database for a minute and prints the api's responses, and when the batch continues by itself.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final

import httpx2

from tests.faults.chaos import END_SECONDS
from tests.faults.load import Chats, start_batch, wait_batch
from tests.faults.oracle import Oracle
from tests.faults.stack import FaultStack, Role

_MODEL: Final = "name: fake\nbackend: fake\nslots: 8\nstep_seconds: 0.005\n"
_BATCHES: Final = 6
_POLL_SECONDS: Final = 0.5


@contextmanager
def wiped(stack: FaultStack, every_seconds: float) -> Iterator[None]:
    """Delete everything in Valkey again and again until the block ends."""
    stop = threading.Event()

    def wipe() -> None:
        while not stop.wait(every_seconds):
            stack.redis.flushall()

    thread = threading.Thread(target=wipe)
    thread.start()
    yield
    stop.set()
    thread.join()


def wipes(folder: Path, lines: int, every_seconds: float = 10) -> None:
    """Run both batches in one stack."""
    seconds: dict[str, float] = {}
    with FaultStack(folder, model=_MODEL) as stack:
        oracle = Oracle(stack)
        for name, disturbance in (("undisturbed", nullcontext()), ("wiped", wiped(stack, every_seconds))):
            began = time.monotonic()
            with disturbance, Chats(stack, threads=2) as chats:
                for batch_id in [start_batch(stack, lines) for _ in range(_BATCHES)]:
                    assert wait_batch(stack, batch_id, timeout_seconds=1200) == "completed"
                seconds[name] = time.monotonic() - began
            print(f"{name}: {_BATCHES} batches of {lines} lines in {seconds[name]:.1f} s; chats {dict(chats.ends)}")
        oracle.check(END_SECONDS)
        oracle.close()
    print(f"wiped / undisturbed: {seconds['wiped'] / seconds['undisturbed']:.2f}")


def postgres(folder: Path, lines: int, away_seconds: float = 60) -> None:
    """Kill Postgres during a batch and start it again a minute later."""
    responses: Counter[str] = Counter()
    slowest = 0.0
    with FaultStack(folder, model=_MODEL) as stack:
        oracle = Oracle(stack)
        batch_id = start_batch(stack, lines)
        wait_batch(stack, batch_id, "in_progress")
        before = _ended(stack)
        with stack.http(timeout=30) as http:
            with stack.without(Role.POSTGRES):
                back_at = time.monotonic() + away_seconds
                while time.monotonic() < back_at:
                    began = time.monotonic()
                    responses[_describe_response(http, batch_id)] += 1
                    slowest = max(slowest, time.monotonic() - began)
                    time.sleep(_POLL_SECONDS)
            began = time.monotonic()
            while _describe_response(http, batch_id).startswith("503"):
                time.sleep(0.05)
            answered = time.monotonic() - began
        while _ended(stack) <= before + lines // 20:
            time.sleep(0.05)
        resumed = time.monotonic() - began
        assert wait_batch(stack, batch_id, timeout_seconds=1200) == "completed"
        oracle.check(END_SECONDS)
        oracle.close()
    print(f"meanwhile: {dict(responses)}, the slowest answer {slowest:.1f} s")
    print(f"back: the api answers after {answered:.1f} s, the batch has resumed after {resumed:.1f} s")


def _ended(stack: FaultStack) -> int:
    return int(stack.query("SELECT count(*) FROM jobs WHERE finished_at IS NOT NULL")[0][0])


def _describe_response(http: httpx2.Client, batch_id: str) -> str:
    response = http.get(f"/v1/batches/{batch_id}")
    if response.status_code == 200:
        return "200"
    return (
        f"{response.status_code} {response.json()['error']['code']}, retry-after {response.headers.get('retry-after')}"
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Outages of a minute and more.")
    parser.add_argument("outage", choices=["wipes", "postgres"])
    parser.add_argument("--lines", type=int, default=800)
    arguments = parser.parse_args()
    outage = {"wipes": wipes, "postgres": postgres}[arguments.outage]
    with tempfile.TemporaryDirectory(prefix="outage-") as folder:
        outage(Path(folder), arguments.lines)
    print("nothing was lost, doubled or leaked")


if __name__ == "__main__":
    main()
