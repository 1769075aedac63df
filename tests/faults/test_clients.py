"""Clients that disconnect, do not read, or lose their key; and an api that crashes during an upload."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from core import ids
from core.api_keys import KEY, new_key
from db import keys
from tests.faults.load import Chats, batch_content, chat_body, new_prompt, start_batch, upload, wait_batch
from tests.faults.oracle import Oracle
from tests.faults.stack import FaultStack, Role
from tests.support.stack import wait_for

pytestmark = pytest.mark.timeout(90)

LONG = {"max_tokens": 3900, "ignore_eos": True}


class Raw:
    """A connection below HTTP clients, which would read the response and close the connection properly."""

    def __init__(self, stack: FaultStack, *, receive_bytes: int | None = None) -> None:
        host, port = stack.url.removeprefix("http://").split(":")
        self.socket = socket.socket()
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.connect((host, int(port)))
        self.socket.settimeout(20)
        self._key = stack.http().headers["authorization"]

    def head(self, method: str, path: str, **headers: object) -> None:
        """Send the request line and the headers."""
        lines = [f"{method} {path} HTTP/1.1", "host: localhost", f"authorization: {self._key}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())

    def ask(self, body: dict[str, Any]) -> None:
        """Send a chat."""
        content = json.dumps(body).encode()
        self.head("POST", "/v1/chat/completions", content_type="application/json", content_length=len(content))
        self.socket.sendall(content)

    def read_until(self, mark: bytes) -> bytes:
        """Read until the response contains this text; return what was read."""
        seen = b""
        while mark not in seen:
            data = self.socket.recv(1 << 16)
            if not data:
                raise ConnectionError(f"ended behind {seen[-200:]!r}")
            seen += data
        return seen

    def reset(self) -> None:
        """Reset the connection, without a FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.socket.close()


def num_subscribed(stack: FaultStack) -> int:
    """Return the number of job channels with a subscriber."""
    return len(stack.redis.pubsub_channels("*job:*"))


def open_streams(stack: FaultStack) -> int:
    """Return the number of streams that the api counts."""
    with stack.http() as http:
        (line,) = [line for line in http.get("/metrics").text.splitlines() if line.startswith("millrace_open_streams ")]
    return int(float(line.split()[1]))


def wait_no_streams(stack: FaultStack, seconds: float = 20) -> None:
    """Wait until no stream is open and no channel has a subscriber."""
    wait_for(lambda: open_streams(stack) == 0, "no stream is open", seconds)
    wait_for(lambda: num_subscribed(stack) == 0, "no job channel has a subscriber", seconds)


def busy_slots(stack: FaultStack) -> int:
    """Return the number of running jobs."""
    return len(stack.query("SELECT 1 FROM jobs WHERE state = 'running'"))


@pytest.mark.parametrize("how", ["closes", "resets"])
def test_a_client_that_disconnects_stops_its_job_and_leaves_nothing_behind(
    stack: FaultStack, oracle: Oracle, how: str
) -> None:
    """F39: the slot is free at once, the job cancelled, and no channel is subscribed."""
    before = {row[0] for row in stack.query("SELECT id FROM jobs")}
    readers = [Raw(stack) for _ in range(3)]
    for raw in readers:
        raw.ask(chat_body(new_prompt(), stream=True, **LONG))
        raw.read_until(b"data: ")
    assert num_subscribed(stack) == 3
    for raw in readers:
        raw.reset() if how == "resets" else raw.socket.close()
    began = time.monotonic()
    wait_for(lambda: busy_slots(stack) == 0, "the slots are free", 10)
    print(f"client {how}: slots free after {time.monotonic() - began:.2f} s")
    ended = [row[1] for row in stack.query("SELECT id, state FROM jobs") if row[0] not in before]
    assert ended == ["cancelled"] * 3
    wait_no_streams(stack)
    oracle.check()


def test_a_client_that_never_reads_is_dropped_and_others_are_not_affected(stack: FaultStack, oracle: Oracle) -> None:
    """F40: the data that waits for the client is bounded, and so is its time."""
    with Chats(stack) as chats:
        unread = Raw(stack, receive_bytes=2048)
        try:
            unread.ask(chat_body(new_prompt(), stream=True, logprobs=True, top_logprobs=20, n=4, **LONG))
            wait_for(lambda: not is_dropped(stack, unread) and num_subscribed(stack) > 0, "it is streamed to", 20)
            wait_for(lambda: is_dropped(stack, unread), "it is dropped", 40)
        finally:
            unread.socket.close()
        answered = chats.ends["answered"]
        wait_for(lambda: chats.ends["answered"] > answered + 2, "chats are answered", 20)
    assert set(chats.ends) == {"answered"}
    wait_no_streams(stack)
    oracle.check()


