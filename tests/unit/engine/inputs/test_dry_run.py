"""Dry runs without weights give the results of the engine."""

from __future__ import annotations

import gc
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp as llama
import pytest

from core.settings import ROOT
from engine.backends.fake.tokenizer import FakeTokenizer, fake_grammar_tokenizer
from engine.backends.llama.backend import LlamaBackend
from engine.backends.llama.grammar import grammar_tokenizer
from engine.backends.llama.tokenizer import LlamaTokenizer, load_vocabulary
from engine.config import EngineConfig
from engine.errors import EngineError, InvalidConstraint, ModelFailed, PromptTooLong
from engine.inputs.dry_run import CompileBudget, ConstraintChecker, DryRun
from engine.structured.compile_sandbox import CompileSandbox
from engine.structured.compiler import GrammarCompiler
from engine.types import ChatPrompt, Constraint, ConstraintKind, Request, TextPrompt, TokenPrompt
from tests.support.engine import Bench, chat
from tests.support.tiny_models import TinyModel
from tests.unit.engine.structured.test_constrained_output import TOOLS_TEMPLATE, WEATHER, with_tools
from tests.unit.engine.structured.test_grammar_limits import A_RULE_EACH, NASTY

MODEL = ROOT / "models" / "demo.gguf"
CONTEXT = 128
REQUESTS = [
    chat("What is the capital of France?", "a question"),
    chat("Grüße an <|im_end|> 世界", "special spellings and wide characters"),
    Request(id="several messages", prompt=ChatPrompt(messages=[{"role": "user", "content": "Hi"}] * 3)),
    Request(id="plain text", prompt=TextPrompt(text="once upon a time")),
    Request(id="token ids", prompt=TokenPrompt(tokens=[5, 6, 7])),
]


@pytest.fixture(scope="module")
def bench() -> Bench:
    config: dict[str, Any] = {"context_size": CONTEXT, "slots": 4}
    return Bench(LlamaBackend(EngineConfig(model="demo", endpoint="", model_path=str(MODEL), **config)), **config)


@contextmanager
def open_dry_run(
    tokenizer: LlamaTokenizer | FakeTokenizer,
    *,
    template: str | None = None,
    budget: CompileBudget | None = None,
    clock: Callable[[], float] = time.monotonic,
    sandbox: CompileSandbox | None = None,
    context_size: int = CONTEXT,
) -> Iterator[DryRun]:
    read: Any = fake_grammar_tokenizer if isinstance(tokenizer, FakeTokenizer) else grammar_tokenizer
    vocabulary = partial(read, tokenizer)
    with closing(GrammarCompiler(vocabulary, num_vocab=tokenizer.num_vocab, max_cached=1, sandbox=sandbox)) as grammars:
        checker = ConstraintChecker(grammars, budget or CompileBudget(), clock)
        yield DryRun(tokenizer, checker, template=template, context_size=context_size, embed_tokens=context_size)


@pytest.fixture(scope="module")
def dry_run() -> Iterator[DryRun]:
    with open_dry_run(load_vocabulary(MODEL)) as dry_run:
        yield dry_run


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.id)
def test_a_count_is_the_usage_of_the_real_engine(bench: Bench, dry_run: DryRun, request_: Request) -> None:
    bench.add(request_)
    assert dry_run.run(request_).num_prompt_tokens == bench.run()[request_.id].usage.prompt_tokens


def test_a_prompt_that_cannot_fit_is_refused_without_an_engine(dry_run: DryRun) -> None:
    with pytest.raises(PromptTooLong, match="128"):
        dry_run.run(chat("word " * CONTEXT))


def test_a_template_of_the_operator_counts_instead_of_the_models_own() -> None:
    vocabulary = load_vocabulary(MODEL)
    with open_dry_run(vocabulary, template="{{ messages[0]['content'] }}") as bare:
        count = bare.run(chat("What?")).num_prompt_tokens
    assert count == len(vocabulary.encode("What?", special=False, add_bos=True))


# Constraints


def constrained(schema: object, param: str | None = None) -> Request:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return chat("hello", constraint=Constraint(kind=ConstraintKind.JSON_SCHEMA, text=text, param=param))


def titled(number: int) -> Request:
    """A request with a different constraint for each number."""
    return constrained({"type": "string", "title": f"{number}"})


def refusal(run: Callable[[Request], object], request: Request) -> tuple[str, str, str | None]:
    with pytest.raises(EngineError) as caught:
        run(request)
    return caught.value.code, str(caught.value), caught.value.param


