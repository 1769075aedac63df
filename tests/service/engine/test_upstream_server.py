"""The engine process of an upstream, tested through the engine client against real sockets."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.config import BackendKind, EngineConfig, UpstreamConfig
from engine.process.client import EngineClient, EngineLost
from engine.types import Failed, Finished, FinishReason, Priority
from tests.support import fault_server
from tests.support.certificates import make_certificate, server_context
from tests.support.fault_server import Fault, FaultServer, Peer
from tests.support.recorder import Recorder
from tests.support.stack import wait_for
from tests.support.upstream import chat_answer, chunk, forward
from tests.support.upstream_process import UpstreamProcess

LINE = Priority.BATCH


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("u")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[UpstreamProcess, FaultServer]]:
    """One engine and its server for all tests that leave both alive."""
    with FaultServer() as server:
        process = UpstreamProcess(tmp_path_factory.mktemp("u"), server.url)
        process.client.wait_ready(20)
        yield process, server
        process.close()


@pytest.fixture
def engine(shared: tuple[UpstreamProcess, FaultServer]) -> UpstreamProcess:
    return shared[0]


@pytest.fixture
def server(shared: tuple[UpstreamProcess, FaultServer]) -> FaultServer:
    """The server of the shared engine, without requests of earlier tests."""
    shared[1].faults.clear()
    shared[1].received.clear()
    return shared[1]


def test_an_answer_passes_through_and_the_engine_describes_its_server(
    engine: UpstreamProcess, server: FaultServer
) -> None:
    info = engine.client.info
    assert info is not None
    assert (info.build, info.slots, info.num_vocab, info.template_hash, info.warning) == ("faulty/1", 256, 0, "", None)
    outcome = engine.ask(temperature=0.5)
    assert isinstance(outcome, Finished)
    assert (outcome.text, outcome.usage.completion_tokens) == ("hello", 7)
    (request,) = server.received
    assert (request.path, request.body["model"], request.body["temperature"]) == ("/v1/chat/completions", "theirs", 0.5)


def test_a_stream_arrives_in_deltas(engine: UpstreamProcess) -> None:
    recorder = engine.submit(forward(stream=True))
    outcome = recorder.outcome
    assert isinstance(outcome, Finished)
    assert [delta.text for delta in recorder.deltas] == ["he", "llo"]
    assert (outcome.text, outcome.usage.completion_tokens) == ("hello", 7)


@pytest.mark.parametrize(
    "fault",
    [
        fault_server.reset,
        fault_server.half,
        fault_server.wrong,
        fault_server.half_stream,
        fault_server.status(500),
        fault_server.status(503),
        fault_server.status(429, retry_after="0"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_trouble_of_the_server_is_absorbed_and_never_doubled(
    engine: UpstreamProcess, server: FaultServer, fault: Fault, stream: bool
) -> None:
    server.faults = [fault]
    recorder = engine.submit(forward(priority=Priority.CHAT if stream else LINE, stream=stream))
    outcome = recorder.outcome
    if stream and fault is fault_server.half_stream:
        assert isinstance(outcome, Failed)
        assert [delta.text for delta in recorder.deltas] == ["ha"]
        assert len(server.received) == 1
        return
    assert isinstance(outcome, Finished)
    assert outcome.text == "hello"
    assert "".join(delta.text for delta in recorder.deltas) == ("hello" if stream else "")
    assert len(server.received) == 2


@pytest.mark.parametrize(("keep_alive", "num_connections"), [("timeout=5", 1), ("timeout=5, max=100", 5)])
def test_a_connection_is_kept_unless_the_server_has_a_thread_for_each(
    folder: Path, keep_alive: str, num_connections: int
) -> None:
    """Otherwise requests on new connections wait until the kept ones time out."""

    def fine(peer: Peer) -> None:
        peer.send(200, chat_answer(), keep_alive=keep_alive)

    with (
        FaultServer([fine] * 4, models=lambda peer: peer.send(200, b"{}", keep_alive=keep_alive)) as server,
        UpstreamProcess(folder, server.url) as engine,
    ):
        engine.client.wait_ready(20)
        assert all(isinstance(engine.ask(f"r{n}"), Finished) for n in range(4))
        assert server.num_connections == num_connections


def test_refusals_of_one_moment_without_a_pause_are_absorbed(engine: UpstreamProcess, server: FaultServer) -> None:
    """uvloop gives a timer of 0 seconds another type than others."""
    server.faults = [fault_server.status(503, retry_after="0")] * 8
    recorders = [engine.submit(forward(f"r{n}", priority=LINE)) for n in range(8)]
    assert all(isinstance(recorder.outcome, Finished) for recorder in recorders)


def test_a_storm_of_refusals_loses_and_doubles_no_line(engine: UpstreamProcess, server: FaultServer) -> None:
    refusals = [
        fault_server.status(429, retry_after="0.05"),
        fault_server.answer,
        fault_server.status(503, retry_after="0"),
    ]
    server.faults = [*refusals * 5, fault_server.reset, fault_server.half, *refusals * 5]  # two faults count
    recorders = {n: engine.submit(forward(f"r{n}", priority=LINE, messages=[{"content": f"l{n}"}])) for n in range(100)}
    for n, recorder in recorders.items():
        outcome = recorder.outcome
        assert isinstance(outcome, Finished), outcome
        assert outcome.text == f"l{n}"


def test_a_refusal_of_the_server_is_passed_on_with_its_status(engine: UpstreamProcess, server: FaultServer) -> None:
    server.faults = [fault_server.status(422, "bad")]
    outcome = engine.ask(priority=LINE)
    assert isinstance(outcome, Failed)
    assert (outcome.status, outcome.message) == (422, "bad")


def test_a_redirect_is_not_followed(engine: UpstreamProcess, server: FaultServer) -> None:
    with FaultServer() as other:
        server.faults = [fault_server.status(307, location=f"{other.url}/chat/completions")]
        outcome = engine.ask(priority=LINE)
        assert isinstance(outcome, Failed)
        assert "base_url" in outcome.message
        assert other.received == []


def test_the_key_is_sent_and_appears_nowhere_else(folder: Path) -> None:
    key = "sk-abcdef123456"
    server = FaultServer(models=fault_server.status(401, f"bad key {key}"))
    server.faults = [fault_server.status(401, f"bad key {key}"), fault_server.status(400, f"bad key {key}")]
    engine = UpstreamProcess(folder, server.url, api_key_env="THEIR_KEY", environment={"THEIR_KEY": key})
    try:
        info = engine.client.wait_ready(20)
        outcomes = [engine.ask(request_id="a"), engine.ask(request_id="b")]
        assert server.received[0].headers["authorization"] == f"Bearer {key}"
        assert key not in repr((info, outcomes)) + engine.log
        assert "[redacted]" in repr(outcomes)
    finally:
        engine.close()
        server.close()


def test_a_server_that_is_away_does_not_keep_the_engine_from_being_ready(folder: Path) -> None:
    with FaultServer() as gone:
        port = gone.port
    engine = UpstreamProcess(folder, f"http://127.0.0.1:{port}/v1")
    try:
        info = engine.client.wait_ready(20)
        warning = f"The server at http://127.0.0.1:{port} does not answer."
        assert info.warning is not None
        assert info.warning.startswith(warning)
        assert "connection refused" in info.warning
        waiting = engine.submit(forward(priority=LINE))
        with FaultServer(port=port):
            assert isinstance(waiting.outcome, Finished)
            wait_for(
                lambda: engine.client.info is not None and engine.client.info.warning is None, "the warning ends", 20
            )
    finally:
        engine.close()


def test_another_server_takes_over_for_one_that_ends(folder: Path) -> None:
    with FaultServer() as first, FaultServer() as second:
        engine = UpstreamProcess(folder, first.url, second.url)
        try:
            engine.client.wait_ready(20)
            assert isinstance(engine.ask(request_id="a"), Finished)
            first.close()
            outcomes = [engine.ask(request_id=f"b{n}") for n in range(5)]
            assert all(isinstance(outcome, Finished) for outcome in outcomes)
        finally:
            engine.close()


@pytest.mark.parametrize("is_trusted", [True, False])
def test_a_certificate_is_verified_before_the_key_is_sent(folder: Path, is_trusted: bool) -> None:
    certificate = make_certificate(folder / "both.pem", "IP:127.0.0.1")
    environment = {"THEIR_KEY": "sk-abcdef"} | ({"SSL_CERT_FILE": str(certificate)} if is_trusted else {})
    with (
        FaultServer(tls=server_context(certificate)) as server,
        UpstreamProcess(folder, server.url, api_key_env="THEIR_KEY", environment=environment) as engine,
    ):
        warning = engine.client.wait_ready(20).warning
        if is_trusted:
            assert warning is None
            assert [isinstance(engine.ask(f"r{n}", stream=bool(n)), Finished) for n in range(2)] == [True, True]
        else:
            assert warning is not None
            assert "its certificate is not trusted (self-signed certificate)" in warning
            assert server.received == []


def test_a_cancelled_request_ends_and_its_connection_is_closed(engine: UpstreamProcess, server: FaultServer) -> None:
    def begin(peer: Peer) -> None:
        peer.stream(chunk("a"))
        assert peer.connection.recv(1) == b"", "the engine closes the connection"
        closed.set()

    closed = threading.Event()
    server.faults = [begin]
    recorder = engine.submit(forward(stream=True))
    assert recorder.began.wait(20)
    engine.client.cancel("r")
    outcome = recorder.outcome
    assert isinstance(outcome, Finished)
    assert outcome.reason is FinishReason.CANCELLED
    assert closed.wait(20)


def test_requests_at_the_server_when_the_engine_is_killed_were_running(folder: Path) -> None:
    server = FaultServer([fault_server.held])
    engine = UpstreamProcess(folder, server.url, max_concurrency=1)
    try:
        engine.client.wait_ready(20)
        running = engine.submit(forward("running", priority=LINE))
        wait_for(lambda: bool(server.received), "the request arrives", 20)
        waiting = engine.submit(forward("waiting", priority=LINE))
        engine.process.kill()
        assert running.outcome == EngineLost(request_id="running", was_running=True, was_alone=True)
        assert waiting.outcome == EngineLost(request_id="waiting", was_running=False)
        engine.process.wait()
        engine.start()
        server.release()
        assert isinstance(engine.ask(request_id="later"), Finished)
        engine.process.send_signal(signal.SIGTERM)
        assert engine.process.wait(20) == 0
    finally:
        engine.close()
        server.close()


@pytest.mark.parametrize(
    ("upstream", "reason"),
    [
        ({"api_key_env": "MILLRACE_NO_SUCH_KEY"}, "MILLRACE_NO_SUCH_KEY"),
        ({"base_urls": ("http://169.254.169.254/v1",)}, "metadata"),
        ({"base_urls": ("http://u:p@127.0.0.1/v1",)}, "user or a password"),
        ({"base_urls": ()}, "base_url"),
    ],
)
def test_a_model_that_cannot_be_served_ends_the_engine_with_a_sentence(
    folder: Path, upstream: dict[str, Any], reason: str
) -> None:
    values = {"model": "theirs", "base_urls": ("http://127.0.0.1:1/v1",), **upstream}
    config = EngineConfig(
        model="m", endpoint=str(folder), backend=BackendKind.OPENAI, upstream=UpstreamConfig(**values)
    )
    command = [sys.executable, "-m", "engine.upstream.server", msgspec.json.encode(config).decode()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_name_that_leads_to_a_metadata_service_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is resolved by a process that maps it to 169.254.169.254."""
    code = (
        "import socket, sys, engine.upstream.server as server\n"
        "real = socket.getaddrinfo\n"
        "socket.getaddrinfo = lambda host, port, *a, **k: real('169.254.169.254', port, *a, **k)\n"
        "import asyncio; server.uvloop.run = asyncio.run\n"
        "server.main()\n"
    )
    config = EngineConfig(
        model="m",
        endpoint=str(folder),
        backend=BackendKind.OPENAI,
        upstream=UpstreamConfig(model="theirs", base_urls=("http://models.example/v1",)),
    )
    process = subprocess.Popen([sys.executable, "-c", code, msgspec.json.encode(config).decode()])
    client = EngineClient(str(folder), "tester")
    try:
        info = client.wait_ready(20)
        assert info.warning is not None
        assert "must not lead to 169.254.169.254" in info.warning
        recorder = Recorder()
        client.submit(forward(priority=LINE), recorder)
        client.cancel("r")
    finally:
        process.kill()
        process.wait()
        client.close()
