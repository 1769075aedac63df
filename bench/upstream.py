"""A server upstream: throughput of a batch through it, time until its limit is found, and the first token of a streamed chat.

The server is a process of its own that answers after 5 ms and computes PARALLEL requests at a time; more of them queue there.
What it can do is measured first, by the own HTTP client of the engine at the best of several concurrencies.
`python -m bench.upstream` runs the server and prints its address.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httptools
import httpx2
import uvloop

from bench.chat import Connection
from bench.pipeline import run_batch, write_input
from bench.stack import running_stack
from cli.client import Client
from engine.config import UpstreamConfig
from engine.upstream.access import parse_address, read_access
from engine.upstream.http_client import HttpClient

PARALLEL = 4
ANSWER_SECONDS = 0.005
LINES = 5000
_WINDOW_SECONDS = 0.5
_BODY = b'{"model":"fake","messages":[{"role":"user","content":"Question?"}],"max_tokens":1}'


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamRun:
    """Requests per second: of the server alone, of it while the batch ran, and of the whole batch with upload and results.

    `found_seconds`: from the first request until a window of half a second with nine tenths of what the server alone can do.
    """

    alone: float
    in_batch: float
    whole_batch: float
    found_seconds: float

    @property
    def share(self) -> float:
        """Throughput in the batch, from its first to its last answer, as a part of that of the server alone."""
        return self.in_batch / self.alone


def batch(folder: Path, runs: int = 3) -> list[UpstreamRun]:
    """Run batches one by one through one stack and one server; the first one finds the limit."""
    source = folder / "upstream.jsonl"
    write_input(source, LINES)
    with running_server() as url:
        alone = max(asyncio.run(_rate_alone(url, PARALLEL * factor)) for factor in (1, 2, 4))
        with running_stack(_model(url)) as stack, Client(f"{stack.url}/v1", "bench") as client:
            found = []
            for _ in range(runs):
                httpx2.delete(f"{url}/log")
                run = run_batch(client, source, folder / "out.jsonl", LINES)
                times = httpx2.get(f"{url}/log").json()
                assert len(times) == LINES, "every line was asked for once"
                found.append(
                    UpstreamRun(
                        alone=alone,
                        in_batch=(len(times) - 1) / (times[-1] - times[0]),
                        whole_batch=run.lines_per_second,
                        found_seconds=_found_seconds(times, alone),
                    )
                )
    return found


def first_token_overhead(requests: int = 300) -> float:
    """Milliseconds at p50 that a streamed chat's first token takes longer than from the server directly."""

    async def run(url: str) -> float:
        connection = Connection(url)
        await connection.open()
        seen = [(await connection.stream(f"question {number}", 5))[0] for number in range(requests)]
        await connection.close()
        return statistics.median(seen[requests // 10 :])

    with running_server() as url, running_stack(_model(url)) as stack:
        direct = asyncio.run(run(url))
        return 1000 * (asyncio.run(run(stack.url)) - direct)


@contextmanager
def running_server() -> Iterator[str]:
    """Start the server on a free port."""
    with subprocess.Popen([sys.executable, "-m", "bench.upstream"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None, "it is a pipe"
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def _model(url: str) -> str:
    return f"name: fake\nbackend: openai\nbase_url: {url}/v1\ncontext_size: 8192\n"


async def _rate_alone(url: str, concurrency: int) -> float:
    client = HttpClient(parse_address(f"{url}/v1"), read_access(UpstreamConfig(model="fake"), {}))
    left = LINES

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            async with client.send("POST", "/chat/completions", _BODY, 60) as answer:
                await answer.read()

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    return LINES / (time.perf_counter() - began)


def _found_seconds(times: list[float], alone: float) -> float:
    """The beginning of the first window with nine tenths of `alone`; the length of the run if there is none."""
    wanted = int(0.9 * alone * _WINDOW_SECONDS)
    for first, last in zip(times, times[wanted:], strict=False):
        if last - first <= _WINDOW_SECONDS:
            return first - times[0]
    return times[-1] - times[0]


class _Server:
    """Computes PARALLEL requests at a time; the others wait in order of arrival."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._running = 0
        self._waiting: deque[_Peer] = deque()

    def begin(self, peer: _Peer) -> None:
        if self._running < PARALLEL:
            self._running += 1
            asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._end, peer)
        else:
            self._waiting.append(peer)

    def _end(self, peer: _Peer) -> None:
        self._running -= 1
        self.times.append(time.perf_counter())
        peer.answer()
        if self._waiting:
            self.begin(self._waiting.popleft())


class _Peer(asyncio.Protocol):
    """One connection, which sends a request at a time."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._path, self._body = b"", b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # that of a stream
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path, self._body = url, b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._parser.get_method() == b"POST":
            self._server.begin(self)
            return
        if self._parser.get_method() == b"DELETE":
            self._server.times.clear()
        self._send(json.dumps(self._server.times).encode() if self._path == b"/log" else b'{"data":[]}')

    def answer(self) -> None:
        if not json.loads(self._body or b"{}").get("stream"):
            self._send(_ANSWER)
            return
        chunks = (b"%x\r\n%b\r\n" % (len(event), event) for event in _EVENTS)
        self._transport.write(_STREAM_HEAD + b"".join(chunks) + b"0\r\n\r\n")

    def _send(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)


_USAGE = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
_MESSAGE = {"role": "assistant", "content": "word"}
_ANSWER = json.dumps(
    {"choices": [{"index": 0, "message": _MESSAGE, "finish_reason": "stop"}], "usage": _USAGE}
).encode()
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENTS = [
    b"data: " + event + b"\n\n"
    for event in (
        b'{"choices":[{"index":0,"delta":{"content":"word"},"finish_reason":null}]}',
        b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}',
        b'{"choices":[],"usage":%b}' % json.dumps(_USAGE).encode(),
        b"[DONE]",
    )
]


async def _serve() -> None:
    server = _Server()
    listener = await asyncio.get_running_loop().create_server(lambda: _Peer(server), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", flush=True)
    await listener.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve())
