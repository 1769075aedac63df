"""Behaviours of a backend: each is a function on an engine that raises AssertionError unless the backend behaves so.

One with a `feature` is run on backends that claim it. Of the others, the service refuses requests for it in words.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass

from core.models.capabilities import Feature
from engine.process.client import EngineLost
from engine.process.protocol import Tick
from engine.types import EmbedRequest, Failed, Finished, FinishReason, ForwardRequest, Priority, TextPrompt
from tests.conformance.backend_under_test import Ask, EngineUnderTest
from tests.support.recorder import SECONDS, Recorder
from tests.support.stack import wait_for

QUESTIONS = [f"What is the capital of {country}?" for country in ("France", "Peru", "Japan", "Chad", "Cuba", "Iran")]
LONG = 900  # tokens that take longer than everything else that a test does meanwhile
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["mill", "wheel"]}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Behaviour:
    """A row of the table in `docs/backends.md`."""

    title: str
    check: Callable[[EngineUnderTest], None]
    feature: Feature | None = None


def streaming(engine: EngineUnderTest) -> None:
    """A streamed answer is the whole answer in pieces, from the start or from the middle on."""
    whole = engine.ask()
    streamed = engine.send(Ask(stream=True))
    assert streamed.finished.choices == whole.choices
    assert streamed.text == whole.text
    assert streamed.finished.usage.completion_tokens == whole.usage.completion_tokens
    running = engine.send(Ask(id="later", is_endless=True, max_tokens=200))
    engine.client.stream("later")
    assert running.finished.text == running.text


def stop_strings(engine: EngineUnderTest) -> None:
    """An answer ends before its first stop string, and no part of that is streamed."""
    whole = engine.ask(max_tokens=12).text
    assert len(whole) > 6, whole
    stop = whole[4:7]
    for stream in (False, True):
        recorder = engine.send(Ask(stop=("never written", stop), stream=stream, max_tokens=12))
        finished = recorder.finished
        assert finished.reason is FinishReason.STOP
        assert finished.text == whole[: whole.index(stop)]
        assert recorder.text == (finished.text if stream else "")


def _grown(engine: EngineUnderTest, before: Tick | None, name: str) -> int:
    """The growth of a number of the ticks."""
    now = engine.client.tick
    return int(getattr(now, name, 0)) - int(getattr(before, name, 0))


def usage(engine: EngineUnderTest) -> None:
    """Tokens are counted, in each answer and in all: those of the prompt once, and those of all answers together."""
    before = engine.client.tick
    one = engine.ask(max_tokens=7, is_endless=True)
    assert (one.reason, one.usage.completion_tokens) == (FinishReason.LENGTH, 7)
    three = engine.ask(max_tokens=7, n=3, is_endless=True)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert three.usage.completion_tokens == 21
    assert three.usage.prompt_tokens == one.usage.prompt_tokens > 0
    prompts = one.usage.prompt_tokens + three.usage.prompt_tokens
    wait_for(lambda: _grown(engine, before, "output_tokens") >= 28, "a tick counts the answers")
    wait_for(lambda: _grown(engine, before, "prompt_tokens") >= prompts, "a tick counts the prompts")
    longer = engine.ask(Ask.text + " Answer in one word, please.", max_tokens=1)
    assert longer.usage.prompt_tokens > one.usage.prompt_tokens


def cancelling(engine: EngineUnderTest) -> None:
    """A cancelled request ends long before its last token, and one that waits before those that run."""
    running = [engine.send(Ask(id=f"run-{n}", is_endless=True, max_tokens=LONG, stream=True)) for n in range(4)]
    assert all(each.began.wait(SECONDS) for each in running)
    waiting = engine.send(Ask(id="waiting", is_endless=True, max_tokens=LONG, priority=Priority.BATCH))
    engine.client.cancel("waiting")
    _assert_cancelled(waiting)
    assert not any(each.ended.is_set() for each in running), "a cancel waits for no other request"
    for n, each in enumerate(running):
        engine.client.cancel(f"run-{n}")
        _assert_cancelled(each)
    assert engine.ask().text, "the engine goes on"


def _assert_cancelled(recorder: Recorder) -> None:
    outcome = recorder.outcome
    assert isinstance(outcome, Finished), outcome
    assert outcome.reason is FinishReason.CANCELLED
    assert len(recorder.deltas) < LONG


def side_by_side(engine: EngineUnderTest) -> None:
    """More requests than slots all get the answers that they get alone."""
    alone = [engine.ask(text).text for text in QUESTIONS]
    together = [engine.send(Ask(text=text, id=f"{n}")) for n, text in enumerate(QUESTIONS * 2)]
    assert [each.finished.text for each in together] == alone * 2


def errors_per_request(engine: EngineUnderTest) -> None:
    """A request that cannot be run fails alone, in words, while its neighbours are answered."""
    neighbours = [engine.send(Ask(text=text, id=f"{n}")) for n, text in enumerate(QUESTIONS[:3])]
    bad = engine.send(Ask(id="bad", text="mill " * 20_000))
    neighbours += [engine.send(Ask(text=text, id=f"{n}")) for n, text in enumerate(QUESTIONS[3:], 3)]
    failed = bad.outcome
    assert isinstance(failed, Failed), failed
    assert failed.code == "context_length_exceeded"
    assert failed.message.endswith(".")
    assert all(each.finished.text for each in neighbours)


def kinds_of_requests(engine: EngineUnderTest) -> None:
    """A request of a kind that the engine does not take fails in words, and the engine goes on."""
    recorder = Recorder()
    if isinstance(engine.backend.request(Ask()), ForwardRequest):
        engine.client.embed(EmbedRequest(id="other", inputs=[TextPrompt(text="stone")]), recorder)
    else:
        engine.client.submit(ForwardRequest(id="other", path="/v1/chat/completions", body=b"{}"), recorder)
    assert isinstance(failed := recorder.outcome, Failed)
    assert failed.message.endswith(".")
    assert engine.ask().text


def restart(engine: EngineUnderTest) -> None:
    """A killed engine loses the request that it was working on; one that was not sent yet is answered by the next engine."""
    running = engine.send(Ask(id="lost", is_endless=True, max_tokens=LONG, stream=True))
    assert running.began.wait(SECONDS)
    engine.kill()
    lost = running.outcome
    assert isinstance(lost, EngineLost), lost
    assert lost.was_running
    later = engine.send(Ask(id="later"))
    engine.start()
    assert later.finished.text


def isolation(engine: EngineUnderTest) -> None:
    """A crash during an exclusive request has one suspect, whatever else the engine had."""
    number = LONG if engine.backend.crashes else LONG // 4  # a server may end them before it begins the exclusive one
    ordinary = Ask(is_endless=True, max_tokens=number, stream=True, priority=Priority.BATCH)
    neighbours = [engine.send(_named(ordinary, f"neighbour-{n}")) for n in range(3)]
    assert all(each.began.wait(SECONDS) for each in neighbours)
    suspect = engine.send(Ask(id="poison", is_endless=True, max_tokens=LONG, stream=True, exclusive=True))
    if not engine.backend.crashes:
        assert suspect.began.wait(SECONDS)
        engine.kill()
    lost = suspect.outcome
    assert lost == EngineLost(request_id="poison", was_running=True, was_alone=True), lost
    engine.kill()  # what has closed its sockets may not have ended yet
    for each in neighbours:
        outcome = each.outcome
        assert isinstance(outcome, Finished) or (isinstance(outcome, EngineLost) and not outcome.was_running), outcome


def _named(ask: Ask, request_id: str) -> Ask:
    return Ask(**{**vars(ask), "id": request_id})


def constraints(engine: EngineUnderTest) -> None:
    """An answer that must follow a schema does so, at any temperature."""
    for seed in range(3):
        answer = json.loads(engine.ask(schema=SCHEMA, temperature=2, seed=seed, max_tokens=60).text)
        assert answer.keys() == {"a", "b"}, answer
        assert answer["a"] in ("mill", "wheel")
        assert isinstance(answer["b"], bool)


def tools(engine: EngineUnderTest) -> None:
    """A tool that must be called is called, with arguments of its schema."""
    finished = engine.ask(tool="count", max_tokens=120)
    (call,) = finished.choices[0].tool_calls
    assert (call.name, finished.reason) == ("count", FinishReason.TOOL_CALLS)
    assert json.loads(call.arguments)["n"] in (1, 2)


def seeds(engine: EngineUnderTest) -> None:
    """A seed repeats an answer; other seeds change it, where the backend samples."""
    answers = [engine.ask(seed=seed, temperature=2, max_tokens=20).text for seed in (1, 2, 3, 4, 1)]
    assert answers[0] == answers[-1]
    assert len(set(answers)) > 1 or not engine.backend.samples


def logprobs(engine: EngineUnderTest) -> None:
    """Each token of an answer has its log probability, and the likeliest alternatives in order."""
    finished = engine.ask(logprobs=3, max_tokens=8)
    (choice,) = finished.choices
    assert choice.logprobs, "it has some"
    shown = b"".join(one.piece for one in choice.logprobs if not one.is_hidden).decode(errors="replace")
    assert shown.startswith(choice.text)
    for one in choice.logprobs:
        assert one.logprob <= 1e-6
        likeliest = [other.logprob for other in one.top]
        assert likeliest == sorted(likeliest, reverse=True)
    assert any(one.top for one in choice.logprobs)


def logit_bias(engine: EngineUnderTest) -> None:
    """A strong bias makes a token certain."""
    finished = engine.ask(logit_bias={70: 100}, logprobs=0, max_tokens=4, is_endless=True)
    pieces = {one.piece for one in finished.choices[0].logprobs or []}
    assert len(pieces) == 1, pieces
    assert finished.text != engine.ask(max_tokens=4, is_endless=True).text


def echo(engine: EngineUnderTest) -> None:
    """An answer may begin with its prompt."""
    plain = engine.ask(raw="The mill by the river", max_tokens=5)
    assert engine.ask(raw="The mill by the river", max_tokens=5, echo=True).text == "The mill by the river" + plain.text


def prompt_logprobs(engine: EngineUnderTest) -> None:
    """An echoed prompt has the log probabilities of its own tokens, apart from the first."""
    prompt = "The mill by the river"
    (choice,) = engine.ask(raw=prompt, max_tokens=2, echo=True, logprobs=1).choices
    assert choice.logprobs, "it has some"
    assert b"".join(one.piece for one in choice.logprobs if not one.is_hidden).decode().startswith(prompt)
    assert all(one.logprob <= 1e-6 for one in choice.logprobs)


def token_prompts(engine: EngineUnderTest) -> None:
    """A prompt of token ids is taken as it is."""
    finished = engine.ask(raw=(65, 66, 67, 68), max_tokens=5, is_endless=True)
    assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (4, 5)
    assert finished.text == engine.ask(raw=(65, 66, 67, 68), max_tokens=5, is_endless=True).text


def token_counts(engine: EngineUnderTest) -> None:
    """A prompt is counted as it is rendered, without generating anything."""
    counted = engine.ask(max_tokens=0)
    assert counted.usage.prompt_tokens == engine.ask(max_tokens=1).usage.prompt_tokens
    assert (counted.usage.completion_tokens, counted.text) == (0, "")


def continued_message(engine: EngineUnderTest) -> None:
    """A last message of the assistant is continued, in its own turn."""
    whole = engine.ask(max_tokens=12, is_endless=True)
    begun = engine.ask(begun=whole.text, max_tokens=4)
    assert whole.usage.prompt_tokens < begun.usage.prompt_tokens <= whole.usage.prompt_tokens + 12, "no turn was closed"


def template_arguments(engine: EngineUnderTest) -> None:
    """`chat_template_kwargs` reach the chat template."""
    plain, noted = engine.ask(max_tokens=1), engine.ask(max_tokens=1, note="Speak of mills.")
    assert noted.usage.prompt_tokens > plain.usage.prompt_tokens + 3


def embeddings(engine: EngineUnderTest) -> None:
    """Texts get vectors of length 1, in order, the same in any company; `dimensions` keeps the first numbers."""
    together = engine.embed("mill", "river", "grain " * 30)
    alone = [engine.embed(text).vectors[0] for text in ("mill", "river", "grain " * 30)]
    for one, other in zip(together.vectors, alone, strict=True):
        first, second = _numbers(one), _numbers(other)
        assert abs(sum(a * b for a, b in zip(first, second, strict=True)) - 1) < 1e-3
    assert abs(sum(a * b for a, b in zip(_numbers(alone[0]), _numbers(alone[1]), strict=True))) < 0.999
    short = _numbers(engine.embed("mill", dimensions=8).vectors[0])
    assert len(short) == 8
    assert abs(sum(number**2 for number in short) - 1) < 1e-3
    assert together.usage.prompt_tokens > 30
    assert together.usage.completion_tokens == 0


def _numbers(vector: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))


def prefix_cache(engine: EngineUnderTest) -> None:
    """A prompt that begins like an earlier one is not computed again."""
    prompt = "The mill by the river grinds the grain of the valley. " * 6
    first = engine.ask(prompt + "One", max_tokens=4)
    second = engine.ask(prompt + "Two", max_tokens=4)
    assert second.usage.cached_tokens > second.usage.prompt_tokens // 2
    assert first.usage.prompt_tokens >= second.usage.cached_tokens


def slots(engine: EngineUnderTest) -> None:
    """Answers are generated side by side: a short one that comes later ends first."""
    long = engine.send(Ask(id="long", is_endless=True, max_tokens=LONG, stream=True))
    assert long.began.wait(SECONDS)
    assert engine.ask(id="short", max_tokens=2).text
    assert not long.ended.is_set()
    engine.client.cancel("long")
    assert long.finished


BEHAVIOURS = [
    Behaviour("a stream is the whole answer", streaming),
    Behaviour("stop strings", stop_strings),
    Behaviour("usage adds up", usage),
    Behaviour("cancel", cancelling),
    Behaviour("many at once, each as alone", side_by_side),
    Behaviour("an error ends one request", errors_per_request),
    Behaviour("other kinds of requests are refused", kinds_of_requests),
    Behaviour("restart after kill -9", restart),
    Behaviour("poison isolation", isolation),
    Behaviour("answers that follow a JSON schema", constraints, Feature.CONSTRAINTS),
    Behaviour("tools", tools, Feature.TOOLS),
    Behaviour("`seed`", seeds, Feature.SEEDS),
    Behaviour("`logprobs`", logprobs, Feature.LOGPROBS),
    Behaviour("`logit_bias`", logit_bias, Feature.LOGIT_BIAS),
    Behaviour("echo", echo, Feature.ECHO),
    Behaviour("log probabilities of the prompt", prompt_logprobs, Feature.PROMPT_LOGPROBS),
    Behaviour("prompts of token ids", token_prompts, Feature.TOKEN_PROMPTS),
    Behaviour("tokens are counted beforehand", token_counts, Feature.TOKEN_COUNTS),
    Behaviour("`continue_final_message`", continued_message, Feature.CONTINUED_MESSAGE),
    Behaviour("`chat_template_kwargs`", template_arguments, Feature.TEMPLATE_ARGUMENTS),
    Behaviour("embeddings", embeddings, Feature.EMBEDDINGS),
    Behaviour("prefix cache", prefix_cache, Feature.PREFIX_CACHE),
    Behaviour("slots side by side", slots, Feature.SLOTS),
]
