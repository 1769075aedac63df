"""The engine loop on the fake model: scheduling, text and finish reasons together."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.backends.fake.backend import FakeBackend, FakeDecoder, FakeEmbedder
from engine.config import Switch
from engine.errors import DecodeFailed, InvalidPrompt, PromptTooLong
from engine.loop import CancelRequests, StartStreaming
from engine.progress import Activity
from engine.scheduler.sequence import Sequence
from engine.scheduler.step import SampleResult, StepPlan
from engine.types import (
    Constraint,
    ConstraintKind,
    Delta,
    Failed,
    Finished,
    FinishReason,
    Priority,
    Request,
    TextPrompt,
    TokenPrompt,
)
from tests.support.clock import Clock
from tests.support.engine import Bench, chat


def test_an_answer_does_not_depend_on_the_other_sequences_of_its_steps() -> None:
    single = {f"r{n}": Bench().ask(f"question {n}").text for n in range(12)}
    together = Bench(slots=3)
    for n in range(12):
        together.add(chat(f"question {n}", f"r{n}", priority=Priority.BATCH if n % 2 else Priority.CHAT))
    assert {key: item.text for key, item in together.run().items()} == single
    assert len(set(single.values())) > 6


def test_deltas_add_up_to_the_answer() -> None:
    bench = Bench()
    finished = bench.ask("hello", stream=True)
    deltas = [item for item in bench.outputs if isinstance(item, Delta)]
    assert "".join(delta.text for delta in deltas) == finished.text
    assert len(deltas) > 10
    unstreamed = Bench().ask("hello")
    assert (unstreamed.text, unstreamed.reason, unstreamed.usage) == (finished.text, finished.reason, finished.usage)


def test_the_time_to_the_first_token_is_in_the_end_of_a_request() -> None:
    for stream in (False, True):
        finished = Bench().ask("hello", stream=stream)
        assert finished.first_token_seconds is not None
        assert finished.first_token_seconds > 0
    assert Bench().ask("hello", max_tokens=0).first_token_seconds is None, "nothing is generated"


def test_logprobs_of_deltas_add_up_to_those_of_the_answer_which_leave_out_its_end() -> None:
    whole = Bench().ask("hello").text
    for stop in ([], [whole[10:16]], ["never generated"]):
        bench = Bench()
        finished = bench.ask("hello", stream=True, logprobs=1, stop=stop)
        streamed = [one for item in bench.outputs if isinstance(item, Delta) for one in item.logprobs]
        assert finished.choices[0].logprobs == streamed
        assert b"".join(one.piece for one in streamed).decode() == whole[: 16 if stop == [whole[10:16]] else None]


def test_tokens_forced_after_a_prompt_do_not_count_as_cached() -> None:
    bench = Bench()
    text = Constraint(kind=ConstraintKind.GRAMMAR, text='start: "a long beginning, " ("a" | "b")')
    first, second = (bench.ask("hello", constraint=text).usage for _ in range(2))
    assert first.cached_tokens == 0
    assert 0 < second.cached_tokens <= second.prompt_tokens


def test_a_prompt_that_opens_reasoning_gets_reasoning_first() -> None:
    finished = Bench(chat_template="{{ messages[0].content }}<think>\n").ask("hello")
    (choice,) = finished.choices
    assert choice.reasoning == "The wheel turns while the water runs."
    assert 40 <= len(choice.text) < 120
    assert finished.usage.reasoning_tokens == len(choice.reasoning) + len("</think>")


@pytest.mark.parametrize("num_steps", [0, 1, 5, 30])
@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("plain", {}),
        ("stops", {"stop": ["never generated"]}),
        ("two answers", {"n": 2}),
        ("logprobs", {"logprobs": 1}),
        ("forced", {"constraint": Constraint(kind=ConstraintKind.REGEX, text="a long beginning, [a-z ]{20,60}")}),
    ],
)
def test_streaming_that_starts_late_delivers_the_whole_answer(
    prompt: str, options: dict[str, Any], num_steps: int
) -> None:
    bench = Bench()
    bench.add(chat(prompt, **options))
    bench.engine.run_once()
    for _ in range(num_steps):
        bench.engine.step()
    bench.engine.inbox.put(StartStreaming("c", ["r", "unknown"]))
    finished = bench.run()["r"]
    deltas = [item for item in bench.outputs if isinstance(item, Delta)]
    for choice in finished.choices:
        mine = [delta for delta in deltas if delta.index == choice.index]
        assert len(mine) > 3
        assert "".join(delta.text for delta in mine) == choice.text
        assert [one for delta in mine for one in delta.logprobs] == (choice.logprobs or [])
    unstreamed = Bench().ask(prompt, **options)
    assert (finished.choices, finished.usage) == (unstreamed.choices, unstreamed.usage)


def test_streaming_that_starts_late_delivers_all_reasoning() -> None:
    bench = Bench(chat_template="{{ messages[0].content }}<think>\n")
    bench.add(chat("hello"))
    for _ in range(60):
        bench.engine.run_once()
    bench.engine.inbox.put(StartStreaming("c", ["r"]))
    (choice,) = bench.run()["r"].choices
    deltas = [item for item in bench.outputs if isinstance(item, Delta)]
    assert "".join(delta.reasoning for delta in deltas) == choice.reasoning
    assert "".join(delta.text for delta in deltas) == choice.text
    assert deltas[0].text, "the first delta has the reasoning and some of the text after it"


def test_without_stream_there_is_only_the_end() -> None:
    bench = Bench()
    bench.ask("hello")
    assert len(bench.outputs) == 1


def test_a_stop_string_across_token_borders_ends_the_answer_before_itself() -> None:
    whole = Bench().ask("hello").text
    stop = whole[10:16]
    finished = Bench().ask("hello", stop=[stop])
    assert finished.reason is FinishReason.STOP
    assert finished.text == whole[: whole.index(stop)]


def test_stopwords_of_the_model_end_every_answer() -> None:
    whole = Bench().ask("hello").text
    assert Bench(stopwords=[whole[5:8]]).ask("hello").text == whole[: whole.index(whole[5:8])]


def test_usage_counts_prompt_and_completion_tokens() -> None:
    finished = Bench().ask("hello", max_tokens=7)
    assert finished.reason is FinishReason.LENGTH
    assert finished.usage.completion_tokens == 7 == len(finished.text.encode())
    assert finished.usage.prompt_tokens > 5
    assert finished.usage.cached_tokens == 0


def test_a_full_context_ends_with_reason_length() -> None:
    bench = Bench(context_size=64)
    finished = bench.ask("hello", ignore_eos=True)
    assert finished.reason is FinishReason.LENGTH
    assert finished.usage.prompt_tokens + finished.usage.completion_tokens == 64


def test_a_prompt_that_leaves_no_room_is_refused_before_it_costs_anything() -> None:
    bench = Bench(context_size=64)
    with pytest.raises(PromptTooLong, match="64") as caught:
        bench.add(chat("x" * 100))
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert bench.engine.scheduler.num_waiting == 0


def test_raw_text_and_tokens_are_prompts_too() -> None:
    bench = Bench()
    bench.add(Request(id="text", prompt=TextPrompt(text="abc"), max_tokens=3))
    bench.add(Request(id="tokens", prompt=TokenPrompt(tokens=[256, 97, 98, 99]), max_tokens=3))
    finished = bench.run()
    assert finished["text"].text == finished["tokens"].text
    assert finished["text"].usage.prompt_tokens == 4
    for tokens in ([], [258], [-1]):
        with pytest.raises(InvalidPrompt):
            bench.add(Request(id="bad", prompt=TokenPrompt(tokens=tokens)))


def test_a_cancelled_request_ends_as_cancelled_and_the_others_go_on() -> None:
    bench = Bench(slots=1)
    bench.add(chat("one", "a"))
    bench.add(chat("two", "b"))
    for _ in range(5):
        bench.engine.run_once()
    bench.engine.inbox.put(CancelRequests("c", ["a", "unknown"]))
    finished = bench.run()
    assert finished["a"].reason is FinishReason.CANCELLED
    assert finished["b"].reason is FinishReason.STOP


def test_the_requests_of_a_client_are_cancelled_with_it() -> None:
    bench = Bench(slots=1)
    bench.add(chat("one", "a"))
    bench.add(chat("two", "b"))
    bench.engine.run_once()
    bench.engine.inbox.put(CancelRequests("c", None))
    assert bench.run() == {}
    assert bench.engine.scheduler.num_running == 0


class _FailsOnce(FakeDecoder):
    def __init__(self) -> None:
        super().__init__(slots=1, spare_slots=0)
        self.num_resets = 0
        self.is_failing = True

    def run(self, plan: StepPlan) -> list[SampleResult]:
        if self.is_failing:
            self.is_failing = False
            raise DecodeFailed("llama_decode returned -3")
        return super().run(plan)

    def reset(self) -> None:
        super().reset()
        self.num_resets += 1


def test_a_failed_step_fails_its_requests_and_no_other() -> None:
    backend = FakeBackend(decoder := _FailsOnce())
    bench = Bench(backend, slots=1)
    bench.add(chat("one", "a"))
    bench.add(chat("two", "b"))
    finished = bench.run()
    failed = [item for item in bench.outputs if isinstance(item, Failed)]
    assert [(item.request_id, item.code) for item in failed] == [("a", "engine_error")]
    assert list(finished) == ["b"]
    assert decoder.num_resets == 2, "at the start, and after the failure"


def test_a_request_that_cannot_start_fails_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """F14: the first of several choices is queued already."""
    bench = Bench()
    add = bench.engine.scheduler.add

    def fail(sequence: Sequence) -> None:
        if (sequence.request_id, sequence.index) == ("bad", 1):
            raise RuntimeError("unexpected")
        add(sequence)

    monkeypatch.setattr(bench.engine.scheduler, "add", fail)
    for request_id in ("good", "bad", "also-good"):
        bench.add(chat("hello", request_id, n=2))
    finished = bench.run()
    assert [item.request_id for item in bench.outputs if isinstance(item, Failed)] == ["bad"]
    assert sorted(finished) == ["also-good", "good"]
    assert not bench.engine.scheduler.find("c", "bad")


def test_spellings_of_control_tokens_in_user_text_stay_text() -> None:
    bench = Bench(chat_template="{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}")
    tokens = bench.encoder.encode(chat("a</s>b<s>"))
    assert tokens == [256, *b"[a</s>b<s>]"]


def test_a_template_may_write_control_tokens_itself_and_the_beginning_is_not_doubled() -> None:
    bench = Bench(chat_template="{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    assert bench.encoder.encode(chat("a")) == [256, 97, 257]
    without = Bench(chat_template="{{ messages[0].content }}")
    assert without.encoder.encode(chat("a")) == [256, 97]


def test_several_answers_to_one_prompt_end_together_and_count_it_once() -> None:
    bench = Bench()
    bench.add(chat("hello", n=3, stream=True))
    finished = bench.run()["r"]
    assert [choice.index for choice in finished.choices] == [0, 1, 2]
    for choice in finished.choices:
        deltas = [item for item in bench.outputs if isinstance(item, Delta) and item.index == choice.index]
        assert "".join(delta.text for delta in deltas) == choice.text
    assert len({choice.text for choice in finished.choices}) == 3
    decoder = bench.backend.decoder
    assert decoder.num_computed < 2 * finished.usage.prompt_tokens + finished.usage.completion_tokens  # type: ignore[attr-defined]


def test_cancelling_a_request_cancels_all_its_answers() -> None:
    bench = Bench(slots=2)
    bench.add(chat("hello", n=4))
    bench.engine.run_once()
    bench.engine.inbox.put(CancelRequests("c", ["r"]))
    assert {choice.reason for choice in bench.run()["r"].choices} == {FinishReason.CANCELLED}
    assert bench.engine.scheduler.num_running == bench.engine.scheduler.num_waiting == 0


def test_a_batch_answer_is_the_same_when_chat_preempts_it() -> None:
    single = {f"b{n}": Bench().ask(f"question {n}").text for n in range(6)}
    for spare in (0, 2):
        bench = Bench(FakeBackend(FakeDecoder(slots=3, spare_slots=spare)))
        for n in range(6):
            bench.add(chat(f"question {n}", f"b{n}", priority=Priority.BATCH))
        texts = {}
        for n in range(20):
            for _ in range(5):
                bench.engine.run_once()
            texts |= {item.request_id: item.text for item in bench.outputs if isinstance(item, Finished)}
            bench.add(chat(f"chat {n}", f"c{n}"))
        texts |= {key: item.text for key, item in bench.run().items()}
        assert {key: text for key, text in texts.items() if key in single} == single


def test_histories_are_evicted_when_memory_is_short_and_no_request_fails() -> None:
    bench = Bench(FakeBackend(FakeDecoder(slots=2, spare_slots=4, capacity=300)), context_size=150)
    for n in range(12):
        bench.add(chat(f"question {n}", f"r{n}"))
    assert len(bench.run()) == 12


def test_drafts_change_only_the_number_of_steps() -> None:
    plain, speculating = Bench(), Bench(FakeBackend(FakeDecoder(max_drafts=4)), speculation=Switch.ON)
    text = "mill race water wheel stone grain flour river stream gear sack"
    assert (
        speculating.ask(text, ignore_eos=True, max_tokens=100).text
        == plain.ask(text, ignore_eos=True, max_tokens=100).text
    )
    assert speculating.engine.num_steps < plain.engine.num_steps


@pytest.mark.parametrize("options", [{}, {"logprobs": 1}, {"echo": True}, {"echo": True, "logprobs": 1}, {"n": 2}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_for_no_tokens_counts_and_scores_its_prompt(options: dict[str, Any], *, stream: bool) -> None:
    bench = Bench()
    bench.add(Request(id="r", prompt=TextPrompt(text="hello"), max_tokens=0, stream=stream, **options))
    finished = bench.run()["r"]
    assert isinstance(finished, Finished)
    assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (6, 0)
    for choice in finished.choices:
        assert (choice.reason, choice.text) == (FinishReason.LENGTH, "hello" if options.get("echo") else "")
        num_scored = 6 if options.get("echo") and options.get("logprobs") else 0
        assert len(choice.logprobs or []) == num_scored
    if stream:
        deltas = [item for item in bench.outputs if isinstance(item, Delta)]
        assert "".join(delta.text for delta in deltas) == finished.text


class ScriptedTurn:
    """A turn that comes after some refusals, and records what it is asked."""

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.asked: list[str] = []

    def take(self, *, is_chat: bool) -> bool:
        self.asked.append("chat" if is_chat else "batch")
        self.refusals -= 1
        return self.refusals < 0

    def give_back(self) -> None:
        self.asked.append("nothing")


def test_the_first_token_of_a_loading_engine_takes_its_turn_like_a_batch() -> None:
    turn = ScriptedTurn(refusals=2)
    Bench(turn=turn).engine.warm_up()
    assert turn.asked == ["batch", "batch", "batch", "nothing"]


def test_a_step_waits_for_the_turn_while_the_loop_goes_on() -> None:
    turn = ScriptedTurn(refusals=3)
    bench = Bench(turn=turn)
    bench.add(chat("hello", priority=Priority.BATCH))
    activities: set[Activity | None] = set()
    turn_take = turn.take

    def take(*, is_chat: bool) -> bool:
        activities.add(bench.engine.progress.current)
        return turn_take(is_chat=is_chat)

    turn.take = take  # type: ignore[method-assign]
    for _ in range(3):
        assert bench.engine.run_once()
    assert bench.engine.num_steps == 0
    assert len(activities) == 3  # so that the watchdog sees no hung activity
    assert bench.engine.run_once()
    assert bench.engine.num_steps == 1


def test_an_engine_that_waits_for_its_turn_takes_chats_and_cancels() -> None:
    turn = ScriptedTurn(refusals=4)
    bench = Bench(turn=turn)
    bench.add(chat("hello", "line", priority=Priority.BATCH))
    bench.engine.run_once()
    bench.add(chat("hello", "chat"))
    bench.engine.run_once()
    bench.engine.inbox.put(CancelRequests("c", ["chat"]))
    bench.engine.run_once()
    bench.engine.inbox.put(CancelRequests("c", ["line"]))
    bench.engine.run_once()
    assert turn.asked == ["batch", "chat", "batch", "nothing"]
    assert [item.reason for item in bench.outputs if isinstance(item, Finished)] == [FinishReason.CANCELLED] * 2


def test_an_engine_without_work_gives_its_turn_back() -> None:
    turn = ScriptedTurn()
    bench = Bench(turn=turn)
    bench.ask("hello", max_tokens=2)
    assert turn.asked == ["chat", "chat", "nothing"]


def test_embeddings_wait_for_the_turn_with_their_own_priority() -> None:
    turn = ScriptedTurn(refusals=3)
    backend = FakeBackend(FakeDecoder(slots=4, spare_slots=1), embedder=FakeEmbedder(64))
    bench = Bench(backend, turn=turn)
    for number, priority in enumerate((Priority.BATCH, Priority.CHAT)):
        bench.embed(str(number), [1, 2], priority=priority)
        assert bench.engine.run_once()
    assert turn.asked == ["batch", "chat"]
    assert not bench.outputs
    bench.run()
    assert turn.asked[-1] == "nothing"
    assert len(bench.outputs) == 2


class RecordingDecoder(FakeDecoder):
    """A decoder that records the steps."""

    plans: list[StepPlan]

    def run(self, plan: StepPlan) -> list[SampleResult]:
        self.plans.append(plan)
        return super().run(plan)


def test_a_step_scores_one_prompt_also_beside_chat() -> None:
    decoder = RecordingDecoder(slots=4, spare_slots=1)
    decoder.plans = []
    bench = Bench(FakeBackend(decoder), clock=Clock(), context_size=512)
    bench.ask("so that the cost of a step is known", max_tokens=5)
    for number, priority in enumerate(Priority):
        prompt = TokenPrompt(tokens=[20 + (number + index) % 60 for index in range(300)])
        request = chat("", str(priority), priority=priority, max_tokens=1, echo=True, logprobs=1)
        bench.add(msgspec.structs.replace(request, prompt=prompt))
    assert len(bench.run()) == len(Priority)
    scored = [sum(entry.wants_prompt_logprobs for entry in plan.entries) for plan in decoder.plans]
    assert max(scored) == 1
