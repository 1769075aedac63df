"""A bounded number of random requests and lines; `python -m tests.hostile_input.fuzz` sends any number."""

from __future__ import annotations

from random import Random
from typing import Any

import httpx2
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.hostile_input.checks import find_lost_lines, find_problem
from tests.hostile_input.mutations import (
    BATCHABLE,
    Fuzzed,
    body_request,
    create_request,
    form_request,
    line_with_odd_body,
    odd_line,
)
from tests.hostile_input.target import ENDED, Target

_CLIENT_SECONDS = 20  # a longer request counts as a hang


def some(examples: int) -> Any:  # Any: Hypothesis's decorator
    """Return settings for so many examples, the same ones each time."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


def check(target: Target, request: Fuzzed) -> None:
    headers = {"content-type": request.content_type.encode()} if request.content_type else {}
    answer: httpx2.Response = target.http.post(
        request.path,
        content=request.content,
        headers=headers,  # type: ignore[arg-type]
        timeout=_CLIENT_SECONDS,
    )
    problem = find_problem(answer.status_code, answer.headers.get("content-type", ""), answer.content)
    assert problem is None, (problem, request)


def test_no_body_causes_a_server_error(target: Target) -> None:
    @some(500)
    @given(rng=st.randoms(use_true_random=False))
    def ask(rng: Random) -> None:
        check(target, body_request(rng))

    ask()


def test_no_form_causes_a_server_error(target: Target) -> None:
    @some(200)
    @given(rng=st.randoms(use_true_random=False))
    def ask(rng: Random) -> None:
        check(target, form_request(rng))

    ask()


def test_no_create_causes_a_server_error(target: Target) -> None:
    file_id = target.upload(b"{}\n")

    @some(100)
    @given(rng=st.randoms(use_true_random=False))
    def ask(rng: Random) -> None:
        check(target, create_request(rng, file_id))

    ask()


def test_every_line_with_a_random_body_has_one_result(target: Target) -> None:
    @some(8)
    @given(seed=st.integers(0, 2**32))
    def run(seed: int) -> None:
        rng = Random(seed)
        url = BATCHABLE[seed % 4]
        names = [f"l{n}" for n in range(60)]
        batch = target.batch_of(b"\n".join(line_with_odd_body(rng, name, url) for name in names), url)
        assert batch.status == "completed", batch.errors
        output, errors = target.results(batch.output_file_id), target.results(batch.error_file_id)
        assert find_lost_lines(names, batch.request_counts, output, errors) is None

    run()


def test_a_batch_of_random_lines_always_ends(target: Target) -> None:
    @some(12)
    @given(seed=st.integers(0, 2**32))
    def run(seed: int) -> None:
        rng = Random(seed)
        url = BATCHABLE[seed % 4]
        batch = target.batch_of(b"\n".join(odd_line(rng, n, url) for n in range(rng.randrange(1, 20))), url)
        assert batch.status in ENDED
        if batch.status == "failed":
            assert all(error.message and error.code for error in batch.errors.data)
        else:
            counts = batch.request_counts
            assert counts.completed + counts.failed == counts.total

    run()
