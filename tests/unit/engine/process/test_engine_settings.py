"""The settings that an engine reports, with the speeds that were measured."""

from __future__ import annotations

import pytest

from engine.config import EngineConfig, KvLayout, Switch, Tuning
from engine.process.server import _settings

TUNING = Tuning(
    slots=4,
    kv_layout=KvLayout.SPLIT,
    flash_attention=Switch.AUTO,
    ubatch_tokens=512,
    row_seconds=[(1, 0.01), (4, 0.02), (16, 0.02)],
    prompt_seconds=[(64, 0.02), (512, 0.1)],
    depth=64,
    seconds=1.0,
)


@pytest.mark.parametrize(("slots", "speed"), [(1, 100.0), (4, 200.0), (8, 200.0), (16, 800.0)])
def test_the_speed_of_answers_is_that_of_as_many_as_there_are_slots(slots: int, speed: float) -> None:
    settings = _settings(EngineConfig(model="m", endpoint="", tuning=TUNING), slots, is_measuring=False)
    assert (settings.decode_speed, settings.prompt_speed, settings.depth) == (speed, 5120.0, 64)


def test_without_a_measurement_there_is_no_speed() -> None:
    settings = _settings(EngineConfig(model="m", endpoint=""), 8, is_measuring=True)
    assert (settings.decode_speed, settings.prompt_speed, settings.depth) == (None, None, None)
    assert settings.is_measuring
