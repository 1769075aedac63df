"""The engine process, tested through its client."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from engine.config import BackendKind, EngineConfig
from engine.inputs.chat_template import CHATML
from engine.process.client import EngineClient, EngineLost
from engine.process.exit_codes import Exit
from engine.types import (
    Constraint,
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
)
from tests.support.engine import chat
from tests.support.stack import wait_for


class Recorder:
    """A sink that records all calls; `ended` is set at the end."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.outcomes: list[Finished | Failed | EngineLost] = []
        self.began = threading.Event()
        self.ended = threading.Event()

    def on_delta(self, delta: Delta) -> None:
        self.deltas.append(delta)
        self.began.set()

    def on_end(self, outcome: Finished | Failed | EngineLost) -> None:
        self.outcomes.append(outcome)
        self.ended.set()

    @property
    def outcome(self) -> Finished | Failed | EngineLost:
        assert self.ended.wait(20), "the request did not end"
        assert len(self.outcomes) == 1, "a request ends once"
        return self.outcomes[0]


class EngineProcess:
    """`python -m engine.process.server` on the fake model."""

    def __init__(self, folder: Path, **config: object) -> None:
        values: dict[str, Any] = {
            "model": "fake",
            "endpoint": str(folder),
            "backend": BackendKind.FAKE,
            "slots": 4,
            **config,
        }
        self._config = msgspec.json.encode(EngineConfig(**values)).decode()
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "engine.process.server", self._config], stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e")


@pytest.fixture
def engine(folder: Path) -> Iterator[EngineProcess]:
    process = EngineProcess(folder, step_seconds=0.002)
    yield process
    process.kill()


@pytest.fixture
def client(folder: Path) -> Iterator[EngineClient]:
    client = EngineClient(str(folder), "tester")
    yield client
    client.close()


def submit(client: EngineClient, request: Request) -> Recorder:
    recorder = Recorder()
    client.submit(request, recorder)
    return recorder


def test_an_answer_comes_in_deltas_and_ends_once(engine: EngineProcess, client: EngineClient) -> None:
    assert client.wait_ready(20).model == "fake"
    recorder = submit(client, chat("hello", stream=True))
    finished = recorder.outcome
    assert isinstance(finished, Finished)
    assert finished.text == "".join(delta.text for delta in recorder.deltas)


OTHER_TEMPLATE = "{{ messages[0].content }}"


@pytest.mark.parametrize(("given", "in_use"), [(None, CHATML), (OTHER_TEMPLATE, OTHER_TEMPLATE)])
def test_an_engine_reports_the_hash_of_its_chat_template(
    folder: Path, client: EngineClient, given: str | None, in_use: str
) -> None:
    process = EngineProcess(folder, chat_template=given)
    try:
        assert client.wait_ready(20).template_hash == hashlib.sha256(in_use.encode()).hexdigest()
    finally:
        process.kill()


def test_a_request_that_is_streamed_later_sends_its_whole_answer(folder: Path, client: EngineClient) -> None:
    recorder = submit(client, chat("hello"))  # no engine is running yet
    client.stream("r")
    client.stream("unknown")
    engine = EngineProcess(folder, step_seconds=0.002)
    try:
        assert isinstance(finished := recorder.outcome, Finished)
        assert finished.text == "".join(delta.text for delta in recorder.deltas)
        later = submit(client, chat("hello", ignore_eos=True, max_tokens=500))
        client.stream("r")
        assert isinstance(finished := later.outcome, Finished)
        assert finished.text == "".join(delta.text for delta in later.deltas)
        assert len(later.deltas) > 10
    finally:
        engine.kill()


def test_many_requests_from_many_threads_all_end(engine: EngineProcess, client: EngineClient) -> None:
    client.wait_ready(20)
    recorders: list[Recorder] = []

    def work(thread: int) -> None:
        for n in range(25):
            recorders.append(submit(client, chat(f"hello {thread} {n}", f"{thread}-{n}")))  # noqa: PERF401

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(recorder.outcome, Finished) for recorder in recorders)
    assert len(recorders) == 100


