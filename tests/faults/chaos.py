"""Chaos: random faults on a live stack under mixed load, checked by the oracle at the end.

`python -m tests.faults.chaos --seed 7 --minutes 10` draws from the whole matrix; the seed alone decides the order.
"""

from __future__ import annotations

import argparse
import random
import signal
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import httpx2
import openai
import psutil

from core.failpoints import Point
from tests.faults.load import FINAL, Chats, chat_body, new_prompt, start_batch
from tests.faults.oracle import Oracle
from tests.faults.proxy import Proxy
from tests.faults.stack import FaultStack, Role

OURS: Final = (Role.API, Role.CLERK, Role.WORKER, Role.CHAT, Role.BATCH, Role.ENGINE)
SERVICES: Final = (Role.POSTGRES, Role.VALKEY)
END_SECONDS: Final = 180.0
_MOST_OPEN: Final = 20  # half a minute of work
OUR_CRASHES: Final = {"MILLRACE_ENGINE_CRASHES": "1000"}  # engines that crash are not restarted more and more slowly


@dataclass(slots=True)
class Chaos:
    """Draws faults and causes them, one after the other. `done` counts them by name."""

    stack: FaultStack
    random: random.Random
    report: Callable[[str], None] = print
    done: Counter[str] = field(default_factory=Counter)

    def run(self, seconds: float) -> None:
        """Cause faults until the time is over, then remove those that do not end by themselves."""
        faults: list[Callable[[], str]] = [
            self._kill, self._kill, self._terminate, self._freeze, self._reset, self._black_hole, self._delay, self._flush,
            self._service_down, self._drop_backends, self._failpoint, self._failpoint, self._drop_stream, self._cut_upload,
        ]  # fmt: skip
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            time.sleep(self.random.uniform(0.3, 2.5))
            fault = self.random.choice(faults)
            try:
                what = fault()
            except (AssertionError, psutil.Error):  # the process is being restarted
                what = "process not running"
            self.done[what] += 1
            self.report(f"{time.monotonic() - began:6.1f} s  {what}")
        self.stack.heal()

    def _kill(self) -> str:
        role = self.random.choice(OURS)
        self.stack.kill(role)
        return f"kill {role}"

    def _terminate(self) -> str:
        role = self.random.choice(OURS)
        self.stack.send(role, signal.SIGTERM)
        return f"terminate {role}"

    def _freeze(self) -> str:
        role, seconds = self.random.choice((*OURS, *SERVICES)), self.random.uniform(0.5, 4)
        with self.stack.frozen(role):
            time.sleep(seconds)
        return f"freeze {role}"

    def _reset(self) -> str:
        name, proxy = self._proxy()
        proxy.reset()
        return f"reset connections of {name}"

    def _black_hole(self) -> str:
        name, proxy = self._proxy()
        proxy.black_hole()
        time.sleep(self.random.uniform(0.5, 4))
        proxy.heal()
        return f"black hole before {name}"

    def _delay(self) -> str:
        name, proxy = self._proxy()
        proxy.delay(self.random.uniform(0.01, 0.2))
        time.sleep(self.random.uniform(0.5, 3))
        proxy.heal()
        return f"delay before {name}"

    def _proxy(self) -> tuple[str, Proxy]:
        return self.random.choice([("postgres", self.stack.postgres), ("valkey", self.stack.valkey)])

    def _flush(self) -> str:
        self.stack.redis.flushall()
        return "flush valkey"

    def _service_down(self) -> str:
        role = self.random.choice(SERVICES)
        number = signal.SIGQUIT if role is Role.POSTGRES else signal.SIGKILL  # SIGQUIT: immediate shutdown
        with self.stack.without(role, number):
            time.sleep(self.random.uniform(0.2, 3))
        return f"{role} down"

    def _drop_backends(self) -> str:
        self.stack.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'millrace' AND pid <> pg_backend_pid()"
        )
        return "terminate backends"

    def _drop_stream(self) -> str:
        path, body = "/v1/chat/completions", chat_body(new_prompt(), stream=True)
        with (
            suppress(httpx2.HTTPError),
            self.stack.http(timeout=5) as http,
            http.stream("POST", path, json=body) as response,
        ):
            next(response.iter_lines(), None)
        return "disconnect from a stream"

    def _cut_upload(self) -> str:
        def half() -> Iterator[bytes]:
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + bytes(100_000)
            raise InterruptedError

        kind = {"content-type": "multipart/form-data; boundary=x"}
        with suppress(httpx2.HTTPError, InterruptedError), self.stack.http(timeout=5) as http:
            http.post("/v1/files", content=half(), headers=kind)
        return "cut an upload"

    def _failpoint(self) -> str:
        point, action = self.random.choice(list(Point)), self.random.choice(["kill", "raise", "sleep=1"])
        with self.stack.armed(point, action):
            time.sleep(self.random.uniform(0.5, 2))
        return f"failpoint {action.partition('=')[0]}"


