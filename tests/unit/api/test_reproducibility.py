"""The reproducibility record of an answer does not change with the model files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from api.batches.reproducibility import reproducibility_record
from api.schemas.batch_extensions import Reproducibility
from core.ids import derive_seed

CHAT: Any = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@dataclass
class AnsweredRow:
    """The columns of a job's row that the record is made from."""

    endpoint: str = "/v1/chat/completions"
    model_parameters: str | None = '{"temperature":0.5,"max_tokens":9}'
    id: str = "batch_req_1"
    engine_build: str = "b"
    model_hash: str = "m"
    template_hash: str = "t"
    settings_hash: str = "s"


def record(body: dict[str, Any], **columns: Any) -> Reproducibility:
    return reproducibility_record(AnsweredRow(**columns), body, {"system_fingerprint": "fp"})  # type: ignore[arg-type]


def test_defaults_are_those_of_the_model_file_at_that_time() -> None:
    found = record({**CHAT, "top_p": 0.5})
    assert found.parameters is not None
    assert (found.parameters.temperature, found.parameters.top_p, found.parameters.max_tokens) == (0.5, 0.5, 9)
    assert (found.template_hash, found.settings_hash, found.system_fingerprint) == ("t", "s", "fp")


@pytest.mark.parametrize(
    ("asked", "usual", "seed"),
    [
        ({"seed": 5}, '{"seed":7}', 5),
        ({"seed": -1}, '{"seed":7}', 2**32 - 1),
        ({}, '{"seed":7}', 7),
        ({}, "{}", derive_seed("batch_req_1")),
    ],
)
def test_the_seed_is_recorded_given_or_chosen_by_the_server(asked: dict[str, Any], usual: str, seed: int) -> None:
    assert record({**CHAT, **asked}, model_parameters=usual).seed == seed


@pytest.mark.parametrize("usual", [None, '{"no_longer_known":1}', "{}x"])
def test_fields_without_a_record_are_null(usual: str | None) -> None:
    found = record(CHAT, model_parameters=usual)
    assert (found.parameters, found.seed, found.model_hash) == (None, None, "m")


def test_a_body_of_responses_is_read_as_the_chat_it_was_run_as() -> None:
    found = record({"model": "m", "input": "hello", "max_output_tokens": 3}, endpoint="/v1/responses")
    assert found.parameters is not None
    assert (found.parameters.max_tokens, found.parameters.temperature) == (3, 0.5)


def test_embeddings_are_not_drawn() -> None:
    found = record({"model": "m", "input": "hello"}, endpoint="/v1/embeddings")
    assert (found.parameters, found.seed) == (None, None)
