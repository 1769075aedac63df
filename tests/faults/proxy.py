"""A TCP proxy before a service that resets, drops, delays or cuts connections at a byte.

Listens on 127.0.0.1 and connects to a Unix socket. It runs in its own thread; every method may be called from any other.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_CHUNK_BYTES = 1 << 16


class Direction(StrEnum):
    """Direction in which bytes flow."""

    TO_SERVER = "to_server"
    TO_CLIENT = "to_client"


@dataclass(frozen=True, slots=True, eq=False)
class _Link:
    """A client's connection with its connection to the service."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter

    def reset(self) -> None:
        """Reset the connection: the client sees `connection reset by peer`, the service a close."""
        _send_reset_on_close(self.client)
        self.client.transport.abort()
        self.server.transport.abort()


@dataclass(slots=True)
class _Cut:
    """Resets the connection that carries this many bytes, or these bytes, right behind them, once.

    With `only_after`, only a connection that has carried that text before.
    """

    direction: Direction
    left: int
    mark: bytes
    only_after: bytes = b""
    carriers: set[_Link] = field(default_factory=set)

    def take(self, link: _Link, direction: Direction, data: bytes) -> int | None:
        """Return how many bytes of `data` still pass before the cut; None for all of them, without a cut."""
        if direction is not self.direction:
            return None
        if self.only_after and link not in self.carriers:
            at = data.find(self.only_after)
            if at < 0:
                return None
            self.carriers.add(link)
            rest = self.take(link, direction, data[at:])
            return None if rest is None else at + rest
        if self.mark:
            at = data.find(self.mark)
            return None if at < 0 else at + len(self.mark)
        if len(data) < self.left:
            self.left -= len(data)
            return None
        return self.left


class Proxy:
    """A proxy that starts at once and passes everything by default. Use as a context manager, or call `close`."""

    def __init__(self, upstream: Path) -> None:
        self._upstream = upstream
        self._links: set[_Link] = set()
        self._delay_seconds = 0.0
        self._is_refusing = False
        self._stranded: set[_Link] = set()
        self._cut: _Cut | None = None
        self.num_cuts = 0
        self._loop = asyncio.new_event_loop()
        self._flows = asyncio.Event()
        self._flows.set()
        self._tasks: set[asyncio.Task[None]] = set()
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, args=(listener,), name="proxy", daemon=True)
        self._thread.start()

    def heal(self) -> None:
        """Pass everything, and send what was held back."""
        self._do(self._heal)

    def black_hole(self) -> None:
        """Drop everything in both directions; connections stay open, and new ones get no answer."""
        self._do(self._flows.clear)

    def strand(self) -> None:
        """Drop everything on the present connections, without a close; new ones pass."""
        self._do(lambda: self._stranded.update(self._links))

    def delay(self, seconds: float) -> None:
        """Delay every piece by this time."""
        self._do(lambda: setattr(self, "_delay_seconds", seconds))

    def reset(self) -> int:
        """Reset the present connections, and return how many there were; new ones pass."""
        number: int = self._do(self._reset_all)
        return number

    def refuse(self) -> None:
        """Reset the present connections and each new one."""
        self._do(lambda: setattr(self, "_is_refusing", True))
        self.reset()

    def cut(self, direction: Direction, *, after_bytes: int = 0, behind: bytes = b"", only_after: bytes = b"") -> None:
        """Once: reset the connection behind the N-th byte from now on, or right behind these bytes in one piece.

        With `only_after`, only a connection that has carried that text from now on.
        """
        self._do(lambda: setattr(self, "_cut", _Cut(direction, after_bytes, behind, only_after)))

    @property
    def num_connections(self) -> int:
        """Number of connections."""
        return len(self._links)

    def close(self) -> None:
        """Reset everything and stop."""
        self._do(self._reset_all)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _do(self, action: Callable[[], Any]) -> Any:
        async def act() -> Any:
            return action()

        return asyncio.run_coroutine_threadsafe(act(), self._loop).result(5)

    def _heal(self) -> None:
        self._delay_seconds, self._is_refusing, self._cut = 0.0, False, None
        for link in list(self._stranded):
            link.reset()
        self._flows.set()

    def _reset_all(self) -> int:
        links = list(self._links)
        for link in links:
            link.reset()
        return len(links)

    def _run(self, listener: socket.socket) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, sock=listener))
        self._loop.run_forever()
        server.close()
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._is_refusing:
                _send_reset_on_close(writer)
                writer.transport.abort()
                return
            await self._flows.wait()
            await self._serve_connection(reader, writer)
        except OSError:
            writer.transport.abort()  # the service is down
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._tasks.discard(task)

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(self._upstream)
        link = _Link(writer, server_writer)
        self._links.add(link)
        try:
            await asyncio.gather(
                self._pump(link, reader, server_writer, Direction.TO_SERVER),
                self._pump(link, server_reader, writer, Direction.TO_CLIENT),
            )
        finally:
            self._links.discard(link)
            self._stranded.discard(link)
            writer.close()
            server_writer.close()

    async def _pump(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction
    ) -> None:
        try:
            while data := await reader.read(_CHUNK_BYTES):
                if self._delay_seconds:
                    await asyncio.sleep(self._delay_seconds)
                await self._flows.wait()
                if link not in self._stranded:
                    await self._forward(link, data, writer, direction)
        except OSError:
            pass
        writer.close()

    async def _forward(self, link: _Link, data: bytes, writer: asyncio.StreamWriter, direction: Direction) -> None:
        passes = self._cut.take(link, direction, data) if self._cut is not None else None
        writer.write(data[:passes])
        await writer.drain()
        if passes is not None:
            self._cut = None
            self.num_cuts += 1
            link.reset()


def _send_reset_on_close(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    connection = writer.get_extra_info("socket")
    with suppress(OSError):  # the socket is closed already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
