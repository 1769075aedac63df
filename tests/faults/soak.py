"""A soak test: constant load for a long time, each process restarted once, and their resources measured at rest.

`python -m tests.faults.soak --minutes 60` prints a table: memory and open files of each process, connections to the database,
work in the engine, keys and channels in Valkey; once after a warm-up, once at the end. The second measurement must not exceed
the first, except for the growth of a heap in its first hour.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from core.settings import Settings
from engine.process.client import EngineClient
from engine.process.protocol import FromEngine, Tick
from tests.faults.chaos import END_SECONDS, OURS, SERVICES, Batches
from tests.faults.load import Chats
from tests.faults.oracle import Oracle
from tests.faults.stack import FaultStack, Role
from tests.support.stack import wait_for
from workers.runtime.host_paths import engine_endpoint

_ORDER: Final = (
    *OURS,
    *SERVICES,
)  # the services are restarted last, so that leaks caused by that are still visible at the end
_WARM_PART: Final = 0.2
_LONGEST_WARM_SECONDS: Final = 300.0
_REST_SECONDS: Final = 30.0
_MIB: Final = 1 << 20

# The growth that is allowed at the end: a share of the first value, and a constant.
_MEMORY_PART, _MEMORY_MIB = 0.10, 12
_MORE_FILES: Final = 6  # a pool that has opened another connection, a client that keeps one
_MORE_CONNECTIONS: Final = 6
_MORE_KEYS: Final = 4  # a queue that was empty a moment ago


@dataclass(frozen=True, slots=True)
class Measure:
    """One number at rest, after the warm-up and at the end, with its limit."""

    name: str
    before: float
    after: float
    limit: float

    @property
    def is_flat(self) -> bool:
        return self.after <= self.limit

    def __str__(self) -> str:
        return f"{self.name:<28} {self.before:>9.0f} {self.after:>9.0f} {self.limit:>9.0f}  {'' if self.is_flat else 'GROWN'}"


class _Listener(EngineClient):
    """Receives the engine's ticks and sends no request."""

    tick: Tick | None = None

    def _handle(self, message: FromEngine) -> None:
        if isinstance(message, Tick):
            self.tick = message
        super()._handle(message)


class Soak:
    """Measures one stack until closed."""

    def __init__(self, stack: FaultStack) -> None:
        self._stack = stack
        settings = Settings(state_dir=stack.process.state_dir, models_dir=stack.folder / "models")
        self._listener = _Listener(engine_endpoint(settings, "fake", "cpu"), "soak")

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def numbers(self) -> dict[str, float]:
        """Return the numbers of all processes now."""
        found = {}
        for role in OURS:
            process = self._stack.find(role)
            found[f"{role}: memory, MiB"] = process.memory_info().rss / _MIB
            found[f"{role}: open files"] = process.num_fds()
        redis: Any = self._stack.redis.info()  # Any: redis-py's reply
        lasting, expiring_bytes = self._keys()
        found["valkey: memory, MiB"] = (redis["used_memory"] - expiring_bytes) / _MIB
        found["valkey: clients"] = redis["connected_clients"]
        found["valkey: lasting keys"] = lasting
        found["valkey: channels of jobs"] = len(self._stack.redis.pubsub_channels("*job:*"))
        found["postgres: connections"] = self._stack.query(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )[0][0]
        tick = self._next_tick()
        return {**found, "engine: in slots": tick.num_running, "engine: waiting": tick.num_waiting}

    def _keys(self) -> tuple[int, int]:
        """Return the number of keys without an expiry, and the bytes of those with one."""
        with self._stack.redis.pipeline(transaction=False) as pipeline:
            for key in self._stack.redis.scan_iter(count=1000):
                pipeline.ttl(key)
                pipeline.memory_usage(key)
            answers: list[Any] = pipeline.execute()  # Any: redis-py's reply; a key may be deleted meanwhile
        expiring = [size or 0 for ttl, size in zip(answers[::2], answers[1::2], strict=True) if ttl >= 0]
        return answers[::2].count(-1), sum(expiring)

    def _next_tick(self) -> Tick:
        self._listener.tick = None
        wait_for(lambda: self._listener.tick is not None, "the engine ticks", 20)
        assert self._listener.tick is not None
        return self._listener.tick

    def compare(self, before: dict[str, float]) -> list[Measure]:
        """Compare with the numbers now."""
        return [Measure(name, before[name], after, limit(name, before[name])) for name, after in self.numbers().items()]


