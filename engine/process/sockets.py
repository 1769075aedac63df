"""Sockets of an engine process: `submit.sock` (PULL) receives messages, `output.sock` (ROUTER) sends them to each client."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import zmq

from engine.process.protocol import FromEngine

_encode = msgspec.msgpack.Encoder().encode


class OutputSocket:
    """Sends messages to clients. Thread-safe: heartbeats and replies to a `Hello` do not wait for a step to end."""

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        self._socket = _bind(zmq.ROUTER, folder / "output.sock")
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)

    def send(self, client: str, message: FromEngine) -> bool:
        """Send a message; return False if the client is not connected."""
        data = _encode(message)
        with self._lock:
            try:
                self._socket.send_multipart((client.encode(), data), zmq.NOBLOCK)
            except zmq.ZMQError:
                return False
        return True


def bind_submit_socket(folder: Path) -> zmq.Socket[bytes]:
    """The socket that receives messages; one thread uses it."""
    return _bind(zmq.PULL, folder / "submit.sock")


def _bind(kind: int, path: Path) -> zmq.Socket[bytes]:
    path.unlink(missing_ok=True)
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, 0)
    socket.bind(f"ipc://{path}")
    return socket
