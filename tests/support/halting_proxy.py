"""An HTTP proxy that acts at chosen requests: before they arrive, before they are answered, or in the middle of an answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

import httpx2


class Moment(StrEnum):
    """A moment of a request: its body has not arrived, the server has acted without an answer, half an answer is sent."""

    BODY = "body"
    ANSWER = "answer"
    HALF = "half"


class HaltingProxy:
    """Forwards to `target`, which may change. At a moment that `halt_at` names, it acts once and drops the request."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._halt: tuple[str, str, Moment, Callable[[], None]] | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def halt_at(self, method: str, part: str, moment: Moment, action: Callable[[], None]) -> None:
        """Act at the next request with this method whose path contains this part."""
        self._halt = (method, part, moment, action)

    def _halts(self, method: str, path: str, moment: Moment) -> bool:
        if self._halt is None or self._halt[0] != method or self._halt[1] not in path or self._halt[2] is not moment:
            return False
        action, self._halt = self._halt[3], None
        action()
        return True

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                self.close_connection = True
                if proxy._halts(self.command, self.path, Moment.BODY):
                    return
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                kept = {
                    name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")
                }
                try:
                    answer = httpx2.request(
                        self.command, proxy.target + self.path, content=body, headers=kept, timeout=60
                    )
                except httpx2.HTTPError:
                    return
                if proxy._halts(self.command, self.path, Moment.ANSWER):
                    return
                self.send_response(answer.status_code)
                for name, value in answer.headers.items():
                    if name.lower() not in ("content-length", "content-encoding", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("content-length", str(len(answer.content)))
                self.send_header("connection", "close")
                self.end_headers()
                half = len(answer.content) // 2
                self.wfile.write(answer.content[:half])
                self.wfile.flush()
                if not proxy._halts(self.command, self.path, Moment.HALF):
                    self.wfile.write(answer.content[half:])

            do_GET = do_POST = do_PATCH = forward  # noqa: N815 - as the base class calls them

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        return Handler
