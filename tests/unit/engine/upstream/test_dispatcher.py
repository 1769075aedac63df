"""Which request goes to which server and when, and what becomes of it, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

import msgspec
import pytest

from engine.types import Delta, Failed, Finished, FinishReason, Priority
from engine.upstream.dispatcher import Dispatcher, Output
from engine.upstream.limiter import Limiter
from engine.upstream.replicas import Replica
from tests.support.upstream import (
    DONE,
    Reply,
    ScriptedTransport,
    chat_answer,
    chunk,
    events,
    forward,
    good,
    refused,
    reset,
    status,
    timed_out,
)
from tests.support.virtual_time import run_in_virtual_time

LINE = Priority.BATCH


class Bench:
    """A dispatcher on scripted servers; all pauses have their full length. `outputs` has the times of all outputs."""

    made: ClassVar[list[Bench]] = []

    def __init__(self, *transports: ScriptedTransport, limit: int | None = None) -> None:
        self.transports = transports
        self.outputs: list[tuple[float, str, Output]] = []
        self.inflight: list[set[str]] = []
        self.loop = asyncio.get_running_loop()
        self.replicas = [
            Replica(f"server {n}", transport, "theirs", Limiter(self.loop.time, limit), uniform=lambda _, high: high)
            for n, transport in enumerate(transports)
        ]
        self.dispatcher = Dispatcher(
            self.replicas,
            "theirs",
            lambda client, output: self.outputs.append((self.loop.time(), client, output)),
            record_inflight=lambda keys: self.inflight.append({key[1] for key in keys}),
            redact=lambda text: text.replace("secret", "*"),
            uniform=lambda _, high: high,
        )
        self.made.append(self)
        self._watchers = [asyncio.ensure_future(replica.watch(lambda: None)) for replica in self.replicas]

    async def run(self, until: float) -> None:
        await asyncio.sleep(until - self.loop.time())

    def submit(self, *requests: Any, client: str = "c") -> None:
        for request in requests:
            self.dispatcher.submit(client, request)

    def ends(self, request_id: str = "r") -> list[Output]:
        return [
            output for _, _, output in self.outputs if output.request_id == request_id and not isinstance(output, Delta)
        ]

    def end(self, request_id: str = "r") -> Output:
        (outcome,) = self.ends(request_id)
        return outcome

    def text(self, request_id: str = "r") -> str:
        outcome = self.end(request_id)
        assert isinstance(outcome, Finished)
        return outcome.text

    def deltas(self, request_id: str = "r") -> list[str]:
        return [
            output.text
            for _, _, output in self.outputs
            if isinstance(output, Delta) and output.request_id == request_id
        ]

    @property
    def times(self) -> list[float]:
        """Times at which requests were sent to the first server."""
        return [round(at, 2) for at, _ in self.transports[0].sent]


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in virtual time."""

    async def main(**given: Any) -> None:
        Bench.made.clear()
        try:
            await test(**given)
        finally:
            for client in ("c", "here", "gone"):
                for bench in Bench.made:
                    bench.dispatcher.cancel(client, None)

    def run(**given: Any) -> None:
        run_in_virtual_time(main(**given))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__signature__ = __import__("inspect").signature(test)  # type: ignore[attr-defined] # pytest reads parameters
    return run


@virtual
async def test_an_answer_ends_the_request_once() -> None:
    bench = Bench(ScriptedTransport(good("hi")))
    bench.submit(forward())
    await bench.run(5)
    assert bench.text() == "hi"
    assert bench.transports[0].sent[0][1]["model"] == "theirs"


@virtual
async def test_a_refused_request_ends_at_once_with_the_words_of_the_server() -> None:
    bench = Bench(ScriptedTransport(status(422, message="bad secret", code="c", type="t", param="p")))
    bench.submit(forward(priority=LINE))
    await bench.run(5)
    assert bench.end() == Failed(request_id="r", code="c", message="bad *", param="p", status=422, kind="t")
    assert len(bench.times) == 1