def is_dropped(stack: FaultStack, raw: Raw) -> bool:
    """Has the api closed this connection? A client that does not read does not always get a reset."""
    port = raw.socket.getsockname()[1]
    return all(each.raddr.port != port for each in stack.find(Role.API).net_connections("tcp") if each.raddr)


def begin_upload(stack: FaultStack, num_bytes: int = 4 << 20) -> Raw:
    """Send half of a form, enough to be on the disk."""
    raw = Raw(stack)
    raw.head("POST", "/v1/files", content_type="multipart/form-data; boundary=b", content_length=2 * num_bytes)
    raw.socket.sendall(
        b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
    )
    raw.socket.sendall(b'{"half": "of a file"}\n' * (num_bytes // 22))
    wait_for(lambda: bool(temporary_bytes(stack)), "half of the file is on the disk", 20)
    return raw


def temporary_bytes(stack: FaultStack) -> int:
    """Return the bytes in files that the api has open and that have no name."""
    found = 0
    for path in Path(f"/proc/{stack.find(Role.API).pid}/fd").iterdir():
        with suppress(OSError):  # the file was closed meanwhile
            if "(deleted)" in str(path.readlink()):
                found += path.stat().st_size
    return found


def stored(stack: FaultStack) -> set[str]:
    """Return all files of the file store."""
    return {path.name for path in stack.files.root.glob("*/*")}


def test_an_upload_whose_client_disconnects_leaves_nothing(stack: FaultStack, oracle: Oracle) -> None:
    """F36: no row and no bytes, and the temporary file is closed at once."""
    wait_for(lambda: temporary_bytes(stack) == 0, "no upload is running", 10)
    rows, files = stack.query("SELECT count(*) FROM files"), stored(stack)
    for disconnect in (Raw.reset, lambda raw: raw.socket.close()):
        raw = begin_upload(stack)
        disconnect(raw)
        wait_for(lambda: temporary_bytes(stack) == 0, "its temporary file is gone", 10)
        assert stack.query("SELECT count(*) FROM files") == rows
        assert stored(stack) == files
    oracle.check()


def test_an_upload_whose_api_is_killed_leaves_nothing(stack: FaultStack, oracle: Oracle) -> None:
    """F35: no row, and no bytes under any name; partial files of the store are swept (`upload` failpoints)."""
    rows, files = stack.query("SELECT count(*) FROM files"), stored(stack)
    raw = begin_upload(stack)
    stack.restart(Role.API)
    with pytest.raises(ConnectionError):
        raw.read_until(b"HTTP/1.1 200")
    raw.socket.close()
    assert stack.query("SELECT count(*) FROM files") == rows
    assert stored(stack) == files
    assert wait_batch(stack, start_batch(stack, 2)) == "completed"
    oracle.check()


class BackgroundRequest:
    """One request in its own thread, with its status, headers and lines."""

    def __init__(self, stack: FaultStack, method: str, path: str, body: object = None, tenant: str = "default") -> None:
        self._client = stack.http(tenant, timeout=60)
        self._request = self._client.build_request(method, path, json=body)
        self.status = 0
        self.retry_after = ""
        self.lines: list[str] = []
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._client:
                response = self._client.send(self._request, stream=True)
                self.status, self.retry_after = response.status_code, response.headers.get("retry-after", "")
                self.lines.extend(line for line in response.iter_lines())
        except httpx2.HTTPError as error:
            self.error = error

    def begin(self) -> BackgroundRequest:
        """Wait until the response has begun."""
        wait_for(lambda: bool(self.lines), "a stream begins", 20)
        return self

    def end(self, timeout_seconds: float = 30) -> BackgroundRequest:
        """Wait until the response has ended."""
        self._thread.join(timeout_seconds)
        assert not self._thread.is_alive(), "the response does not end"
        assert self.error is None, f"cut off: {self.error!r}"
        return self

    @property
    def last_code(self) -> str | None:
        """Return the code of the error that ends the response."""
        data = [line.removeprefix("data: ") for line in self.lines if line.startswith(("data: {", "{"))]
        last = json.loads(data[-1])
        return str((last.get("error") or last).get("code"))


def long_streams(stack: FaultStack, batch_id: str, tenant: str = "default") -> dict[str, BackgroundRequest]:
    """Start one stream of each kind, with work that takes some seconds."""
    with stack.http(tenant) as http:
        job_id = http.post("/v1/jobs", json=chat_body(new_prompt(), **LONG)).json()["id"]
    reading = {
        "chat": BackgroundRequest(
            stack, "POST", "/v1/chat/completions", chat_body(new_prompt(), stream=True, **LONG), tenant
        ),
        "job": BackgroundRequest(stack, "GET", f"/v1/jobs/{job_id}/events", tenant=tenant),
        "batch": BackgroundRequest(stack, "GET", f"/v1/batches/{batch_id}/events", tenant=tenant),
        "line": BackgroundRequest(stack, "GET", f"/v1/batches/{batch_id}/requests/line-29/stream", tenant=tenant),
    }
    for each in ("chat", "job", "batch"):
        reading[each].begin()
    return reading


def test_an_api_that_stops_ends_all_streams_and_waiting_requests(stack: FaultStack, oracle: Oracle) -> None:
    """Streams end with an error, waiting requests get a 503 with Retry-After; the work of the streams goes on."""
    old, before = stack.pid(Role.API), {row[0] for row in stack.query("SELECT id FROM jobs")}
    batch_id = start_batch(stack, 30, **LONG)
    streams = long_streams(stack, batch_id)
    with stack.frozen(Role.CHAT, Role.BATCH):
        kept = stack.client.responses.create(model="fake", input=new_prompt(), background=True).id
        streams["response"] = BackgroundRequest(stack, "GET", f"/v1/responses/{kept}?stream=true").begin()
        waiting = BackgroundRequest(stack, "POST", "/v1/chat/completions", chat_body(new_prompt()))
        queued = "SELECT 1 FROM jobs WHERE batch_id IS NULL AND state = 'queued'"
        wait_for(lambda: len(stack.query(queued)) >= 2, "the request waits")
        stack.send(Role.API, signal.SIGTERM)
        for name, each in streams.items():
            assert each.end().last_code == "service_unavailable", f"{name}: {each.lines[-3:]}"
        assert (waiting.end().status, waiting.last_code) == (503, "service_unavailable")
        assert int(waiting.retry_after) > 0
        wait_for(lambda: stack.find(Role.API).pid != old, "another api")
    stack.retry(lambda: stack.client.batches.cancel(batch_id))
    oracle.check(90)
    jobs = dict(tuple(row) for row in stack.query("SELECT id, state FROM jobs WHERE batch_id IS NULL"))
    new = Counter(state for job_id, state in jobs.items() if job_id not in before)
    assert new == {"completed": 3, "cancelled": 1}, "the waiting request, which its client must repeat, is cancelled"


@contextmanager
def another_key(stack: FaultStack, name: str) -> Iterator[str]:
    """Insert another key of tenant `default` under a name for `stack.http`; yield its id."""
    made, key_id = new_key(), ids.new_id(KEY)
    columns: dict[str, Any] = {"id": key_id, "tenant_id": "default", "name": name, "scopes": ["admin"]}
    with stack.database.begin() as connection:
        connection.execute(keys.insert_key(prefix=made.prefix, digest=made.digest, **columns))
    stack.keys[name] = made.text
    yield key_id
    del stack.keys[name]


def test_a_revoked_key_ends_its_streams_and_its_batches_finish(stack: FaultStack, oracle: Oracle) -> None:
    """F51: within ten seconds; streams of other keys go on."""
    with another_key(stack, "revoked") as key_id:
        with stack.http("revoked") as http:
            file_id = upload(stack, batch_content(6))
            body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
            batch_id = http.post("/v1/batches", json=body).json()["id"]
        long_id = start_batch(stack, 30, **LONG)
        streams = long_streams(stack, long_id, "revoked")
        waiting = BackgroundRequest(stack, "POST", "/v1/chat/completions", chat_body(new_prompt(), **LONG), "revoked")
        other = BackgroundRequest(
            stack, "POST", "/v1/chat/completions", chat_body(new_prompt(), stream=True, **LONG)
        ).begin()
        with stack.database.begin() as connection:
            connection.execute(keys.revoke_key(key_id)).one()
        began = time.monotonic()
        for name, each in streams.items():
            assert each.end(10).last_code == "invalid_api_key", f"{name}: {each.lines[-3:]}"
        print(f"revoked: streams ended after {time.monotonic() - began:.1f} s")
        assert (waiting.end(10).status, waiting.last_code) == (401, "invalid_api_key")
        with stack.http("revoked") as http:  # cached for some more seconds, as long as the streams may last
            wait_for(lambda: http.get("/v1/models").status_code == 401, "the key is refused", 10)
        stack.client.batches.cancel(long_id)
        assert other.end(60).lines[-2] == "data: [DONE]"
    assert wait_batch(stack, batch_id) == "completed"
    oracle.check(90)