BAD_TOOL = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"not": {}}}}
REFUSED = {
    **{
        name: chat("hello", constraint=Constraint(kind=ConstraintKind(kind), text=text))
        for name, (kind, text, _) in NASTY.items()
        if name
        in ("no JSON", "a contradiction", "an unsupported keyword", "a bad regex", "a syntax error", "no choice")
    },
    "called by the client's name": constrained({"not": {}}, param="structured_outputs"),
    "a tool": with_tools(chat("hello"), BAD_TOOL),
    "beside a tool": with_tools(constrained({"not": {}}), WEATHER),
    "too long": chat("word " * 2000),
}


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED.keys())
def test_a_request_is_rejected_with_the_engines_own_error(request_: Request) -> None:
    bench = Bench(chat_template=TOOLS_TEMPLATE, context_size=1024)
    with open_dry_run(FakeTokenizer(), template=TOOLS_TEMPLATE, context_size=1024) as dry_run:
        assert refusal(dry_run.run, request_) == refusal(
            lambda request: bench.input_processor.process("c", request), request_
        )


def test_a_request_is_accepted_with_the_models_own_vocabulary(bench: Bench, dry_run: DryRun) -> None:
    request = constrained({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    (sequence,) = bench.input_processor.process("c", request)
    assert dry_run.run(request) == (sequence.num_prompt_tokens, True)


def test_a_constraint_is_compiled_once_however_many_requests_have_it() -> None:
    budget = CompileBudget(constraints=10)
    with open_dry_run(FakeTokenizer(), budget=budget) as dry_run:
        for _ in range(20):
            assert dry_run.run(titled(1)).is_checked
            with pytest.raises(InvalidConstraint):
                dry_run.run(constrained({"not": {}}))
    assert budget.constraints == 8


def test_after_the_budget_only_known_constraints_are_checked() -> None:
    with open_dry_run(FakeTokenizer(), budget=CompileBudget(constraints=2)) as dry_run:
        checked = [dry_run.run(titled(number)).is_checked for number in (1, 2, 3, 4, 1, 2)]
        assert checked == [True, True, False, False, True, True]
        assert dry_run.run(chat("hello")).is_checked, "there is nothing to compile"


def test_time_is_part_of_the_budget() -> None:
    hours = itertools.count(0.0, 3600.0)
    with open_dry_run(FakeTokenizer(), budget=CompileBudget(seconds=60.0), clock=lambda: next(hours)) as dry_run:
        assert [dry_run.run(titled(number)).is_checked for number in (1, 2)] == [True, False]


def test_a_grammar_that_crashes_the_sandbox_fails_alone() -> None:
    deep = chat("hello", constraint=Constraint(kind=ConstraintKind.GRAMMAR, text=A_RULE_EACH))
    with open_dry_run(FakeTokenizer()) as dry_run:
        with pytest.raises(InvalidConstraint, match="too complex"):
            dry_run.run(deep)
        assert dry_run.run(titled(1)).is_checked


class UnavailableSandbox(CompileSandbox):
    """A sandbox on a machine where no process starts."""

    def _launch(self) -> None:
        raise OSError


def test_constraints_are_unchecked_if_the_sandbox_does_not_start() -> None:
    with open_dry_run(FakeTokenizer(), sandbox=UnavailableSandbox()) as dry_run:
        assert [dry_run.run(titled(number)).is_checked for number in (1, 2)] == [False, False]


# Vocabularies


def test_a_vocabulary_is_the_full_models(tiny_models: Mapping[TinyModel, Path]) -> None:
    for path in tiny_models.values():
        vocabulary = load_vocabulary(path)
        assert vocabulary.num_vocab == 288
        assert vocabulary.special_texts == ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
        assert vocabulary.chat_template


def test_memory_is_given_back_with_the_tokenizer(
    tiny_models: Mapping[TinyModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[object] = []
    free = llama.llama_model_free
    monkeypatch.setattr(llama, "llama_model_free", lambda model: (freed.append(model), free(model)))
    vocabulary = load_vocabulary(tiny_models[TinyModel.LLAMA])
    assert not freed
    del vocabulary
    gc.collect()
    assert len(freed) == 1


def test_a_missing_or_broken_file_is_reported(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(MODEL.read_bytes()[:5000])
    for path, message in ((tmp_path / "no.gguf", "no model file"), (broken, "not a model")):
        with pytest.raises(ModelFailed, match=message):
            load_vocabulary(path)
