"""B7 to B20, B41 and B43: input that is refused before a field of it is read."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import socket
import time
from collections.abc import Iterator

import pytest

from tests.hostile_input import raw
from tests.hostile_input.corpus import (
    deep_lists,
    deep_objects,
    digits,
    gzip_bomb,
)
from tests.hostile_input.raw import exchange, request
from tests.hostile_input.target import CHAT, JSON, MARK, Target, chat, hello


def prompt(escaped: str) -> bytes:
    """Return a chat body with a prompt that is written verbatim."""
    return json.dumps(chat(messages=hello("@"))).replace('"@"', f'"{escaped}"').encode()


def field(name: str, written: str) -> bytes:
    """Return a chat body with one more field, written verbatim."""
    return (json.dumps(chat(user=MARK))[:-1] + f', "{name}": {written}}}').encode()


BODIES = {
    "B7-empty": b"",
    "B7-null": b"null",
    "B7-list": b"[]",
    "B7-text": json.dumps(MARK).encode(),
    "B7-number": b"7",
    "B8-truncated": json.dumps(chat(user=MARK)).encode()[:-1],
    "B8-trailing": json.dumps(chat(user=MARK)).encode() + b"x",
    "B8-two-documents": json.dumps(chat(user=MARK)).encode() * 2,
    "B8-comment": b"/* " + MARK.encode() + b" */ {}",
    "B8-single-quotes": f"{{'model': '{MARK}'}}".encode(),
    "B14-lists": deep_lists(100_000),
    "B14-objects": deep_objects(100_000),
    "B14-open-only": b"[" * 1_000_000,
    "B14-in-a-field": field("metadata", deep_lists(100_000).decode()),
    "B15-5000-digits": field("seed", digits(5_000).decode()),
    "B15-1000000-digits": field("seed", digits(1_000_000).decode()),
    "B15-4000-digits": field("seed", digits(4_000).decode()),
    "B15-2-to-the-64": field("seed", str(2**64)),
    "B15-as-a-temperature": field("temperature", digits(400).decode()),
    "B15-in-an-unknown-field": field("brand_new", f'{{"a": [{2**64}]}}'),
    "B15-in-a-schema": field(
        "response_format", f'{{"type":"json_schema","json_schema":{{"name":"a","schema":{{"maximum":{10**30}}}}}}}'
    ),
    "B15-in-a-tool": field(
        "tools", f'[{{"type":"function","function":{{"name":"a","parameters":{{"maximum":{-(10**30)}}}}}}}]'
    ),
    "B15-in-a-call": json.dumps(
        chat(messages=[*hello(), {"role": "assistant", "tool_calls": [{"id": "a", "n": 10**30}]}])
    ).encode(),
    "B16-NaN": field("temperature", "NaN"),
    "B16-Infinity": field("top_p", "Infinity"),
    "B16-minus-Infinity": field("presence_penalty", "-Infinity"),
    "B16-1e400": field("temperature", "1e400"),
    "B16-in-a-bias": field("logit_bias", '{"1": NaN}'),
    "B16-in-an-unknown-field": field("brand_new", "[1e999]"),
    "B17-high-surrogate": prompt(MARK + "\\ud800"),
    "B17-low-surrogate": prompt(MARK + "\\udfff"),
    "B17-wrong-order": prompt(MARK + "\\udc00\\ud800"),
    "B17-in-a-key": field("x\\ud800", "1"),
    "B17-raw": prompt("@").replace(b"@", MARK.encode() + b"\xed\xa0\x80"),
    "B18-in-a-prompt": prompt(MARK + "\\u0000"),
    "B18-raw": prompt("@").replace(b"@", MARK.encode() + b"\0"),
    "B18-in-the-model": json.dumps(chat(model=MARK + "\0")).encode(),
    "B18-in-metadata": field("metadata", '{"a\\u0000": "b"}'),
    "B18-in-an-unknown-field": field("brand_new", '"\\u0000"'),
    "B19-bad-utf-8": prompt("@").replace(b"@", MARK.encode() + b"\xff"),
    "B19-overlong": prompt("@").replace(b"@", MARK.encode() + b"\xc0\xaf"),
    "B19-utf-16": json.dumps(chat(user=MARK)).encode("utf-16"),
    "B19-utf-32": json.dumps(chat(user=MARK)).encode("utf-32"),
    "B19-bom": b"\xef\xbb\xbf" + json.dumps(chat(user=MARK)).encode(),
}
PATHS = [CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/jobs", "/v1/batches", "/v1/uploads"]


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_body_that_is_not_a_valid_json_object_is_a_400(target: Target, body: bytes) -> None:
    for path in PATHS:
        target.refused(target.http.post(path, content=body, headers=JSON), 400, "invalid_json")


def test_deep_nesting_is_refused_quickly(target: Target) -> None:
    """B14 and B15: detected in less than 50 ms, whatever the size."""
    for name in ("B14-open-only", "B15-1000000-digits", "B14-lists"):
        took = []
        for _ in range(5):
            began = time.perf_counter()
            target.http.post(CHAT, content=BODIES[name], headers=JSON)
            took.append(time.perf_counter() - began)
        assert min(took) < 0.05, name


def test_a_surrogate_pair_is_one_character_and_comes_back_unchanged(target: Target) -> None:
    """B17: two halves that belong together are one emoji."""
    body = json.loads(prompt("\\ud83d\\ude00"))
    answer = target.http.post("/v1/completions", json={"model": "fake", "prompt": "😀", "echo": True, "max_tokens": 1})
    assert answer.json()["choices"][0]["text"].startswith("😀")
    assert target.http.post(CHAT, json=body).status_code == 200


def test_the_last_of_equal_keys_is_checked_used_and_stored(target: Target) -> None:
    """B20: the field that is checked is the field that is used and stored."""
    body = b'{"model": "no", "messages": 5, "max_tokens": 9, "messages": [{"role": "user", "content": "a", "content": "b"}]'
    body += b', "model": "fake", "max_tokens": 2}'
    answer = target.http.post(CHAT, content=body, headers=JSON)
    assert answer.json()["usage"]["completion_tokens"] == 2
    expected = target.http.post(CHAT, json=chat(messages=hello("b"), max_tokens=2))
    assert answer.json()["choices"] == expected.json()["choices"]


TYPES = {
    "B9-none": None,
    "B9-text": "text/plain",
    "B9-form": "application/x-www-form-urlencoded",
    "B9-multipart": "multipart/form-data; boundary=x",
    "B9-a-list-of-types": "text/plain, application/json",
    "B9-almost": "application/json-patch+json",
    "B9-latin-1": "application/jsön",
}


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES.keys())
def test_a_body_that_a_form_could_send_is_a_415_without_effect(target: Target, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind.encode("latin-1")}
    before = len(target.client.batches.list(limit=100).data)
    file_id = target.upload(b"{}\n")
    bodies = {path: chat(user=MARK) for path in (CHAT, "/v1/jobs")}
    batch = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
    for path, body in {**bodies, "/v1/batches": batch}.items():
        answer = target.http.post(path, content=json.dumps(body).encode(), headers=headers)  # type: ignore[arg-type]
        target.refused(answer, 415, "unsupported_media_type")
    assert len(target.client.batches.list(limit=100).data) == before


def rss(target: Target) -> int:
    """Return the resident bytes of the api."""
    return next(p for name, p in target.programs().items() if name.endswith(" api")).memory_info().rss


@pytest.mark.parametrize("path", ["/v1/files", CHAT], ids=["B10-files", "B10-chat"])
def test_a_body_with_too_large_a_content_length_is_refused_unread(target: Target, path: str) -> None:
    kind = "application/json" if path == CHAT else "multipart/form-data; boundary=x"
    auth = f"Authorization: Bearer {target.owner.text}"
    head = request("POST", path, auth, f"Content-Type: {kind}", f"Content-Length: {10**12}", length=False)
    answer = exchange(target.address, head)
    assert (answer.status, answer.error()["code"]) in [(413, "request_too_large"), (507, "disk_full")]


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "5, 6", "9" * 30, "+5"], ids=lambda text: f"B10-{text}")
def test_an_invalid_content_length_is_a_400(target: Target, length: str) -> None:
    auth = f"Authorization: Bearer {target.owner.text}"
    head = request("POST", CHAT, auth, "Content-Type: application/json", f"Content-Length: {length}", length=False)
    assert exchange(target.address, head + b"{}").status == 400


def test_two_lengths_or_a_length_with_chunks_are_a_400(target: Target) -> None:
    """B10: a request with two possible readings is refused."""
    auth = f"Authorization: Bearer {target.owner.text}"
    for two in (
        ("Content-Length: 2", "Content-Length: 3"),
        ("Content-Length: 2", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding: chunked, identity",),
    ):
        head = request("POST", CHAT, auth, "Content-Type: application/json", *two, length=False)
        assert exchange(target.address, head + b"{}\r\n").status == 400, two


def chunks(number: int, size: int) -> Iterator[bytes]:
    """Yield a chunked body without an end."""
    piece = b"%x\r\n" % size + b" " * size + b"\r\n"
    for _ in range(number):
        yield piece


def test_an_endless_body_is_refused_while_it_is_read_with_flat_memory(target: Target) -> None:
    """B11: 200 MB without a length."""
    before = rss(target)
    head = request(
        "POST",
        CHAT,
        f"Authorization: Bearer {target.owner.text}",
        "Content-Type: application/json",
        "Transfer-Encoding: chunked",
    )
    answer = exchange(target.address, head, more=chunks(200, 1 << 20))
    assert (answer.status, answer.error()["code"]) == (413, "request_too_large")
    assert rss(target) - before < 40 << 20


def closes(connection: socket.socket) -> bytes:
    """Return everything up to the close by the server, which must come."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while more := connection.recv(65536):
            received += more
    return received


