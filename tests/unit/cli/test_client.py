"""The client of the command line: exit codes, events, output."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cli.client import Client, read_events
from cli.errors import CommandFailed, ExitCode, TryAgainLater
from cli.output import printable
from tests.support.command import NO_SERVER, millrace
from tests.support.stack import batch_lines, write_lines


@pytest.mark.parametrize(
    "arguments",
    [
        ("batch", "list"),
        ("batch", "show", "batch_a"),
        ("files", "list"),
        ("models",),
        ("chat", "Hello?"),
        ("estimate", "in.jsonl"),
    ],
    ids=" ".join,
)
def test_a_server_that_is_not_there_is_exit_code_5(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    write_lines(tmp_path / "in.jsonl", batch_lines(1))
    done = millrace(*arguments, "--json", "--base-url", NO_SERVER, cwd=tmp_path)
    assert done.returncode == 5
    assert (done.stdout, "millrace serve" in done.stderr) == ("", True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("batch", "create", "no.jsonl"),
        ("batch", "create", "in.jsonl", "--metadata", "alone"),
        ("files", "upload", "no.jsonl"),
        ("files", "download", "file-a", "--json"),
        ("batch", "download", "batch_a", "--json"),
        ("chat", "-"),
        ("validate", "no.jsonl"),
        ("batch", "show"),
        ("nonsense",),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    write_lines(tmp_path / "in.jsonl", batch_lines(1))
    done = millrace(*arguments, cwd=tmp_path, OPENAI_BASE_URL=NO_SERVER)
    assert done.returncode == 2, done.stderr
    assert done.stderr
    assert done.stdout == ""


def test_text_from_the_server_cannot_control_the_terminal() -> None:
    assert printable("a\x1b[2Jb\u202ec\nd") == "a�[2Jb�c\nd"


def test_events_are_read_with_their_ids_and_a_cut_one_is_dropped() -> None:
    text = ': hi\n\nid: 7\nevent: batch.line\ndata: {"line": 1}\n\ndata: [DONE]\n\nevent: batch.status\ndata: {"sta'
    (event,) = read_events(iter(text.split("\n")))
    assert (event.id, event.name, event.data) == ("7", "batch.line", {"line": 1})


@pytest.mark.parametrize(("status", "code"), [(401, 6), (403, 6), (404, 1), (503, 5)])
def test_a_refusal_of_the_server_has_an_exit_code(tmp_path: Path, status: int, code: int) -> None:
    envelope = json.dumps({"error": {"message": "No.", "type": "t", "param": None, "code": "c"}}).encode()

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(envelope)))
            self.end_headers()
            self.wfile.write(envelope)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as refusing:
        thread = threading.Thread(target=refusing.handle_request)
        thread.start()
        done = millrace("batch", "list", "--base-url", f"http://127.0.0.1:{refusing.server_port}/v1", cwd=tmp_path)
        thread.join()
    assert done.returncode == code
    assert f"The server answered {status}: No." in done.stderr


def test_a_server_that_has_ended_is_started_between_two_attempts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started: list[HTTPServer] = []

    def start() -> None:
        Streaming.streams, Streaming.last_ids = ['{"id": "batch_a"}'], []
        started.append(HTTPServer(("127.0.0.1", port), Streaming))
        threading.Thread(target=started[0].handle_request, daemon=True).start()

    with Client(f"http://127.0.0.1:{port}", "any") as client:
        client.restart_server = start
        assert client.batch("batch_a") == {"id": "batch_a"}
    started[0].server_close()


def test_a_rate_limit_is_waited_for_unless_the_caller_has_other_work() -> None:
    answers = [(429, b'{"error": {"message": "Slowly.", "code": "c"}}'), (200, b'{"id": "batch_a"}')]

    class Limited(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.pop(0)
            self.send_response(status)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Limited) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        with Client(f"http://127.0.0.1:{server.server_port}", "any") as client:
            refused = [answers[0], *answers]
            assert client.batch("batch_a") == {"id": "batch_a"}
            answers[:] = refused
            with pytest.raises(TryAgainLater, match="Slowly"):
                client.patiently(lambda: client.get("/batches"), waits_for_limits=False)
        server.shutdown()
        thread.join()


class Streaming(BaseHTTPRequestHandler):
    """Answers each request with the next of `streams`, and keeps the `Last-Event-ID` that it brought."""

    streams: list[str]
    last_ids: list[str | None]

    def do_GET(self) -> None:
        self.last_ids.append(self.headers["Last-Event-ID"])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.streams.pop(0).encode())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def streaming(*streams: str) -> Iterator[Client]:
    Streaming.streams, Streaming.last_ids = list(streams), []
    with HTTPServer(("127.0.0.1", 0), Streaming) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            with Client(f"http://127.0.0.1:{server.server_port}", "any") as client:
                yield client
        finally:
            server.shutdown()
            thread.join()


def end_of_stream(code: str) -> str:
    return f'data: {{"error": {{"message": "Over.", "type": "t", "param": null, "code": "{code}"}}}}\n\n'


def test_a_stream_that_a_server_ends_at_its_shutdown_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.client._PAUSE_SECONDS", 0)
    first = 'id: 7\nevent: batch.line\ndata: {"line": 1}\n\n'
    rest = 'id: 8\nevent: batch.line\ndata: {"line": 2}\n\n'
    with streaming(first + end_of_stream("service_unavailable"), rest) as client:
        assert [data for _, data in client.events("/events")] == [{"line": 1}, {"line": 2}]
    assert Streaming.last_ids == [None, "7"]


def test_a_stream_whose_key_is_revoked_ends_with_that_error() -> None:
    with streaming(end_of_stream("invalid_api_key")) as client, pytest.raises(CommandFailed, match=r"Over\.") as failed:
        list(client.events("/events"))
    assert failed.value.code is ExitCode.NOT_ALLOWED
