"""Memory of an engine process beyond its model, keys and values, and its growth over many requests."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import llama_cpp as llama
import psutil

from bench.engine import RunningEngine, greedy, running_engine
from bench.models import random_prompts
from engine.backends.llama.gguf import start_llama
from engine.backends.llama.memory import measure_slot
from engine.config import EngineConfig

_SLOTS: Final = 16
_SPARE: Final = 4
_CONTEXT: Final = 512
_GROUP: Final = 2000


def _kv_bytes(path: Path) -> int:
    """Bytes of keys and values of all slots, as llama.cpp reports them."""
    start_llama()
    model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
    cost = measure_slot(model, EngineConfig(model="m", endpoint="", model_path=str(path)))
    llama.llama_model_free(model)
    assert cost is not None
    return (_SLOTS + _SPARE) * _CONTEXT * cost.bytes_per_token


def _resident(engine: RunningEngine) -> int:
    return int(psutil.Process(engine.process.pid).memory_info().rss)


def memory(path: Path, requests: int, *, num_tokens: int) -> tuple[float, float]:
    """MiB beyond model and KV after the first requests, and the growth in MiB until the last."""
    fixed = path.stat().st_size + _kv_bytes(path)
    with running_engine(path, slots=_SLOTS, spare_slots=_SPARE, context_size=_CONTEXT) as engine:
        first = 0
        for start in range(0, requests, _GROUP):
            number = min(_GROUP, requests - start)
            prompts = random_prompts(number, 8, below=num_tokens, seed=start)
            engine.run(greedy(prompts, 4))
            first = first or _resident(engine)
        last = _resident(engine)
    return (first - fixed) / 2**20, (last - first) / 2**20
