"""Measured settings against a grid of fixed ones: `python -m bench tuning`.

Each row is the speed with the settings that an engine found by itself, over that of the best of the grid, on prompts that have
nothing in common.

MILLRACE_BENCH_GGUF names a further model.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.engine import RunningEngine, greedy, running_engine, salted
from bench.models import DEMO, QWEN05, SMOL135, random_prompts
from engine.config import AUTO_SLOTS, EngineConfig, KvLayout, Switch, Tuning, tuned
from engine.tuning.store import read_tuning
from engine.types import Request

TUNABLE: Final = ("slots", "kv_layout", "flash_attention", "ubatch_tokens", "prefill_tokens")
_SLOTS: Final = (4, 8, 16, 32)
_CONTEXT: Final = 1024
_OWN, _GENERATED, _REQUESTS = 64, 24, 64
_ROUNDS: Final = 2
_WAIT_SECONDS: Final = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningRow:
    """Tokens per second of the measured settings and of the best fixed ones."""

    model: str
    speed: float
    best_speed: float

    @property
    def ratio(self) -> float:
        return self.speed / self.best_speed


def measured(path: Path, **config: Any) -> Tuning:  # Any: fields of EngineConfig
    """What an idle engine measures for a model."""
    with tempfile.TemporaryDirectory(prefix="millrace-") as folder:
        file = Path(folder) / "tuning.json"
        with running_engine(path, tunable=TUNABLE, tuning_path=str(file), **config):
            began = time.monotonic()
            while (tuning := read_tuning(file)) is None:
                assert time.monotonic() - began < _WAIT_SECONDS, "other processes disturb the measurement"
                time.sleep(0.2)
        return tuning


def compare_tuning() -> Iterator[TuningRow]:
    """Rows of all models."""
    models = [("demo model", DEMO, 1000), ("smol135", SMOL135.path(), SMOL135.num_tokens - 8)]
    models.append(("qwen05", QWEN05.path(), QWEN05.num_tokens - 8))
    if given := os.environ.get("MILLRACE_BENCH_GGUF"):
        models.append((Path(given).stem, Path(given), 30_000))
    for name, path, below in models:
        yield _compare(name, path, greedy(random_prompts(_REQUESTS, _OWN, below=below), _GENERATED))


def _compare(name: str, path: Path, requests: list[Request]) -> TuningRow:
    common: dict[str, Any] = {"context_size": _CONTEXT, "threads": len(os.sched_getaffinity(0))}
    tuning = measured(path, slots=AUTO_SLOTS, **common)
    config = tuned(EngineConfig(model="", endpoint="", tunable=TUNABLE), tuning)
    own = {key: getattr(config, key) for key in TUNABLE if key != "slots"} | {"slots": tuning.slots}
    grid = {f"{slots} slots": {"slots": slots} for slots in _SLOTS}
    grid["unified memory"] = own | {"kv_layout": KvLayout.UNIFIED}
    grid["no flash attention"] = own | {"flash_attention": Switch.OFF}
    speeds: dict[str, list[float]] = {label: [] for label in ("measured", *grid)}
    with ExitStack() as stack:
        engines = {
            label: stack.enter_context(running_engine(path, **common, **given))
            for label, given in {"measured": own, **grid}.items()
        }
        for engine in engines.values():
            _speed(engine, requests[:4])
        for _ in range(_ROUNDS):
            for label, engine in engines.items():
                speeds[label].append(_speed(engine, requests))
    medians = {label: statistics.median(each) for label, each in speeds.items()}
    speed = medians.pop("measured")
    found = f"{tuning.slots} slots, {tuning.kv_layout}, flash attention {tuning.flash_attention}"
    others = ", ".join(f"{label} {value:.0f}" for label, value in medians.items())
    print(f"{name}: in {tuning.seconds:.1f} s, {found}: {speed:.0f} tokens/s; {others}", flush=True)
    return TuningRow(model=name, speed=speed, best_speed=max(medians.values()))


def _speed(engine: RunningEngine, requests: list[Request]) -> float:
    """Tokens per second of prompts and answers together."""
    seconds, countdown = engine.run(salted(requests))
    return (countdown.num_tokens + len(requests) * _OWN) / seconds
