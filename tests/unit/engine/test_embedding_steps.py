"""Embeddings in the loop: their steps alternate with those of generation, and a chat hardly waits for them."""

from __future__ import annotations

import numpy as np
import pytest

from core.settings import ROOT
from engine.backends.base import InputPiece
from engine.backends.fake.backend import FakeBackend, FakeDecoder, FakeEmbedder
from engine.backends.llama.backend import LlamaBackend
from engine.backends.vectors import Vectors
from engine.config import EngineConfig
from engine.loop import CancelRequests
from engine.scheduler.step import SampleResult, StepPlan
from engine.types import Delta, Embedded, Failed, Finished, Priority, RequestKey
from tests.support.clock import Clock
from tests.support.engine import Bench, chat


class LoggingDecoder(FakeDecoder):
    """Records the tokens of each step in the log that it shares with the embedder."""

    def __init__(self, log: list[tuple[str, int]]) -> None:
        super().__init__(slots=4, spare_slots=1)
        self._log = log

    def run(self, plan: StepPlan) -> list[SampleResult]:
        self._log.append(("step", plan.num_tokens))
        return super().run(plan)


class LoggingEmbedder(FakeEmbedder):
    def __init__(self, log: list[tuple[str, int]]) -> None:
        super().__init__()
        self._log = log

    def embed(self, pieces: list[InputPiece]) -> Vectors:
        self._log.append(("embed", sum(len(piece.tokens) for piece in pieces)))
        return super().embed(pieces)


class Steps(Bench):
    """A bench on the fake, with the `log` of its decodes and the recorded requests in flight."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []
        super().__init__(FakeBackend(LoggingDecoder(self.log), embedder=LoggingEmbedder(self.log)))
        self.inflight: list[list[RequestKey]] = []
        self.engine._record_inflight = self.inflight.append

    @property
    def last(self) -> tuple[str, int]:
        return self.log[-1]


class TimedDecoder(FakeDecoder):
    """Takes 10 ms for a row, and 1 ms for each other token."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(slots=4, spare_slots=1)
        self._clock = clock

    def run(self, plan: StepPlan) -> list[SampleResult]:
        self._clock.now += 0.001 * plan.num_tokens + 0.009 * len(plan.sampled)
        return super().run(plan)