class Vectors:
    """A sink for embeddings."""

    def __init__(self) -> None:
        self.outcome: Embedded | Failed | EngineLost | None = None
        self.ended = threading.Event()

    def on_end(self, outcome: Embedded | Failed | EngineLost) -> None:
        self.outcome = outcome
        self.ended.set()


@pytest.mark.parametrize("embeddings", [True, False])
def test_embeddings_are_computed_where_the_model_file_asks_for_them(
    folder: Path, client: EngineClient, embeddings: bool
) -> None:
    process = EngineProcess(folder, embeddings=embeddings)
    sink = Vectors()
    try:
        client.wait_ready(20)
        client.embed(EmbedRequest(id="e", inputs=[TextPrompt(text="stone")]), sink)
        assert sink.ended.wait(20)
        assert isinstance(submit(client, chat("hello")).outcome, Finished)
    finally:
        process.kill()
    if embeddings:
        assert isinstance(sink.outcome, Embedded)
        assert len(sink.outcome.vectors[0]) == 64 * 4
    else:
        assert isinstance(sink.outcome, Failed)
        assert "embeddings: true" in sink.outcome.message


@pytest.mark.parametrize("is_exclusive", [False, True])
def test_inputs_that_crash_the_engine_are_found_among_those_that_share_their_step(
    folder: Path, client: EngineClient, is_exclusive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_FAILPOINT", "engine.step:sleep=1")  # the first step lasts until all have arrived
    first = EmbedRequest(id="first", inputs=[TextPrompt(text="stone")])
    client.embed(first, Vectors())  # no engine is running yet
    sinks = {name: Vectors() for name in ("neighbour", "poison", "waiting")}
    for name, sink in sinks.items():
        text = "<<segfault>>" if name == "poison" else "stone" * (1 if name == "neighbour" else 101)
        exclusive = is_exclusive and name == "poison"
        client.embed(EmbedRequest(id=name, inputs=[TextPrompt(text=text)], exclusive=exclusive), sink)
    process = EngineProcess(folder, embeddings=True)
    try:
        assert all(sink.ended.wait(20) for sink in sinks.values())
    finally:
        process.kill()
    outcomes = {name: sink.outcome for name, sink in sinks.items()}
    assert outcomes["poison"] == EngineLost(request_id="poison", was_running=True, was_alone=is_exclusive)
    if is_exclusive:  # its answer may have been sent just before the crash
        lost = EngineLost(request_id="neighbour", was_running=False)
        assert isinstance(outcomes["neighbour"], Embedded) or outcomes["neighbour"] == lost
    else:
        assert outcomes["neighbour"] == EngineLost(request_id="neighbour", was_running=True)
    assert outcomes["waiting"] == EngineLost(request_id="waiting", was_running=False)


def test_a_long_step_neither_stops_the_ticks_nor_the_replies(folder: Path) -> None:
    process = EngineProcess(folder, step_seconds=6)
    client = EngineClient(str(folder), "tester", hello_seconds=1)
    try:
        client.wait_ready(20)
        running = submit(client, chat("hello", max_tokens=1))
        began, first = time.monotonic(), client.answered_at
        wait_for(lambda: client.answered_at > first + 2, "it replies again and again", 20)
        assert client.seconds_since_tick(time.monotonic()) < 2
        other = EngineClient(str(folder), "other")
        other.wait_ready(2)
        other.close()
        assert time.monotonic() - began < 6
        assert not running.ended.is_set(), "all of it was within one step"
    finally:
        process.kill()
        client.close()


def test_an_id_may_be_used_again_while_its_first_request_runs(engine: EngineProcess, client: EngineClient) -> None:
    """A worker that has lost a lease and takes the row again has not heard yet that the first request was cancelled."""
    client.wait_ready(20)
    first, second = Recorder(), Recorder()
    request = chat("hello", ignore_eos=True, stream=True, max_tokens=3000)
    first_id = client.submit(request, first)
    assert first.began.wait(20)
    second_id = client.submit(request, second)
    assert second.began.wait(20)
    client.cancel(first_id)
    assert isinstance(first.outcome, Finished)
    assert first.outcome.reason is FinishReason.CANCELLED
    assert not second.ended.is_set()
    client.cancel(second_id)
    assert isinstance(second.outcome, Finished)


def test_a_bad_request_fails_alone(engine: EngineProcess, client: EngineClient) -> None:
    client.wait_ready(20)
    bad = submit(client, chat("x" * 10_000, "bad")).outcome
    assert isinstance(bad, Failed)
    assert bad.code == "context_length_exceeded"
    assert isinstance(submit(client, chat("hello", "good")).outcome, Finished)


def test_a_cancelled_request_ends_as_cancelled(engine: EngineProcess, client: EngineClient) -> None:
    client.wait_ready(20)
    recorder = submit(client, chat("hello", stream=True, ignore_eos=True))
    assert recorder.began.wait(20)
    client.cancel("r")
    outcome = recorder.outcome
    assert isinstance(outcome, Finished)
    assert outcome.reason is FinishReason.CANCELLED
    client.cancel("r")


def test_a_killed_engine_loses_its_requests_and_the_next_one_takes_new_ones(
    engine: EngineProcess, client: EngineClient
) -> None:
    client.wait_ready(20)
    running = submit(client, chat("hello", stream=True, ignore_eos=True))
    assert running.began.wait(20)
    engine.kill()
    assert isinstance(running.outcome, EngineLost)
    waiting = submit(client, chat("hello again", "later"))
    engine.start()
    assert isinstance(waiting.outcome, Finished)


@pytest.mark.parametrize("fault", ["segfault", "abort", "hang", "memory"])
def test_a_crash_separates_running_requests_from_waiting_ones(folder: Path, fault: str) -> None:
    process = EngineProcess(folder, step_seconds=0.05, slots=2, hang_seconds=0.4)
    mine, other = EngineClient(str(folder), "mine"), EngineClient(str(folder), "other")
    try:
        mine.wait_ready(20)
        other.wait_ready(20)
        neighbour = submit(other, chat("hello", "neighbour", ignore_eos=True, stream=True))
        assert neighbour.began.wait(20)
        poison = submit(mine, chat(f"<<{fault}>>", "poison", priority=Priority.BATCH))
        waiting = submit(mine, chat("hello", "waiting", priority=Priority.BATCH))
        assert poison.outcome == EngineLost(request_id="poison", was_running=True)
        assert neighbour.outcome == EngineLost(request_id="neighbour", was_running=True)
        assert waiting.outcome == EngineLost(request_id="waiting", was_running=False)
    finally:
        process.kill()
        mine.close()
        other.close()


def test_an_exclusive_request_that_crashes_is_found_while_others_run(
    engine: EngineProcess, client: EngineClient
) -> None:
    client.wait_ready(20)
    neighbour = submit(client, chat("hello", "neighbour", ignore_eos=True, stream=True))
    assert neighbour.began.wait(20)
    poison = submit(client, chat("<<segfault>>", "poison", exclusive=True))
    assert poison.outcome == EngineLost(request_id="poison", was_running=True, was_alone=True)
    assert neighbour.outcome == EngineLost(request_id="neighbour", was_running=False)


def test_a_request_that_makes_a_step_fail_in_python_fails_and_the_engine_goes_on(
    engine: EngineProcess, client: EngineClient
) -> None:
    client.wait_ready(20)
    outcome = submit(client, chat("<<raise>>", "bad")).outcome
    assert isinstance(outcome, Failed)
    assert outcome.code == "engine_error"
    assert isinstance(submit(client, chat("hello", "good")).outcome, Finished)


def test_a_request_sent_before_there_is_an_engine_waits_for_it(folder: Path, client: EngineClient) -> None:
    recorder = submit(client, chat("hello"))
    dropped = submit(client, chat("never mind", "dropped"))
    client.cancel("dropped")
    assert dropped.outcome == EngineLost(request_id="dropped", was_running=False)
    process = EngineProcess(folder)
    try:
        assert isinstance(recorder.outcome, Finished)
    finally:
        process.kill()


def test_a_stopped_engine_stops_ticking(engine: EngineProcess, client: EngineClient) -> None:
    client.wait_ready(20)
    assert client.seconds_since_tick(time.monotonic()) < 5
    os.kill(engine.process.pid, signal.SIGSTOP)
    try:
        frozen_at = time.monotonic()
        while client.seconds_since_tick(time.monotonic()) < 1.5:
            assert time.monotonic() - frozen_at < 20
            time.sleep(0.05)
    finally:
        os.kill(engine.process.pid, signal.SIGCONT)


def test_requests_of_a_closed_client_are_cancelled(engine: EngineProcess, folder: Path, client: EngineClient) -> None:
    client.wait_ready(20)
    other = EngineClient(str(folder), "other")
    other.wait_ready(20)
    lost = submit(other, chat("hello", "o", ignore_eos=True))
    for n in range(8):
        submit(client, chat("hello", f"mine-{n}"))
    other.close()
    assert isinstance(lost.outcome, EngineLost)
    assert isinstance(submit(client, chat("hello", "after")).outcome, Finished)


def test_a_decode_that_hangs_ends_the_process(folder: Path) -> None:
    process = EngineProcess(folder, step_seconds=30, hang_seconds=0.2)
    client = EngineClient(str(folder), "tester")
    try:
        client.wait_ready(20)
        assert isinstance(submit(client, chat("hello")).outcome, EngineLost)
        assert process.process.wait(10) == 86
    finally:
        process.kill()
        client.close()


# The server with two injected faults: in the input thread on a Cancel, and in the recovery of the loop.
FAILING = """
import engine.loop as loop
import engine.process.server as server
def dispatch(self, message):
    if isinstance(message, server.Cancel):
        raise RuntimeError("in the input thread")
    original(self, message)
def recover(self, error):
    raise RuntimeError("in the loop")
original, server.Server._dispatch = server.Server._dispatch, dispatch
loop.EngineLoop._recover = recover
server.main()
"""


@pytest.mark.parametrize("code", [Exit.INPUT_FAILED, Exit.FAILED])
def test_an_engine_exits_when_its_input_thread_or_its_loop_ends(folder: Path, client: EngineClient, code: Exit) -> None:
    """F14: the loop clears the state of a failed step and goes on; if that fails too, the process ends."""
    config = EngineConfig(model="fake", endpoint=str(folder), backend=BackendKind.FAKE, step_seconds=0.002)
    process = subprocess.Popen(
        [sys.executable, "-c", FAILING, msgspec.json.encode(config).decode()], stderr=subprocess.DEVNULL
    )
    try:
        client.wait_ready(20)
        running = submit(client, chat("hello", ignore_eos=True))
        if code is Exit.INPUT_FAILED:
            client.cancel("r")
        else:
            submit(client, chat("<<raise>>", "bad"))
        assert process.wait(20) == code
        assert isinstance(running.outcome, EngineLost)
    finally:
        process.kill()


# The server with an input thread that blocks at the first Cancel.
STUCK = """
import threading
import engine.process.server as server
def dispatch(self, message):
    if isinstance(message, server.Cancel):
        threading.Event().wait()
    original(self, message)
original, server.Server._dispatch = server.Server._dispatch, dispatch
server.main()
"""


def test_an_engine_with_a_stuck_input_thread_ticks_but_does_not_reply(folder: Path, client: EngineClient) -> None:
    config = EngineConfig(model="fake", endpoint=str(folder), backend=BackendKind.FAKE, step_seconds=0.002)
    process = subprocess.Popen([sys.executable, "-c", STUCK, msgspec.json.encode(config).decode()])
    try:
        client.wait_ready(20)
        first = client.answered_at
        wait_for(lambda: client.answered_at > first, "it replies again and again", 20)
        submit(client, chat("hello", ignore_eos=True))
        client.cancel("r")
        wait_for(lambda: time.monotonic() - client.answered_at > 4, "it stops replying", 30)
        assert client.seconds_since_tick(time.monotonic()) < 3
    finally:
        process.kill()
        process.wait()


# The server with a thread for embeddings that blocks at its first request.
BUSY = """
import threading
import engine.process.server as server
server.encode_inputs = lambda *_: threading.Event().wait()
server.main()
"""


def test_a_chat_does_not_wait_while_the_inputs_of_a_large_embedding_request_are_encoded(
    folder: Path, client: EngineClient
) -> None:
    config = EngineConfig(model="fake", endpoint=str(folder), backend=BackendKind.FAKE, embeddings=True)
    process = subprocess.Popen([sys.executable, "-c", BUSY, msgspec.json.encode(config).decode()])
    try:
        client.wait_ready(20)
        client.embed(EmbedRequest(id="e", inputs=[TextPrompt(text="stone")]), Vectors())
        assert isinstance(submit(client, chat("hello")).outcome, Finished)
    finally:
        process.kill()
        process.wait()


# The server whose heartbeat stops while it is idle.
RESTING = """
import engine.process.server as server
server.IDLE_TICK_SECONDS = 3600
server.main()
"""


def test_an_idle_engine_ticks_again_when_a_request_arrives(folder: Path, client: EngineClient) -> None:
    config = EngineConfig(model="fake", endpoint=str(folder), backend=BackendKind.FAKE)
    process = subprocess.Popen([sys.executable, "-c", RESTING, msgspec.json.encode(config).decode()])
    try:
        client.wait_ready(20)
        wait_for(lambda: client.tick is not None, "the first tick", 20)
        assert isinstance(submit(client, chat("hello")).outcome, Finished)
        wait_for(lambda: client.tick is not None and client.tick.output_tokens > 0, "a tick after the request", 20)
    finally:
        process.kill()
        process.wait()


def test_a_client_closes_at_once_between_two_hellos(engine: EngineProcess, folder: Path) -> None:
    client = EngineClient(str(folder), "seldom", hello_seconds=3600)
    client.wait_ready(20)
    assert isinstance(submit(client, chat("hello")).outcome, Finished)
    client.close()
    assert not client._thread.is_alive()


# The server without heartbeats, which also does nothing when it is idle.
TICKLESS = """
import engine.process.server as server
server.TICK_SECONDS = 3600
server.main()
"""


def test_an_engine_that_begins_to_serve_prepares_nothing_for_constraints_and_ends_at_once(
    folder: Path, client: EngineClient
) -> None:
    config = EngineConfig(model="fake", endpoint=str(folder), backend=BackendKind.FAKE)
    process = subprocess.Popen([sys.executable, "-c", TICKLESS, msgspec.json.encode(config).decode()])
    try:
        client.wait_ready(20)
        assert isinstance(submit(client, chat("hello")).outcome, Finished)
        assert psutil.Process(process.pid).children() == []
        constraint = Constraint(kind=ConstraintKind.CHOICE, text='["yes"]')
        assert isinstance(submit(client, chat("hello", constraint=constraint)).outcome, Finished)
        assert len(psutil.Process(process.pid).children()) == 1, "a grammar is compiled in a helper"
        process.terminate()
        assert process.wait(10) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()


def test_a_model_that_cannot_be_loaded_is_reported_with_exit_code_3(folder: Path) -> None:
    (folder / "bad.gguf").write_bytes(b"not a model")
    config = msgspec.json.decode(msgspec.json.encode(EngineConfig(model="m", endpoint=str(folder))))
    config["model_path"] = str(folder / "bad.gguf")
    done = subprocess.run(
        [sys.executable, "-m", "engine.process.server", json.dumps(config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert "bad.gguf is not a model" in done.stderr


def test_the_terminal_chat_needs_no_model_with_fake() -> None:
    command = [sys.executable, "-m", "engine", "--fake"]
    done = subprocess.run(command, input="hello\n/new\nhello\n", capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == second
    assert len(first) > 20
