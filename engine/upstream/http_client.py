"""HTTP client of one upstream: HTTP/1.1 over kept connections, no redirects, no proxies of the environment, TLS verified.

A name is resolved for each new connection, and every address is checked before the connection is made.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import httpcore2

from engine.errors import ModelFailed
from engine.upstream.access import Access, Address, check_host
from engine.upstream.trouble import FAILED, TIMED_OUT, UNAVAILABLE, Broken, Problem, Refused, Unreachable

_CONNECT_SECONDS: Final = 10.0
_KEPT_SECONDS: Final = 4.0  # servers close connections that are idle for 5 s or longer
_MAX_ANSWER_BYTES: Final = 256 << 20
_BUFFER_BYTES: Final = 1 << 20
_HEADERS: Final = ((b"content-type", b"application/json"), (b"accept-encoding", b"identity"))
# finds a server that has vanished without closing its connections, while it may think for minutes
_KEEP_ALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)


_NONE: Final[Mapping[str, str]] = {}


@dataclass(frozen=True, slots=True)
class Answer:
    """The status and headers of an answer, with names in lower case, and the pieces of its body."""

    status: int
    headers: Mapping[str, str]
    pieces: AsyncIterator[bytes]

    async def read(self) -> bytes:
        """The whole body; raises Broken."""
        pieces: list[bytes] = []
        size = 0
        async for piece in self.pieces:
            pieces.append(piece)
            if (size := size + len(piece)) > _MAX_ANSWER_BYTES:
                raise Broken(Problem(message=f"The answer is longer than {_MAX_ANSWER_BYTES >> 20} MiB."))
        return b"".join(pieces)


class Transport(Protocol):
    """Sends requests to one server."""

    def send(
        self, method: str, path: str, body: bytes | None, timeout_seconds: float, headers: Mapping[str, str] = _NONE
    ) -> AbstractAsyncContextManager[Answer]:
        """Send a request; the body of its answer is read inside the context. `path` is below that of the address,
        and `headers` are sent beside those of the server.

        Raises Unreachable, and Broken for a time-out, which is for the whole context, a reset or half an answer.
        """


class HttpClient:
    """The connections to one server."""

    def __init__(self, address: Address, access: Access) -> None:
        self._address = address
        self._headers = [(name.encode(), value.encode("latin-1")) for name, value in access.headers.items()]
        self._headers += [(b"host", address.authority.encode()), *_HEADERS]
        self._tls = ssl.create_default_context() if address.scheme == "https" else None
        self._network = _CheckedNetwork()
        # the last one used first; a pool of the library looks at all of them for each request
        self._idle: deque[httpcore2.AsyncHTTPConnection] = deque()
        self._keeps_idle = True

    @asynccontextmanager
    async def send(
        self, method: str, path: str, body: bytes | None, timeout_seconds: float, headers: Mapping[str, str] = _NONE
    ) -> AsyncIterator[Answer]:
        """As in Transport."""
        added = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        if body is not None:
            added.append((b"content-length", str(len(body)).encode()))
        request = httpcore2.Request(
            method,
            self._url(path),
            headers=[*self._headers, *added],
            content=body,
            extensions={"timeout": {"connect": min(_CONNECT_SECONDS, timeout_seconds)}},
        )
        try:
            async with asyncio.timeout(timeout_seconds), self._connection() as connection:
                response = await connection.handle_async_request(request)
                try:
                    received = {
                        name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers
                    }
                    if "max=" in received.get("keep-alive", ""):
                        # As llama.cpp's: it has a few threads, and each waits at one connection, idle or not, while
                        # requests on others wait for a thread.
                        self._keeps_idle = False
                    async with aclosing(response.aiter_stream()) as pieces:
                        yield Answer(response.status, received, pieces)
                finally:
                    await response.aclose()
        except TimeoutError:
            text = f"The server of this model did not answer within {timeout_seconds:g} s."
            raise Broken(Problem(message=text, code=TIMED_OUT, status=504)) from None
        except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
            raise Unreachable(_unavailable(f"The server of this model cannot be reached: {_reason(error)}.")) from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            text = f"The connection to the server of this model broke: {_reason(error)}."
            raise Broken(Problem(message=text, code=FAILED)) from None

    def _url(self, path: str) -> httpcore2.URL:
        return httpcore2.URL(
            scheme=self._address.scheme.encode(),
            host=self._address.host.encode(),
            port=self._address.port,
            target=(self._address.path + path).encode(),
        )

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[httpcore2.AsyncHTTPConnection]:
        """An idle connection, or a new one; it is kept if its answer was read to the end."""
        while self._idle and self._idle[0].has_expired():
            await self._idle.popleft().aclose()
        connection = None
        while self._idle and connection is None:
            connection = self._idle.pop()
            if connection.has_expired():
                await connection.aclose()
                connection = None
        if connection is None:
            connection = httpcore2.AsyncHTTPConnection(
                self._url("").origin,
                ssl_context=self._tls,
                keepalive_expiry=_KEPT_SECONDS,
                network_backend=self._network,
                socket_options=_KEEP_ALIVE,
            )
        try:
            yield connection
        finally:
            if self._keeps_idle and connection.is_idle() and not connection.is_closed():
                self._idle.append(connection)
            else:
                await connection.aclose()


class _CheckedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to checked addresses only."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Resolve the name, then connect to the first of its addresses that answers."""
        del local_address
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await _connect(await _addresses(host, port), port)
        except TimeoutError:
            raise httpcore2.ConnectTimeout("it did not answer in time") from None
        except OSError as error:
            raise httpcore2.ConnectError from error
        for option in socket_options or ():
            writer.get_extra_info("socket").setsockopt(*option)
        return _Stream(reader, writer)


