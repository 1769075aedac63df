"""A client of the HTTP API: the few calls that the commands make."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, NamedTuple, TypeVar

import httpx2

from cli.errors import CommandFailed, ExitCode, TryAgainLater
from cli.refusals import check, check_event, parse, reason_of

_TIMEOUT: Final = httpx2.Timeout(30, read=120)
_PRESENCE_TIMEOUT: Final = httpx2.Timeout(3, read=30)  # a busy server is slow, a missing one refuses at once
_RETRY_SECONDS: Final = 90.0
_PAUSE_SECONDS: Final = 1.0  # between two attempts
_PAGE: Final = 100
_LONG_TIMEOUT: Final = httpx2.Timeout(30, read=600, write=600)

Json = dict[str, Any]  # Any: an answer of the API
_Result = TypeVar("_Result")


class Client:
    """Calls one server; every failure is a CommandFailed whose message names the remedy."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self.base_url = base_url.rstrip("/")
        self.restart_server: Callable[[], object] = lambda: None  # called between attempts to reach a server
        self._http = httpx2.Client(timeout=_TIMEOUT, headers={"Authorization": f"Bearer {api_key}"})

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def absence(self) -> str:
        """Return why no server answers at this address; empty when one does, even one that rejects the key."""
        try:
            answer = self._http.get(f"{self.base_url}/models", timeout=_PRESENCE_TIMEOUT)
        except httpx2.HTTPError as error:
            return reason_of(error)
        is_ours = answer.status_code in (200, 401, 403, 429)
        return "" if is_ours else f"{answer.url} answers {answer.status_code}, as no Millrace does"

    def upload(self, path: Path, purpose: str = "batch") -> str:
        """Send a file; returns its id."""
        with path.open("rb") as stream:
            return str(self.send_file(path.name, stream, purpose)["id"])

    def send_file(self, name: str, stream: IO[bytes], purpose: str, *, once: str | None = None) -> Json:
        """Send a seekable stream under a name; returns the file object. `once`: an Idempotency-Key."""
        files = {"file": (name, stream, "application/jsonl")}
        return self._call("POST", "/files", data={"purpose": purpose}, files=files, headers=_once(once))

    def create_batch(
        self,
        file_id: str,
        endpoint: str,
        window: str,
        metadata: dict[str, str] | None = None,
        *,
        once: str | None = None,
    ) -> Json:
        """Start a batch of an uploaded file. `once`: an Idempotency-Key."""
        body: Json = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": window}
        body = {**body, "metadata": metadata} if metadata else body
        return self._call("POST", "/batches", json=body, headers=_once(once))

    def validate(self, name: str, stream: IO[bytes], endpoint: str | None) -> Json:
        """Return the errors of a batch file and an estimate of its duration."""
        files = {"file": (name, stream, "application/jsonl")}
        data = {"purpose": "batch", **({"endpoint": endpoint} if endpoint else {})}
        return self._call("POST", "/batches/validate", data=data, files=files, timeout=_LONG_TIMEOUT)

    def get(self, path: str) -> Json:
        """Return an object of the API."""
        return self._call("GET", path)

    def readiness(self) -> Json | None:
        """Return the server's report on itself; None where only the API can be reached."""
        with self._translated():
            response = self._http.get(f"{self.base_url.removesuffix('/v1')}/readyz")
        try:
            report = response.json()
        except ValueError:
            return None
        return report if isinstance(report, dict) and "checks" in report else None

    def patch(self, path: str, body: Json) -> Json:
        """Change an object; returns it."""
        return self._call("PATCH", path, json=body)

    def post(self, path: str, body: Json | None = None) -> Json:
        """Call an action; returns the changed object."""
        return self._call("POST", path, json=body or {})

    def delete(self, path: str) -> Json:
        """Delete an object."""
        return self._call("DELETE", path)

    def pages(self, path: str, **params: str | int | None) -> Iterator[Json]:
        """Yield every object of a list, page by page; parameters of None are omitted."""
        given = {name: value for name, value in params.items() if value is not None}
        while True:
            page = self._call("GET", path, params=given)
            yield from page["data"]
            if not page["has_more"]:
                return
            given["after"] = page["last_id"]

    def listed(self, path: str, *, limit: int, **params: str | None) -> list[Json]:
        """Return the first objects of a list."""
        return list(islice(self.pages(path, limit=min(limit, _PAGE), **params), limit))

    def batch(self, batch_id: str) -> Json:
        """Return the batch as of now; waits up to 90 s for a server that restarts, or for a rate limit."""
        return self.patiently(lambda: self._call("GET", f"/batches/{batch_id}"))

    def patiently(self, call: Callable[[], _Result], *, waits_for_limits: bool = True) -> _Result:
        """Return the result of a call that may be repeated; waits up to 90 s for a server that restarts, or for a limit."""
        deadline = time.monotonic() + _RETRY_SECONDS
        while True:
            try:
                return call()
            except TryAgainLater as refusal:
                if not waits_for_limits or time.monotonic() > deadline:
                    raise
                time.sleep(refusal.seconds)
            except CommandFailed as error:
                if error.code is not ExitCode.UNREACHABLE or time.monotonic() > deadline:
                    raise
                self.restart_server()
                time.sleep(_PAUSE_SECONDS)

    def content(self, file_id: str) -> Iterator[bytes]:
        """Yield a file's content in chunks."""
        with self._stream("GET", f"/files/{file_id}/content") as response:
            yield from response.iter_bytes()

    def content_lines(self, file_id: str) -> Iterator[bytes]:
        """Yield a file's lines."""
        with self._stream("GET", f"/files/{file_id}/content") as response:
            yield from filter(None, _lines(response))

    def finished_lines(self, batch_id: str, *, is_merged: bool) -> Iterator[bytes]:
        """Yield the output lines of a batch that have ended so far; the server returns the start of the next page in a header."""
        params = {"merged": "true"} if is_merged else {}
        while True:
            with self._stream("GET", f"/batches/{batch_id}/output", params=params) as response:
                num_bytes = 0
                for chunk in response.iter_bytes():
                    num_bytes += len(chunk)
                    yield chunk
                after = response.headers.get("x-millrace-after")
            if not num_bytes or not after or after == params.get("after"):
                return
            params["after"] = after

    def events(self, path: str) -> Iterator[tuple[str, Json]]:
        """Yield names and data of server-sent events until the stream ends; resumes a broken stream after its last event.

        Waits up to 90 s for a server that restarts.
        """
        headers: dict[str, str] = {}
        deadline: float | None = None  # of the attempts since the last connection
        while True:
            try:
                with self._stream("GET", path, headers=headers) as response:
                    deadline = None
                    for event in read_events(map(bytes.decode, _lines(response))):
                        check_event(event.data)
                        if event.id is not None:
                            headers["Last-Event-ID"] = event.id
                        yield event.name, event.data
                return
            except CommandFailed as error:
                deadline = deadline or time.monotonic() + _RETRY_SECONDS
                if error.code is not ExitCode.UNREACHABLE or time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_SECONDS)

    def chat(self, body: Json) -> Iterator[str]:
        """Yield the text of a streamed answer in pieces."""
        for chunk in self.chat_chunks(body):
            for choice in chunk["choices"]:
                yield choice["delta"].get("content") or ""

    def chat_chunks(self, body: Json) -> Iterator[Json]:
        """Yield the chunks of a streamed answer."""
        with self._stream("POST", "/chat/completions", json={**body, "stream": True}) as response:
            for line in map(bytes.decode, _lines(response)):
                if line.startswith("data: ") and line != "data: [DONE]":
                    event: Json = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise CommandFailed(f"The answer ended early: {event['error']['message']}")
                    yield event

    def _call(self, method: str, path: str, **arguments: Any) -> Json:  # Any: the library's own arguments
        with self._translated():
            response = self._http.request(method, self.base_url + path, **arguments)
            check(response)
            return parse(response)

    @contextmanager
    def _stream(self, method: str, path: str, **arguments: Any) -> Iterator[httpx2.Response]:  # Any: as above
        with self._translated(), self._http.stream(method, self.base_url + path, **arguments) as response:
            if response.is_error:
                response.read()
            check(response)
            yield response

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx2.HTTPError as error:
            message = (
                f"There is no answer from {self.base_url}: {reason_of(error)}. Start a server with: millrace serve"
            )
            raise CommandFailed(f"{message}; or name another with --base-url.", ExitCode.UNREACHABLE) from None


class ServerEvent(NamedTuple):
    """One server-sent event whose data is JSON."""

    id: str | None
    name: str
    data: Json


def read_events(lines: Iterator[str]) -> Iterator[ServerEvent]:
    """Parse the lines of an event stream; skips comments, and an event that was cut off."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif fields:
            if "data" in fields and fields["data"] != "[DONE]":
                yield ServerEvent(fields.get("id"), fields.get("event", "message"), json.loads(fields["data"]))
            fields = {}


def _lines(response: httpx2.Response) -> Iterator[bytes]:
    """Split at LF only: `iter_lines` also splits at other Unicode line ends, which JSON may contain."""
    rest = b""
    for chunk in response.iter_bytes():
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.removesuffix(b"\r") for line in whole)
    if rest:
        yield rest


def _once(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Idempotency-Key": key}
