"""Forecast of the turns of models that batches wait for."""

from __future__ import annotations

import pytest

from api.batches.model_turns import Forecast, ModelWork, forecast

TURN = 300.0


def resident(name: str, seconds: float | None = 0.0) -> ModelWork:
    return ModelWork(name=name, work_seconds=seconds, load_seconds=4.0, is_resident=True)


def waiting(name: str, seconds: float | None, *, load: float = 4.0, priority: int = 0) -> ModelWork:
    return ModelWork(name=name, work_seconds=seconds, load_seconds=load, priority=priority)


@pytest.mark.parametrize(
    ("works", "ready", "end"),
    [
        ([waiting("m", 60)], 4, 64),  # nothing is in memory
        ([resident("a"), waiting("m", 60)], 4, 64),  # an idle model leaves at once
        ([resident("a", 100), waiting("m", 60)], 104, 164),  # a batch that ends within its turn
        ([resident("a", 1000), waiting("m", 60)], 304, 364),  # one that does not
        ([resident("a", None), waiting("m", 60)], 304, 364),  # one of unknown length
        ([resident("a", 1000), resident("b", 50), waiting("m", 60)], 54, 114),  # the first place that is free
        ([resident("a", 10), waiting("b", 20), waiting("m", 60)], 38, 98),  # behind one that has waited for longer
        ([resident("a", 10), waiting("b", 20), waiting("m", 60, priority=1)], 14, 74),
        ([resident("a", 10), waiting("b", 1000), waiting("m", 60)], 318, 378),  # which gets a turn only
        ([resident("a", 900), waiting("m", 400)], 304, 304 + 300 + 4 + 300 + 4 + 100),  # turns of both
    ],
)
def test_a_model_is_ready_after_its_load_and_the_turns_before_it(
    works: list[ModelWork], ready: float, end: float
) -> None:
    assert forecast(works, "m", TURN) == Forecast(ready, end)


def test_a_model_that_loads_already_waits_for_its_load_alone() -> None:
    loading = ModelWork(name="m", work_seconds=60, load_seconds=4.0, is_loading=True)
    assert forecast([resident("a", 1000), waiting("b", 10), loading], "m", TURN) == Forecast(4, 64)


def test_without_a_measured_pace_the_end_is_not_known_and_the_load_is() -> None:
    assert forecast([resident("a", 10), waiting("m", None)], "m", TURN) == Forecast(14, None)


def test_weeks_of_work_of_many_models_are_forecast_in_bounded_time() -> None:
    works = [resident("a", 1e6), *(waiting(f"w{number}", 1e6) for number in range(50)), waiting("m", 1e6)]
    found = forecast(works, "m", TURN)
    assert found.ready_seconds == 300 + 50 * 304 + 4
    assert found.end_seconds is None


def test_an_unknown_model_has_no_forecast() -> None:
    assert forecast([resident("a", 10)], "m", TURN) == Forecast(None, None)
