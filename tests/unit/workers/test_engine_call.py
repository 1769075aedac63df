"""What a job asks of an engine in several requests comes back as one."""

from __future__ import annotations

from typing import Any

from engine.process.client import EngineLost
from engine.types import Choice, Delta, EmbedRequest, Failed, Finished, FinishReason, Request, TextPrompt, Usage
from workers.generation.endpoints.base import EngineOutcome
from workers.generation.engine_call import EngineCall


class HeldEngine:
    """Keeps what it is asked until the test ends it."""

    def __init__(self) -> None:
        self.sinks: dict[str, Any] = {}
        self.cancelled: list[str] = []
        self.streamed: list[str] = []

    def submit(self, request: Request, sink: Any) -> None:
        self.sinks[request.id] = sink

    def embed(self, request: EmbedRequest, sink: Any) -> None:
        self.sinks[request.id] = sink

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def stream(self, request_id: str) -> None:
        self.streamed.append(request_id)

    def finish(self, request_id: str, *texts: str, reason: FinishReason = FinishReason.STOP) -> None:
        choices = [Choice(reason=reason, text=text, index=index) for index, text in enumerate(texts)]
        usage = Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)
        self.sinks[request_id].on_end(Finished(request_id=request_id, choices=choices, usage=usage))


class Told:
    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.ends: list[EngineOutcome] = []

    def on_delta(self, delta: Delta) -> None:
        self.deltas.append(delta)

    def on_end(self, outcome: EngineOutcome) -> None:
        self.ends.append(outcome)


def begin(n: int = 1, requests: int = 2) -> tuple[HeldEngine, EngineCall, Told]:
    engine, told = HeldEngine(), Told()
    ids = ["a", *(f"a.{number}" for number in range(1, requests))]
    asks = [Request(id=each, prompt=TextPrompt(text="x"), n=n) for each in ids]
    asking = EngineCall(engine, asks, told)  # type: ignore[arg-type]
    asking.begin()
    return engine, asking, told


def test_answers_are_numbered_prompt_by_prompt_whichever_ends_first() -> None:
    engine, _, told = begin(n=2)
    engine.finish("a.1", "three", "four")
    assert told.ends == []
    engine.finish("a", "one", "two")
    (end,) = told.ends
    assert isinstance(end, Finished)
    assert [(choice.index, choice.text) for choice in end.choices] == [
        (0, "one"),
        (1, "two"),
        (2, "three"),
        (3, "four"),
    ]
    assert end.request_id == "a"
    assert end.usage == Usage(prompt_tokens=6, completion_tokens=4, cached_tokens=2)


def test_more_of_the_second_prompt_is_numbered_on() -> None:
    engine, _, told = begin(n=2)
    engine.sinks["a.1"].on_delta(Delta(request_id="a.1", num_tokens=1, index=1, text="x"))
    engine.sinks["a"].on_delta(Delta(request_id="a", num_tokens=1, index=1, text="y"))
    assert [(delta.request_id, delta.index, delta.text) for delta in told.deltas] == [("a", 3, "x"), ("a", 1, "y")]


def test_one_that_fails_stops_the_others_and_is_what_the_job_is_told() -> None:
    engine, _, told = begin(requests=3)
    failed = Failed(request_id="a.1", code="invalid_value", message="no")
    engine.sinks["a.1"].on_end(failed)
    assert set(engine.cancelled) == {"a", "a.1", "a.2"}
    engine.finish("a", "", reason=FinishReason.CANCELLED)
    engine.finish("a.2", "it was done already")
    assert told.ends == [failed]


def test_one_that_is_stopped_or_lost_is_the_end_of_all() -> None:
    for bad in (
        EngineLost(request_id="a"),
        Failed(request_id="a", code="cancelled", message="The request was cancelled."),
    ):
        engine, asking, told = begin()
        asking.cancel()
        engine.sinks["a"].on_end(bad)
        engine.finish("a.1", "whole")
        (end,) = told.ends
        if isinstance(bad, EngineLost):
            assert end is bad
        else:
            assert isinstance(end, Finished), "an embedding that was stopped ends as an answer that was"
            assert end.reason is FinishReason.CANCELLED


def test_all_requests_of_a_job_are_watched_but_embeddings_which_have_no_stream() -> None:
    engine, asking, _ = begin(requests=2)
    asking.watch()
    embedding = EmbedRequest(id="e", inputs=[TextPrompt(text="x")])
    EngineCall(engine, [embedding], Told()).watch()  # type: ignore[arg-type]
    assert engine.streamed == ["a", "a.1"]
