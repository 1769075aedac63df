"""When an engine is taken for deaf."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any

from workers.launcher.health_check import LOAD_SECONDS, HealthCheck


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


def hear(engine: Any, seconds: range, *, answers: bool, silence_seconds: float = 10) -> HealthCheck:
    hearing = HealthCheck(engine, engine, silence_seconds)
    look(hearing, engine, seconds, answers=answers)
    return hearing


def look(hearing: HealthCheck, engine: Any, seconds: range, *, answers: bool) -> None:
    for now in seconds:
        if answers:
            engine.answered_at = float(now)
        hearing.look(now)


def test_one_that_answers_is_left_alone() -> None:
    hear(engine := Engine(), range(1000), answers=True)
    assert not engine.signals


def test_one_that_answers_no_more_is_ended_once() -> None:
    hearing = hear(engine := Engine(), range(20), answers=True)
    look(hearing, engine, range(20, 30), answers=False)
    assert not engine.signals
    look(hearing, engine, range(30, 36), answers=False)
    assert engine.signals == [signal.SIGKILL]


def test_one_that_loads_has_longer() -> None:
    hearing = hear(engine := Engine(), range(int(LOAD_SECONDS)), answers=False)
    assert not engine.signals
    look(hearing, engine, range(int(LOAD_SECONDS), int(LOAD_SECONDS) + 3), answers=False)
    assert engine.signals


def test_the_next_one_loads_anew() -> None:
    hearing = hear(engine := Engine(), range(20), answers=True)
    engine.child = None
    look(hearing, engine, range(20, 60), answers=False)
    engine.child = engine
    look(hearing, engine, range(60, 200), answers=False)
    assert not engine.signals


def test_who_stood_still_itself_blames_nobody() -> None:
    hearing = hear(engine := Engine(), range(20), answers=True)
    look(hearing, engine, range(5000, 5008), answers=False)
    assert not engine.signals
