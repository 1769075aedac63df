"""Doctor's findings about servers of the backend openai, against a server of this process."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cli.doctor import machine
from cli.doctor.findings import Finding, Level
from cli.doctor.upstreams import upstreams
from core.models.engine_options import BackendKind
from core.models.model_files import ModelConfig
from tests.conftest import FAKE_MODEL


class Listing:
    """A server that answers GET with what a test has set."""

    def __init__(self) -> None:
        self.status = 200
        self.body: Any = {"object": "list", "data": [{"id": "qwen3-8b"}]}
        self.headers: dict[str, str] = {}
        self.seen: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.seen.append((self.path, self.headers.get("Authorization")))
                raw = outer.body if isinstance(outer.body, bytes) else json.dumps(outer.body).encode()
                self.send_response(outer.status)
                for name, value in {**outer.headers, "Content-Length": str(len(raw))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Listing]:
    listing = Listing()
    yield listing
    listing.close()


def model(url: str, **more: Any) -> ModelConfig:
    return ModelConfig(name="m", backend=BackendKind.OPENAI, base_url=(url,), **{"model": "qwen3-8b", **more})


def found(model: ModelConfig, **environment: str) -> Finding:
    (finding,) = upstreams([model], environment)
    assert "sk-1" not in str(finding)
    return finding


def test_a_server_with_the_model_is_fine_and_gets_the_key(server: Listing) -> None:
    finding = found(model(server.url, api_key_env="KEY"), KEY="sk-1")
    assert (finding.level, finding.message) == (Level.OK, f"qwen3-8b at {server.url}")
    assert server.seen == [("/v1/models", "Bearer sk-1")]


def test_another_name_is_answered_with_the_nearest(server: Listing) -> None:
    finding = found(model(server.url, model="qwen-8b"))
    assert finding.level is Level.WARNING
    assert "has no model 'qwen-8b'; did you mean 'qwen3-8b'? It has qwen3-8b" in finding.message


def test_a_refused_key_and_a_missing_one_are_bad(server: Listing) -> None:
    missing = found(model(server.url, api_key_env="KEY"))
    assert (missing.level, missing.message) == (Level.BAD, "The environment variable KEY is not set.")
    assert not server.seen, "nothing is asked without the key"
    server.status, server.body = 401, {"error": {"message": "Incorrect API key provided: sk-1"}}
    refused = found(model(server.url, api_key_env="KEY"), KEY="sk-1")
    assert (refused.level, "refuses the key" in refused.message) == (Level.BAD, True)
    assert "api_key_env" in found(model(server.url)).advice


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, b"", "answers with status 404"),
        (200, b"<html>", "does not answer as OpenAI's API does"),
        (200, b'{"data": 5}', "does not answer as OpenAI's API does"),
        (302, b"", "redirects to another address"),
    ],
)
def test_a_wrong_address_is_explained(server: Listing, status: int, body: bytes, said: str) -> None:
    server.status, server.body, server.headers = status, body, {"Location": "http://127.0.0.1:9/"}
    finding = found(model(server.url))
    assert finding.level is not Level.OK
    assert said in finding.message
    assert finding.advice


def test_a_server_that_is_not_there_is_a_warning() -> None:
    with socket.socket() as taken:  # bound and not listening
        taken.bind(("127.0.0.1", 0))
        finding = found(model(f"http://127.0.0.1:{taken.getsockname()[1]}/v1"))
    assert (finding.level, "cannot be reached" in finding.message) == (Level.WARNING, True)


def test_the_program_of_a_command_must_exist() -> None:
    def starting(program: str) -> ModelConfig:
        return ModelConfig(name="m", backend=BackendKind.OPENAI, command=(program, "{port}"))

    assert found(starting(sys.executable)).level is Level.OK
    missing = found(starting("no-such-server"))
    assert (missing.level, missing.message) == (Level.BAD, "there is no program no-such-server")


def test_every_backend_is_a_finding_of_the_machine(tmp_path: Path, server: Listing) -> None:
    (tmp_path / "fake.yaml").write_text(FAKE_MODEL)
    (tmp_path / "up.yaml").write_text(f"name: up\nbackend: openai\nmodel: qwen3-8b\nbase_url: {server.url}\n")
    findings = {finding.name: finding for finding in machine.models(tmp_path)}
    assert findings["model up"].level is Level.OK
    assert findings["model fake"].message == "the fake backend, without weights"
