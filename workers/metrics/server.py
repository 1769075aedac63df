"""Metrics server: `GET /metrics` of a worker or a clerk, in a thread that sleeps until it is read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

import structlog

from core.process.listening import bound_socket
from core.settings import Settings

log = structlog.get_logger()

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_CLIENT_SECONDS: Final = 10.0
_NEVER_SECONDS: Final = 1e6  # the loop of the standard library otherwise turns twice a second


class MetricsServer:
    """Serves the text that `format_metrics` returns. It listens from its construction on; raises ConfigError if it cannot."""

    def __init__(self, host: str, port: int, format_metrics: Callable[[], bytes]) -> None:
        listener = bound_socket(host, port, setting="METRICS_PORT")

        class Handler(_Handler):
            pass

        Handler.format_metrics = staticmethod(format_metrics)
        self._server = _Server((host, port), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listener
        self._server.server_activate()
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{listener.getsockname()[1]}/metrics"

    def start(self) -> None:
        """Serve until the process ends."""
        serve = threading.Thread(
            target=self._server.serve_forever, args=(_NEVER_SECONDS,), name="metrics-server", daemon=True
        )
        serve.start()
        log.info("metrics_served", url=self.url)


def open_metrics_server(settings: Settings, format_metrics: Callable[[], bytes], offset: int = 0) -> None:
    """Serve metrics where the settings name a port: on that port plus `offset`, or on a free one where it is 0."""
    if settings.metrics_port is not None:
        port = settings.metrics_port and settings.metrics_port + offset
        MetricsServer(settings.metrics_host, port, format_metrics).start()


class _Server(ThreadingHTTPServer):
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    timeout = _CLIENT_SECONDS
    format_metrics: Callable[[], bytes]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path != "/metrics":
            self.send_error(HTTPStatus.NOT_FOUND, "The metrics are at /metrics.")
            return
        try:
            body = self.format_metrics()
        except Exception as error:  # the edge of this thread
            log.error("metrics_failed", exc_info=error)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def version_string(self) -> str:
        return "millrace"

    def log_message(self, *_: object) -> None:
        """Nothing: a scrape is no event."""
