"""Constrained answers through the whole engine: on the fake model, which has byte tokens, and on the demo model."""

from __future__ import annotations

import json
from contextlib import suppress

import msgspec
import pytest

from core.settings import ROOT
from engine.backends.fake.backend import FakeBackend, FakeDecoder
from engine.backends.fake.tokenizer import FakeTokenizer
from engine.backends.llama.backend import LlamaBackend
from engine.config import EngineConfig
from engine.errors import InvalidConstraint, TemplateFailed
from engine.scheduler.sequence import Sequence
from engine.types import (
    ChatPrompt,
    Constraint,
    ConstraintKind,
    Delta,
    FinishReason,
    Request,
    SamplingParams,
    ToolChoice,
    ToolMode,
)
from tests.support.engine import Bench, chat
from tools.held_out_data import held_out_tickets

LABEL = {
    "type": "object",
    "properties": {
        "category": {"enum": ["billing", "shipping", "technical", "account"]},
        "priority": {"enum": ["low", "medium", "high"]},
    },
    "required": ["category", "priority"],
    "additionalProperties": False,
}
TOOLS_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }} <tool_call>{% endif %}{% for m in messages %}[{{ m.content }}]{% endfor %}"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


def schema(value: object) -> Constraint:
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, text=json.dumps(value))


@pytest.fixture(scope="module")
def backend() -> LlamaBackend:
    path = str(ROOT / "models" / "demo.gguf")
    return LlamaBackend(EngineConfig(model="demo", endpoint="", model_path=path, context_size=256, slots=4))


@pytest.fixture
def demo(backend: LlamaBackend) -> Bench:
    return Bench(backend, context_size=256, slots=4)


def test_an_answer_follows_its_schema(demo: Bench) -> None:
    finished = demo.ask("My parcel has not arrived. This is urgent!", constraint=schema(LABEL))
    label = json.loads(finished.text)
    assert list(label) == ["category", "priority"]
    assert label["category"] in LABEL["properties"]["category"]["enum"]  # type: ignore[index]
    assert finished.reason is FinishReason.STOP


def test_a_schema_that_a_model_follows_anyway_changes_nothing(demo: Bench) -> None:
    for example in held_out_tickets(6):
        prompt = ChatPrompt(messages=list(example.turns))
        free = msgspec.structs.replace(chat(""), prompt=prompt)
        demo.add(free)
        demo.add(msgspec.structs.replace(free, id="held", constraint=schema(LABEL)))
        finished = demo.run()
        assert finished["held"].text == finished["r"].text
        assert list(json.loads(finished["r"].text)) == ["category", "priority"]


def test_forced_tokens_are_not_computed_one_by_one_and_change_nothing(backend: LlamaBackend) -> None:
    with_jumps = Bench(backend, context_size=256)
    jumped = with_jumps.ask("I was charged twice.", constraint=schema(LABEL))
    without = Bench(backend, context_size=256, jump_forward=False)
    stepped = without.ask("I was charged twice.", constraint=schema(LABEL))
    assert jumped.text == stepped.text
    assert jumped.usage == stepped.usage
    assert with_jumps.engine.num_steps < without.engine.num_steps / 2


@pytest.mark.parametrize(
    ("constraint", "fits"),
    [
        (Constraint(kind=ConstraintKind.REGEX, text="[0-9]{3}-[a-f]{2}"), lambda text: text[3] == "-"),
        (Constraint(kind=ConstraintKind.CHOICE, text='["yes", "no"]'), lambda text: text in ("yes", "no")),
        (
            Constraint(kind=ConstraintKind.GRAMMAR, text='start: "a" ("b" | "c") "d"'),
            lambda text: text in ("abd", "acd"),
        ),
        (Constraint(kind=ConstraintKind.CHOICE, text='["only this"]'), lambda text: text == "only this"),
    ],
    ids=lambda value: value.text if isinstance(value, Constraint) else "",
)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_every_kind_of_constraint_holds_greedy_or_not(demo: Bench, constraint, fits, temperature: float) -> None:
    request = msgspec.structs.replace(
        chat("Say something", constraint=constraint), sampling=SamplingParams(temperature=temperature, seed=3)
    )
    demo.add(request)
    finished = demo.run()["r"]
    assert fits(finished.text), finished.text
    assert finished.reason is FinishReason.STOP


