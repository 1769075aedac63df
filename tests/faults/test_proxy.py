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
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as connection:
        assert echo(connection, b"hello") == b"hello"
        yield connection


def echo(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    return connection.recv(1024)


def test_bytes_pass_both_ways(proxy: Proxy, client: socket.socket) -> None:
    assert echo(client, b"\0" * 1000) == b"\0" * 1000
    assert proxy.num_connections == 1


def test_a_reset_ends_open_connections_and_no_later_one(proxy: Proxy, client: socket.socket) -> None:
    assert proxy.reset() == 1
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as other:
        assert echo(other, b"again") == b"again"


def test_refused_connections_are_reset_until_the_proxy_heals(proxy: Proxy) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionError), socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as other:
        while True:
            other.sendall(b"x")
    proxy.heal()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as other:
        assert echo(other, b"again") == b"again"


def test_a_black_hole_holds_all_bytes_until_the_proxy_heals(proxy: Proxy, client: socket.socket) -> None:
    proxy.black_hole()
    client.sendall(b"late")
    client.settimeout(0.1)
    with pytest.raises(TimeoutError):
        client.recv(1)
    proxy.heal()
    client.settimeout(5)
    assert client.recv(1024) == b"late"


def test_delayed_bytes_still_arrive(proxy: Proxy, client: socket.socket) -> None:
    proxy.delay(0.01)
    assert echo(client, b"later") == b"later"


@pytest.mark.parametrize("direction", list(Direction))
def test_a_connection_is_cut_after_a_number_of_bytes_and_only_once(
    proxy: Proxy, client: socket.socket, direction: Direction
) -> None:
    proxy.cut(direction, after_bytes=3)
    client.sendall(b"abcdef")
    with pytest.raises(ConnectionResetError):
        while client.recv(1024):
            pass
    assert proxy.num_cuts == 1
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as other:
        assert echo(other, b"abcdef") == b"abcdef"


def test_a_connection_is_cut_right_after_the_given_bytes(proxy: Proxy, client: socket.socket) -> None:
    proxy.cut(Direction.TO_SERVER, behind=b"COMMIT")
    assert echo(client, b"BEGIN") == b"BEGIN"
    client.sendall(b"COMMIT;")
    with pytest.raises(ConnectionResetError):
        while client.recv(1024):
            pass


def test_stranded_connections_carry_nothing_while_new_ones_work(proxy: Proxy, client: socket.socket) -> None:
    proxy.strand()
    client.sendall(b"hello?")
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as other:
        assert echo(other, b"hello") == b"hello"
    client.settimeout(0.1)
    with pytest.raises(TimeoutError):
        client.recv(1)
    proxy.heal()
    client.settimeout(5)
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_only_a_connection_that_sent_the_given_bytes_is_cut(proxy: Proxy, client: socket.socket) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as other:
        proxy.cut(Direction.TO_SERVER, behind=b"end", only_after=b"me")
        assert echo(client, b"end") == b"end"
        assert echo(other, b"end of me") == b"end of me"
        assert echo(client, b"end") == b"end"
        other.sendall(b"the end, and more")
        with pytest.raises(ConnectionResetError):
            while other.recv(1024):
                pass
        assert echo(client, b"end") == b"end"
    assert proxy.num_cuts == 1