@virtual
async def test_a_line_waits_out_every_pause_and_none_counts_as_an_attempt() -> None:
    replies = [status(429, retry_after="60"), status(503, retry_after="600"), status(429, retry_after="0.5")]
    bench = Bench(ScriptedTransport(*replies, status(500), reset(), good("hi")))
    bench.submit(forward(priority=LINE))
    await bench.run(2000)
    assert bench.text() == "hi"
    assert bench.times[1] == pytest.approx(60.1)
    assert bench.times[2] == pytest.approx(660.2)
    assert len(bench.times) == 6


@virtual
async def test_a_server_that_asks_for_a_pause_gets_nothing_during_it() -> None:
    bench = Bench(ScriptedTransport(status(429, retry_after="30")))
    bench.submit(forward("a", priority=LINE))
    await bench.run(1)
    bench.submit(*(forward(f"b{n}", priority=LINE) for n in range(5)))
    await bench.run(100)
    assert all(bench.text(f"b{n}") for n in range(5))
    assert min(bench.times[1:]) >= 30


@virtual
async def test_refusals_without_a_time_are_answered_by_back_off() -> None:
    bench = Bench(ScriptedTransport(*[status(429)] * 4, good("hi")))
    bench.submit(forward(priority=LINE))
    await bench.run(100)
    pauses = [later - earlier for earlier, later in zip(bench.times, bench.times[1:], strict=False)]
    assert pauses == pytest.approx([1.1, 2.1, 4.1, 8.1])
    assert bench.text() == "hi"


@pytest.mark.parametrize("fault", [reset(), status(500), status(502), status(504), status(408), timed_out()])
@virtual
async def test_broken_answers_count_and_the_last_attempt_ends_the_line(fault: Reply) -> None:
    bench = Bench(ScriptedTransport(last=fault))
    bench.submit(forward(priority=LINE))
    await bench.run(4000)
    assert isinstance(bench.end(), Failed)
    assert len(bench.times) == 3


@virtual
async def test_broken_answers_are_tried_again_after_a_growing_pause() -> None:
    bench = Bench(ScriptedTransport(reset(), reset(), good("hi")))
    bench.submit(forward(priority=LINE))
    await bench.run(100)
    assert bench.times == pytest.approx([0, 1.1, 3.2])
    assert bench.text() == "hi"


@virtual
async def test_half_an_answer_is_not_in_the_result() -> None:
    half = Reply(pieces=(b'{"choices": [{"index": 0, "message": {"content": "ha',))
    bench = Bench(ScriptedTransport(half, Reply(pieces=(b"<html>",)), good("whole")))
    bench.submit(forward(priority=LINE))
    await bench.run(100)
    assert bench.text() == "whole"


@virtual
async def test_a_server_that_is_away_for_hours_costs_a_line_no_attempt() -> None:
    is_up = False

    def probe() -> Reply:
        return Reply(pieces=(b"{}",), seconds=0) if is_up else refused()

    transport = ScriptedTransport(last=refused(), probes=probe)
    bench = Bench(transport)
    bench.submit(*(forward(f"l{n}", priority=LINE) for n in range(20)))
    await bench.run(3 * 3600)
    assert bench.outputs == []
    assert bench.replicas[0].warning == "server 0 does not answer. connection refused"
    is_up, transport.last = True, good("hi")
    await bench.run(3 * 3600 + 60)
    assert all(bench.text(f"l{n}") == "hi" for n in range(20))
    assert bench.replicas[0].warning is None


@virtual
async def test_a_chat_waits_for_ten_seconds_and_then_gets_the_error_of_the_server() -> None:
    bench = Bench(ScriptedTransport(last=status(429, message="slow down", code="rate_limit", retry_after="4")))
    bench.submit(forward())
    await bench.run(100)
    ((at, _, outcome),) = bench.outputs
    assert outcome == Failed(request_id="r", code="rate_limit", message="slow down", status=429, retry_seconds=4)
    assert at == pytest.approx(10.1)


@virtual
async def test_a_chat_does_not_wait_for_the_end_of_a_longer_pause() -> None:
    bench = Bench(ScriptedTransport(last=status(429, retry_after="60")))
    bench.submit(forward())
    await bench.run(1)
    outcome = bench.end()
    assert isinstance(outcome, Failed)
    assert (outcome.status, outcome.retry_seconds) == (429, 60)
    bench.submit(forward("later"))
    await bench.run(2)
    assert isinstance(bench.end("later"), Failed)
    assert len(bench.times) == 1


