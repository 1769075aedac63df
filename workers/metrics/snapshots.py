"""Snapshots: a consumer hands its numbers to its launcher, which asks for them when its own metrics are read.

Each consumer listens on a Unix socket in the socket directory; whoever connects gets one msgpack value, and then the end.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import structlog

from workers.runtime.recorder import Snapshot

log = structlog.get_logger()

_READ_SECONDS: Final = 2.0
_decoder: Final = msgspec.msgpack.Decoder(Snapshot)
_encode: Final = msgspec.msgpack.Encoder().encode


def snapshot_socket(link: Path, kind: str) -> Path:
    """The socket of the consumer of this kind at a launcher's link."""
    return link.with_name(f"{link.stem}-{kind}.metrics")


class SnapshotSocket(threading.Thread):
    """The consumer's end, which sleeps until the launcher asks."""

    def __init__(self, path: Path, take: Callable[[], Snapshot]) -> None:
        super().__init__(name="metrics-snapshots", daemon=True)
        self._take = take
        path.unlink(missing_ok=True)  # of the process before
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()

    def run(self) -> None:
        while True:
            peer, _ = self._socket.accept()
            with peer, suppress(OSError):  # the launcher did not wait
                peer.settimeout(_READ_SECONDS)
                peer.sendall(_encode(self._take()))


def read_snapshot(path: Path) -> Snapshot:
    """The numbers of a consumer; none of one that does not answer, which is logged."""
    try:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(_READ_SECONDS)
            peer.connect(str(path))
            data = b"".join(iter(lambda: peer.recv(1 << 16), b""))
        return _decoder.decode(data)
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("metrics_not_read", socket=path.name, reason=type(error).__name__)
        return {}
