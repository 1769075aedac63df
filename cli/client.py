"""A client of the HTTP API: the few calls the commands make. Knows URLs and JSON; prints nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import httpx2

from cli.errors import CommandFailed, ExitCode

_TIMEOUT: Final = httpx2.Timeout(30, read=120)
_RETRY_SECONDS: Final = 90.0

Json = dict[str, Any]  # Any: an answer of the API


class Client:
    """Talks to one server; every failure is a CommandFailed that says what to do."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self.base_url = base_url.rstrip("/")
        self._http = httpx2.Client(timeout=_TIMEOUT, headers={"Authorization": f"Bearer {api_key}"})

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def is_there(self) -> bool:
        """Does a server answer at this address? One that does not like the key is there too, and says so when asked."""
        try:
            return self._http.get(f"{self.base_url}/models", timeout=3).status_code in (200, 401, 403, 429)
        except httpx2.HTTPError:
            return False

    def upload(self, path: Path, purpose: str = "batch") -> str:
        """Send a file; returns its id."""
        with path.open("rb") as stream:
            files = {"file": (path.name, stream, "application/jsonl")}
            return str(self._call("POST", "/files", data={"purpose": purpose}, files=files)["id"])

    def create_batch(self, file_id: str, endpoint: str, window: str) -> Json:
        """Start a batch of an uploaded file."""
        body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": window}
        return self._call("POST", "/batches", json=body)

    def batch(self, batch_id: str) -> Json:
        """The batch as of now. A server that restarts is waited for."""
        deadline = time.monotonic() + _RETRY_SECONDS
        while True:
            try:
                return self._call("GET", f"/batches/{batch_id}")
            except CommandFailed as error:
                if error.code is not ExitCode.UNREACHABLE or time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def download(self, file_id: str, path: Path) -> None:
        """Fetch a file's content; it appears under its name when it is whole."""
        part = path.with_name(path.name + ".part")
        with self._stream("GET", f"/files/{file_id}/content") as response, part.open("wb") as stream:
            for chunk in response.iter_bytes():
                stream.write(chunk)
        part.rename(path)

    def chat(self, body: Json) -> Iterator[str]:
        """The text of a streamed answer, piece by piece."""
        with self._stream("POST", "/chat/completions", json={**body, "stream": True}) as response:
            for line in response.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise CommandFailed(f"The answer broke off: {event['error']['message']}")
                    for choice in event["choices"]:
                        yield choice["delta"].get("content") or ""

    def _call(self, method: str, path: str, **arguments: Any) -> Json:  # Any: the library's own arguments
        with self._translated():
            response = self._http.request(method, self.base_url + path, **arguments)
            _check(response)
            answer: Json = response.json()
            return answer

    @contextmanager
    def _stream(self, method: str, path: str, **arguments: Any) -> Iterator[httpx2.Response]:  # Any: as above
        with self._translated(), self._http.stream(method, self.base_url + path, **arguments) as response:
            if response.is_error:
                response.read()
            _check(response)
            yield response

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx2.HTTPError as error:
            reason = str(error) or type(error).__name__
            message = f"No answer from {self.base_url} ({reason}). Is the server running? Start it with: millrace serve"
            raise CommandFailed(message, ExitCode.UNREACHABLE) from None


def _check(response: httpx2.Response) -> None:
    if not response.is_error:
        return
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text[:200] or response.reason_phrase
    code = ExitCode.NOT_ALLOWED if response.status_code in (401, 403) else ExitCode.ERROR
    if response.status_code == 503:
        code = ExitCode.UNREACHABLE
    raise CommandFailed(f"The server answered {response.status_code}: {message}", code)
