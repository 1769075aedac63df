"""Readiness checks on worker reports."""

from __future__ import annotations

from typing import Any

import pytest

from core.readiness import (
    ModelPlace,
    ModelState,
    ModelStatus,
    WorkerSeen,
    check_workers,
    model_place,
    model_state,
    too_large,
)
from core.states import EngineState

SILENCE = 60.0


def worker(kind: str, **changes: Any) -> WorkerSeen:
    fields: dict[str, Any] = {
        "id": kind,
        "kind": kind,
        "host": "box",
        "pid": 1,
        "started_seconds": 1000.0,
        "seen_seconds": 3.0,
        "poll_seconds": 9.0,
        "model": None if kind == "clerk" else "m",
        "tick_seconds": None if kind in ("clerk", "launcher") else 0.4,
        "num_deaths": 0,
        "exit_reason": None,
    }
    return WorkerSeen(**(fields | changes))


CHAT, BATCH, CLERK = worker("chat"), worker("batch"), worker("clerk")


def trouble(*seen: WorkerSeen, degraded: dict[str, str] | None = None) -> dict[str, tuple[str, str]]:
    checks = check_workers(seen, ["m"], SILENCE, degraded or {})
    return {check.name: (check.message, check.advice) for check in checks if check.message}


def test_a_clerk_and_workers_that_look_for_work_are_all_it_takes() -> None:
    assert trouble(CHAT, BATCH, CLERK) == {}


@pytest.mark.parametrize(
    ("seen", "said", "advised"),
    [
        ([CLERK], "no chat worker serves it", "millrace worker --models m"),
        ([CLERK, CHAT], "no batch worker serves it", "millrace worker --models m"),
        (
            [CLERK, CHAT, worker("batch", seen_seconds=61.0)],
            "its batch worker sent its last heartbeat 61 s ago",
            "batch.log",
        ),
        ([CLERK, worker("chat", poll_seconds=70.0), BATCH], "has not polled for work for 70 s", "chat.log"),
        ([CLERK, worker("chat", poll_seconds=None), BATCH], "has not polled for work for 1000 s", "chat.log"),
        ([CLERK, CHAT, worker("batch", tick_seconds=99.0)], "its engine's loop has not run for 99 s", "engine-m.log"),
        (
            [CLERK, CHAT, worker("batch", tick_seconds=99.0), worker("launcher", device="cuda:1")],
            "its engine's loop has not run for 99 s",
            "(batch@cuda:1.log, engine-m@cuda:1.log)",
        ),
        ([CLERK, worker("chat", model="other"), BATCH], "no chat worker serves it", "--models m"),
    ],
)
def test_a_model_without_workers_is_named_with_the_reason(seen: list[WorkerSeen], said: str, advised: str) -> None:
    message, advice = trouble(*seen)["model m"]
    assert said in message
    assert advised in advice


def test_a_worker_that_has_just_started_is_given_its_time() -> None:
    assert trouble(CLERK, BATCH, worker("chat", poll_seconds=None, started_seconds=5.0)) == {}


def test_one_worker_that_works_is_enough_whatever_the_state_of_the_others() -> None:
    dead = [worker(kind, id=f"dead-{kind}", seen_seconds=3000.0) for kind in ("chat", "batch", "clerk")]
    assert trouble(*dead, CHAT, BATCH, CLERK) == {}


def test_without_a_clerk_batches_wait() -> None:
    assert trouble(CHAT, BATCH)["clerk"][0] == "there is none"
    assert "has not polled for work" in trouble(CHAT, BATCH, worker("clerk", poll_seconds=100.0))["clerk"][0]


def test_an_engine_that_cannot_load_is_named_with_its_exit_reason() -> None:
    message, advice = trouble(CLERK, launcher(EngineState.FAILED))["model m"]
    assert message == "its engine does not start: a.gguf is not a model."
    assert advice.startswith("Correct the model's files")


def test_a_degraded_model_is_not_ready() -> None:
    assert trouble(CHAT, BATCH, CLERK, degraded={"m": "9 crashes"})["model m"][0] == "is degraded: 9 crashes"
    assert trouble(CHAT, BATCH, CLERK, degraded={"another": "9 crashes"}) == {}


def launcher(state: EngineState, **changes: Any) -> WorkerSeen:
    reason = "a.gguf is not a model." if state in (EngineState.FAILED, EngineState.MISSING) else None
    return worker("launcher", **({"state": state, "exit_reason": reason} | changes))


def state_of(*seen: WorkerSeen, listed: tuple[str, ...] = ("m",)) -> ModelState:
    return model_state(seen, "m", SILENCE, listed=listed)


