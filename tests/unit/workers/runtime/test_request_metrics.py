"""What the metrics of a consumer count, with a limit on their labels."""

from __future__ import annotations

from core.states import JobState
from engine.types import Choice, Embedded, Finished, FinishReason, Usage
from workers.runtime.recorder import Metric, Recorder, Series, merge
from workers.runtime.request_metrics import FAILURES, RequestMetrics

TIMES = Metric("times", "Times.", ("model",), (0.1, 1.0))
COUNT = Metric("count", "A count.", ("model",))
USAGE = {"requests": 1, "prompt_tokens": 5, "completion_tokens": 3, "cached_tokens": 2, "reasoning_tokens": 1}


def finished(tokens: int, first: float | None, choices: int = 1) -> Finished:
    made = [Choice(reason=FinishReason.STOP, text="x", index=index) for index in range(choices)]
    usage = Usage(prompt_tokens=5, completion_tokens=tokens)
    return Finished(request_id="r", choices=made, usage=usage, first_token_seconds=first)


def test_a_value_falls_into_the_first_bucket_that_reaches_it() -> None:
    recorder = Recorder()
    for value in (0.05, 0.1, 0.5, 2.0):
        recorder.observe(TIMES, ("m",), value)
    assert recorder.snapshot() == {"times": [Series(("m",), [2, 1, 1], 2.65)]}


def test_the_numbers_of_two_processes_are_added_by_their_labels() -> None:
    one, other = Recorder(), Recorder()
    one.add(COUNT, ("a",), 2)
    other.add(COUNT, ("a",), 3)
    other.add(COUNT, ("b",))
    for recorder in (one, other):
        recorder.observe(TIMES, ("a",), 0.5)
    assert merge([one.snapshot(), other.snapshot()]) == {
        "count": [Series(("a",), [5]), Series(("b",), [1])],
        "times": [Series(("a",), [0, 2, 0], 1.0)],
    }


def test_the_time_between_tokens_begins_with_the_first() -> None:
    metrics = RequestMetrics("batch")
    metrics.add_latency("m", 1.0, finished(5, 0.6))
    snapshot = metrics.recorder.snapshot()
    sums = {name.removeprefix("millrace_"): round(series[0].sum, 6) for name, series in snapshot.items()}
    assert sums == {
        "request_seconds": 1.0,
        "time_to_first_token_seconds": 0.6,
        "time_per_output_token_seconds": 0.1,
    }


def test_no_time_of_tokens_is_made_up() -> None:
    for outcome in (
        finished(1, 0.5),  # no second token
        finished(8, 0.5, choices=2),  # the tokens of several answers are side by side
        finished(8, None),  # an upstream sent the answer as a whole
        Embedded(request_id="r", vectors=[], usage=Usage(prompt_tokens=5, completion_tokens=0)),
    ):
        metrics = RequestMetrics()
        metrics.add_latency("m", 1.0, outcome)
        assert "millrace_time_per_output_token_seconds" not in metrics.recorder.snapshot(), outcome


def test_tenants_beyond_the_limit_share_a_label() -> None:
    metrics = RequestMetrics(max_tenants=2)
    for tenant in ("a", "b", "c", "d", "a"):
        metrics.add_usage(tenant, "m", **USAGE)
    requests = {each.labels[1]: each.values[0] for each in metrics.recorder.snapshot()["millrace_usage_requests"]}
    assert requests == {"a": 2, "b": 1, "other": 2}


def test_the_codes_of_a_server_upstream_share_a_label() -> None:
    metrics = RequestMetrics("chat")
    for code in ("engine_crash", "theirs-4711", None):
        metrics.add_end("m", JobState.FAILED, code)
    failures = metrics.recorder.snapshot()[FAILURES.name]
    assert {each.labels: each.values for each in failures} == {
        ("m", "chat", "engine_crash"): [1],
        ("m", "chat", "other"): [2],
    }
