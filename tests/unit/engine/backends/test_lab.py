"""The lab of llama.cpp on the demo model: a whole search, and an engine that goes on with its result."""

from __future__ import annotations

import math
import platform
import time
from typing import Any

import msgspec
import psutil
import pytest

from core.settings import ROOT
from engine.backends.llama.backend import LlamaBackend
from engine.backends.llama.context import decoding_context
from engine.config import AUTO_SLOTS, EngineConfig, KvLayout, Switch, Tuning, tuned
from engine.errors import ModelFailed
from engine.loop import EngineLoop
from engine.tuning.lab import Choice, Prompt, Rows, SetUp, Spread
from engine.tuning.tuner import Tuner, tuning_steps
from engine.types import Finished, Priority
from tests.support.engine import Bench, chat

CONFIG = EngineConfig(
    model="demo",
    endpoint="",
    model_path=str(ROOT / "models" / "demo.gguf"),
    context_size=256,
    slots=AUTO_SLOTS,
    most_slots=6,
    tunable=("slots", "kv_layout", "flash_attention", "ubatch_tokens", "prefill_tokens"),
    threads=1,
)
TICKETS = [f"Ticket {number}: my {what} does not work" for number, what in enumerate(["mouse", "screen", "login"] * 5)]


def load() -> LlamaBackend:
    return LlamaBackend(CONFIG)


def bench_of(backend: LlamaBackend) -> Bench:
    return Bench(backend, context_size=CONFIG.context_size, slots=backend.decoder.slots)


def quiet_tuner(backend: LlamaBackend) -> Tuner:
    """A tuner that takes no other process for a disturbance."""
    assert backend.lab is not None
    lab = backend.lab
    return Tuner(lab, lambda: tuning_steps(lab, CONFIG), cpu_clock=lambda: 1e9 * time.perf_counter())


def test_a_search_on_a_real_model_ends_with_settings_that_serve() -> None:
    backend = load()
    tuner = quiet_tuner(backend)
    before = psutil.Process().memory_info().rss
    while tuner.is_running:
        tuner.step()
    if platform.libc_ver()[0] == "glibc":
        assert psutil.Process().memory_info().rss - before < 16 << 20, "the memory of a search is given back"
    found = tuner.result
    assert found is not None
    sizes = [size for size, _ in found.row_seconds]
    assert found.slots in sizes
    assert all(seconds > 0 for _, seconds in [*found.row_seconds, *found.prompt_seconds])
    assert {1, 2, 4, 8, 16} <= set(sizes)


@pytest.mark.parametrize("layout", [KvLayout.SPLIT, KvLayout.UNIFIED])
def test_sequences_of_a_lab_have_cells_of_their_own(layout: KvLayout) -> None:
    lab = load().lab
    assert lab is not None
    assert lab.most_sequences(64) >= 16
    choice = Choice(kv_layout=layout, flash_attention=Switch.AUTO, ubatch_tokens=64)
    assert lab.compute(SetUp(choice=choice, sequences=4, cells=64))
    assert lab.compute(Prompt(20))
    assert lab.compute(Spread())
    for _ in range(200):
        assert lab.compute(Rows(4)), "a token is forgotten after its step"
    assert lab.compute(Prompt(60)), "without room, the memory begins anew"
    assert not lab.compute(Prompt(4 * 256)), "a prompt beyond the room fails, and ends nothing"
    lab.close()
    lab.close()


def test_a_running_batch_goes_on_with_other_settings_and_gives_the_same_answers() -> None:
    plain = bench_of(load())
    for number, text in enumerate(TICKETS):
        plain.add(chat(text, str(number), priority=Priority.BATCH, max_tokens=12))
    expected = {name: each.text for name, each in plain.run().items()}

    backend = load()
    bench = bench_of(backend)
    assert backend.decoder.slots == 6
    for number, text in enumerate(TICKETS):
        bench.add(chat(text, str(number), priority=Priority.BATCH, max_tokens=12))
    for _ in range(8):
        bench.engine.run_once()
    assert backend.lab is not None
    _use(bench.engine, quiet_tuner(backend), slots=3)
    bench.engine.scheduler.check_integrity()
    assert (backend.decoder.slots, bench.engine.scheduler.num_running) == (3, 0)
    while bench.engine.run_once():
        bench.engine.scheduler.check_integrity()
        assert bench.engine.scheduler.num_running <= 3
    found = {each.request_id: each.text for each in bench.outputs if isinstance(each, Finished)}
    assert found == expected


def test_a_tuning_that_changes_nothing_keeps_the_memory() -> None:
    backend = load()
    assert backend.lab is not None
    assert not backend.lab.apply(tuned(CONFIG, _tuning(slots=40)))
    assert backend.decoder.slots == 6, "memory and the launcher allow no more"
    assert backend.lab.apply(tuned(CONFIG, _tuning(slots=2)))
    assert backend.decoder.slots == 2


def _tuning(slots: int) -> Tuning:
    return Tuning(
        slots=slots,
        kv_layout=KvLayout.AUTO,
        flash_attention=Switch.AUTO,
        ubatch_tokens=512,
        row_seconds=[(1, 0.001)],
        prompt_seconds=[(16, 0.001)],
        depth=32,
        seconds=math.pi,
    )


def _use(engine: EngineLoop, tuner: Tuner, *, slots: int) -> None:
    engine._config = CONFIG
    tuner.result = _tuning(slots)
    engine._use(tuner, tuned(CONFIG, tuner.result))


@pytest.mark.parametrize("num_failures", [1, 2])
def test_settings_without_room_bring_the_old_memory_back_or_end_the_process(
    num_failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = load()
    failures = iter(range(num_failures))

    def make(model: Any, config: EngineConfig, sequences: int) -> Any:  # Any: pointers
        if next(failures, None) is not None:
            raise ModelFailed("no room")
        return decoding_context(model, config, sequences)

    monkeypatch.setattr("engine.backends.llama.decoder.decoding_context", make)
    assert backend.lab is not None
    with pytest.raises(ModelFailed if num_failures == 1 else MemoryError):
        backend.lab.apply(msgspec.structs.replace(CONFIG, kv_layout=KvLayout.UNIFIED))
    if num_failures == 1:
        assert bench_of(backend).ask("hello", max_tokens=4).text


def test_settings_that_need_larger_buffers_come_with_the_next_load() -> None:
    backend = load()
    assert backend.lab is not None
    large = msgspec.structs.replace(_tuning(slots=3), flash_attention=Switch.OFF, ubatch_tokens=4096)
    assert backend.lab.apply(tuned(CONFIG, large)), "the memory of fewer slots is a new one"
    serving = backend.lab.config
    assert (serving.slots, serving.ubatch_tokens, serving.flash_attention) == (3, CONFIG.ubatch_tokens, Switch.AUTO)
    assert bench_of(backend).ask("hello", max_tokens=4).text


@pytest.mark.parametrize("context_shift", [False, True])
def test_memory_that_is_shifted_stays_split(*, context_shift: bool) -> None:
    config = msgspec.structs.replace(CONFIG, context_shift=context_shift)
    assert LlamaBackend(config).decoder.traits.can_change_layout is not context_shift