@virtual
async def test_a_chat_is_told_that_no_server_answers() -> None:
    bench = Bench(ScriptedTransport(last=refused(), probes=refused))
    bench.submit(forward())
    await bench.run(5)
    bench.submit(forward("later"))
    await bench.run(60)
    bench.submit(forward("last"))
    await bench.run(100)
    first, later, last = (at for at, _, _ in bench.outputs)
    assert bench.end() == Failed(
        request_id="r", code="upstream_unavailable", message="connection refused", status=503, kind=None
    )
    assert (first, later, last) == (pytest.approx(10), pytest.approx(15), pytest.approx(61))


@virtual
async def test_a_chat_goes_on_when_the_server_recovers_within_its_patience() -> None:
    bench = Bench(ScriptedTransport(status(429, retry_after="5"), good("hi")))
    bench.submit(forward())
    await bench.run(100)
    assert bench.text() == "hi"


@virtual
async def test_a_chat_that_waits_for_a_busy_server_without_trouble_keeps_waiting() -> None:
    bench = Bench(ScriptedTransport(good("slow", seconds=300), good("hi")), limit=1)
    bench.submit(forward("first"), forward("second"))
    await bench.run(400)
    assert bench.text("second") == "hi"


@virtual
async def test_a_stream_is_relayed_as_it_comes() -> None:
    bench = Bench(ScriptedTransport(events(chunk("a"), chunk("b"), chunk(finish="stop"), DONE)))
    bench.submit(forward(stream=True))
    await bench.run(5)
    assert bench.deltas() == ["a", "b"]
    assert bench.text() == "ab"
    assert bench.transports[0].sent[0][1]["stream_options"] == {"include_usage": True}


@virtual
async def test_the_time_to_the_first_text_of_a_stream_is_known_and_that_of_a_whole_answer_is_not() -> None:
    bench = Bench(ScriptedTransport(status(429, retry_after="2"), events(chunk("a", finish="stop"), DONE), good("hi")))
    bench.submit(forward(stream=True))
    await bench.run(5)
    streamed = bench.end()
    assert isinstance(streamed, Finished)
    assert streamed.first_token_seconds == pytest.approx(3.1), "with the pause before it"
    bench.submit(forward("whole"))
    await bench.run(10)
    whole = bench.end("whole")
    assert isinstance(whole, Finished)
    assert whole.first_token_seconds is None


@virtual
async def test_a_stream_that_breaks_before_its_text_is_tried_again() -> None:
    broken = events(b": ping\n\n", error=reset().error)
    bench = Bench(ScriptedTransport(broken, events(chunk("a"), chunk(finish="stop"), DONE)))
    bench.submit(forward(stream=True))
    await bench.run(50)
    assert bench.deltas() == ["a"]
    assert bench.text() == "a"


@virtual
async def test_a_stream_of_which_text_was_sent_is_never_tried_again() -> None:
    bench = Bench(ScriptedTransport(events(chunk("a"), error=reset().error)))
    bench.submit(forward(stream=True))
    await bench.run(50)
    assert bench.deltas() == ["a"]
    assert isinstance(bench.end(), Failed)
    assert len(bench.times) == 1


@virtual
async def test_a_line_that_is_watched_is_not_streamed_so_that_it_may_be_tried_again() -> None:
    bench = Bench(ScriptedTransport(reset(), good("hi")))
    bench.submit(forward(priority=LINE))
    await bench.run(0.5)
    bench.dispatcher.stream("c", ["r", "unknown"])
    await bench.run(50)
    assert "stream" not in bench.transports[0].sent[1][1]
    assert bench.deltas() == ["hi"]
    assert bench.text() == "hi"


@virtual
async def test_chats_go_first_and_lines_shrink_to_half_of_the_limit() -> None:
    transport = ScriptedTransport(last=good(seconds=10))
    bench = Bench(transport, limit=8)
    bench.submit(*(forward(f"l{n}", priority=LINE) for n in range(40)))
    await bench.run(1)
    bench.submit(*(forward(f"c{n}") for n in range(2)))
    assert bench.replicas[0].num_chats == 0  # the operator's limit holds for chats, too
    await bench.run(11)
    assert (bench.replicas[0].num_chats, bench.replicas[0].num_lines) == (2, 4)
    await bench.run(25)
    assert (bench.replicas[0].num_chats, bench.replicas[0].num_lines) == (0, 8)
    assert transport.most_running == 8


