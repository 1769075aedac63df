"""The demo model, exported from its GGUF to a folder, answers on both backends with the same text."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from engine.backends.base import Backend
from engine.backends.llama.backend import LlamaBackend
from engine.config import BackendKind, EngineConfig
from tests.support.engine import Bench, chat
from tests.support.tiny_folders import REASON
from tools.export_demo_hf import export

DEMO = Path(__file__).parents[4] / "models" / "demo.gguf"
COUNTRIES = (
    "France Peru Japan Chad Cuba Iran Germany Spain Italy Egypt Kenya Chile India China Norway Poland Greece Ghana"
)
THINGS, TROUBLES = ("invoice", "router", "account", "parcel"), ("broken", "wrong", "late", "missing", "locked")
PROMPTS = [
    *(f"What is the capital of {country}?" for country in COUNTRIES.split()),
    *(f"My {thing} is {trouble}. Please help." for thing, trouble in product(THINGS, TROUBLES)),
    "My name is Ada.",
    "Write a poem about grain.",
]


def answers(backend: Backend) -> list[str]:
    bench = Bench(backend, slots=8, context_size=1024)
    for number, prompt in enumerate(PROMPTS):
        bench.add(chat(prompt, str(number), max_tokens=40))
    finished = bench.run()
    return [finished[str(number)].text for number in range(len(PROMPTS))]


def test_both_backends_give_the_demo_models_answers(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason=REASON)
    from engine.backends.transformers.backend import TransformersBackend

    export(DEMO, tmp_path)
    config = EngineConfig(model="m", endpoint="", context_size=1024, slots=8, threads=1)
    of_gguf = answers(LlamaBackend(replaced(config, BackendKind.LLAMA, DEMO)))
    assert answers(TransformersBackend(replaced(config, BackendKind.TRANSFORMERS, tmp_path))) == of_gguf
    assert of_gguf[0] == "The capital of France is Paris."


def replaced(config: EngineConfig, backend: BackendKind, path: Path) -> EngineConfig:
    return EngineConfig(
        model=config.model,
        endpoint="",
        backend=backend,
        model_path=str(path),
        context_size=config.context_size,
        slots=config.slots,
        threads=config.threads,
    )