def test_a_head_that_never_completes_is_closed_and_others_are_served(target: Target) -> None:
    """B12: one byte now and then; the stack of these tests waits two seconds for a head."""
    with raw.connect(target.address) as silent, raw.connect(target.address) as slow:
        began = time.monotonic()
        slow.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n")
        slow.settimeout(0.2)
        is_closed = False
        while not is_closed and time.monotonic() - began < 15:
            try:
                slow.sendall(b"X-A: b\r\n")
                is_closed = slow.recv(1) == b""
            except TimeoutError:
                target.check_alive()
            except OSError:
                is_closed = True
        assert is_closed
        assert closes(silent) == b""


def test_the_head_of_a_second_request_has_the_same_time_limit(target: Target) -> None:
    """B12: also on a connection that was used before."""
    with raw.connect(target.address) as connection:
        connection.sendall(request("GET", "/health"))
        assert raw.read_answer(connection).status in (200, 404)
        connection.sendall(b"GET /health HTTP/1.1\r\nHo")
        assert closes(connection) == b""


@pytest.mark.parametrize("path", [CHAT, "/v1/files"], ids=["B12-chat", "B12-files"])
def test_a_body_that_never_comes_is_a_408(target: Target, path: str) -> None:
    kind = "application/json" if path == CHAT else "multipart/form-data; boundary=x"
    auth = f"Authorization: Bearer {target.owner.text}"
    head = request("POST", path, auth, f"Content-Type: {kind}", "Content-Length: 1000", length=False)
    with raw.connect(target.address) as connection:
        connection.sendall(head + (b"{" if path == CHAT else b"--x\r\n"))
        answer = raw.read_answer(connection)
        assert (answer.status, answer.error()["code"]) == (408, "request_timeout")
        assert closes(connection) == b""


