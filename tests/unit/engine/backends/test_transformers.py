"""Generation by transformers: every answer is the one of the library itself, whatever else is in its steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest

from engine.config import BackendKind, EngineConfig, TransformersConfig
from engine.errors import DeviceLost
from engine.loop import CancelRequests
from engine.types import (
    ChatPrompt,
    Constraint,
    ConstraintKind,
    Delta,
    Failed,
    Finished,
    FinishReason,
    Priority,
    Request,
    SamplingParams,
    TextPrompt,
)
from tests.support.engine import Bench
from tests.support.tiny_folders import TinyFolder, generate, library_model, make_folder, torch

from engine.backends.transformers.backend import TransformersBackend  # isort: skip - after the check for the extra

PROMPTS = (
    "the mill",
    "grain of a prompt that is longer than the window, and a bit",
    "x",
    "river by the river by the river",
    "one by one, the miller counts the sacks of the whole valley. " * 3,
)
GREEDY = SamplingParams(temperature=0)
Make = Callable[..., Bench]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TinyFolder], Path]:
    root, made = tmp_path_factory.mktemp("folders"), dict[TinyFolder, Path]()

    def folder(kind: TinyFolder) -> Path:
        if kind not in made:
            made[kind] = make_folder(root / kind, kind)
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def make(folders: Callable[[TinyFolder], Path]) -> Make:
    """An engine on a tiny model; the backend of equal options is loaded once."""
    loaded: dict[tuple[TinyFolder, str], TransformersBackend] = {}

    def bench(kind: TinyFolder, **given: Any) -> Bench:
        values = {"slots": 4, "spare_slots": 2, "context_size": 256, "threads": 1, **given}
        key = kind, repr(values)
        config = EngineConfig(
            model="m", endpoint="", backend=BackendKind.TRANSFORMERS, model_path=str(folders(kind)), **values
        )
        if key not in loaded:
            loaded[key] = TransformersBackend(msgspec.structs.replace(config, transformers=TransformersConfig()))
        return Bench(loaded[key], **values)

    return bench


def text(request_id: str, prompt: str, num_tokens: int = 24, **given: Any) -> Request:
    values = {"sampling": GREEDY, "max_tokens": num_tokens, **given}
    return Request(id=request_id, prompt=TextPrompt(text=prompt), **values)


def answers(bench: Bench, requests: list[Request]) -> dict[str, str]:
    for request in requests:
        bench.add(request)
    return {key: finished.text for key, finished in bench.run().items()}


def expected(bench: Bench, folder: Path, prompt: str, num_tokens: int = 24) -> str:
    tokens = bench.backend.tokenizer.encode(prompt, special=False, add_bos=True)
    return b"".join(map(bench.backend.tokenizer.piece, generate(folder, tokens, num_tokens))).decode()


GENERATORS = [kind for kind in TinyFolder if kind not in (TinyFolder.BERT, TinyFolder.ROBERTA)]


@pytest.mark.parametrize("kind", GENERATORS)
def test_answers_are_those_of_generate_alone_and_in_mixed_steps(
    kind: TinyFolder, make: Make, folders: Callable[[TinyFolder], Path]
) -> None:
    wanted = {str(number): expected(make(kind), folders(kind), prompt) for number, prompt in enumerate(PROMPTS)}
    assert len(set("".join(wanted.values()))) > 15, "the answers must differ enough to find a mistake"
    requests = [text(str(number), prompt) for number, prompt in enumerate(PROMPTS)]
    assert answers(make(kind), requests) == wanted
    alone = {}
    bench = make(kind, prefill_tokens=7, batch_tokens=16, slots=2, spare_slots=1)  # chunks beside decodes
    for request in requests:
        alone |= answers(bench, [request])
    assert alone == wanted
    assert answers(bench, requests) == wanted


def test_random_traffic_gets_the_answers_of_generate(make: Make, folders: Callable[[TinyFolder], Path]) -> None:
    """Requests come and are cancelled at random, so that slots get gaps, histories are copied and chunks are of any size."""
    options = {"slots": 5, "spare_slots": 2, "context_size": 160, "batch_tokens": 48, "prefill_tokens": 20}
    bench, random = make(TinyFolder.GEMMA3, **options), Random(1)
    parts = ("the mill by the river grinds ", "the grain of the whole valley and the miller ", "one by one ")
    requests: dict[str, Request] = {}
    cancelled: set[str] = set()
    while len(requests) < 40:
        if random.random() < 0.3:
            prompt = "".join(random.choices(parts, k=random.randint(1, 4))) + str(random.randint(0, 9))
            request = text(str(len(requests)), prompt, random.randint(1, 30), priority=random.choice(list(Priority)))
            requests[request.id] = request
            bench.add(request)
        if requests and random.random() < 0.03:
            cancelled.add(chosen := random.choice(list(requests)))
            bench.engine.inbox.put(CancelRequests("c", [chosen]))
        bench.engine.run_once()
        bench.engine.scheduler.check_integrity()
    while bench.engine.run_once():
        pass
    found = {item.request_id: item.text for item in bench.outputs if isinstance(item, Finished)}
    for request_id in requests.keys() - cancelled:
        asked = requests[request_id]
        assert isinstance(asked.prompt, TextPrompt)
        wanted = expected(bench, folders(TinyFolder.GEMMA3), asked.prompt.text, asked.max_tokens or 0)
        assert found[request_id] == wanted, asked
    assert cancelled


def test_a_prefix_is_reused_and_answers_stay_the_same(make: Make, folders: Callable[[TinyFolder], Path]) -> None:
    bench, document = make(TinyFolder.QWEN2), "the miller counts the sacks of the whole valley. " * 3
    prompts = [document + end for end in ("one", "two by two", "grain", "the river")]
    wanted = [expected(bench, folders(TinyFolder.QWEN2), prompt) for prompt in prompts]
    first = answers(bench, [text("0", prompts[0])])
    bench.add(text("1", prompts[1]))
    second = bench.run()["1"]
    rest = answers(bench, [text(str(number), prompts[number]) for number in (2, 3)])
    assert [first["0"], second.text, rest["2"], rest["3"]] == wanted
    assert second.usage.cached_tokens > 20


def test_a_seed_gives_the_same_answer_whatever_the_batch(make: Make) -> None:
    bench = make(TinyFolder.QWEN2)
    sampling = SamplingParams(temperature=0.9, top_p=0.95, top_k=40, min_p=0.01, typical_p=0.98, seed=7)
    request = text("s", PROMPTS[0], sampling=sampling)
    alone = answers(bench, [request])["s"]
    assert answers(bench, [text("a", PROMPTS[1]), request, text("b", PROMPTS[3])])["s"] == alone
    others = {
        answers(bench, [text("o", PROMPTS[0], sampling=msgspec.structs.replace(sampling, seed=seed))])["o"]
        for seed in range(4)
    }
    assert len(others) > 1


def test_choices_differ_by_their_seeds_and_share_their_prompt(make: Make) -> None:
    bench = make(TinyFolder.QWEN2)
    bench.add(text("n", PROMPTS[4], n=3, sampling=SamplingParams(temperature=1.0, seed=1)))
    finished = bench.run()["n"]
    assert len({choice.text for choice in finished.choices}) == 3
    assert [choice.index for choice in finished.choices] == [0, 1, 2]


def test_logprobs_are_the_log_softmax_of_the_model(make: Make, folders: Callable[[TinyFolder], Path]) -> None:
    bench = make(TinyFolder.GEMMA3)
    bench.add(text("l", PROMPTS[1], 5, logprobs=3, echo=True))
    (choice,) = bench.run()["l"].choices
    prompt = bench.backend.tokenizer.encode(PROMPTS[1], special=False, add_bos=True)
    tokens = prompt + generate(folders(TinyFolder.GEMMA3), prompt, 5)
    with torch.inference_mode():
        logits = library_model(folders(TinyFolder.GEMMA3))(torch.tensor([tokens])).logits[0].float()
    scores = logits.log_softmax(-1)
    given = [each.logprob for each in choice.logprobs or []]
    assert given[0] == 0
    assert given[1:] == pytest.approx([float(scores[at, token]) for at, token in enumerate(tokens[1:])], abs=1e-4)
    assert [each.logprob for each in (choice.logprobs or [])[-1].top] == pytest.approx(
        scores[-2].topk(3).values.tolist(), abs=1e-4
    )


def test_a_stop_string_ends_an_answer(make: Make) -> None:
    bench = make(TinyFolder.LLAMA)
    whole = answers(bench, [text("w", PROMPTS[0])])["w"]
    bench.add(text("s", PROMPTS[0], stop=[whole[6:9]]))
    finished = bench.run()["s"]
    assert finished.text == whole[: whole.index(whole[6:9])]
    assert finished.reason is FinishReason.STOP


def test_a_stream_is_the_whole_answer(make: Make) -> None:
    bench = make(TinyFolder.LLAMA)
    whole = answers(bench, [text("w", PROMPTS[3])])["w"]
    bench.add(text("s", PROMPTS[3], stream=True))
    bench.run()
    deltas = [item.text for item in bench.outputs if isinstance(item, Delta)]
    assert "".join(deltas) == whole
    assert len(deltas) > 5


def test_a_chat_uses_the_template_of_the_folder(make: Make) -> None:
    bench = make(TinyFolder.LLAMA)
    tokenizer = bench.backend.tokenizer
    chat = ChatPrompt(messages=[{"role": "user", "content": "the <|user|> mill"}])
    tokens = bench.encoder.encode(Request(id="c", prompt=chat))
    marks = [tokenizer.encode(mark, special=True, add_bos=False)[0] for mark in ("<|user|>", "<|assistant|>")]
    assert [tokens[0], tokens[-1]] == marks
    assert tokens.count(marks[0]) == 1, "the spelling in a message is text"


def test_penalties_and_biases_change_the_choice(make: Make) -> None:
    bench = make(TinyFolder.QWEN2)
    plain = answers(bench, [text("p", PROMPTS[2])])["p"]
    (token,) = bench.encoder_tokens("q")
    biased = SamplingParams(temperature=0, logit_bias={token: 100.0})
    assert answers(bench, [text("b", PROMPTS[2], 6, sampling=biased)])["b"] == "qqqqqq"
    penalised = msgspec.structs.replace(biased, frequency_penalty=2.0, presence_penalty=2.0, repeat_penalty=1.5)
    assert "qq" in answers(bench, [text("f", PROMPTS[2], 6, sampling=penalised)])["f"]
    strong = SamplingParams(temperature=0, repeat_penalty=50.0)
    assert answers(bench, [text("r", PROMPTS[2], sampling=strong)])["r"] != plain


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "sacks": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "sacks"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("jumps", [True, False])
def test_a_constrained_answer_is_valid(temperature: float, jumps: bool, make: Make) -> None:
    bench = make(TinyFolder.QWEN2, jump_forward=jumps)
    constraint = Constraint(kind=ConstraintKind.JSON_SCHEMA, text=json.dumps(SCHEMA))
    for seed in range(4):
        sampling = SamplingParams(temperature=temperature, seed=seed)
        bench.add(text(str(seed), PROMPTS[0], 120, constraint=constraint, sampling=sampling))
    for finished in bench.run().values():
        value = json.loads(finished.text)
        assert set(value) == {"name", "sacks"}
        assert len(value["name"]) <= 8
        assert 0 <= value["sacks"] <= 99


def test_a_lost_device_ends_the_engine(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise torch.AcceleratorError("an illegal memory access")

    bench = make(TinyFolder.LLAMA)
    bench.add(text("r", PROMPTS[0]))
    monkeypatch.setattr(bench.backend.decoder, "_model", fail)
    with pytest.raises(DeviceLost, match="illegal memory access"):
        bench.run()
    assert not bench.outputs, "the launcher restarts the engine, and the line"


def test_a_logit_that_is_no_number_fails_the_requests_and_not_the_engine(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make(TinyFolder.LLAMA)
    bench.add(text("broken", PROMPTS[0]))
    decoder: Any = bench.backend.decoder
    with monkeypatch.context() as patch:
        forward = decoder.forward
        patch.setattr(decoder, "forward", lambda entries: forward(entries) * np.float32("nan"))
        bench.run()
    assert [type(item) for item in bench.outputs] == [Failed]
    assert isinstance(answers(bench, [text("next", PROMPTS[0])])["next"], str)
