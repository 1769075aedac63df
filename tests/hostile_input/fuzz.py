"""The fuzzer at full speed: `python -m tests.hostile_input.fuzz --requests 100000 [--seed 1]`.

Starts its own stack. A fifth of the number are lines of batches, up to 5,000 a file; the rest are concurrent requests. Prints
the counts of responses, and the memory of each process before and after. Fails on any 5xx, hang, echo or line without a
result, on a process that died, and on memory that grows from the first half to the second.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

import httpx2

from core.settings import MIB
from tests.hostile_input.checks import find_lost_lines, find_problem
from tests.hostile_input.mutations import (
    BATCHABLE,
    Fuzzed,
    body_request,
    create_request,
    form_request,
    line_with_odd_body,
    odd_line,
)
from tests.hostile_input.target import Target

IN_FLIGHT: Final = 32
HANG_SECONDS: Final = 60
LINES_PER_BATCH: Final = 5000
BATCH_SECONDS: Final = 600
MOST_GROWTH_BYTES: Final = 64 * MIB
_MAX_REPORTED: Final = 20


@dataclass
class FuzzResult:
    """Counts of responses, and problems."""

    answers: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")  # seconds, and the request that took them

    def record_problem(self, what: str) -> None:
        """Record a problem and print it."""
        self.problems.append(what)
        if len(self.problems) <= _MAX_REPORTED:
            report(f"! {what[:1000]}")


def report(text: str) -> None:
    """Print at once, so that the output of a long run can be followed."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def draw(rng: Random, file_id: str) -> Fuzzed:
    """Draw one request, mostly one with a JSON body."""
    kind = rng.random()
    if kind < 0.7:
        return body_request(rng)
    return form_request(rng) if kind < 0.9 else create_request(rng, file_id)


async def send(http: httpx2.AsyncClient, request: Fuzzed, result: FuzzResult) -> None:
    """Send a request and check the response."""
    headers = {"content-type": request.content_type.encode()} if request.content_type else {}
    began = time.monotonic()
    try:
        async with asyncio.timeout(HANG_SECONDS):  # in all, since a stream of keep-alives alone is a hang too
            answer = await http.post(request.path, content=request.content, headers=headers)  # type: ignore[arg-type]
    except (TimeoutError, httpx2.TimeoutException):
        result.record_problem(f"hang: {request}")
        return
    except httpx2.TransportError as error:
        result.record_problem(f"{type(error).__name__}: {request}")
        return
    result.slowest = max(result.slowest, (time.monotonic() - began, f"{request.path} {request.content[:200]!r}"))
    problem = find_problem(answer.status_code, answer.headers.get("content-type", ""), answer.content)
    if problem is not None:
        result.record_problem(f"{problem} of {request}")
    code = answer.json()["error"]["code"] if answer.status_code >= 400 and problem is None else ""
    result.answers[f"{answer.status_code} {request.path} {code}".rstrip()] += 1


async def send_all(target: Target, seed: int, number: int, file_id: str, result: FuzzResult) -> None:
    """Send many requests concurrently."""
    rng = Random(seed)
    left = iter(range(number))
    limits = httpx2.Limits(max_connections=IN_FLIGHT)
    headers = {"authorization": f"Bearer {target.owner.text}"}
    async with httpx2.AsyncClient(base_url=target.url, headers=headers, timeout=HANG_SECONDS, limits=limits) as http:

        async def one_after_another() -> None:
            for _ in left:
                await send(http, draw(rng, file_id), result)

        await asyncio.gather(*[one_after_another() for _ in range(IN_FLIGHT)])


def run_lines(target: Target, seed: int, number: int, result: FuzzResult) -> None:
    """Run one batch in which every line must have a result, and one small file of arbitrary lines."""
    rng = Random(seed)
    url = BATCHABLE[seed % len(BATCHABLE)]
    names = [f"l{n}" for n in range(number)]
    batch = target.batch_of(
        b"\n".join(line_with_odd_body(rng, name, url) for name in names), url, seconds=BATCH_SECONDS
    )
    result.answers[f"batch {url} {batch.status}"] += 1
    if batch.status != "completed":
        result.record_problem(f"a batch of good envelopes is {batch.status}: {batch.errors}")
        return
    output, errors = target.results(batch.output_file_id), target.results(batch.error_file_id)
    problem = find_lost_lines(names, batch.request_counts, output, errors)
    if problem is not None:
        result.record_problem(problem)
    result.answers[f"lines {url} 200"] += len(output)
    for line in errors:
        response = line["response"] or {"status_code": 0, "body": {"error": line["error"]}}
        result.answers[f"lines {url} {response['status_code']} {response['body']['error']['code']}"] += 1
    odd = target.batch_of(b"\n".join(odd_line(rng, n, url) for n in range(50)), url, seconds=BATCH_SECONDS)
    result.answers[f"batch of odd lines {odd.status}"] += 1


def memory(target: Target) -> dict[str, int]:
    """Return the resident bytes of each process."""
    return {name: process.memory_info().rss for name, process in target.programs().items()}


def fuzz(target: Target, requests: int, seed: int) -> FuzzResult:
    """Run two equal halves, so that growth can be distinguished from warm-up."""
    result = FuzzResult()
    file_id = target.upload(b"{}\n")
    levels = [memory(target)]
    num_lines = requests // 5
    for half in range(2):
        began = time.monotonic()
        asyncio.run(send_all(target, seed + half, (requests - num_lines) // 2, file_id, result))
        report(f"half {half + 1}: requests in {time.monotonic() - began:.0f} s")
        sizes = [LINES_PER_BATCH] * (num_lines // 2 // LINES_PER_BATCH) or [max(1, num_lines // 2)]
        for number, size in enumerate(sizes):
            run_lines(target, seed + 100 * half + number, size, result)
        levels.append(memory(target))
        seconds, what = result.slowest
        report(f"half {half + 1}: {time.monotonic() - began:.0f} s; slowest {seconds:.1f} s: {what}")
    for name in levels[0]:
        sizes_mib = [level[name] / MIB if name in level else None for level in levels]
        report(
            "MiB before, half, after: " + " ".join("gone" if s is None else f"{s:.0f}" for s in sizes_mib) + f"  {name}"
        )
        if None in sizes_mib:
            result.record_problem(f"a process ended: {name}")
        elif levels[2][name] - levels[1][name] > MOST_GROWTH_BYTES:
            result.record_problem(f"a process grows: {name}")
    target.check_alive()
    return result


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Send random requests and batch lines to a new stack.")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        target = Target(Path(folder))
        try:
            result = fuzz(target, arguments.requests, arguments.seed)
        finally:
            target.close()
    for what, number in sorted(result.answers.items()):
        report(f"{number:>8} {what}")
    report(f"{sum(result.answers.values())} answers, {len(result.problems)} problems, seed {arguments.seed}")
    sys.exit(bool(result.problems))


if __name__ == "__main__":
    main()
