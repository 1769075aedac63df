"""B47 to B57, and B19 to B21 of lines: batch files that are malformed, or valid and unusual."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.settings import MIB, Settings
from tests.hostile_input.corpus import BINARIES, deep_lists, deep_objects, digits, write_long_line, write_many_lines
from tests.hostile_input.target import CHAT, MARK, Target, batch_line, chat, hello
from tests.support.stack import wait_for

EMPTY = {
    "B47-empty": b"",
    "B47-newlines": b"\n" * 1000,
    "B47-crlf": b"\r\n" * 1000,
    "B47-spaces": b" \t \n  \n",
    "B47-bom": codecs.BOM_UTF8,
    "B47-bom-and-newlines": codecs.BOM_UTF8 + b"\n\n",
}


@pytest.mark.parametrize("content", EMPTY.values(), ids=EMPTY.keys())
def test_an_empty_file_fails_its_batch(target: Target, content: bytes) -> None:
    batch = target.batch_of(content)
    assert batch.status == "failed"
    assert [(error.code, error.line) for error in batch.errors.data] == [("empty_file", None)]


@pytest.mark.parametrize("make", BINARIES.values(), ids=[f"B52-{name}" for name in BINARIES])
def test_a_file_of_another_kind_fails_with_one_error_and_none_in_the_log_of_postgres(target: Target, make: Any) -> None:
    logged = num_logged_errors(target)
    batch = target.batch_of(make())
    assert batch.status == "failed"
    (error,) = batch.errors.data
    expected = ("invalid_json_line", 1) if make is BINARIES["latin-1"] else ("invalid_file_format", None)
    assert (error.code, error.line) == expected
    assert len(error.message) < 300
    assert batch.output_file_id is None
    assert num_logged_errors(target) == logged


def num_logged_errors(target: Target) -> int:
    """Count the errors in the log of Postgres."""
    return (target.process.state_dir / "logs" / "postgres.log").read_text().count("ERROR:")


def wrong_line(code: str, param: str | None, content: bytes) -> tuple[bytes, str, str | None]:
    return content.replace(b"\n", b""), code, param


def written(name: str, value: bytes) -> bytes:
    """Return a valid line with one more field in its body, written verbatim."""
    return batch_line("@", body={**chat(), "user": MARK, name: "@@"}).replace(b'"@@"', value)


LINES: dict[str, tuple[bytes, str, str | None]] = {
    "B53-list": wrong_line("invalid_json_line", None, b"[1]"),
    "B53-text": wrong_line("invalid_json_line", None, json.dumps(MARK).encode()),
    "B53-null": wrong_line("invalid_json_line", None, b"null"),
    "B53-half": wrong_line("invalid_json_line", None, batch_line(MARK)[:-5]),
    "B53-two-in-one": wrong_line("invalid_json_line", None, batch_line(MARK).rstrip() * 2),
    "B19-bom-in-the-middle": wrong_line("invalid_json_line", None, codecs.BOM_UTF8 + batch_line(MARK)),
    "B54-missing": wrong_line("missing_required_parameter", "custom_id", batch_line(...)),
    "B54-empty": wrong_line("invalid_value", "custom_id", batch_line("")),
    "B54-number": wrong_line("invalid_type", "custom_id", batch_line(7)),
    "B54-null": wrong_line("invalid_type", "custom_id", batch_line(None)),
    "B54-object": wrong_line("invalid_type", "custom_id", batch_line({"a": MARK})),
    "B54-513": wrong_line("invalid_value", "custom_id", batch_line("c" * 513)),
    "B54-nul": wrong_line("invalid_json_line", None, batch_line(MARK + "\0")),
    "B54-duplicate": wrong_line("duplicate_custom_id", "custom_id", batch_line("first")),
    "B55-get": wrong_line("invalid_value", "method", batch_line("x", method="GET")),
    "B55-delete": wrong_line("invalid_value", "method", batch_line("x", method="DELETE")),
    "B55-lower-case": wrong_line("invalid_value", "method", batch_line("x", method="post")),
    "B55-other-endpoint": wrong_line("url_mismatch", "url", batch_line("x", url="/v1/embeddings")),
    "B55-files": wrong_line("url_mismatch", "url", batch_line("x", url="/v1/files")),
    "B55-absolute": wrong_line("url_mismatch", "url", batch_line("x", url=f"http://127.0.0.1/{MARK}")),
    "B55-slash": wrong_line("url_mismatch", "url", batch_line("x", url=CHAT + "/")),
    "B55-up": wrong_line("url_mismatch", "url", batch_line("x", url="/v1/../v1/chat/completions")),
    "B55-number": wrong_line("invalid_type", "url", batch_line("x", url=7)),
    "B55-missing": wrong_line("missing_required_parameter", "url", batch_line("x", url=...)),
    "B55-no-method": wrong_line("missing_required_parameter", "method", batch_line("x", method=...)),
    "B53-no-body": wrong_line("missing_required_parameter", "body", batch_line("x", body=...)),
    "B53-body-text": wrong_line("invalid_type", "body", batch_line("x", body=json.dumps(chat()))),
    "B53-body-list": wrong_line("invalid_type", "body", batch_line("x", body=[chat()])),
    "B56-stream": wrong_line("invalid_request", "body.stream", batch_line("x", body=chat(stream=True))),
}  # fmt: skip

LONG_NUMBER = b"1" + b"0" * 30
UNREADABLE: dict[str, bytes] = {
    "B14-deep-lists": written("metadata", deep_lists(100_000)),
    "B14-deep-objects": written("metadata", deep_objects(50_000)),
    "B15-digits": written("seed", digits(5000)),
    "B15-65-bits": written("brand_new", b"18446744073709551616"),
    "B15-in-a-schema": written("response_format", b'{"json_schema":{"schema":{"maximum":' + LONG_NUMBER + b"}}}"),
    "B15-in-a-call": written("messages", b'[{"role":"assistant","tool_calls":[{"n":' + LONG_NUMBER + b"}]}]"),
    "B16-NaN": written("temperature", b"NaN"),
    "B16-1e400": written("temperature", b"1e400"),
    "B17-surrogate": written("user", b'"\\ud800"'),
    "B18-nul": written("user", b'"\\u0000"'),
    "B18-raw-nul": written("user", b'"\0"'),
    "B19-bad-utf-8": written("user", b'"\xff"'),
    "B53-trailing-comma": written("user", b'"",').replace(b", }", b",}"),
}


def test_a_line_whose_body_cannot_be_read_fails_alone(target: Target) -> None:
    """In one file with a valid line; the reason is in the error file, and nothing of the body."""
    logged = num_logged_errors(target)
    lines = [line.replace(b'"@"', json.dumps(name).encode()) for name, line in UNREADABLE.items()]
    batch = target.batch_of(b"".join(lines) + batch_line("good"))
    assert (batch.status, batch.request_counts.completed) == ("completed", 1)
    failed = target.results(batch.error_file_id)
    assert [line["custom_id"] for line in failed] == list(UNREADABLE)
    for number, line in enumerate(failed, 1):
        error = line["response"]["body"]["error"]
        assert (line["response"]["status_code"], error["code"], error["param"]) == (400, "invalid_json", "body")
        assert f"line {number} cannot be read" in error["message"]
        shown = target.http.get(f"/v1/batches/{batch.id}/requests/{line['custom_id']}").json()
        assert (shown["status"], shown["body"]) == ("failed", None)
    assert MARK not in json.dumps(failed)
    assert num_logged_errors(target) == logged
    retry = target.http.post(f"/v1/batches/{batch.id}/retry")
    target.refused(retry, 400, "nothing_to_retry")


@pytest.mark.parametrize("line", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_validation_reports_a_line_whose_body_cannot_be_read(target: Target, line: bytes) -> None:
    files = {"file": ("a.jsonl", batch_line("first") + line)}
    answer = target.http.post("/v1/batches/validate", data={"endpoint": CHAT}, files=files)
    (error,) = answer.json()["errors"]
    assert (error["line"], error["code"], error["param"], error["fails"]) == (2, "invalid_json", "body", "line")
    assert error["custom_id"] == "@"
    assert answer.json()["is_valid"]
    assert MARK not in answer.text


def test_every_kind_of_wrong_line_is_named_with_its_number(target: Target) -> None:
    """B53: all in one file, between valid lines and blank ones, which count."""
    content = batch_line("first")
    expected = []
    for number, (line, code, param) in enumerate(LINES.values()):
        content += line + b"\n\n" + batch_line(f"good-{number}")
        expected.append((2 + 3 * number, code, param))
    batch = target.batch_of(content)
    assert batch.status == "failed"
    assert [(error.line, error.code, error.param) for error in batch.errors.data] == expected
    assert MARK not in batch.model_dump_json()
    assert batch.request_counts.total == 0


@pytest.mark.parametrize(("line", "code", "param"), LINES.values(), ids=LINES.keys())
def test_a_validation_reports_a_wrong_line_too(target: Target, line: bytes, code: str, param: str | None) -> None:
    """Without a batch: `fails: file`, and no text of the line."""
    files = {"file": ("a.jsonl", batch_line("first") + line + b"\n")}
    answer = target.http.post("/v1/batches/validate", data={"endpoint": CHAT}, files=files)
    (error,) = answer.json()["errors"]
    assert (error["line"], error["code"], error["param"], error["fails"]) == (2, code, param, "file")
    assert MARK not in answer.text


def test_a_thousand_bad_lines_are_counted_and_a_hundred_are_listed(target: Target) -> None:
    """B53: the list is capped, the number is not."""
    batch = target.batch_of(b"{oh\n" * 1000)
    assert len(batch.errors.data) == 100
    assert "1000" in batch.errors.data[-1].message


BODIES: dict[str, tuple[Any, int, str]] = {
    "B21-dangerous": (chat(chat_template=MARK), 400, "unsupported_parameter"),
    "B22-no-messages": (chat(messages=...), 400, "missing_required_parameter"),
    "B23-role": (chat(messages=[{"role": MARK, "content": "a"}]), 400, "invalid_value"),
    "B24-image": (
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}]}]),
        400,
        "unsupported_parameter",
    ),
    "B27-long": (chat(messages=hello("x" * 5000)), 400, "context_length_exceeded"),
    "B29-max_tokens": (chat(max_tokens=0), 400, "invalid_value"),
    "B30-n": (chat(n=10**9), 400, "invalid_value"),
    "B31-hot": (chat(temperature="hot"), 400, "invalid_type"),
    "B32-bias": (chat(logit_bias={"99999": 1}), 400, "invalid_value"),
    "B33-stop": (chat(stop=[""]), 400, "invalid_value"),
    "B34-logprobs": (chat(top_logprobs=5), 400, "invalid_value"),
    "B35-tools": (chat(tools=[{"type": "x"}]), 400, "unsupported_parameter"),
    "B39-model": (chat(model="../../etc/passwd"), 404, "model_not_found"),
    "B39-no-model": (chat(model=...), 400, "missing_required_parameter"),
    "B53-empty-body": ({}, 400, "missing_required_parameter"),
    "B40-stream-text": (chat(stream="true"), 400, "invalid_type"),
}  # fmt: skip


def test_a_wrong_body_fails_its_line_alone(target: Target) -> None:
    """The error file has the error of the synchronous endpoint; the other lines are answered."""
    content = batch_line("good")
    for name, (body, _, _) in BODIES.items():
        content += batch_line(name, body=body)
    batch = target.batch_of(content + batch_line("also good"))
    assert batch.status == "completed"
    assert [line["custom_id"] for line in target.results(batch.output_file_id)] == ["good", "also good"]
    errors = target.results(batch.error_file_id)
    failed = [
        (line["custom_id"], line["response"]["status_code"], line["response"]["body"]["error"]["code"])
        for line in errors
    ]
    assert failed == [(name, status, code) for name, (_, status, code) in BODIES.items()]
    assert MARK not in json.dumps(errors)


def test_all_kinds_of_line_ends_are_accepted_and_line_numbers_stay_correct(target: Target) -> None:
    """B50: CRLF, blank lines, no last newline, a BOM at the start."""
    lines = [batch_line("a").rstrip(), b"", batch_line("b").rstrip(), b"  ", batch_line("c").rstrip()]
    batch = target.batch_of(codecs.BOM_UTF8 + b"\r\n".join(lines))
    assert batch.status == "completed", batch.errors
    listed = target.http.get(f"/v1/batches/{batch.id}/requests").json()["data"]
    assert [(one["custom_id"], one["line"]) for one in listed] == [("a", 1), ("b", 3), ("c", 5)]


def test_other_unicode_line_separators_are_text(target: Target) -> None:
    """B51: U+2028, U+2029, U+0085, VT and FF stay inside a line and are returned unchanged."""
    name = "a\u2028b\u2029c\u0085d"
    prompt = "one\u2028two\u0085three\x0b\x0c"
    content = json.dumps(
        {"custom_id": name, "method": "POST", "url": CHAT, "body": chat(messages=hello(prompt))}, ensure_ascii=False
    )
    batch = target.batch_of(content.encode() + b"\n")
    assert batch.status == "completed", batch.errors
    (line,) = target.results(batch.output_file_id)
    assert line["custom_id"] == name
    detail = target.http.get(f"/v1/batches/{batch.id}/requests").json()["data"]
    assert [one["custom_id"] for one in detail] == [name]
    same = target.http.post(CHAT, json=chat(messages=hello(prompt))).json()["choices"]
    assert line["response"]["body"]["choices"] == same


UNICODE = [
    "😀👩‍👩‍👧", "e\u0301", "é", "\u202eabc", "a/b?c#d", "..", "%2e%2e", "' OR 1=1 --", "{{7*7}}", " ", "\t", "İ", "\ufeff",
    "x" * 512, "\U0010ffff", "\ufffe", "\x7f", "a\nb", '"\\', "-", "null", "0",
]  # fmt: skip


def test_every_valid_custom_id_comes_back_exactly(target: Target) -> None:
    """B54: with any characters; é and e with a combining accent are two ids."""
    batch = target.batch_of(b"".join(batch_line(name) for name in UNICODE))
    assert batch.status == "completed", batch.errors
    assert [line["custom_id"] for line in target.results(batch.output_file_id)] == UNICODE
    for name in UNICODE:
        found = target.http.get(f"/v1/batches/{batch.id}/requests", params={"after": name, "limit": 1})
        assert found.status_code == 200, name


def test_a_file_may_use_several_models(target: Target) -> None:
    """B57: allowed, and documented."""
    batch = target.batch_of(batch_line("a") + batch_line("b", body=chat(model="demo")))
    assert (batch.status, batch.request_counts.completed, batch.model) == ("completed", 2, None)


def test_the_last_of_equal_keys_in_a_line_wins(target: Target) -> None:
    """B20: for the check and for the run."""
    line = (
        b'{"custom_id": 5, "custom_id": "a", "url": "/v1/files", "method": "GET", "body": 7, "method": "POST", "url": "'
    )
    line += (
        CHAT.encode()
        + b'", "body": {"model": "no", "model": "fake", "max_tokens": 9, "messages": [], "max_tokens": 2, '
    )
    line += b'"messages": [{"role": "user", "content": "b"}]}}'
    batch = target.batch_of(line)
    assert batch.status == "completed", batch.errors
    (answer,) = target.results(batch.output_file_id)
    assert answer["custom_id"] == "a"
    assert answer["response"]["body"]["usage"]["completion_tokens"] == 2


def rss(target: Target) -> int:
    """Return the resident bytes of Millrace's processes together; processes that have just ended count as zero."""
    total = 0
    for process in target.programs().values():
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def test_a_line_of_150_mb_fails_alone_with_flat_memory(target: Target, tmp_path: Path) -> None:
    """B49: uploaded from the disk, read without being held in memory."""
    before = rss(target)
    file_id = target.upload(write_long_line(tmp_path / "in.jsonl", 150 * MIB))
    batch_id = target.start_batch(file_id)
    most = 0

    def has_ended() -> bool:
        nonlocal most
        most = max(most, rss(target))
        return target.client.batches.retrieve(batch_id).status == "completed"

    wait_for(has_ended, "the batch ends")
    (line,) = target.results(target.client.batches.retrieve(batch_id).error_file_id)
    assert (line["response"]["status_code"], line["response"]["body"]["error"]["code"]) == (413, "line_too_long")
    assert most - before < 60 * MIB
    target.client.files.delete(file_id)


