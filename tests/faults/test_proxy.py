"""The proxy does to a connection what each method promises."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.proxy import Direction, Proxy


class _Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(1024):
            self.request.sendall(data)


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    """A proxy before a service that echoes."""
    path = tmp_path / "echo.sock"
    with socketserver.ThreadingUnixStreamServer(str(path), _Echo) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign] # broken connections are the point
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        with Proxy(path) as proxy:
            yield proxy
        server.shutdown()
        thread.join()


@pytest.fixture
def line(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as connection:
        assert ask(connection, b"hello") == b"hello"
        yield connection


def ask(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    return connection.recv(1024)


def test_bytes_pass_both_ways(proxy: Proxy, line: socket.socket) -> None:
    assert ask(line, b"\0" * 1000) == b"\0" * 1000
    assert proxy.num_connections == 1


def test_a_reset_ends_the_conversations_there_are_and_no_later_one(proxy: Proxy, line: socket.socket) -> None:
    assert proxy.reset() == 1
    with pytest.raises(ConnectionResetError):
        line.recv(1)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as other:
        assert ask(other, b"again") == b"again"


def test_who_is_refused_is_reset_until_it_heals(proxy: Proxy) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionError), socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as other:
        while True:
            other.sendall(b"x")
    proxy.heal()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as other:
        assert ask(other, b"again") == b"again"


def test_a_black_hole_holds_everything_until_it_heals(proxy: Proxy, line: socket.socket) -> None:
    proxy.black_hole()
    line.sendall(b"late")
    line.settimeout(0.1)
    with pytest.raises(TimeoutError):
        line.recv(1)
    proxy.heal()
    line.settimeout(5)
    assert line.recv(1024) == b"late"


def test_what_is_delayed_still_arrives(proxy: Proxy, line: socket.socket) -> None:
    proxy.delay(0.01)
    assert ask(line, b"later") == b"later"


@pytest.mark.parametrize("direction", list(Direction))
def test_a_conversation_is_cut_behind_a_byte_and_only_once(
    proxy: Proxy, line: socket.socket, direction: Direction
) -> None:
    proxy.cut(direction, after_bytes=3)
    line.sendall(b"abcdef")
    with pytest.raises(ConnectionResetError):
        while line.recv(1024):
            pass
    assert proxy.num_cuts == 1
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as other:
        assert ask(other, b"abcdef") == b"abcdef"


def test_a_conversation_is_cut_right_behind_a_word(proxy: Proxy, line: socket.socket) -> None:
    proxy.cut(Direction.TO_SERVER, behind=b"COMMIT")
    assert ask(line, b"BEGIN") == b"BEGIN"
    line.sendall(b"COMMIT;")
    with pytest.raises(ConnectionResetError):
        while line.recv(1024):
            pass


def test_who_is_stranded_hears_nothing_until_it_heals_while_others_do(proxy: Proxy, line: socket.socket) -> None:
    proxy.strand()
    line.sendall(b"anybody?")
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as other:
        assert ask(other, b"hello") == b"hello"
    line.settimeout(0.1)
    with pytest.raises(TimeoutError):
        line.recv(1)
    proxy.heal()
    line.settimeout(5)
    with pytest.raises(ConnectionResetError):
        line.recv(1)


def test_only_who_spoke_of_something_is_cut(proxy: Proxy, line: socket.socket) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as other:
        proxy.cut(Direction.TO_SERVER, behind=b"end", spoke_of=b"me")
        assert ask(line, b"end") == b"end"
        assert ask(other, b"end of me") == b"end of me"
        assert ask(line, b"end") == b"end"
        other.sendall(b"the end, and more")
        with pytest.raises(ConnectionResetError):
            while other.recv(1024):
                pass
        assert ask(line, b"end") == b"end"
    assert proxy.num_cuts == 1