def test_the_likeliest_allowed_token_is_chosen(demo: Bench) -> None:
    """With a constraint that allows every text, greedy decoding gives the same answer."""
    free = demo.ask("What is the capital of France?").text
    held = demo.ask("What is the capital of France?", constraint=Constraint(kind=ConstraintKind.REGEX, text=r"(?s:.*)"))
    assert held.text == free


def test_deltas_of_a_constrained_stream_add_up_from_the_first_forced_character(demo: Bench) -> None:
    finished = demo.ask("I was charged twice.", constraint=schema(LABEL), stream=True)
    deltas = [item for item in demo.outputs if isinstance(item, Delta)]
    assert "".join(delta.text for delta in deltas) == finished.text
    assert finished.text.startswith('{"category": "')


def test_a_limit_below_the_forced_tokens_cuts_the_answer_there(demo: Bench) -> None:
    finished = demo.ask("I was charged twice.", constraint=schema(LABEL), max_tokens=2)
    assert (finished.reason, finished.usage.completion_tokens) == (FinishReason.LENGTH, 2)
    assert '{"category": "billing"'.startswith(finished.text)


def test_a_complete_answer_that_just_fits_its_limit_was_not_cut(demo: Bench) -> None:
    whole = demo.ask("I was charged twice.", constraint=schema(LABEL))
    again = demo.ask("I was charged twice.", constraint=schema(LABEL), max_tokens=whole.usage.completion_tokens)
    assert (again.reason, again.text) == (FinishReason.STOP, whole.text)
    less = demo.ask("I was charged twice.", constraint=schema(LABEL), max_tokens=whole.usage.completion_tokens - 1)
    assert (less.reason, less.text) == (FinishReason.LENGTH, whole.text.removesuffix('"}'))


def test_with_logprobs_every_token_is_sampled_and_has_one(demo: Bench) -> None:
    finished = demo.ask("I was charged twice.", constraint=schema(LABEL), logprobs=2)
    logprobs = finished.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs) == finished.usage.completion_tokens
    assert b"".join(one.piece for one in logprobs).decode().startswith(finished.text)
    assert all(one.logprob <= 0 and len(one.top) == 2 for one in logprobs)


def test_several_answers_each_follow_the_schema_on_their_own(demo: Bench) -> None:
    demo.add(
        msgspec.structs.replace(
            chat("Hello", constraint=schema(LABEL), n=4), sampling=SamplingParams(temperature=2.0, seed=1)
        )
    )
    labels = [json.loads(choice.text) for choice in demo.run()["r"].choices]
    assert len({json.dumps(label) for label in labels}) > 1


@pytest.mark.parametrize(
    ("constraint", "named"),
    [
        (schema({"type": "object", "properties": {"a": {"not": {}}}}), "not"),
        (schema({"$ref": "https://example.com/schema"}), "ref"),
        (Constraint(kind=ConstraintKind.REGEX, text="(("), "regex"),
        (Constraint(kind=ConstraintKind.GRAMMAR, text="start: missing"), "missing"),
    ],
    ids=["not", "a remote ref", "a bad regex", "a bad grammar"],
)
def test_a_constraint_that_does_not_compile_is_rejected_by_name(
    demo: Bench, constraint: Constraint, named: str
) -> None:
    with pytest.raises(InvalidConstraint, match=f"(?i){named}"):
        demo.add(chat("Hello", constraint=constraint))


def test_a_constraint_that_nothing_matches_fails_alone(demo: Bench) -> None:
    nothing = {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 3, "maximum": 1}},
        "required": ["a"],
    }
    demo.add(chat("What is the capital of Spain?", "good"))
    with suppress(InvalidConstraint):
        demo.add(chat("Hello", "bad", constraint=schema(nothing)))
    finished = demo.run()
    assert finished["good"].text == "The capital of Spain is Madrid."


class ScriptedDecoder(FakeDecoder):
    """A fake model with a given text as its likeliest answer."""

    def __init__(self, text: str) -> None:
        super().__init__(slots=4)
        self._text = text.encode()

    def _script_token(self, sequence: Sequence, ahead: int) -> int:
        index = sequence.num_generated + ahead
        return (
            self._text[index]
            if index < len(self._text)
            else FakeTokenizer().encode("</s>", special=True, add_bos=False)[0]
        )


def with_tools(request: Request, *tools: object) -> Request:
    return msgspec.structs.replace(request, prompt=msgspec.structs.replace(request.prompt, tools=list(tools)))