@virtual
async def test_chats_do_not_make_the_limit_smaller_although_lines_have_half_of_it() -> None:
    bench = Bench(ScriptedTransport(last=good(seconds=1)))
    limiter = bench.replicas[0].limiter
    bench.submit(*(forward(f"l{n}", priority=LINE) for n in range(9000)))
    await bench.run(25)
    before = limiter.limit
    assert before > 100
    for second in range(26, 45):
        bench.submit(*(forward(f"c{second}-{n}") for n in range(2)))
        await bench.run(second)
    assert limiter.limit >= before


@virtual
async def test_a_chat_does_not_wait_for_lines_where_the_limit_is_found() -> None:
    bench = Bench(ScriptedTransport(last=good(seconds=100)))
    bench.submit(*(forward(f"l{n}", priority=LINE) for n in range(40)))
    await bench.run(1)
    bench.submit(forward("chat"))
    assert bench.replicas[0].num_chats == 1


@virtual
async def test_the_server_with_the_least_load_is_chosen() -> None:
    bench = Bench(*(ScriptedTransport(last=good(seconds=10)) for _ in range(3)), limit=4)
    bench.submit(*(forward(f"r{n}") for n in range(7)))
    await bench.run(1)
    assert sorted(transport.num_running for transport in bench.transports) == [2, 2, 3]


@virtual
async def test_another_server_takes_over_at_once_for_one_that_is_away() -> None:
    bench = Bench(ScriptedTransport(last=refused(), probes=refused), ScriptedTransport(last=good("hi")))
    bench.submit(*(forward(f"r{n}") for n in range(4)))
    await bench.run(3)
    assert all(bench.text(f"r{n}") == "hi" for n in range(4))
    assert bench.replicas[0].warning is not None
    assert bench.replicas[1].warning is None


@virtual
async def test_a_request_that_failed_at_one_server_is_tried_at_another() -> None:
    bench = Bench(ScriptedTransport(last=status(500)), ScriptedTransport(last=good("hi", seconds=50)))
    bench.submit(*(forward(f"r{n}", priority=LINE) for n in range(8)))
    await bench.run(200)
    assert all(bench.text(f"r{n}") == "hi" for n in range(8))


@virtual
async def test_a_server_that_fails_everything_rests_and_is_probed_before_it_gets_more() -> None:
    sick = ScriptedTransport(last=status(500))
    bench = Bench(sick, ScriptedTransport(last=good("hi", seconds=1)))
    bench.submit(*(forward(f"r{n}", priority=LINE) for n in range(200)))
    await bench.run(300)
    assert sum(isinstance(bench.end(f"r{n}"), Finished) for n in range(200)) == 200
    assert len(sick.sent) < 60


@virtual
async def test_an_exclusive_request_runs_alone() -> None:
    transport = ScriptedTransport(last=good(seconds=10))
    bench = Bench(transport, ScriptedTransport(last=good(seconds=10)))
    alone = msgspec.structs.replace(forward("alone", priority=LINE), exclusive=True)
    bench.submit(*(forward(f"l{n}", priority=LINE) for n in range(4)), alone, forward("after", priority=LINE))
    await bench.run(1)
    assert bench.dispatcher.num_running == 4
    await bench.run(11)
    assert bench.inflight[-1] == {"alone"}
    bench.submit(forward("chat"))
    assert bench.inflight[-1] == {"alone"}
    await bench.run(21)
    assert bench.inflight[-1] == {"chat", "after"}
    await bench.run(40)
    assert bench.inflight[-1] == set()


@virtual
async def test_chats_wait_for_one_exclusive_line_at_most() -> None:
    bench = Bench(ScriptedTransport(last=good(seconds=10)))
    lines = (msgspec.structs.replace(forward(f"l{n}", priority=LINE), exclusive=True) for n in range(3))
    bench.submit(*lines, forward("chat"))
    await bench.run(100)
    ends = [output.request_id for _, _, output in bench.outputs]
    assert ends == ["l0", "chat", "l1", "l2"]


