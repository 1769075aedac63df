"""Engine requests of completions and embeddings, and the shapes of their responses."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from api.schemas.completion_objects import CompletionObject, EmbeddingList
from core.errors import ApiError
from core.models.model_files import ModelConfig, Parameters
from core.schemas.chunks import chunks_of
from core.schemas.endpoints import (
    CHAT_ENDPOINT,
    COMPLETIONS_ENDPOINT,
    EMBEDDINGS_ENDPOINT,
    ENDPOINTS,
    INPUT_TOKENS_ENDPOINT,
)
from engine.types import (
    Choice,
    ConstraintKind,
    Delta,
    Embedded,
    EmbedRequest,
    Failed,
    Finished,
    FinishReason,
    Priority,
    Request,
    TextPrompt,
    TokenLogprob,
    TokenPrompt,
    Usage,
)
from workers.generation.endpoints.base import EndpointAdapter, RequestOrigin, ResponseHeader
from workers.generation.endpoints.registry import ADAPTERS, read_adapter

MODEL = ModelConfig(name="m", parameters=Parameters(top_k=7))
GREEDY = ModelConfig(name="m", parameters=Parameters(temperature=0))
HEADER = ResponseHeader(job_id="cmpl-1", model="m", fingerprint="fp_1")


def completion(**more: Any) -> EndpointAdapter:
    return read_adapter(COMPLETIONS_ENDPOINT, {"model": "m", "prompt": "once", **more}, MODEL)


def asked(adapter: EndpointAdapter, priority: Priority = Priority.CHAT) -> list[Request]:
    requests = adapter.engine_requests(MODEL, RequestOrigin(job_id="j", tenant="t", priority=priority, group="g"))
    assert all(isinstance(each, Request) for each in requests)
    return requests  # type: ignore[return-value]


def finished(*choices: Choice) -> Finished:
    return Finished(request_id="j", choices=list(choices), usage=Usage(prompt_tokens=5, completion_tokens=2))


def test_every_endpoint_has_an_adapter() -> None:
    assert set(ADAPTERS) == {*ENDPOINTS, INPUT_TOKENS_ENDPOINT}


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", [TextPrompt(text="a")]),
        (["a", "b"], [TextPrompt(text="a"), TextPrompt(text="b")]),
        ([1, 2], [TokenPrompt(tokens=[1, 2])]),
        ([[1, 2], [3]], [TokenPrompt(tokens=[1, 2]), TokenPrompt(tokens=[3])]),
    ],
)
def test_each_prompt_is_a_request_of_its_own(prompt: Any, prompts: list[Any]) -> None:
    requests = asked(completion(prompt=prompt))
    assert [request.prompt for request in requests] == prompts
    assert [request.id for request in requests] == ["j", "j.1"][: len(prompts)]


def test_a_completion_passes_the_same_parameters_as_a_chat() -> None:
    body = {"n": 2, "echo": True, "logprobs": 3, "stop": "x", "logit_bias": {"5": -1}, "stream": True}
    (request,) = asked(completion(**body, response_format={"type": "json_object"}))
    assert (request.n, request.echo, request.logprobs, request.stop, request.stream) == (2, True, 3, ["x"], True)
    assert request.constraint is not None
    assert request.constraint.kind is ConstraintKind.JSON_OBJECT
    assert (request.sampling.logit_bias, request.sampling.top_k) == ({5: -1}, 7)
    assert request.max_tokens == 16, "as at OpenAI"
    (line,) = asked(completion(stream=True), Priority.BATCH)
    assert (line.stream, line.group, line.tenant) == (False, "g", "t")


def test_a_problem_with_the_prompt_names_the_prompt() -> None:
    failed = Failed(request_id="j", code="context_length_exceeded", message="long", param="messages")
    assert completion().to_problem(failed).param == "prompt"
    assert completion().to_problem(failed).status == 400


def test_a_whole_completion_has_the_published_shape() -> None:
    tokens = [
        TokenLogprob(piece=b"<s>", logprob=0.0, is_hidden=True),
        TokenLogprob(piece=b"on", logprob=-1.5),
        TokenLogprob(piece="é".encode()[:1], logprob=-1.0, top=[TokenLogprob(piece=b"z", logprob=-0.5)]),
        TokenLogprob(piece="é".encode()[1:], logprob=float("-inf")),
        TokenLogprob(piece=b"c", logprob=-2.0, top=[TokenLogprob(piece=b"c", logprob=-2.0)]),
    ]
    answer = finished(Choice(reason=FinishReason.LENGTH, text="onéc", logprobs=tokens))
    body = completion(echo=True, logprobs=1).encode_response(HEADER, answer)
    shape = CompletionObject.model_validate_json(body)
    logprobs = shape.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.text_offset == [0, 0, 2, 2, 3], "a character of two tokens is where its first one is"
    assert logprobs.token_logprobs == [None, -1.5, -1.0, -9999.0, -2.0], "the first token of a prompt follows nothing"
    assert logprobs.top_logprobs[0] is None
    assert logprobs.top_logprobs[2] == {"�": -1.0, "z": -0.5}
    assert logprobs.top_logprobs[4] == {"c": -2.0}
    assert (shape.choices[0].finish_reason, shape.id, shape.object) == ("length", "cmpl-1", "text_completion")
    assert shape.usage is not None
    assert shape.usage.total_tokens == 7


def test_the_chunks_of_a_stream_add_up_to_the_whole_answer() -> None:
    adapter = completion(stream=True, logprobs=0, stream_options={"include_usage": True})
    encoder = adapter.stream_encoder(HEADER)
    assert encoder is not None
    first, second = (TokenLogprob(piece=piece, logprob=-1.0) for piece in (b"on", b"ce"))
    chunks = encoder.encode_delta(Delta(request_id="j", num_tokens=1, text="on", logprobs=[first]))
    chunks += encoder.encode_delta(Delta(request_id="j", num_tokens=2, text="ce", logprobs=[second]))
    answer = finished(Choice(reason=FinishReason.STOP, text="once", logprobs=[first, second]))
    chunks += encoder.encode_end(answer)
    said = [CompletionObject.model_validate_json(chunk) for chunk in chunks]
    choices = [choice for chunk in said for choice in chunk.choices]
    assert "".join(choice.text for choice in choices) == "once"
    assert [choice.logprobs.text_offset for choice in choices if choice.logprobs] == [[0], [2]]
    assert [choice.finish_reason for choice in choices] == [None, None, "stop"]
    assert [chunk.usage is None for chunk in said] == [True, True, True, False]
    stored = [json.loads(chunk) for chunk in chunks_of(adapter.encode_response(HEADER, answer), include_usage=True)]
    assert "".join(choice["text"] for chunk in stored for choice in chunk["choices"]) == "once"
    assert stored[-1] == json.loads(chunks[-1])


def test_vectors_are_encoded_as_numbers_or_as_base64_of_little_endian_float32() -> None:
    vector = struct.pack("<3f", 0.5, -0.25, 2.0)
    answer = Embedded(request_id="j", vectors=[vector, vector], usage=Usage(prompt_tokens=4, completion_tokens=0))
    body = {"model": "m", "input": ["a", [1]][:1] * 2, "dimensions": 3}
    plain = read_adapter(EMBEDDINGS_ENDPOINT, body, MODEL)
    (ask,) = plain.engine_requests(MODEL, RequestOrigin(job_id="j", tenant="t", priority=Priority.BATCH))
    assert ask == EmbedRequest(
        id="j", inputs=[TextPrompt(text="a")] * 2, dimensions=3, priority=Priority.BATCH, tenant="t"
    )
    shape = EmbeddingList.model_validate_json(plain.encode_response(HEADER, answer))
    assert [each.embedding for each in shape.data] == [[0.5, -0.25, 2.0]] * 2
    assert [each.index for each in shape.data] == [0, 1]
    assert (shape.usage.prompt_tokens, shape.usage.total_tokens, shape.model) == (4, 4, "m")
    packed = read_adapter(EMBEDDINGS_ENDPOINT, {**body, "encoding_format": "base64"}, MODEL)
    said = json.loads(packed.encode_response(HEADER, answer))["data"][0]["embedding"]
    assert base64.b64decode(said) == vector


def test_a_single_greedy_answer_is_deterministic() -> None:
    def has_one(model: ModelConfig, **more: Any) -> bool:
        chat = {"model": "m", "messages": [{"role": "user", "content": "x"}], **more}
        verdicts = {
            read_adapter(CHAT_ENDPOINT, chat, model).is_deterministic(model),
            completion(**more).is_deterministic(model),
        }
        assert len(verdicts) == 1
        return verdicts.pop()

    assert has_one(MODEL, temperature=0)
    assert has_one(MODEL, temperature=0.0, n=1, stream=False)
    assert has_one(GREEDY, temperature=None)
    assert not has_one(MODEL)
    assert not has_one(GREEDY, temperature=0.1)
    assert not has_one(MODEL, temperature=0, n=2)
    assert not has_one(MODEL, temperature=0, stream=True)
    assert read_adapter(EMBEDDINGS_ENDPOINT, {"model": "m", "input": "x"}, MODEL).is_deterministic(MODEL)


@pytest.mark.parametrize(
    ("endpoint", "more", "code", "param"),
    [
        (COMPLETIONS_ENDPOINT, {"prompt": None}, "invalid_type", "prompt"),
        (COMPLETIONS_ENDPOINT, {"prompt": []}, "invalid_value", "prompt"),
        (COMPLETIONS_ENDPOINT, {"prompt": [1, "a"]}, "invalid_type", "prompt[0]"),
        (COMPLETIONS_ENDPOINT, {"prompt": [-1]}, "invalid_value", "prompt[0]"),
        (COMPLETIONS_ENDPOINT, {"prompt": [[1], []]}, "invalid_value", "prompt[1]"),
        (COMPLETIONS_ENDPOINT, {"prompt": "a", "suffix": "b"}, "unsupported_parameter", "suffix"),
        (COMPLETIONS_ENDPOINT, {"prompt": "a", "best_of": 2}, "unsupported_parameter", "best_of"),
        (COMPLETIONS_ENDPOINT, {"prompt": "a", "logprobs": True}, "invalid_type", "logprobs"),
        (COMPLETIONS_ENDPOINT, {"prompt": "a", "logprobs": 21}, "invalid_value", "logprobs"),
        (COMPLETIONS_ENDPOINT, {"prompt": "a", "max_completion_tokens": 5}, "unsupported_parameter", "max_completion_tokens"),
        (COMPLETIONS_ENDPOINT, {"prompt": "a", "lora": "x"}, "unsupported_parameter", "lora"),
        (EMBEDDINGS_ENDPOINT, {"input": ""}, "invalid_value", "input"),
        (EMBEDDINGS_ENDPOINT, {"input": ["a", ""]}, "invalid_value", "input[1]"),
        (EMBEDDINGS_ENDPOINT, {"input": []}, "invalid_value", "input"),
        (EMBEDDINGS_ENDPOINT, {"input": ["a"] * 2049}, "invalid_value", "input"),
        (EMBEDDINGS_ENDPOINT, {"input": "a", "encoding_format": "hex"}, "invalid_value", "encoding_format"),
        (EMBEDDINGS_ENDPOINT, {"input": "a", "dimensions": 0}, "invalid_value", "dimensions"),
        (EMBEDDINGS_ENDPOINT, {"input": "a", "stream": True}, "unsupported_parameter", "stream"),
        (EMBEDDINGS_ENDPOINT, {}, "missing_required_parameter", "input"),
    ],
)  # fmt: skip
def test_a_wrong_body_is_refused_with_the_field_that_is_wrong(
    endpoint: str, more: dict[str, Any], code: str, param: str
) -> None:
    with pytest.raises(ApiError) as refused:
        read_adapter(endpoint, {"model": "m", **more}, MODEL)
    problem = refused.value.problem
    assert (problem.status, problem.code, problem.param) == (400, code, param), problem.message


def test_best_of_may_be_what_n_is() -> None:
    assert asked(completion(best_of=2, n=2))[0].n == 2
    assert asked(completion(best_of=1))[0].n == 1


def test_a_completion_is_expected_to_be_as_long_as_all_its_answers() -> None:
    assert completion().expected_tokens(MODEL) == 16
    assert completion(prompt=["a", "b"], n=3, max_tokens=10).expected_tokens(MODEL) == 60
    assert read_adapter(EMBEDDINGS_ENDPOINT, {"model": "m", "input": "x"}, MODEL).expected_tokens(MODEL) == 0