def test_a_body_that_arrives_too_slowly_is_a_408(target: Target) -> None:
    """B12: each byte in time, but ten minutes for the whole body."""
    head = request(
        "POST",
        CHAT,
        f"Authorization: Bearer {target.owner.text}",
        "Content-Type: application/json",
        "Content-Length: 1000",
        length=False,
    )
    with raw.connect(target.address) as connection:
        connection.sendall(head)
        connection.settimeout(0.3)
        began, received = time.monotonic(), b""
        while not received and time.monotonic() - began < 30:
            connection.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                received = connection.recv(65536)
        assert received.startswith(b"HTTP/1.1 408 ")


def test_a_refused_request_cannot_keep_its_connection_open_by_sending_more(target: Target) -> None:
    """B12: the 401 comes before the body; the rest of it does not keep the connection open for ever."""
    with raw.connect(target.address) as connection:
        connection.sendall(
            request("POST", CHAT, "Content-Type: application/json", "Content-Length: 1000", length=False)
        )
        assert raw.read_answer(connection).status == 401
        connection.settimeout(0.3)
        began, is_closed = time.monotonic(), False
        while not is_closed and time.monotonic() - began < 30:
            try:
                connection.sendall(b" ")
                is_closed = connection.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                is_closed = True
        assert is_closed