def limit(name: str, before: float) -> float:
    """Return the limit of a number at the end."""
    match name.rsplit(": ")[1]:
        case "memory, MiB":
            return before * (1 + _MEMORY_PART) + _MEMORY_MIB
        case "open files":
            return before + _MORE_FILES
        case "connections" | "clients":
            return before + _MORE_CONNECTIONS
        case "lasting keys":
            return before + _MORE_KEYS
        case _:
            return before


def restart(stack: FaultStack, role: Role) -> None:
    """Restart a process as an operator would; return when it is ready again."""
    if role in SERVICES:
        with stack.without(role, signal.SIGINT if role is Role.POSTGRES else signal.SIGTERM):
            pass
        return
    if role is Role.ENGINE:  # an engine has no graceful shutdown of its own
        stack.restart(role)
        return
    old = stack.pid(role)
    stack.send(role, signal.SIGTERM)
    wait_for(lambda: stack.find(role).pid != old, f"another {role}", 60)


@contextmanager
def load(stack: FaultStack, seed: int, ends: Counter[str]) -> Iterator[None]:
    """Run batches and chats during the block; `ends` counts the results of the chats."""
    with Chats(stack, threads=3) as chats, Batches(stack, seed, lines=(20, 100)):
        yield
    ends.update(chats.ends)


def soak(folder: Path, seconds: float, report: Callable[[str], None] = print) -> list[Measure]:
    """Run a stack under load for this time; raises AssertionError when something was lost or has grown."""
    ends: Counter[str] = Counter()
    with FaultStack(folder) as stack, closing(Oracle(stack)) as oracle, closing(Soak(stack)) as meter:
        measures = _measured(stack, oracle, meter, seconds, ends, report)
    report(f"{'':<28} {'warm':>9} {'end':>9} {'at most':>9}")
    for measure in measures:
        report(str(measure))
    report(f"chats: {dict(ends)}")
    grown = [measure.name for measure in measures if not measure.is_flat]
    assert not grown, f"grown: {', '.join(grown)}"
    return measures


def _measured(
    stack: FaultStack, oracle: Oracle, meter: Soak, seconds: float, ends: Counter[str], report: Callable[[str], None]
) -> list[Measure]:
    warm_seconds = min(_WARM_PART * seconds, _LONGEST_WARM_SECONDS)
    with load(stack, 1, ends):
        time.sleep(warm_seconds)
    oracle.check(END_SECONDS)
    before = meter.numbers()
    began, left = time.monotonic(), seconds - warm_seconds
    with load(stack, 2, ends):
        for number, role in enumerate(_ORDER):  # in the first half
            _sleep_until(began + left / 2 * number / len(_ORDER))
            restart(stack, role)
            report(f"{time.monotonic() - began:6.0f} s  {role} was restarted")
        _sleep_until(began + left)
    oracle.check(END_SECONDS)
    with suppress(AssertionError):  # values that are still too large are reported by name
        wait_for(
            lambda: all(measure.is_flat for measure in meter.compare(before)),
            "the numbers fall below their limits",
            _REST_SECONDS,
        )
    return meter.compare(before)


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Load a stack for a long time, and check that nothing grows.")
    parser.add_argument("--minutes", type=float, default=10)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak(Path(folder), parser.parse_args().minutes * 60)
    print("nothing has grown, nothing was lost")


if __name__ == "__main__":
    main()