class Batches:
    """Batches one after the other until the block ends; some are cancelled.

    A stack that falls behind gets no new batch until it has caught up, so that all work can finish at the end.
    """

    def __init__(self, stack: FaultStack, seed: int, lines: tuple[int, int] = (20, 200)) -> None:
        self._stack = stack
        self._random = random.Random(seed)
        self._lines = lines
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._open: deque[str] = deque()
        self.num_begun = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(120)

    def _run(self) -> None:
        while not self._stop.is_set():
            with suppress(openai.APIError, OSError):
                if not self._is_behind():
                    self._begin()
            self._stop.wait(self._random.uniform(0.2, 1.5))

    def _is_behind(self) -> bool:
        while self._open and self._stack.client.batches.retrieve(self._open[0]).status in FINAL:
            self._open.popleft()
        return len(self._open) >= _MOST_OPEN

    def _begin(self) -> None:
        batch_id = start_batch(self._stack, self._random.randint(*self._lines))
        self._open.append(batch_id)
        self.num_begun += 1
        if self._random.random() < 0.2:
            with suppress(openai.BadRequestError):  # the batch has ended
                self._stack.retry(lambda: self._stack.client.batches.cancel(batch_id))


def chaos(folder: Path, seed: int, seconds: float, report: Callable[[str], None] = print) -> None:
    """Start a stack and cause faults for this time. Raises AssertionError when anything was lost, doubled or leaked."""
    report(f"seed {seed}")
    with FaultStack(folder, **OUR_CRASHES) as stack, ExitStack() as ends:
        oracle = Oracle(stack)
        ends.callback(oracle.close)
        faults = Chaos(stack, random.Random(seed), report)
        with Chats(stack, threads=3, injects_errors=True) as chats, Batches(stack, seed) as batches:
            faults.run(seconds)
        _check_failed_requests(dict(stack.logs())["api.log"])
        oracle.check(END_SECONDS)
        lines = stack.query("SELECT state, count(*) FROM jobs WHERE batch_id IS NOT NULL GROUP BY state ORDER BY state")
        report(f"faults: {dict(faults.done.most_common())}")
        report(
            f"batches begun: {batches.num_begun}; lines: {dict(tuple(row) for row in lines)}; chats: {dict(chats.ends)}"
        )


def _check_failed_requests(log: str) -> None:
    """Every 500 of the api must have been injected by a failpoint."""
    failed = [line for line in log.splitlines() if '"request_failed"' in line]
    unexplained = [line for line in failed if "FailpointRaised" not in line]
    assert not unexplained, unexplained[:3]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Inject random faults into a stack, and check that nothing is lost.")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--minutes", type=float, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        chaos(Path(folder), arguments.seed, arguments.minutes * 60)
    print("nothing was lost, doubled or leaked")


if __name__ == "__main__":
    main()