def test_a_body_that_is_accepted_live_is_accepted_as_a_line(target: Target) -> None:
    """B49: a line may have the largest body of a request, and its envelope."""
    settings = Settings()
    body = json.dumps(chat(max_tokens=1, model="no-such-model", user="")).encode()
    body = body.replace(b'"user": ""', b'"user": "' + b"x" * (settings.body_bytes - len(body)) + b'"')
    assert len(body) == settings.body_bytes
    live = target.http.post(CHAT, content=body, headers={"content-type": "application/json"})
    target.refused(live, 404, "model_not_found", "model")
    line = batch_line("a", body="@").replace(b'"@"', body)
    over = line.replace(b'"xx', b'"' + b"x" * (settings.line_bytes - len(line) + 4)).replace(b'"a"', b'"b"')
    assert len(over) > settings.line_bytes
    batch = target.batch_of(line + over)
    codes = [one["response"]["body"]["error"]["code"] for one in target.results(batch.error_file_id)]
    assert codes == ["model_not_found", "line_too_long"]


def test_50001_lines_fail_the_batch(target: Target, tmp_path: Path) -> None:
    """B48: and the message has the limit."""
    batch = target.batch_of(write_many_lines(tmp_path / "in.jsonl", 50_001), seconds=90)
    (error,) = batch.errors.data
    assert (batch.status, error.code) == ("failed", "too_many_tasks")
    assert "50000" in error.message


def test_the_default_limits_are_openais() -> None:
    """B48: 200 MB and 50,000 lines; `tests/service/api/files/test_files.py` tries one byte more than a configured limit."""
    settings = Settings()
    assert settings.batch_file_bytes == 200 * MIB
    assert settings.batch_lines == 50_000