def test_an_endless_head_is_a_431_with_flat_memory(target: Target) -> None:
    """B12: 100 MB of one header."""
    before = rss(target)
    head = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-A: "
    answer = exchange(target.address, head, more=(b"x" * (1 << 16) for _ in range(1600)))
    assert answer.status in (431, 0), "0: the answer was lost since the rest had not been read"
    assert rss(target) - before < 40 << 20


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"B13-{path}")
def test_a_gzip_bomb_is_never_inflated(target: Target, path: str) -> None:
    before = rss(target)
    bomb = gzip_bomb(200 << 20)
    for encoding in ("gzip", "GZIP", "identity, gzip", "deflate", "br", "zstd"):
        headers = {**JSON, "content-encoding": encoding}
        target.refused(target.http.post(path, content=bomb, headers=headers), 415, "unsupported_media_type")
    assert rss(target) - before < 40 << 20


def test_a_compressed_form_is_not_inflated(target: Target) -> None:
    """B13: a form with a file."""
    body = gzip.compress(b"--x\r\n" + b"a" * (50 << 20))
    headers = {"content-type": "multipart/form-data; boundary=x", "content-encoding": "gzip"}
    for path in ("/v1/files", "/v1/batches/validate"):
        target.refused(target.http.post(path, content=body, headers=headers), 415, "unsupported_media_type")


REQUEST_IDS = {
    "B41-10-kB": "X-Request-Id: " + "x" * 10_000,
    "B41-space": "X-Request-Id: req_1 req_2",
    "B41-script": "X-Request-Id: <script>alert(1)</script>",
    "B41-client": "X-Client-Request-Id: " + "y" * 10_000,
}


@pytest.mark.parametrize("line", REQUEST_IDS.values(), ids=REQUEST_IDS.keys())
def test_an_unsafe_request_id_of_a_client_is_not_used(target: Target, line: str) -> None:
    auth = f"Authorization: Bearer {target.owner.text}"
    answers = [exchange(target.address, request("GET", "/v1/models", auth, line)) for _ in range(2)]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert {answer.status for answer in answers} == {200}
    assert len(ids) == 2
    assert all(one.startswith("req_") and len(one) < 80 for one in ids)
    assert line.split(": ")[1] not in str([answer.headers for answer in answers])


def test_a_line_break_in_a_header_adds_no_response_header(target: Target) -> None:
    """B41: text after CRLF is a header of the client; a bare CR or LF is refused or stays inside the value."""
    auth = f"Authorization: Bearer {target.owner.text}"
    for line in ("X-Request-Id: a\r\nSet-Cookie: b=c", "X-Request-Id: a\rSet-Cookie: b=c", "X-Request-Id: a\n b: c"):
        answer = exchange(target.address, request("GET", "/v1/models", auth, line))
        assert answer.status in (200, 400)
        assert "set-cookie" not in answer.headers
        assert "b" not in answer.headers


