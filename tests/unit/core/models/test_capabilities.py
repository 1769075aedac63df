"""What each backend can do: requests and keys of model files that it cannot serve are refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.errors import ApiError, ConfigError
from core.models import capabilities
from core.models.capabilities import CAPABILITIES, FEATURES, Feature, check_keys
from core.models.engine_options import BackendKind
from core.models.model_files import ModelConfig, Parameters, load_model
from core.schemas.chat import ChatRequest
from core.schemas.completion import CompletionBody, EmbeddingBody
from core.schemas.endpoints import CHAT_ENDPOINT, COMPLETIONS_ENDPOINT, EMBEDDINGS_ENDPOINT, ENDPOINTS
from core.schemas.generation import ModelRequest
from workers.generation.endpoints.registry import read_adapter

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
TOOL = {"type": "function", "function": {"name": "f"}}
# Bodies that ask for a feature, and the field that does.
ASKING: list[tuple[Feature, str, str, dict[str, Any]]] = [
    (Feature.TEMPLATE_ARGUMENTS, "chat_template_kwargs", CHAT_ENDPOINT, {**CHAT, "chat_template_kwargs": {"a": True}}),
    (
        Feature.CONTINUED_MESSAGE,
        "continue_final_message",
        CHAT_ENDPOINT,
        {"model": "m", "messages": [{"role": "assistant", "content": "I"}], "continue_final_message": True},
    ),
    (Feature.LOGPROBS, "logprobs", CHAT_ENDPOINT, {**CHAT, "logprobs": True}),
    (Feature.LOGPROBS, "logprobs", COMPLETIONS_ENDPOINT, {"model": "m", "prompt": "a", "logprobs": 0}),
    (
        Feature.PROMPT_LOGPROBS,
        "logprobs",
        COMPLETIONS_ENDPOINT,
        {"model": "m", "prompt": "a", "logprobs": 1, "echo": True},
    ),
    (Feature.ECHO, "echo", COMPLETIONS_ENDPOINT, {"model": "m", "prompt": "a", "echo": True}),
    (Feature.CONSTRAINTS, "response_format", CHAT_ENDPOINT, {**CHAT, "response_format": {"type": "json_object"}}),
    (Feature.CONSTRAINTS, "structured_outputs", CHAT_ENDPOINT, {**CHAT, "structured_outputs": {"choice": ["a"]}}),
    (Feature.TOOLS, "tools", CHAT_ENDPOINT, {**CHAT, "tools": [TOOL]}),
    (Feature.SEEDS, "seed", CHAT_ENDPOINT, {**CHAT, "seed": 0}),
    (Feature.LOGIT_BIAS, "logit_bias", CHAT_ENDPOINT, {**CHAT, "logit_bias": {"5": 1}}),
    (Feature.TOKEN_PROMPTS, "prompt", COMPLETIONS_ENDPOINT, {"model": "m", "prompt": [1, 2]}),
    (Feature.TOKEN_PROMPTS, "prompt", COMPLETIONS_ENDPOINT, {"model": "m", "prompt": [[1], [2]]}),
    (Feature.TOKEN_PROMPTS, "input", EMBEDDINGS_ENDPOINT, {"model": "m", "input": [1, 2]}),
    (Feature.EMBEDDINGS, "model", EMBEDDINGS_ENDPOINT, {"model": "m", "input": "a"}),
]
QUIET: list[tuple[str, dict[str, Any]]] = [
    (CHAT_ENDPOINT, CHAT),
    (
        CHAT_ENDPOINT,
        {**CHAT, "logprobs": False, "tools": [], "logit_bias": {}, "response_format": {"type": "text"}, "seed": None},
    ),
    (COMPLETIONS_ENDPOINT, {"model": "m", "prompt": ["a", "b"], "echo": False}),
]


def without(monkeypatch: pytest.MonkeyPatch, *lacking: Feature) -> ModelConfig:
    """A model of transformers, which lacks these features and no other."""
    able = CAPABILITIES[BackendKind.TRANSFORMERS]
    changed = capabilities.Capabilities(
        words=able.words, features=frozenset(Feature) - set(lacking), keys=able.keys, instead=able.instead
    )
    monkeypatch.setitem(CAPABILITIES, BackendKind.TRANSFORMERS, changed)
    return ModelConfig(name="m", backend=BackendKind.TRANSFORMERS, embeddings=True)


def check(model: ModelConfig, endpoint: str, document: dict[str, Any]) -> None:
    body = read_adapter(endpoint, document, model).body
    assert isinstance(body, ModelRequest)
    ENDPOINTS[endpoint].check(model, body)


@pytest.mark.parametrize(("feature", "param", "endpoint", "document"), ASKING)
def test_a_request_for_a_feature_that_the_backend_lacks_is_refused_in_words(
    feature: Feature, param: str, endpoint: str, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ApiError) as caught:
        check(without(monkeypatch, feature), endpoint, document)
    problem = caught.value.problem
    assert (problem.status, problem.param, problem.code) == (400, param, "unsupported_parameter")
    assert problem.message.startswith("The model 'm' runs on transformers, which ")
    assert FEATURES[feature].lacking in problem.message
    assert "`llama`" in problem.message
    check(without(monkeypatch), endpoint, document)


@pytest.mark.parametrize(("endpoint", "document"), QUIET)
def test_a_request_that_asks_for_nothing_fits_every_backend(
    endpoint: str, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check(without(monkeypatch, *Feature), endpoint, document)


def test_every_field_that_asks_for_a_feature_is_one_of_a_body() -> None:
    known = {*ChatRequest.model_fields, *CompletionBody.model_fields, *EmbeddingBody.model_fields, "suffix"}
    assert {field for asked in FEATURES.values() for field in asked.fields} <= known
    tested = {(feature, param) for feature, param, *_ in ASKING}
    fields = {(feature, field) for feature, asked in FEATURES.items() for field in asked.fields}
    assert fields - tested == {(Feature.SUFFIX, "suffix")}, "no schema of a model that runs here has it"


KEYS = {
    *ModelConfig.model_fields,
    *(f"parameters.{name}" for name in Parameters.model_fields),
} - {"parameters"}


def test_every_key_of_a_model_file_is_read_by_a_backend() -> None:
    later = {"fallback", "weight"}
    assert {key for able in CAPABILITIES.values() for key in able.keys} - later == KEYS - later


@pytest.mark.parametrize("backend", BackendKind)
def test_a_key_that_a_backend_does_not_read_is_refused_with_the_reason(backend: BackendKind) -> None:
    able = CAPABILITIES[backend]
    assert not able.keys & set(able.instead)
    for key in sorted(KEYS - able.keys):
        with pytest.raises(ValueError, match=f"^{key}: is (not read by|for) backend: ") as caught:
            check_keys(backend, [key])
        assert f"backend: {backend}" in str(caught.value)
    check_keys(backend, sorted(able.keys))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            "backend: transformers\nparameters: {model: x}\nlora: [{path: a.gguf}]",
            "m.yaml, line 4: lora: is not read by backend: transformers; merge the adapter into the weights first.",
        ),
        (
            "backend: openai\nbase_url: http://127.0.0.1/v1\nparameters: {temperature: 0.5}",
            "m.yaml, line 4: parameters.temperature: is not read by backend: openai; bodies are passed on as they came; "
            "set it in the requests.",
        ),
        (
            "backend: openai\nbase_url: http://127.0.0.1/v1\nchat_template: x",
            "m.yaml, line 4: chat_template: is not read by backend: openai; the server upstream decides that.",
        ),
        (
            "parameters: {model: a.gguf}\nbase_url: http://127.0.0.1/v1",
            "m.yaml, line 3: base_url: is for backend: openai, and this model has backend: llama.",
        ),
        ("backend: fake\ndtype: float32", "m.yaml, line 3: dtype: is for backend: transformers, and this model has"),
        ("parameters: {model: a.gguf}\nstep_seconds: 1", "m.yaml, line 3: step_seconds: is for backend: fake, and"),
    ],
)
def test_a_model_file_with_a_key_of_another_backend_is_refused_with_its_line(
    tmp_path: Path, lines: str, said: str
) -> None:
    (tmp_path / "m.yaml").write_text(f"name: m\n{lines}\n")
    with pytest.raises(ConfigError) as caught:
        load_model(tmp_path / "m.yaml")
    assert str(caught.value).startswith(said)