@pytest.mark.parametrize(
    ("seen", "status"),
    [
        ([CHAT, BATCH, launcher(EngineState.READY)], ModelStatus.READY),
        ([CHAT, BATCH, launcher(EngineState.LOADING)], ModelStatus.READY),  # an engine that restarts is waited for
        ([CHAT, BATCH, launcher(EngineState.FAILED)], ModelStatus.FAILED),  # before its last tick is old
        ([launcher(EngineState.LOADING)], ModelStatus.LOADING),
        ([worker("chat", tick_seconds=70.0), BATCH, launcher(EngineState.LOADING)], ModelStatus.LOADING),
        ([launcher(EngineState.LOADING, seen_seconds=70.0)], ModelStatus.UNSERVED),
        ([launcher(EngineState.FAILED)], ModelStatus.FAILED),
        ([launcher(EngineState.FAILED, seen_seconds=70.0)], ModelStatus.FAILED),  # its worker has ended because of it
        ([launcher(EngineState.MISSING)], ModelStatus.MISSING),
        ([launcher(EngineState.MISSING), launcher(EngineState.FAILED, id="b")], ModelStatus.FAILED),
        ([launcher(EngineState.FAILED), launcher(EngineState.LOADING, id="b")], ModelStatus.LOADING),
        ([launcher(EngineState.FAILED), launcher(EngineState.READY, id="b"), CHAT, BATCH], ModelStatus.READY),
        ([launcher(EngineState.FAILED, seen_seconds=70.0), CHAT, BATCH], ModelStatus.READY),
        ([worker("chat", seen_seconds=70.0), BATCH, launcher(EngineState.READY)], ModelStatus.UNSERVED),
        ([launcher(EngineState.UNLOADED)], ModelStatus.UNLOADED),
        ([CHAT, BATCH, launcher(EngineState.UNLOADED)], ModelStatus.UNLOADED),  # before its last tick is old
        ([launcher(EngineState.UNLOADED), launcher(EngineState.LOADING, id="b")], ModelStatus.LOADING),
        ([launcher(EngineState.UNLOADED), launcher(EngineState.READY, id="b"), CHAT, BATCH], ModelStatus.READY),
        ([launcher(EngineState.FAILED), launcher(EngineState.UNLOADED, id="b")], ModelStatus.UNLOADED),
        ([launcher(EngineState.UNLOADED, seen_seconds=70.0)], ModelStatus.UNSERVED),
        ([], ModelStatus.UNSERVED),
    ],
)
def test_the_status_of_a_model_is_that_of_its_best_worker(seen: list[WorkerSeen], status: ModelStatus) -> None:
    state = state_of(*seen)
    assert state.status is status
    assert bool(state.reason) is not state.is_serving


def test_a_model_without_a_file_is_missing_unless_a_worker_serves_it() -> None:
    assert state_of(listed=()).status is ModelStatus.MISSING
    assert state_of(launcher(EngineState.LOADING), listed=()).status is ModelStatus.MISSING
    assert state_of(CHAT, BATCH, listed=()).status is ModelStatus.READY


@pytest.mark.parametrize(
    ("seen", "is_available"),
    [
        ([CHAT, BATCH], True),
        ([launcher(EngineState.UNLOADED)], True),
        ([launcher(EngineState.LOADING, poll_seconds=0.5)], True),  # a request needs it
        ([launcher(EngineState.LOADING, poll_seconds=None)], False),  # the worker starts
        ([launcher(EngineState.LOADING, poll_seconds=0.5, exit_reason="it was ended by SIGSEGV")], False),
        ([launcher(EngineState.FAILED)], False),
    ],
)
def test_a_model_that_loads_when_a_request_needs_it_is_available(seen: list[WorkerSeen], is_available: bool) -> None:
    assert state_of(*seen).is_available is is_available
    assert bool(trouble(CLERK, *seen)) is not is_available


def test_the_warning_of_an_engine_is_kept_with_its_model() -> None:
    state = state_of(CHAT, BATCH, launcher(EngineState.READY, warning="no template"))
    assert (state.status, state.warning, state.reason) == (ModelStatus.READY, "no template", "")
    for engine in (EngineState.LOADING, EngineState.UNLOADED, EngineState.READY):
        state = state_of(launcher(engine, warning="no template"))
        assert (state.is_serving, state.warning) == (False, "no template")


def test_the_place_of_a_model_is_that_of_all_its_living_engines() -> None:
    def engine(host: str, seen_seconds: float = 3.0, **fields: Any) -> WorkerSeen:
        return worker("launcher", host=host, seen_seconds=seen_seconds, state=EngineState.READY, **fields)

    first = engine("a", device="cuda:0", memory_bytes=100, slots=4, context_size=2048)
    second = engine("b", device="cuda:1", memory_bytes=50, slots=2, context_size=1024)
    silent = engine("c", seen_seconds=61.0, device="cpu", memory_bytes=9, slots=9, context_size=64)
    unloaded = engine("d")
    place = model_place([first, second, silent, unloaded, CHAT], "m", SILENCE)
    assert place == ModelPlace(devices=("cuda:0", "cuda:1"), memory_bytes=150, slots=6, context_size=1024)
    assert model_place([first], "other", SILENCE) == ModelPlace()


@pytest.mark.parametrize("remark", ["", " beside its pinned models"])
def test_a_model_that_no_device_has_memory_for_is_told_from_one_that_fails(remark: str) -> None:
    reason = too_large(300 << 20, "cuda:0", -5, remark)
    large = state_of(launcher(EngineState.FAILED, exit_reason=reason))
    assert (large.is_too_large, large.reason) == (True, reason)
    broken = launcher(EngineState.FAILED, exit_reason="a.gguf is broken", id="b")
    assert not state_of(launcher(EngineState.FAILED, exit_reason=reason), broken).is_too_large
    assert not state_of(broken).is_too_large