HOSTS = {
    "B43-path": "Host: evil.example/v1/models?x=",
    "B43-slash": "Host: localhost/health#",
    "B43-user": "Host: a@b",
    "B43-empty": "Host: ",
    "B43-10-kB": "Host: " + "h" * 10_000,
    "B43-bad-port": "Host: localhost:99999999",
    "B43-brackets": "Host: [::1",
    "B43-non-ascii": "Host: ÿ",
}


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS.keys())
def test_a_host_header_never_bypasses_authentication(target: Target, host: str) -> None:
    for path in ("/v1/models", "/v1/files", "/v1/usage"):
        assert exchange(target.address, request("GET", path, host)).status in (400, 401)
    auth = f"Authorization: Bearer {target.owner.text}"
    answer = exchange(target.address, request("GET", "/v1/batches/batch_1", host, auth))
    assert answer.status in (400, 404)
    assert "evil" not in answer.body.decode()


def test_an_absolute_url_is_served_as_its_path(target: Target) -> None:
    """B43: whatever host it names, the path is served here, behind the same authentication."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        elsewhere = f"http://127.0.0.1:{silent.getsockname()[1]}"
        auth = f"Authorization: Bearer {target.owner.text}"
        assert exchange(target.address, request("GET", f"{elsewhere}/v1/models")).status == 401
        assert exchange(target.address, request("GET", f"{elsewhere}/v1/models", auth)).status == 200
        assert exchange(target.address, request("GET", "http://169.254.169.254/latest", auth)).status == 404
        assert exchange(target.address, request("CONNECT", "169.254.169.254:80", auth)).status in (400, 404, 405)
        silent.settimeout(0.1)
        with pytest.raises(TimeoutError):
            silent.accept()


RANGES = {
    "B43-many": "bytes=" + ",".join(f"{n}-{n}" for n in range(1000)),
    "B43-long": "bytes=" + "0" * 5000 + "-",
    "B43-overlapping": "bytes=" + "0-," * 5000,
    "B43-reversed": "bytes=9-1",
    "B43-negative": "bytes=--5",
}


@pytest.mark.parametrize("wanted", RANGES.values(), ids=RANGES.keys())
def test_unusual_ranges_return_content_or_a_416(target: Target, wanted: str) -> None:
    file_id = target.upload(b"0123456789", "a.txt", "user_data")
    began = time.perf_counter()
    answer = target.http.get(f"/v1/files/{file_id}/content", headers={"range": wanted})
    assert time.perf_counter() - began < 1
    assert answer.status_code in (200, 206, 416)
    if answer.status_code == 200:
        assert answer.content == b"0123456789"


NOT_HTTP = {
    "B12-noise": os.urandom(2000),
    "B12-tls": bytes.fromhex("16030100a1010000") + b"\0" * 160,
    "B12-http-2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "B12-lines": b"\r\n" * 10_000 + b"x",
    "B41-bad-name": b"GET / HTTP/1.1\r\nHost: a\r\nA B: c\r\n\r\n",
    "B43-bad-path": b"GET /v1/m\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
    "B43-spaces": b"GET /v1/models and more HTTP/1.1\r\nHost: a\r\n\r\n",
    "B43-version": b"GET /v1/models HTTP/9.9\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("noise", NOT_HTTP.values(), ids=NOT_HTTP.keys())
def test_bytes_that_are_not_http_are_a_400_or_close_the_connection(target: Target, noise: bytes) -> None:
    answer = exchange(target.address, noise)
    assert answer.status in (0, 400, 404, 401)
    if answer.status == 400:
        assert answer.error()["type"] == "invalid_request_error"


def test_an_upgrade_is_ignored(target: Target) -> None:
    """B41: there are no web sockets."""
    head = request("GET", "/v1/models", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    assert exchange(target.address, head).status == 401


def test_no_log_contains_input_of_these_tests(target: Target) -> None:
    """Neither refused nor accepted input."""
    target.http.post(CHAT, json=chat(messages=hello(MARK)))
    target.http.post(CHAT, json=chat(messages=[{"role": MARK, "content": MARK}]))
    target.http.post("/v1/batches", json={"input_file_id": MARK, "endpoint": CHAT, "completion_window": "24h"})
    logs = "".join(path.read_text(errors="replace") for path in (target.process.state_dir / "logs").glob("*.log"))
    for secret in (MARK, target.owner.text):
        assert secret not in logs
        assert secret not in target.process.output
    assert re.findall(r".*Traceback.*", logs) == []
