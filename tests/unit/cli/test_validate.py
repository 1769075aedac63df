"""`millrace validate`, and the report of `millrace estimate` for a model without measurements."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cli.commands.validate import print_report
from core.schemas.batch_validation import BatchEstimate, BatchValidation
from tests.conftest import FAKE_MODEL
from tests.support.command import millrace
from tests.support.stack import batch_lines, write_lines
from tests.support.wrong_lines import EXPECTED, summarize, write_wrong_lines

REPORT = BatchValidation(
    endpoint="/v1/chat/completions", is_valid=True, lines=9, lines_failing=0, lines_over_context=0, lines_unchecked=7,
    num_errors=0, errors=[], models=[], prompt_tokens=0, max_output_tokens=0,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A models folder beside the files, and nothing that runs."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "fake.yaml").write_text(FAKE_MODEL)
    return tmp_path


def test_a_good_file_is_fine_and_its_tokens_are_counted(folder: Path) -> None:
    write_lines(folder / "in.jsonl", batch_lines(3, max_tokens=5))
    done = millrace("validate", "in.jsonl", "--models-dir", "models", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "answers of at most 15" in done.stdout
    assert done.stdout.endswith("3 lines; the file would be accepted\n")


def test_every_error_is_a_line_and_the_exit_code_is_4(folder: Path) -> None:
    write_wrong_lines(folder / "in.jsonl")
    done = millrace("validate", "in.jsonl", "--models-dir", "models", cwd=folder)
    assert done.returncode == 4
    assert "line 4: custom_id: This custom_id was used before, on line 1. (duplicate_custom_id)" in done.stdout
    named = [" ".join(line.lower().replace(":", "").split()[:2]) for line in done.stdout.splitlines()[:10]]
    assert named == [f"line {row[0]}" for row in EXPECTED]


def test_a_program_gets_the_servers_own_report(folder: Path) -> None:
    content = write_wrong_lines(folder / "in.jsonl").read_text()
    done = millrace("validate", "-", "--json", "--models-dir", "models", cwd=folder, stdin=content)
    assert done.returncode == 4
    report = json.loads(done.stdout)
    assert summarize(report["errors"]) == EXPECTED
    assert report["estimate"] is None


def test_lines_that_would_fail_are_exit_code_3(folder: Path) -> None:
    write_lines(folder / "in.jsonl", batch_lines(2, "gpt-9"))
    done = millrace("validate", "in.jsonl", "--max-errors", "1", "--models-dir", "models", cwd=folder)
    assert done.returncode == 3
    assert "… and 1 more errors" in done.stdout


def test_a_schema_that_does_not_compile_is_a_line_that_would_fail(folder: Path) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"not": {}}}}
    write_lines(folder / "in.jsonl", batch_lines(1, response_format=schema))
    done = millrace("validate", "in.jsonl", "--models-dir", "models", cwd=folder)
    assert done.returncode == 3, done.stderr
    assert "line 1: body.response_format: The keyword 'not' at '#' is not supported. (invalid_schema)" in done.stdout


def test_unchecked_lines_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(REPORT.model_dump(), as_json=False)
    assert capsys.readouterr().out.startswith("7 lines were not checked for their schema, grammar or tools")


def test_missing_models_are_named(folder: Path) -> None:
    write_lines(folder / "in.jsonl", batch_lines(1))
    done = millrace("validate", "in.jsonl", "--models-dir", "nowhere", cwd=folder)
    assert done.returncode == 1
    assert "no models folder" in done.stderr


class UnmeasuredServer(BaseHTTPRequestHandler):
    """Answers a validation as a server does that has not run a batch of the model yet."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = REPORT.model_copy(update={"estimate": BatchEstimate()}).model_dump_json().encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def test_a_server_without_measurements_does_not_estimate(folder: Path) -> None:
    write_lines(folder / "in.jsonl", batch_lines(1))
    with ThreadingHTTPServer(("127.0.0.1", 0), UnmeasuredServer) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        done = millrace("estimate", "in.jsonl", "--base-url", url, cwd=folder)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert "Time: unknown" in done.stdout