class TimedEmbedder(FakeEmbedder):
    """Takes 1 ms for a token."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def embed(self, pieces: list[InputPiece]) -> Vectors:
        self._clock.now += 0.001 * sum(len(piece.tokens) for piece in pieces)
        return super().embed(pieces)


def test_embeddings_and_lines_of_a_batch_beside_a_chat_share_a_quarter_of_the_time() -> None:
    clock = Clock()
    embedder = TimedEmbedder(clock)
    bench = Bench(FakeBackend(TimedDecoder(clock), embedder=embedder), clock=clock, context_size=2048)
    for number in range(3):
        bench.add(chat(f"line {number}", str(number), max_tokens=1500, ignore_eos=True, priority=Priority.BATCH))
    bench.embed("e", *[[97] * 50] * 3000, priority=Priority.BATCH)
    for _ in range(10):
        bench.engine.run_once()
    bench.add(chat("hello", "chat", max_tokens=1000, ignore_eos=True, stream=True))
    counts, began = bench.engine.scheduler.counts, clock.now
    lines, embedded = counts.output, len(embedder.num_computed)
    while not any(isinstance(item, Finished) and item.request_id == "chat" for item in bench.outputs):
        bench.engine.run_once()
    seconds = clock.now - began
    assert 1000 * 0.01 / seconds >= 0.7
    assert 0.01 * (counts.output - lines - 1000) >= 0.08 * seconds
    assert 0.001 * sum(embedder.num_computed[embedded:]) >= 0.08 * seconds


@pytest.mark.parametrize("priority", Priority)
def test_an_iteration_is_one_decode_and_chat_waits_for_one_of_embeddings_at_most(priority: Priority) -> None:
    steps = Steps()
    steps.embed("e", *[[97] * 200] * 300, priority=priority)
    steps.engine.run_once()
    assert steps.log == [("embed", 400)], "two inputs of a step of 512 tokens"
    steps.add(chat("hello", stream=True))
    steps.engine.run_once()
    assert steps.last[0] == "step"
    assert any(isinstance(item, Delta) for item in steps.outputs), "the first token is sent before the next decode"
    for _ in range(10):
        steps.engine.run_once()
        assert steps.last == ("embed", 128)
        steps.engine.run_once()
        assert steps.last[0] == "step"


def test_no_batch_is_embedded_while_a_prompt_of_chat_is_computed_but_other_chat_is() -> None:
    for priority, expected in ((Priority.BATCH, ["step"] * 4), (Priority.CHAT, ["step", "embed", "step", "embed"])):
        steps = Steps()
        steps.engine.scheduler._step_builder._prefill_tokens = 16
        steps.embed("e", *[[97] * 200] * 300, priority=priority)
        steps.add(chat("a prompt of several chunks " * 10))
        for _ in range(4):
            steps.engine.run_once()
        assert [kind for kind, _ in steps.log] == expected


def test_embeddings_beside_batch_generation_have_every_second_step_of_full_size() -> None:
    steps = Steps()
    steps.embed("e", *[[97] * 200] * 300, priority=Priority.BATCH)
    steps.add(chat("hello", priority=Priority.BATCH))
    for _ in range(6):
        steps.engine.run_once()
    assert [kind for kind, _ in steps.log] == ["step", "embed"] * 3
    assert {size for kind, size in steps.log if kind == "embed"} == {400}


def test_the_log_of_requests_in_flight_names_those_of_the_current_decode() -> None:
    steps = Steps()
    steps.add(chat("hello", "g"))
    steps.embed("a", [97], [98])
    steps.embed("b", [97])
    steps.engine.run_once()
    steps.engine.run_once()
    assert [[name for _, name in keys] for keys in steps.inflight] == [["g"], ["a", "b"], []]


def test_a_request_that_is_cancelled_between_its_steps_ends_and_its_memory_is_free() -> None:
    steps = Steps()
    steps.embed("long", [97] * 2000, *[[97] * 2000] * 20)
    steps.engine.run_once()
    steps.engine.inbox.put(CancelRequests("c", ["long"]))
    steps.embed("next", [97] * 2048)
    steps.run()
    codes = [item.code if isinstance(item, Failed) else item.request_id for item in steps.outputs]
    assert codes == ["cancelled", "next"]


def test_a_failed_step_of_embeddings_leaves_generation_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps()
    embedder = steps.backend.embedder
    assert embedder is not None
    monkeypatch.setattr(embedder, "embed", lambda _: 1 / 0)
    steps.add(chat("hello", "g"))
    steps.embed("e", [97])
    finished = steps.run()
    assert finished["g"].text == Bench().ask("hello").text
    (failed,) = [item for item in steps.outputs if isinstance(item, Failed)]
    assert (failed.request_id, failed.code) == ("e", "engine_error")


@pytest.fixture(scope="module")
def demo() -> LlamaBackend:
    model = str(ROOT / "models" / "demo.gguf")
    return LlamaBackend(
        EngineConfig(model="demo", endpoint="", model_path=model, context_size=256, slots=4, embeddings=True)
    )


def test_the_demo_model_embeds_in_steps_beside_a_chat(demo: LlamaBackend) -> None:
    prompts = [[70 + (7 * index + step) % 900 for step in range(200)] for index in range(12)]
    alone = []
    for prompt in prompts:
        bench = Bench(demo, context_size=256)
        bench.embed("e", prompt)
        bench.run()
        alone.append(_vectors(bench)[0])
    bench = Bench(demo, context_size=256)
    bench.embed("e", *prompts)
    bench.engine.run_once()
    bench.add(chat("What is the capital of France?", "g", stream=True))
    bench.engine.run_once()
    assert any(isinstance(item, Delta) for item in bench.outputs)
    finished = bench.run()
    assert finished["g"].text == "The capital of France is Paris."
    assert np.allclose(_vectors(bench), alone, atol=2e-3)


def _vectors(bench: Bench) -> np.ndarray:
    (embedded,) = [item for item in bench.outputs if isinstance(item, Embedded)]
    return np.array([np.frombuffer(vector, "<f4") for vector in embedded.vectors])