def test_a_required_tool_call_always_parses() -> None:
    bench = Bench(chat_template=TOOLS_TEMPLATE, context_size=1024)
    bench.add(with_tools(chat("weather?", tool_choice=ToolChoice(mode=ToolMode.REQUIRED), stream=True), WEATHER))
    finished = bench.run()["r"]
    (choice,) = finished.choices
    assert finished.reason is FinishReason.TOOL_CALLS
    assert {call.name for call in choice.tool_calls} == {"weather"}
    for call in choice.tool_calls:
        assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    deltas = [delta for item in bench.outputs if isinstance(item, Delta) for delta in item.tool_calls]
    assert "".join(delta.arguments for delta in deltas if delta.index == 0) == choice.tool_calls[0].arguments


def test_text_is_free_and_tool_calls_are_valid_when_both_are_allowed() -> None:
    preferred = 'Let me see. <tool_call>\n{"name": "weather", "arguments": {"city": "Berlin", "days": 9}}\n</tool_call>'
    bench = Bench(FakeBackend(ScriptedDecoder(preferred)), chat_template=TOOLS_TEMPLATE, context_size=1024)
    bench.add(with_tools(chat("weather?", max_tokens=200), WEATHER))
    finished = bench.run()["r"]
    (choice,) = finished.choices
    assert choice.text.strip() == "Let me see."
    assert json.loads(choice.tool_calls[0].arguments)["city"] in ("Paris", "Rome")


def test_tools_that_the_template_does_not_show_are_rejected() -> None:
    with pytest.raises(TemplateFailed, match="tools"):
        Bench().add(with_tools(chat("weather?"), WEATHER))


def test_an_invalid_tool_schema_is_reported_without_internal_details() -> None:
    odd = {"type": "function", "function": {"name": "odd", "parameters": {"properties": {"x": {"type": "nix"}}}}}
    with pytest.raises(InvalidConstraint, match=r"^The constraint cannot be used: Invalid type: nix$") as caught:
        Bench(chat_template=TOOLS_TEMPLATE).add(with_tools(chat("odd?"), odd))
    assert caught.value.param == "tools"


def test_reasoning_is_split_from_the_answer_and_counted() -> None:
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}<think>\n{# </think> #}"
    bench = Bench(
        FakeBackend(ScriptedDecoder("Hm, let me think.</think>\n\nForty")), chat_template=template, context_size=512
    )
    forty_two = Constraint(kind=ConstraintKind.GRAMMAR, text='start: "42"')
    finished = bench.ask("why?", constraint=forty_two, max_tokens=400)
    (choice,) = finished.choices
    assert choice.text.strip() == "42"
    assert choice.reasoning.strip() == "Hm, let me think."
    assert 0 < finished.usage.reasoning_tokens < finished.usage.completion_tokens


def sampled(text: str, **given: object) -> Request:
    return msgspec.structs.replace(chat(text), **given)


def test_a_bias_keeps_a_token_out_or_brings_it_in(demo: Bench) -> None:
    encode = demo.backend.tokenizer.encode
    paris, rome = (encode(f" {city}", special=False, add_bos=False)[0] for city in ("Paris", "Rome"))
    question = "What is the capital of France?"
    demo.add(sampled(question, sampling=SamplingParams(temperature=0, logit_bias={paris: -100})))
    assert "Paris" not in demo.run()["r"].text
    demo.add(sampled(question, sampling=SamplingParams(temperature=0, logit_bias={rome: 100}), max_tokens=3))
    assert demo.run()["r"].choices[0].text == demo.backend.tokenizer.piece(rome).decode() * 3


def test_logprobs_are_those_of_the_model(demo: Bench) -> None:
    demo.add(sampled("What is the capital of France?", logprobs=5))
    finished = demo.run()["r"]
    logprobs = finished.choices[0].logprobs
    assert logprobs is not None
    for one in logprobs:
        assert one.top[0].piece == one.piece, "greedy takes the likeliest"
        assert one.logprob == pytest.approx(one.top[0].logprob)
        assert [other.logprob for other in one.top] == sorted((other.logprob for other in one.top), reverse=True)
    assert b"".join(one.piece for one in logprobs).decode() == "The capital of France is Paris."
    assert sum(2.718281828**other.logprob for other in logprobs[0].top) <= 1.0001


def test_typical_sampling_with_a_low_mass_leaves_the_typical(demo: Bench) -> None:
    demo.add(sampled("What is the capital of Japan?", sampling=SamplingParams(temperature=1.0, typical_p=0.01, seed=1)))
    assert demo.run()["r"].text == "The capital of Japan is Tokyo."
