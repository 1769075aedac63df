"""Reuse of computed prefixes on real models of each kind of memory: the same answers with less work."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.backends.llama import context, decoder
from engine.backends.llama.backend import LlamaBackend
from engine.config import EngineConfig, KvLayout
from engine.errors import ModelFailed
from engine.types import Finished, Priority, Request, SamplingParams, TokenPrompt
from tests.support.engine import Bench
from tests.support.tiny_models import TinyModel

CONTEXT = 256
NEAR = 0.03  # difference of two logprobs
KINDS = [
    (TinyModel.LLAMA, KvLayout.UNIFIED),
    (TinyModel.LLAMA, KvLayout.SPLIT),
    (TinyModel.GEMMA3, KvLayout.UNIFIED),
    (TinyModel.GEMMA3, KvLayout.SPLIT),
    (TinyModel.MAMBA, KvLayout.SPLIT),
    (TinyModel.JAMBA, KvLayout.UNIFIED),
    (TinyModel.JAMBA, KvLayout.SPLIT),
    (TinyModel.LFM2, KvLayout.SPLIT),
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join(kind))
def backend(request: pytest.FixtureRequest, tiny_models: Mapping[TinyModel, Path]) -> LlamaBackend:
    model, layout = request.param
    path = str(tiny_models[model])
    config = EngineConfig(
        model="tiny", endpoint="", model_path=path, context_size=CONTEXT, slots=4, spare_slots=2, kv_layout=layout
    )
    return LlamaBackend(config)


@pytest.fixture
def bench(backend: LlamaBackend) -> Bench:
    return Bench(backend, context_size=CONTEXT, slots=4)


DOCUMENT = [40 + n * 7 % 90 for n in range(100)]


def ask(name: str, tokens: list[int], **given: object) -> Request:
    values: dict[str, object] = {"sampling": SamplingParams(temperature=0), "max_tokens": 12, "ignore_eos": True}
    return Request(id=name, prompt=TokenPrompt(tokens=tokens), **{**values, **given})  # type: ignore[arg-type]


def single_run(backend: LlamaBackend, request: Request) -> str:
    """The answer of an engine without other requests."""
    bench = Bench(backend, context_size=CONTEXT, slots=4)
    bench.add(request)
    return bench.run()[request.id].text


def sure_start(backend: LlamaBackend, request: Request) -> str:
    """The answer of an engine without other requests, up to a near tie, which rounding in a larger step may decide."""
    bench = Bench(backend, context_size=CONTEXT, slots=4)
    bench.add(msgspec.structs.replace(request, logprobs=2))
    scored = bench.run()[request.id].choices[0].logprobs
    assert scored is not None
    sure = itertools.takewhile(lambda token: token.top[0].logprob - token.top[1].logprob > NEAR, scored)
    return b"".join(token.piece for token in sure).decode()


def questions(number: int, **given: object) -> list[Request]:
    return [ask(f"q{n}", [*DOCUMENT, 50 + n, 60, 70 + n], **given) for n in range(number)]


def test_questions_on_one_document_prefill_it_once_and_get_the_same_answers(
    backend: LlamaBackend, bench: Bench
) -> None:
    wanted = {request.id: single_run(backend, request) for request in questions(8)}
    bench = Bench(backend, context_size=CONTEXT, slots=4)
    for request in questions(8):
        bench.add(request)
    finished = bench.run()
    assert {key: item.text for key, item in finished.items()} == wanted
    assert len(set(wanted.values())) > 4
    assert sum(item.usage.cached_tokens for item in finished.values()) >= 7 * 100


@pytest.mark.parametrize("model", [TinyModel.LLAMA, TinyModel.GEMMA3])
def test_memory_is_shared_for_a_batch_that_begins_alike_and_its_answers_stay_the_same(
    model: TinyModel, tiny_models: Mapping[TinyModel, Path]
) -> None:
    config = EngineConfig(model="tiny", endpoint="", model_path=str(tiny_models[model]), context_size=CONTEXT, slots=4)
    backend = LlamaBackend(config)
    for requests, is_split in (
        (questions(12, priority=Priority.BATCH), False),
        ([ask(f"r{n}", DOCUMENT[n : n + 40], priority=Priority.BATCH) for n in range(40)], True),
    ):
        wanted = {request.id: sure_start(backend, request) for request in requests}
        bench = Bench(backend, context_size=CONTEXT, slots=4)
        for request in requests:
            bench.add(request)
        finished = bench.run()
        assert {key: finished[key].text[: len(start)] for key, start in wanted.items()} == wanted
        assert sum(map(len, wanted.values())) > 60, "near ties are few"
        assert backend.decoder.traits.is_split == is_split


def test_an_engine_without_room_for_another_layout_keeps_its_own(
    tiny_models: Mapping[TinyModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tiny_models[TinyModel.LLAMA])
    backend = LlamaBackend(EngineConfig(model="tiny", endpoint="", model_path=path, context_size=CONTEXT, slots=4))
    real = context.decoding_context

    def without_room(model: Any, config: EngineConfig, *sizes: int) -> Any:
        if config.kv_layout is KvLayout.UNIFIED:
            raise ModelFailed("no room")
        return real(model, config, *sizes)

    monkeypatch.setattr(decoder, "decoding_context", without_room)
    bench = Bench(backend, context_size=CONTEXT, slots=4)
    for request in questions(12, priority=Priority.BATCH):
        bench.add(request)
    assert len(bench.run()) == 12
    assert (backend.decoder.traits.is_split, backend.decoder.traits.can_change_layout) == (True, False)


def test_a_conversation_continues_from_its_history(backend: LlamaBackend, bench: Bench) -> None:
    prompt = DOCUMENT[:40]
    bench.add(ask("first", prompt))
    first = bench.run()["first"]
    answer = [int(token) for token in bench.encoder_tokens(first.text)]
    longer = [*prompt, *answer, 55, 66]
    bench.add(ask("second", longer))
    second = bench.run()["second"]
    assert second.text == single_run(backend, ask("second", longer))


def test_unrelated_prompts_in_one_slot_do_not_affect_each_other(backend: LlamaBackend, bench: Bench) -> None:
    requests = [ask(f"r{n}", [33 + (n * 31 + k * 17) % 90 for k in range(20 + n)]) for n in range(16)]
    for request in requests:
        bench.add(request)
    batched = {key: item.text for key, item in bench.run().items()}
    assert batched == {request.id: single_run(backend, request) for request in requests}


def test_a_paused_answer_is_unchanged(backend: LlamaBackend) -> None:
    requests = [
        ask(f"b{n}", [33 + (n * 31 + k * 17) % 90 for k in range(30)], max_tokens=40, priority=Priority.BATCH)
        for n in range(6)
    ]
    wanted = {request.id: sure_start(backend, request) for request in requests}
    bench = Bench(backend, context_size=CONTEXT, slots=4)
    for request in requests:
        bench.add(request)
    texts: dict[str, str] = {}
    num_paused = 0
    for n in range(8):
        for _ in range(6):
            bench.engine.run_once()
        num_paused += len(bench.engine.scheduler.running) < 4
        for k in range(3):
            bench.add(ask(f"chat{n}-{k}", [90 - n, 80 - k, 70], max_tokens=5))
    texts |= {item.request_id: item.text for item in bench.outputs if isinstance(item, Finished)}
    texts |= {key: item.text for key, item in bench.run().items()}
    assert {key: texts[key][: len(start)] for key, start in wanted.items()} == wanted
    assert sum(map(len, wanted.values())) > 60, "near ties are few"


def test_another_tenant_reuses_nothing(backend: LlamaBackend, bench: Bench) -> None:
    bench.add(ask("a", [*DOCUMENT, 50], tenant="one"))
    bench.run()
    bench.add(ask("b", [*DOCUMENT, 50], tenant="two"))
    assert bench.run()["b"].usage.cached_tokens == 0


def test_several_choices_come_from_one_prefill(bench: Bench) -> None:
    bench.add(ask("r", DOCUMENT, n=3, sampling=SamplingParams(temperature=1.5, seed=7)))
    finished = bench.run()["r"]
    assert len({choice.text for choice in finished.choices}) == 3
    bench.add(ask("again", DOCUMENT, n=3, sampling=SamplingParams(temperature=1.5, seed=7)))
    assert [choice.text for choice in bench.run()["again"].choices] == [choice.text for choice in finished.choices]


def test_a_window_that_has_passed_a_prefix_reuses_nothing_of_it(tiny_models: Mapping[TinyModel, Path]) -> None:
    """llama.cpp keeps at least 256 positions of the layers with a window, so only a long text loses one."""
    sizes: dict[str, Any] = {"context_size": 1024, "slots": 1, "spare_slots": 0, "ubatch_tokens": 32}
    path = str(tiny_models[TinyModel.GEMMA3])
    backend = LlamaBackend(EngineConfig(model="tiny", endpoint="", model_path=path, kv_layout=KvLayout.SPLIT, **sizes))
    bench = Bench(backend, prefill_tokens=32, **sizes)
    early, late = ask("early", [*DOCUMENT[:20], 99, 98]), ask("late", [*DOCUMENT * 8, 99, 98])
    wanted = {}
    for request in (early, late):
        bench.add(request)
        wanted[request.id] = bench.run()[request.id].text
    bench.add(early)
    finished = bench.run()["early"]
    assert (finished.text, finished.usage.cached_tokens) == (wanted["early"], 0)
    bench.add(late)
    bench.run()
    bench.add(late)
    finished = bench.run()["late"]
    assert (finished.text, finished.usage.cached_tokens) == (wanted["late"], 801)


def test_a_snapshot_of_the_last_step_of_an_answer_is_made_all_the_same(tiny_models: Mapping[TinyModel, Path]) -> None:
    """A slot is known to hold it, so the next prompt would go on from memory that is empty."""
    sizes: dict[str, Any] = {"context_size": 1024, "slots": 2, "spare_slots": 2, "threads": 1, "ubatch_tokens": 64}
    path = str(tiny_models[TinyModel.GEMMA3])
    backend = LlamaBackend(EngineConfig(model="tiny", endpoint="", model_path=path, kv_layout=KvLayout.SPLIT, **sizes))
    prompt = [*DOCUMENT, *reversed(DOCUMENT)]
    question = ask("question", prompt, max_tokens=30)
    alone = Bench(backend, **sizes)
    alone.add(question)
    expected = alone.run()["question"].text
    for num_tokens in range(backend.decoder.traits.slack - 74, backend.decoder.traits.slack - 68):
        bench = Bench(backend, **sizes)
        bench.add(ask("first", prompt, max_tokens=num_tokens))
        bench.run()
        bench.add(question)
        assert bench.run()["question"].text == expected, num_tokens
