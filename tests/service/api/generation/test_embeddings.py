from __future__ import annotations

import math
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, OpenAI

from api.schemas.completion_objects import EmbeddingList
from tests.support.check import check_problem
from tests.support.stack import StackProcess

URL = "/v1/embeddings"


def test_the_official_client_s_base64_is_the_vector_that_floats_are(client: OpenAI) -> None:
    packed = client.embeddings.create(model="fake", input="a mill")
    plain = client.embeddings.create(model="fake", input="a mill", encoding_format="float")
    assert (packed.object, packed.model, packed.data[0].object, packed.data[0].index) == (
        "list",
        "fake",
        "embedding",
        0,
    )
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-7)
    assert math.hypot(*plain.data[0].embedding) == pytest.approx(1, abs=1e-5)
    assert plain.usage.prompt_tokens == plain.usage.total_tokens == len("a mill") + 1


def test_several_inputs_have_their_vectors_in_order(client: OpenAI) -> None:
    texts = [f"text {number}" for number in range(40)]
    vectors = client.embeddings.create(model="fake", input=texts).data
    assert [each.index for each in vectors] == list(range(40))
    assert vectors[7].embedding == pytest.approx(
        client.embeddings.create(model="fake", input=texts[7]).data[0].embedding, abs=1e-6
    )


def test_an_input_may_be_token_ids(client: OpenAI) -> None:
    ids = [256, *b"one"]
    (spelled,) = client.embeddings.create(model="fake", input="one").data
    (tokens,) = client.embeddings.create(model="fake", input=ids).data
    lists = client.embeddings.create(model="fake", input=[ids, ids]).data
    assert [tokens.embedding, *(each.embedding for each in lists)] == [spelled.embedding] * 3


def test_fewer_dimensions_are_the_first_ones_at_length_one(client: OpenAI) -> None:
    whole = client.embeddings.create(model="fake", input="one").data[0].embedding
    short = client.embeddings.create(model="fake", input="one", dimensions=8).data[0].embedding
    length = math.hypot(*whole[:8])
    assert short == pytest.approx([number / length for number in whole[:8]], abs=1e-5)


async def test_the_async_client_gets_the_same(server: StackProcess) -> None:
    async def embed() -> Any:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", timeout=30) as client:
            return await client.embeddings.create(model="fake", input="one", user="somebody")

    with server.client() as client:
        assert (await embed()).data == client.embeddings.create(model="fake", input="one").data


def test_an_answer_has_the_published_shape(http: httpx2.Client) -> None:
    answer = http.post(URL, json={"model": "fake", "input": "one"})
    assert answer.status_code == 200
    assert isinstance(EmbeddingList.model_validate_json(answer.content).data[0].embedding, list), "floats by themselves"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "input"),
        ({"input": ""}, "invalid_value", "input"),
        ({"input": [["a"]]}, "invalid_type", "input[0][0]"),
        ({"input": "x", "encoding_format": "int8"}, "invalid_value", "encoding_format"),
        ({"input": "x", "dimensions": 65}, "invalid_value", "dimensions"),
        ({"input": [9999]}, "invalid_value", "input"),
        ({"input": "x" * 5000}, "context_length_exceeded", "input"),
        ({"input": "x", "stream": True}, "unsupported_parameter", "stream"),
        ({"input": "x", "model": "slow"}, "invalid_value", "model"),
    ],
)
def test_a_wrong_body_is_a_400_that_names_the_field(
    http: httpx2.Client, body: dict[str, Any], code: str, param: str
) -> None:
    check_problem(http.post(URL, json={"model": "fake", **body}), 400, code, param)


def test_an_unknown_model_is_a_404(http: httpx2.Client) -> None:
    check_problem(http.post(URL, json={"model": "none", "input": "x"}), 404, "model_not_found", "model")
