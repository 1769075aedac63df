"""Activity: ticks of engines become rates, counters, and few writes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from core.counters import CounterName
from engine.process.protocol import Tick
from workers.launcher.engines.activity import ActivityReporter, TokenRates
from workers.launcher.engines.engine_reports import EngineReports


def tick(boot_id: str = "boot", **numbers: int) -> Tick:
    return Tick(boot_id=boot_id, **{"num_steps": 0, "num_running": 0, "num_waiting": 0, **numbers})


def test_rates_are_those_of_the_last_five_seconds() -> None:
    rates = TokenRates()
    found = [
        rates.add(tick(prompt_tokens=10 * n, output_tokens=min(20 * n, 200)), n * 0.5).output_tokens_per_second
        for n in range(31)
    ]
    assert found[0] == 0, "one tick has no rate"
    assert found[1] == found[10] == 40
    assert found[15] == 20, "it generated for half of the last five seconds"
    assert found[30] == 0
    assert rates.add(tick(prompt_tokens=310), 15.5).prompt_tokens_per_second == pytest.approx(20, abs=0.2)


def test_rates_begin_anew_with_another_engine() -> None:
    rates = TokenRates()
    rates.add(tick(output_tokens=5000), 0)
    assert rates.add(tick("next", output_tokens=3), 0.5).output_tokens_per_second == 0
    assert rates.add(tick("next", output_tokens=8), 1.0).output_tokens_per_second == 10


class Bench:
    """An engine of one model, which a test lets tick."""

    def __init__(self) -> None:
        self.reports = EngineReports()
        self.reports.add("m")
        self.reports.begin_load("m", 1)
        self.written: list[Any] = []
        self.reporter = ActivityReporter("launcher", self.reports, self.written.append)
        self.engine: Any = SimpleNamespace(name="m", load_id="l", client=SimpleNamespace(tick=None, ticked_at=0.0))

    def advance(self, now: float, new: Tick | None) -> None:
        self.engine.client = SimpleNamespace(tick=new, ticked_at=now)
        self.reporter.advance([self.engine], now)

    def counted(self) -> list[int]:
        totals = self.reports.counters.totals()
        names = (CounterName.PROMPT_TOKENS, CounterName.CACHED_PROMPT_TOKENS, CounterName.GENERATED_TOKENS)
        return [totals.get((name, "m"), 0) for name in names]


def test_an_activity_is_written_at_most_every_two_seconds_and_only_while_it_changes() -> None:
    bench = Bench()
    for n in range(13):
        bench.advance(n * 0.5, tick(output_tokens=n))
    assert len(bench.written) == 4, "at 0, 2, 4 and 6 seconds"
    for n in range(13, 60):
        bench.advance(n * 0.5, tick(output_tokens=12))
    at_rest = len(bench.written)
    assert at_rest <= 8, "until the rate has become 0"
    for n in range(60, 80):
        bench.advance(n * 0.5, tick(output_tokens=12))
    assert len(bench.written) == at_rest


def test_new_tokens_are_counted_once_also_across_engines_and_lost_connections() -> None:
    bench = Bench()
    bench.advance(0, tick(prompt_tokens=7, cached_tokens=2, output_tokens=1))
    bench.advance(1, tick(prompt_tokens=9, cached_tokens=2, output_tokens=4))
    assert bench.counted() == [9, 2, 4]
    bench.advance(2, None)
    bench.advance(3, tick(prompt_tokens=9, cached_tokens=2, output_tokens=5))
    assert bench.counted() == [9, 2, 5], "the same engine again"
    bench.advance(4, tick("next", prompt_tokens=3, cached_tokens=1, output_tokens=1))
    assert bench.counted() == [12, 3, 6]


def test_an_engine_that_does_not_answer_or_leaves_has_no_activity() -> None:
    bench = Bench()
    bench.advance(0, tick(num_running=3))
    (engine,) = bench.reports.status().engines
    assert engine.activity is not None
    assert engine.activity.num_running == 3
    bench.advance(2, None)
    assert bench.reports.status().engines[0].activity is None
    assert len(bench.written) == 2, "at once, so that no page shows the past"
    bench.advance(5, tick(num_running=1))
    bench.reports.set_unloaded("m")
    assert bench.reports.status().engines[0].activity is None
