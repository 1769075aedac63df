"""An S3 server for tests: moto's, in a process of its own on a loopback port. It injects the faults that a test asks for.

`S3Server` starts `python -m tests.support.s3_server`, and asks it for buckets and faults by JSON at `/_control`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, NoReturn, cast

import httpx2

from core.process.clone import set_parent_death_signal

KEY_ID, SECRET = "AKIAMILLRACETEST", "a secret of the tests"
_ACCOUNT = "123456789012"
Fault = Literal["slow_down", "reset", "forbidden"]


class S3Server:
    """An S3 server from `start` to `close`, or inside a `with`; `environment` are the variables of its clients."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self) -> S3Server:
        """Return when it answers."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.s3_server", "--host", self._host],
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            preexec_fn=partial(set_parent_death_signal, os.getpid(), signal.SIGKILL),
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url, "the S3 server did not start"
        return self

    @property
    def environment(self) -> dict[str, str]:
        """The address and the credentials, as the tools of AWS read them."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }

    def create_bucket(self, name: str) -> str:
        """Create an empty bucket; return the `files_url` of a prefix in it."""
        self._control(create=name)
        return f"s3://{name}/files"

    def delete_bucket(self, name: str) -> None:
        """Delete a bucket with all that is in it."""
        self._control(delete=name)

    def objects(self, bucket: str) -> dict[str, int]:
        """The keys of all objects, with their sizes."""
        return cast("dict[str, int]", self._control(list=bucket)["objects"])

    def unfinished(self, bucket: str) -> list[str]:
        """The keys of multipart uploads that were neither completed nor aborted."""
        return cast("list[str]", self._control(list=bucket)["unfinished"])

    def fail(self, fault: Fault, times: int, *, method: str = "", query: str = "", body_over: int = 0) -> None:
        """Let the next requests fail: those of this method, with this in their query, and a body over this size."""
        self._control(fault=fault, times=times, method=method, query=query, body_over=body_over)

    def requests(self) -> list[str]:
        """The requests since the last call: method, path, query and Range."""
        return cast("list[str]", self._control(requests=True)["requests"])

    def _control(self, **command: object) -> dict[str, object]:
        answer = httpx2.post(f"{self.url}/_control", json=command).raise_for_status().json()
        return cast("dict[str, object]", answer)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()

    def __enter__(self) -> S3Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


Environ = dict[str, Any]  # of WSGI
StartResponse = Callable[..., Any]


class _Application:
    """Moto's application behind a door that knows one key, counts requests, and lets some of them fail."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        self._moto = DomainDispatcherApplication(create_backend_app)
        self._fault: dict[str, Any] = {"times": 0}
        self._requests: list[str] = []

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/_control":
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            answer = json.dumps(self._control(json.loads(body))).encode()
            start_response("200 OK", [("content-type", "application/json"), ("content-length", str(len(answer)))])
            return [answer]
        parts = (
            environ["REQUEST_METHOD"],
            environ["PATH_INFO"],
            environ["QUERY_STRING"],
            environ.get("HTTP_RANGE", ""),
        )
        self._requests.append(" ".join(filter(None, parts)))
        fault = self._next_fault(environ)
        if f"Credential={KEY_ID}/" not in environ.get("HTTP_AUTHORIZATION", ""):
            return _refuse(environ, start_response, "403 Forbidden", "InvalidAccessKeyId")
        if fault == "slow_down":
            return _refuse(environ, start_response, "503 Slow Down", "SlowDown")
        if fault == "forbidden":
            return _refuse(environ, start_response, "403 Forbidden", "AccessDenied")
        if fault == "reset":
            self._reset(environ)
        return self._moto(environ, start_response)

    def _next_fault(self, environ: Environ) -> str | None:
        fault = self._fault
        if fault["times"] <= 0 or fault["method"] not in ("", environ["REQUEST_METHOD"]):
            return None
        if (
            fault["query"] not in environ["QUERY_STRING"]
            or int(environ.get("CONTENT_LENGTH") or 0) < fault["body_over"]
        ):
            return None
        fault["times"] -= 1
        return str(fault["fault"])

    def _reset(self, environ: Environ) -> NoReturn:
        """Break the connection in the middle of the body of the request, or of the response."""
        stream: socket.socket = environ["werkzeug.socket"]
        if length := int(environ.get("CONTENT_LENGTH") or 0):
            environ["wsgi.input"].read(length // 2)
        else:
            heads: list[Any] = []
            body = b"".join(self._moto(environ, lambda *given, **_: heads.append(given)))
            status, headers = heads[0][:2]
            head = "".join(f"{name}: {value}\r\n" for name, value in headers)
            stream.sendall(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body[: len(body) // 2])
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(stream.detach())  # the handler's own references would keep it open
        raise ConnectionResetError

    def _control(self, command: dict[str, Any]) -> dict[str, Any]:
        from moto.s3.models import s3_backends

        backend = s3_backends[_ACCOUNT]["aws"]
        if "fault" in command:
            self._fault = command
        elif "create" in command:
            backend.create_bucket(command["create"], "us-east-1")
        elif "delete" in command:
            bucket = backend.buckets[command["delete"]]
            bucket.keys.clear()
            bucket.multiparts.clear()
            backend.delete_bucket(command["delete"])
        elif "list" in command:
            bucket = backend.buckets[command["list"]]
            objects = {name: key.size for name, key in bucket.keys.items()}
            return {"objects": objects, "unfinished": [upload.key_name for upload in bucket.multiparts.values()]}
        elif "requests" in command:
            seen, self._requests = self._requests, []
            return {"requests": seen}
        return {}


def _refuse(environ: Environ, start_response: StartResponse, status: str, code: str) -> Iterable[bytes]:
    left = int(environ.get("CONTENT_LENGTH") or 0)
    while left > 0 and (chunk := environ["wsgi.input"].read(min(left, 1 << 20))):
        left -= len(chunk)
    body = f"<Error><Code>{code}</Code><Message>As the test asked.</Message></Error>".encode()
    start_response(status, [("content-type", "application/xml"), ("content-length", str(len(body)))])
    return [body]


def main() -> None:
    """Serve until killed; print the address first."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - connections that break are what the tests ask for

    from werkzeug.serving import make_server

    server = make_server(arguments.host, arguments.port, _Application(), threaded=True)
    print(f"http://{arguments.host}:{server.server_port}", flush=True)  # noqa: T201
    server.serve_forever()


if __name__ == "__main__":
    main()
