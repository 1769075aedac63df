"""The answers of several engine requests of one job are joined into one."""

from __future__ import annotations

from typing import Any

from engine.process.client import EngineLost
from engine.types import Choice, Delta, EmbedRequest, Failed, Finished, FinishReason, Request, TextPrompt, Usage
from workers.generation.endpoints.base import EngineOutcome
from workers.generation.engine_call import EngineCall


class HeldEngine:
    """Holds each request until the test ends it."""

    def __init__(self, suffix: str = "") -> None:
        self.suffix = suffix  # of the ids that it gives to requests
        self.sinks: dict[str, Any] = {}
        self.cancelled: list[str] = []
        self.streamed: list[str] = []

    def submit(self, request: Request, sink: Any) -> str:
        self.sinks[request.id] = sink
        return request.id + self.suffix

    def embed(self, request: EmbedRequest, sink: Any) -> str:
        self.sinks[request.id] = sink
        return request.id + self.suffix

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def stream(self, request_id: str) -> None:
        self.streamed.append(request_id)

    def finish(self, request_id: str, *texts: str, reason: FinishReason = FinishReason.STOP) -> None:
        choices = [Choice(reason=reason, text=text, index=index) for index, text in enumerate(texts)]
        usage = Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)
        self.sinks[request_id].on_end(Finished(request_id=request_id, choices=choices, usage=usage))


class RecordingSink:
    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.ends: list[EngineOutcome] = []

    def on_delta(self, delta: Delta) -> None:
        self.deltas.append(delta)

    def on_end(self, outcome: EngineOutcome) -> None:
        self.ends.append(outcome)


def start(n: int = 1, requests: int = 2) -> tuple[HeldEngine, EngineCall, RecordingSink]:
    engine, sink = HeldEngine(), RecordingSink()
    ids = ["a", *(f"a.{number}" for number in range(1, requests))]
    requests_of_job = [Request(id=each, prompt=TextPrompt(text="x"), n=n) for each in ids]
    call = EngineCall(engine, requests_of_job, sink)  # type: ignore[arg-type]
    call.start()
    return engine, call, sink


def test_answers_are_numbered_by_prompt_whichever_ends_first() -> None:
    engine, _, sink = start(n=2)
    engine.finish("a.1", "three", "four")
    assert sink.ends == []
    engine.finish("a", "one", "two")
    (end,) = sink.ends
    assert isinstance(end, Finished)
    assert [(choice.index, choice.text) for choice in end.choices] == [
        (0, "one"),
        (1, "two"),
        (2, "three"),
        (3, "four"),
    ]
    assert end.request_id == "a"
    assert end.usage == Usage(prompt_tokens=6, completion_tokens=4, cached_tokens=2)


def test_deltas_of_the_second_prompt_have_the_next_indexes() -> None:
    engine, _, sink = start(n=2)
    engine.sinks["a.1"].on_delta(Delta(request_id="a.1", num_tokens=1, index=1, text="x"))
    engine.sinks["a"].on_delta(Delta(request_id="a", num_tokens=1, index=1, text="y"))
    assert [(delta.request_id, delta.index, delta.text) for delta in sink.deltas] == [("a", 3, "x"), ("a", 1, "y")]


def test_a_failed_request_cancels_the_others_and_is_the_outcome_of_the_job() -> None:
    engine, _, sink = start(requests=3)
    failed = Failed(request_id="a.1", code="invalid_value", message="no")
    engine.sinks["a.1"].on_end(failed)
    assert set(engine.cancelled) == {"a", "a.1", "a.2"}
    engine.finish("a", "", reason=FinishReason.CANCELLED)
    engine.finish("a.2", "it was done already")
    assert sink.ends == [failed]


def test_a_request_that_is_cancelled_or_lost_ends_the_job() -> None:
    for bad in (
        EngineLost(request_id="a"),
        Failed(request_id="a", code="cancelled", message="The request was cancelled."),
    ):
        engine, call, sink = start()
        call.cancel()
        engine.sinks["a"].on_end(bad)
        engine.finish("a.1", "whole")
        (end,) = sink.ends
        if isinstance(bad, EngineLost):
            assert end is bad
        else:
            assert isinstance(end, Finished), "a cancelled embedding ends like a cancelled answer"
            assert end.reason is FinishReason.CANCELLED


def test_a_call_cancels_and_streams_by_the_ids_that_the_engine_gave_to_its_requests() -> None:
    engine, sink = HeldEngine(suffix="~2"), RecordingSink()
    call = EngineCall(engine, [Request(id="a", prompt=TextPrompt(text="x"))], sink)  # type: ignore[arg-type]
    call.start()
    call.start_streaming()
    call.cancel()
    assert (engine.streamed, engine.cancelled) == (["a~2"], ["a~2"])


def test_a_call_that_is_cancelled_while_it_starts_cancels_all_its_requests() -> None:
    engine, sink = HeldEngine(), RecordingSink()
    requests = [Request(id=name, prompt=TextPrompt(text="x")) for name in ("a", "b")]
    call = EngineCall(engine, requests, sink)  # type: ignore[arg-type]
    call.cancel()
    call.start()
    assert engine.cancelled == ["a", "b"]


def test_streaming_starts_for_all_requests_but_embeddings() -> None:
    engine, call, _ = start(requests=2)
    call.start_streaming()
    embedding = EmbedRequest(id="e", inputs=[TextPrompt(text="x")])
    EngineCall(engine, [embedding], RecordingSink()).start_streaming()  # type: ignore[arg-type]
    assert engine.streamed == ["a", "a.1"]
