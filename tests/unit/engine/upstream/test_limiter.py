"""The limit of one server, against simulated servers."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest

from engine.upstream.limiter import FIRST_LIMIT, MAX_LIMIT, Limiter
from tests.support.clock import Clock


class Simulation:
    """A server of `capacity` requests at a time, each of which takes `seconds`; more of them queue there.

    `slowdown(running)` multiplies the time, as for a server that computes its requests side by side.
    """

    def __init__(
        self,
        capacity: int,
        seconds: float = 0.005,
        *,
        slowdown: Callable[[int], float] = lambda _: 1.0,
        refuses_above: int | None = None,
        fixed: int | None = None,
    ) -> None:
        self.clock = Clock(0.0)
        self.limiter = Limiter(self.clock, fixed)
        self.capacity = capacity
        self._seconds = seconds
        self._slowdown = slowdown
        self._refuses_above = refuses_above
        self._ends: list[tuple[float, int]] = []
        self._free = [0.0] * capacity
        self._random = random.Random(1)
        self.num_answers = 0
        self.limits: list[tuple[float, int]] = []

    def run(self, seconds: float) -> float:
        """Keep it full for a while; returns the answers per second."""
        until, before = self.clock.now + seconds, self.num_answers
        while self.clock.now < until:
            while len(self._ends) < self.limiter.limit:
                self._send()
            self.clock.now, epoch = heapq.heappop(self._ends)
            if self._refuses_above is not None and len(self._ends) >= self._refuses_above:
                self.limiter.add_overload(epoch)
                continue
            self.num_answers += 1
            self.limiter.add_answer(epoch, 10, is_full=True)
            self.limits.append((self.clock.now, self.limiter.limit))
        return (self.num_answers - before) / seconds

    def refuse_until(self, now: float) -> None:
        """Refuse all requests, one each tenth of a second."""
        while self.clock.now < now:
            self.clock.now += 0.1
            self.limiter.add_overload(self.limiter.epoch)

    def _send(self) -> None:
        running = len(self._ends) + 1
        seconds = self._seconds * self._slowdown(running) * self._random.uniform(0.8, 1.2)
        if len(self._free) > self.capacity:
            self._free = sorted(self._free)[-self.capacity :]
        end = max(self.clock.now, heapq.heappop(self._free)) + seconds
        heapq.heappush(self._free, end)
        heapq.heappush(self._ends, (end, self.limiter.epoch))

    def limits_since(self, now: float) -> list[int]:
        return [limit for at, limit in self.limits if at >= now]


@pytest.mark.parametrize("capacity", [1, 4, 16, 60, 200])
def test_full_throughput_is_found_within_ten_seconds_and_kept(capacity: int) -> None:
    seconds = 0.005 if capacity < 50 else 0.02
    server = Simulation(capacity, seconds)
    server.run(10)
    assert server.run(10) >= 0.9 * capacity / seconds


@pytest.mark.parametrize("capacity", [1, 4, 16, 60])
def test_the_limit_stays_near_the_smallest_one_with_full_throughput(capacity: int) -> None:
    server = Simulation(capacity, 0.02)
    server.run(60)
    server.run(20)
    limits = server.limits_since(60)
    assert sum(limits) / len(limits) <= max(3.0, 1.5 * capacity)


def test_a_server_that_computes_its_requests_together_is_filled_while_that_pays() -> None:
    """A step takes a millisecond, and 2 % more for each request in it, so throughput grows with all of them."""
    server = Simulation(256, 0.1, slowdown=lambda running: 1 + running / 50)
    server.run(60)
    assert server.limiter.limit >= 100


def test_refusals_halve_the_limit_and_it_stays_below_what_was_refused() -> None:
    server = Simulation(64, refuses_above=20)
    server.run(30)
    assert server.run(20) >= 0.8 * 20 / 0.005
    assert max(server.limits_since(40)) <= 22


def test_a_server_that_refused_everything_for_a_while_is_soon_filled_again() -> None:
    server = Simulation(16)
    server.refuse_until(2)
    assert server.limiter.limit == 1
    server.run(10)
    assert server.run(5) >= 0.9 * 16 / 0.005


def test_many_refusals_of_one_moment_halve_it_once() -> None:
    limiter = Limiter(Clock())
    epoch = limiter.epoch
    for _ in range(FIRST_LIMIT):
        limiter.add_overload(epoch)
    assert limiter.limit == FIRST_LIMIT // 2


def test_the_limit_is_never_below_one_or_above_the_largest() -> None:
    limiter = Limiter(Clock())
    for _ in range(20):
        limiter.add_overload(limiter.epoch)
    assert limiter.limit == 1
    server = Simulation(2000, 0.2)
    server.run(20)
    assert server.limiter.limit == MAX_LIMIT


def test_a_limit_that_is_not_used_does_not_change() -> None:
    clock = Clock()
    limiter = Limiter(clock)
    for _ in range(1000):
        clock.now += 0.01
        limiter.add_answer(limiter.epoch, 10, is_full=False)
    assert limiter.limit == FIRST_LIMIT


def test_a_fixed_limit_never_changes() -> None:
    server = Simulation(16, fixed=5, refuses_above=3)
    server.run(5)
    assert {limit for _, limit in server.limits} <= {5}
    assert server.limiter.limit == 5


def test_the_limit_is_halved_soon_when_others_take_a_part_of_the_server() -> None:
    server = Simulation(32)
    server.run(15)
    before = server.limiter.limit
    server.capacity = 8
    server.run(0.7)
    assert server.limiter.limit <= before / 2