@virtual
async def test_a_cancelled_request_ends_as_cancelled_wherever_it_is() -> None:
    transport = ScriptedTransport(reset(), last=good(seconds=100))
    bench = Bench(transport, limit=2)
    bench.submit(*(forward(name, priority=LINE) for name in ("broken", "running", "waiting")))
    await bench.run(0.5)
    bench.dispatcher.cancel("c", ["broken", "running", "waiting", "unknown"])
    await bench.run(1)
    for name in ("broken", "running", "waiting"):
        outcome = bench.end(name)
        assert isinstance(outcome, Finished)
        assert outcome.reason is FinishReason.CANCELLED
    assert transport.num_running == 0
    await bench.run(1000)
    assert len(bench.outputs) == 3


@virtual
async def test_the_requests_of_a_client_that_is_gone_are_cancelled() -> None:
    bench = Bench(ScriptedTransport(last=good(seconds=100)), limit=1)
    bench.submit(forward("a"), forward("b"), client="gone")
    bench.submit(forward("c"), client="here")
    bench.dispatcher.cancel("gone", None)
    await bench.run(150)
    assert bench.text("c") == "hi"
    assert bench.transports[0].num_running == 0


@virtual
async def test_a_body_that_is_no_object_fails_alone() -> None:
    bench = Bench(ScriptedTransport())
    bench.submit(msgspec.structs.replace(forward("bad"), body=b"[]"), forward("good"))
    await bench.run(5)
    assert isinstance(bench.end("bad"), Failed)
    assert bench.text("good") == "hi"


@virtual
async def test_time_outs_halve_the_limit() -> None:
    bench = Bench(ScriptedTransport(timed_out()))
    limiter = bench.replicas[0].limiter
    before = limiter.limit
    bench.submit(forward(priority=LINE))
    await bench.run(700)
    assert limiter.limit == before // 2


@virtual
async def test_the_list_of_models_is_compared_with_the_model() -> None:
    listed = Reply(
        pieces=(b'{"object": "list", "data": [{"id": "other"}]}',), headers={"server": "llama.cpp"}, seconds=0
    )
    bench = Bench(ScriptedTransport(probes=lambda: listed))
    await bench.run(1)
    assert bench.replicas[0].warning == "server 0 does not list the model 'theirs'; it lists 'other'."
    assert bench.replicas[0].build == "llama.cpp"


@virtual
async def test_a_server_that_answers_is_asked_for_its_list_again_while_the_model_is_not_in_it() -> None:
    def probe() -> Reply:
        name = b"other" if asyncio.get_running_loop().time() < 20 else b"theirs"
        return Reply(pieces=(b'{"data": [{"id": "%s"}]}' % name,), seconds=0)

    bench = Bench(ScriptedTransport(last=good(), probes=probe))
    for number in range(1, 20):
        await bench.run(2 * number)
        bench.submit(forward(str(number)))
        assert (bench.replicas[0].warning is None) == (bench.loop.time() > 30), "from the probe after 30 s"


@virtual
async def test_refusals_in_a_row_are_a_warning_until_the_next_answer() -> None:
    bench = Bench(ScriptedTransport(*[status(429, message="quota", retry_after="30")] * 5))
    bench.submit(forward(priority=LINE))
    await bench.run(140)
    assert bench.replicas[0].warning == "server 0 refuses requests for now. quota"
    await bench.run(160)
    assert bench.replicas[0].warning is None


@virtual
async def test_a_key_that_is_refused_is_a_warning() -> None:
    bench = Bench(ScriptedTransport(probes=lambda: status(401)))
    await bench.run(1)
    assert bench.replicas[0].warning == "server 0 refuses the key of `api_key_env` (HTTP 401)."


@virtual
async def test_the_tokens_of_answers_are_counted_by_their_usage() -> None:
    nonsense = {"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 9}}
    more = Reply(pieces=(chat_answer(usage=nonsense),))
    bench = Bench(ScriptedTransport(good(), more, status(422)))
    bench.submit(forward("a"), forward("b"), forward("c"))
    await bench.run(5)
    counts = bench.dispatcher.num_prompt_tokens, bench.dispatcher.num_cached_tokens, bench.dispatcher.num_output_tokens
    assert counts == (8, 3, 8), "no more than the prompt comes from a cache"
