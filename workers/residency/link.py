"""Link between a launcher and its consumers: the models to serve in one direction, those that are held in the other.

Each message is the whole state of its sender, so a lost or repeated one does no harm, and either side may restart: both send on
each change, the launcher also to a consumer that joins, and every few seconds. A consumer looks for changes twice a second while
it has work. `revision` is the number of the launcher's last change, which a consumer returns: it has acted on that set, or on a
later one.

It is a Unix socket of ZeroMQ in the socket directory: a ROUTER in the launcher, whose main loop polls it; a DEALER in a thread of
each consumer.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

import msgspec
import structlog
import zmq

log = structlog.get_logger()

_SEND_SECONDS: Final = 5.0  # between two messages without a change
_LOOK_SECONDS: Final = 0.5
_BUSY_SECONDS: Final = 0.02  # between two looks of a consumer at models that come or go
_encode: Final = msgspec.msgpack.Encoder().encode


class Mode(StrEnum):
    """SERVING takes work. DRAINING begins nothing new. ABORTING also gives back what may run again elsewhere."""

    SERVING = "serving"
    DRAINING = "draining"
    ABORTING = "aborting"


class LinkedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model in memory. `load_id` is that of its load: another load of the same model is another engine.

    `config` is the JSON of its ModelConfig, `endpoint` the folder of its engine's sockets.
    """

    load_id: str
    name: str
    config: str
    endpoint: str
    model_hash: str | None
    mode: Mode


class ModelSet(msgspec.Struct, frozen=True, kw_only=True):
    """All models of a launcher that its consumers may hold."""

    revision: int
    models: list[LinkedModel]


class HeldModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that a consumer is connected to: the jobs or lines that it runs there, and the jobs or shards it ever began."""

    load_id: str
    num_running: int
    num_begun: int


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """All models that a consumer of this kind and process holds."""

    kind: str
    pid: int
    revision: int
    models: list[HeldModel]


class LinkServer:
    """The launcher's end. Only its main loop uses it, apart from `wake`."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        path.unlink(missing_ok=True)
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(f"ipc://{path}")
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wakeup, zmq.POLLIN)
        self._decoder = msgspec.msgpack.Decoder(Held)
        self._peers: set[bytes] = set()
        self._held: dict[str, Held] = {}  # the last report of each kind
        self._reported_at: dict[str, float] = {}
        self._models: list[LinkedModel] = []
        self.revision = 0
        self._sent_at = float("-inf")

    def wake(self) -> None:
        """End the wait in progress. Callable from any thread, and from a signal handler."""
        with suppress(OSError):
            os.eventfd_write(self._wakeup, 1)

    def wait(self, seconds: float) -> None:
        """Wait for a message or for `wake`, and take all messages that are there."""
        ready = dict(self._poller.poll(int(seconds * 1000)))
        if self._wakeup in ready:
            with suppress(BlockingIOError):
                os.eventfd_read(self._wakeup)
        while True:
            try:
                peer, data = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                held = self._decoder.decode(data)
            except msgspec.MsgspecError as error:
                log.warning("link_message_invalid", reason=str(error))
                continue
            self._held[held.kind], self._reported_at[held.kind] = held, self._clock()
            if peer not in self._peers:
                self._peers.add(peer)
                self._send_to(peer)

    def publish(self, models: list[LinkedModel], now: float) -> None:
        """Send the models, if they have changed or some seconds have passed."""
        if models != self._models:
            self._models = models
            self.revision += 1
        elif now - self._sent_at < _SEND_SECONDS:
            return
        self._sent_at = now
        for peer in list(self._peers):
            self._send_to(peer)

    def held(self, kind: str, pid: int) -> Held | None:
        """The last report of the consumer with this kind and process id; None before its first."""
        held = self._held.get(kind)
        return held if held is not None and held.pid == pid else None

    def silent_seconds(self, kind: str, pid: int, now: float) -> float:
        """Seconds since the last report of this consumer; 0 before its first."""
        return 0.0 if self.held(kind, pid) is None else now - self._reported_at[kind]

    def close(self) -> None:
        """Close the socket."""
        self._socket.close(linger=0)
        os.close(self._wakeup)

    def _send_to(self, peer: bytes) -> None:
        try:
            self._socket.send_multipart(
                (peer, _encode(ModelSet(revision=self.revision, models=self._models))), zmq.NOBLOCK
            )
        except zmq.ZMQError:  # it has ended
            self._peers.discard(peer)


class Follower(Protocol):
    """Follows the launcher's models, in the thread of a `LinkClient`."""

    def apply(self, models: list[LinkedModel]) -> None:
        """Begin to take over this set of models."""

    def advance(self) -> bool:
        """Go on with models that come or go; return whether there are any."""

    def held(self) -> list[HeldModel]:
        """The models that are held now."""


class LinkClient(threading.Thread):
    """A consumer's end: a thread that follows the launcher's models and reports those that are held."""

    def __init__(self, path: Path, kind: str, follower: Follower, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(name="link", daemon=True)
        self._path = path
        self._kind = kind
        self._follower = follower
        self._clock = clock
        self._revision = -1
        self._is_resting = self._is_closing = False
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def begin_work(self) -> None:
        """Look for changes from now on: work has begun. Callable from any thread, and cheap."""
        if self._is_resting:
            os.eventfd_write(self._wakeup, 1)

    def close(self) -> None:
        """Stop soon."""
        self._is_closing = True
        os.eventfd_write(self._wakeup, 1)

    def run(self) -> None:
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, f"{self._kind}-{os.getpid()}".encode())
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.connect(f"ipc://{self._path}")
        with socket:
            self._follow(socket)
        os.close(self._wakeup)

    def _follow(self, socket: zmq.Socket[bytes]) -> None:
        decoder = msgspec.msgpack.Decoder(ModelSet)
        last, reported_at, pause = None, float("-inf"), _LOOK_SECONDS
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._wakeup, zmq.POLLIN)
        while not self._is_closing:
            ready = dict(poller.poll(int(pause * 1000)))
            if self._wakeup in ready:
                os.eventfd_read(self._wakeup)
            if socket in ready:
                models = decoder.decode(socket.recv())
                self._try(lambda models=models: self._follower.apply(models.models))  # type: ignore[misc]
                self._revision = models.revision
            is_busy = self._try(self._follower.advance) is not False
            self._is_resting = True  # work that begins after the look below ends the rest
            report = Held(kind=self._kind, pid=os.getpid(), revision=self._revision, models=self._follower.held())
            now = self._clock()
            self._is_resting = not is_busy and report == last and not any(each.num_running for each in report.models)
            pause = _BUSY_SECONDS if is_busy else _SEND_SECONDS if self._is_resting else _LOOK_SECONDS
            if report != last or now - reported_at >= _SEND_SECONDS:
                last, reported_at = report, now
                with suppress(zmq.Again):  # no launcher: it ends this process with itself
                    socket.send(_encode(report), zmq.NOBLOCK)

    def _try(self, action: Callable[[], bool | None]) -> bool | None:
        try:
            return action()
        except Exception as error:  # the edge of this thread: the next message must be followed
            log.error("link_failed", exc_info=error)
            return None


def is_held(reports: Iterable[Held], load_id: str, revision: int) -> bool:
    """Does a consumer hold this load, or has it not yet acted on this revision?"""
    return any(
        report.revision < revision or any(each.load_id == load_id for each in report.models) for report in reports
    )