class _Stream(httpcore2.AsyncNetworkStream):
    """A connection by asyncio itself, which costs less than half of the library's own; a request is one write."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._unsent: list[bytes] = []

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Send what was written, and wait for bytes of the answer; the time of a request is limited as a whole."""
        del timeout
        if self._unsent:
            self._writer.write(b"".join(self._unsent))
            self._unsent = []
        try:
            return await self._reader.read(max_bytes)
        except OSError as error:
            raise httpcore2.ReadError from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Keep bytes until the next read."""
        del timeout
        self._unsent.append(buffer)

    async def aclose(self) -> None:
        """Close the connection at once."""
        self._writer.transport.abort()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """Verify the server's certificate, and encrypt from here on."""
        try:
            async with asyncio.timeout(timeout):
                await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
        except TimeoutError:
            raise httpcore2.ConnectTimeout("TLS took too long") from None
        except OSError as error:
            raise httpcore2.ConnectError from error
        return self

    def get_extra_info(self, info: str) -> object:
        """`is_readable`, which for an idle connection means that the server has closed it."""
        if info == "is_readable":
            return self._reader.at_eof() or self._writer.is_closing()
        return self._writer.get_extra_info(info)


async def _addresses(host: str, port: int) -> list[str]:
    """All addresses of a name, if none of them is forbidden; raises ConnectError and Refused."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        raise httpcore2.ConnectError(f"the name {host} is not known") from None
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    for address in addresses:
        try:
            check_host(address)
        except ModelFailed as error:
            raise Refused(_unavailable(str(error))) from None
    return addresses


async def _connect(addresses: list[str], port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    for number, address in enumerate(addresses, 1):
        try:
            return await asyncio.open_connection(address, port, limit=_BUFFER_BYTES)
        except OSError:
            if number == len(addresses):
                raise
    raise httpcore2.ConnectError("its name has no address")


def _unavailable(message: str) -> Problem:
    return Problem(message=message, code=UNAVAILABLE, status=503)


def _reason(error: BaseException) -> str:
    """The words of the first error that has any."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({seen.verify_message})"
        if isinstance(seen, ConnectionRefusedError):
            return "connection refused"
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror.lower()
        seen = seen.__cause__ or seen.__context__
    text = str(error) or type(error).__name__
    return text[:1].lower() + text[1:].rstrip(".")
