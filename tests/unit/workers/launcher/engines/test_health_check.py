"""Health check: when an engine counts as unresponsive."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any

from workers.launcher.engines.health_check import LOAD_SECONDS, HealthCheck


@dataclass
class Engine:
    """Stands for a supervised engine, its child and its client."""

    name: str = "engine-m"
    answered_at: float = 0.0
    signals: list[signal.Signals] = field(default_factory=list)
    child: Any = None

    def __post_init__(self) -> None:
        self.child = self

    def send(self, number: signal.Signals) -> None:
        self.signals.append(number)


def checked(engine: Any, seconds: range, *, answers: bool, silence_seconds: float = 10) -> HealthCheck:
    health_check = HealthCheck(engine, engine, silence_seconds)
    check(health_check, engine, seconds, answers=answers)
    return health_check


def check(health_check: HealthCheck, engine: Any, seconds: range, *, answers: bool) -> None:
    for now in seconds:
        if answers:
            engine.answered_at = float(now)
        health_check.check(now)


def test_an_engine_that_answers_is_not_killed() -> None:
    checked(engine := Engine(), range(1000), answers=True)
    assert not engine.signals


def test_an_engine_that_stops_answering_is_killed_once() -> None:
    health_check = checked(engine := Engine(), range(20), answers=True)
    check(health_check, engine, range(20, 30), answers=False)
    assert not engine.signals
    check(health_check, engine, range(30, 36), answers=False)
    assert engine.signals == [signal.SIGKILL]


def test_a_loading_engine_has_longer() -> None:
    health_check = checked(engine := Engine(), range(int(LOAD_SECONDS)), answers=False)
    assert not engine.signals
    check(health_check, engine, range(int(LOAD_SECONDS), int(LOAD_SECONDS) + 3), answers=False)
    assert engine.signals


def test_a_restarted_engine_has_the_loading_time_again() -> None:
    health_check = checked(engine := Engine(), range(20), answers=True)
    engine.child = None
    check(health_check, engine, range(20, 60), answers=False)
    engine.child = engine
    check(health_check, engine, range(60, 200), answers=False)
    assert not engine.signals


def test_time_in_which_the_launcher_was_frozen_does_not_count() -> None:
    health_check = checked(engine := Engine(), range(20), answers=True)
    check(health_check, engine, range(5000, 5008), answers=False)
    assert not engine.signals
