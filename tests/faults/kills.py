"""Kill processes a hundred times during one batch: `python -m tests.faults.kills --seed 7 --kills 100 --lines 5000`.

Sends SIGKILL at random moments to any process of the stack, while chats run and a worker of another machine (with its own
state
folder) takes part. The oracle checks the end; printed is the time until other processes continued the work of the killed
ones.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import psutil

from tests.faults.chaos import END_SECONDS, OUR_CRASHES, OURS, SERVICES
from tests.faults.load import Chats, start_batch, wait_batch
from tests.faults.oracle import Oracle
from tests.faults.second_worker import second_worker
from tests.faults.stack import FaultStack, Role
from tests.support.stack import wait_for

_MODEL: Final = "name: fake\nbackend: fake\nslots: 8\nstep_seconds: 0.002\n"
_LONGEST_SECONDS: Final = 120.0


@dataclass(slots=True)
class Kills:
    """Kills during one batch. `seconds` has the times until the work continued, by the role that was killed."""

    stack: FaultStack
    random: random.Random
    done: Counter[Role] = field(default_factory=Counter)
    seconds: dict[Role, list[float]] = field(default_factory=lambda: defaultdict(list))

    def run(self, number: int) -> None:
        """Kill one process after the other; after a worker or an engine, wait until its work continues."""
        while self.done.total() < number and self._is_running():
            time.sleep(self.random.uniform(0.1, 0.8))
            role = self.random.choice((*OURS, *SERVICES))
            try:
                self._kill(role)
            except (AssertionError, psutil.Error):  # the process is being restarted
                continue
            self.done[role] += 1

    def _kill(self, role: Role) -> None:
        if role in SERVICES:
            with self.stack.without(role):
                return
        held = self._held_by(self.stack.find(Role.BATCH).pid) if role in (Role.BATCH, Role.WORKER, Role.ENGINE) else {}
        self.stack.kill(role)
        began = time.monotonic()
        if not held:
            return
        has_continued = partial(self._has_grown if role is Role.ENGINE else self._has_moved, held)
        wait_for(has_continued, f"the work of the {role} continues", _LONGEST_SECONDS)
        self.seconds[role].append(time.monotonic() - began)

    def _held_by(self, pid: int) -> dict[str, tuple[int, int]]:
        """Return the fence and the finished lines of each shard that a consumer holds."""
        rows = self.stack.query(
            "SELECT shards.id, fence, lines_completed FROM shards JOIN workers ON owner = workers.id "
            "WHERE pid = :pid AND state = 'running'",
            pid=pid,
        )
        return {row[0]: (row[1], row[2]) for row in rows}

    def _has_moved(self, held: dict[str, tuple[int, int]]) -> bool:
        """Has each of these shards been claimed again?"""
        return all(fence > held[shard][0] for shard, fence, _ in self._now(held))

    def _has_grown(self, held: dict[str, tuple[int, int]]) -> bool:
        """Has a line of these shards ended since?"""
        return any(done > held[shard][1] for shard, _, done in self._now(held))

    def _now(self, held: dict[str, tuple[int, int]]) -> list[tuple[str, int, int]]:
        rows = self.stack.query("SELECT id, fence, lines_completed FROM shards WHERE id = ANY(:ids)", ids=list(held))
        return [tuple(row) for row in rows]

    def _is_running(self) -> bool:
        return bool(self.stack.query("SELECT 1 FROM batches WHERE status = 'in_progress'"))


def kills(folder: Path, seed: int, number: int, num_lines: int) -> None:
    """Run the kills. Raises AssertionError when a line is lost or doubled, or a chat gets a wrong response or none."""
    print(f"seed {seed}")
    with FaultStack(folder, model=_MODEL, **OUR_CRASHES) as stack, ExitStack() as ends:
        ends.enter_context(second_worker(stack))
        oracle = Oracle(stack)
        ends.callback(oracle.close)
        batch_id = start_batch(stack, num_lines)
        wait_batch(stack, batch_id, "in_progress")
        killing = Kills(stack, random.Random(seed))
        began = time.monotonic()
        with Chats(stack, threads=3) as chats:
            killing.run(number)
            (ended,) = stack.query("SELECT count(*) FROM jobs WHERE batch_id IS NOT NULL AND finished_at IS NOT NULL")[
                0
            ]
        print(
            f"{killing.done.total()} kills in {time.monotonic() - began:.0f} s; {ended} of {num_lines} lines had ended"
        )
        assert wait_batch(stack, batch_id, timeout_seconds=1200) == "completed"
        oracle.check(END_SECONDS)
        killed = ", ".join(f"{role} {number}" for role, number in sorted(killing.done.items()))
        print(f"killed: {killed}; chats: {dict(chats.ends)}, the longest {chats.longest_seconds:.1f} s")
        for role, seconds in killing.seconds.items():
            many = f"{len(seconds)} times"
            print(f"after the {role}: median {statistics.median(seconds):.2f} s, longest {max(seconds):.2f} s, {many}")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Kill processes during one batch, and check that nothing is lost.")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--lines", type=int, default=5000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        kills(Path(folder), arguments.seed, arguments.kills, arguments.lines)
    print("nothing was lost, doubled or leaked")


if __name__ == "__main__":
    main()
