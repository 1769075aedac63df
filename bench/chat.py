"""Overhead of everything around the engine for streamed chat: time to the first token, and tokens per second of many streams.

The client is a bare socket, so that the measured time is that of the server.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.stack import running_stack

_FAKE = "name: fake\nbackend: fake\nslots: 32\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """Milliseconds from the last byte of the request to the first byte of the first token."""

    requests: int
    p50: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ManyStreams:
    """Concurrent streams; a token is lost when a stream has fewer tokens than requested."""

    streams: int
    tokens: int
    tokens_lost: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all streams together."""
        return self.tokens / self.seconds


class Connection:
    """One kept-alive connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def stream(self, question: str, tokens: int) -> tuple[float, int]:
        """Stream a chat; return the seconds to the first token and the number of tokens."""
        body = {
            "model": "fake",
            "messages": [{"role": "user", "content": question}],
            "stream": True,
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        raw = json.dumps(body).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(raw)}\r\n\r\n"
        self._writer.write(head.encode() + raw)
        began = time.perf_counter()
        await self._reader.readuntil(b"\r\n\r\n")
        first, count = 0.0, 0
        while True:
            size = int(await self._reader.readline(), 16)
            chunk = await self._reader.readexactly(size + 2)
            if size == 0:
                return first, count
            found = chunk.count(b'"delta":{"content":"') - chunk.count(b'"delta":{"content":""')
            if found and not count:
                first = time.perf_counter() - began
            count += found


def first_token(requests: int = 400) -> FirstToken:
    """Send requests one by one from one client."""

    async def run(url: str) -> list[float]:
        connection = Connection(url)
        await connection.open()
        for number in range(30):
            await connection.stream(f"warm {number}", 5)
        seen = [(await connection.stream(f"question {number}", 20))[0] for number in range(requests)]
        await connection.close()
        return seen

    with running_stack(_FAKE) as stack:
        seen = asyncio.run(run(stack.url))
    percentiles = statistics.quantiles(seen, n=100)
    return FirstToken(requests=requests, p50=1000 * percentiles[49], p99=1000 * percentiles[98])


def many_streams(streams: int = 32, tokens: int = 100, rounds: int = 10) -> ManyStreams:
    """Run all streams concurrently, several times."""

    async def run(url: str) -> tuple[int, float]:
        connections = [Connection(url) for _ in range(streams)]
        for connection in connections:
            await connection.open()
        await asyncio.gather(*[connection.stream("warm", tokens) for connection in connections])

        async def one(number: int, connection: Connection) -> int:
            return sum([(await connection.stream(f"question {number} {n}", tokens))[1] for n in range(rounds)])

        began = time.perf_counter()
        counts = await asyncio.gather(*[one(number, connection) for number, connection in enumerate(connections)])
        seconds = time.perf_counter() - began
        for connection in connections:
            await connection.close()
        return sum(counts), seconds

    with running_stack(_FAKE) as stack:
        count, seconds = asyncio.run(run(stack.url))
    wanted = streams * tokens * rounds
    return ManyStreams(streams=streams, tokens=count, tokens_lost=wanted - count, seconds=seconds)
