"""Engine client: send requests to an engine process, and deliver the outputs of each request to its sink.

Any thread may call the methods. The client's own thread calls the sinks, which must not block. Every request ends exactly
once: Finished, Embedded, Failed, or EngineLost if its engine ends first.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import zmq
import zmq.utils.monitor

from engine.process.inflight_log import read_inflight_log
from engine.process.protocol import (
    Cancel,
    EngineInfo,
    FromEngine,
    Hello,
    HelloReply,
    Outputs,
    StreamRequest,
    Submit,
    Tick,
    ToEngine,
)
from engine.types import (
    AnyRequest,
    Delta,
    Embedded,
    EmbedRequest,
    Failed,
    Finished,
    ForwardRequest,
    Request,
    RequestKey,
)

_HELLO_SECONDS: Final = 0.1
_HELLO_AGAIN_SECONDS: Final = 10.0  # to a connected engine, which forgets a client that it cannot reach
HEALTH_SECONDS: Final = 2.0
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLost:
    """The engine ended while it had this request.

    `was_running`: the engine was working on it, or its in-flight log is unreadable; False if the request was waiting or
    between two steps. `was_alone`: it is certain that the engine was working on this request and no other.
    """

    request_id: str
    was_running: bool = True
    was_alone: bool = False


class Sink(Protocol):
    """Receives the outputs of a request."""

    def on_delta(self, delta: Delta) -> None:
        """Receive new text; called only for a streamed request."""

    def on_end(self, outcome: Finished | Failed | EngineLost) -> None:
        """Receive the end of the request; called once."""


class EmbedSink(Protocol):
    """Receives the end of a request for embeddings."""

    def on_end(self, outcome: Embedded | Failed | EngineLost) -> None:
        """Receive the end of the request; called once."""


class EngineClient:
    """A connection to one engine, which survives restarts of the engine.

    A request submitted while no engine is connected waits for the next one, without a time limit.
    It sends a hello to a connected engine every `hello_seconds`.
    `info`: description of the last engine connected; None before the first.
    `tick`: the last one of the engine that is connected; None without. `ticked_at`: its time by the monotonic clock.
    `answered_at`: time of the last HelloReply by the monotonic clock; it proves that the engine receives messages. Its own
    watchdog looks after its loop.
    """

    def __init__(self, endpoint: str, name: str, *, hello_seconds: float = _HELLO_AGAIN_SECONDS) -> None:
        self._name = name
        self._hello_seconds = hello_seconds
        self._folder = Path(endpoint)
        self._context = zmq.Context()
        self._lock = threading.Lock()
        self._sinks: dict[str, Any] = {}  # Any: a Sink, or an EmbedSink for an EmbedRequest
        self._unsent: list[AnyRequest] = []  # until an engine is connected, or a group ends
        self._num_groups = 0
        self._numbers = itertools.count(1)
        self._boot_id: str | None = None
        self.info: EngineInfo | None = None
        self.tick: Tick | None = None
        self.ticked_at = 0.0
        self.answered_at = 0.0
        self._next_hello_at = 0.0
        self._is_ready = threading.Event()
        self._is_closing = False
        self._submit_socket = self._socket(zmq.PUSH, self._folder / "submit.sock")  # used under the lock
        self._output_socket = self._socket(zmq.DEALER, self._folder / "output.sock")  # used by the client's thread only
        self._monitor = self._output_socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._closing = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=f"engine-client-{name}", daemon=True)
        self._thread.start()

    def wait_ready(self, timeout_seconds: float) -> EngineInfo:
        """Wait until an engine is connected; raises TimeoutError."""
        if not self._is_ready.wait(timeout_seconds) or self.info is None:
            raise TimeoutError(f"no engine replied within {timeout_seconds:.0f} s")
        return self.info

    def seconds_since_tick(self, now: float) -> float:
        """Seconds from the last Tick of the engine to `now`, by the monotonic clock."""
        return now - self.ticked_at

    def submit(self, request: Request | ForwardRequest, sink: Sink) -> str:
        """Start a request and return its id here: its own, or another one while an earlier request with that id runs."""
        return self._start(request, sink)

    def embed(self, request: EmbedRequest, sink: EmbedSink) -> str:
        """Start a request for embeddings and return its id here, as `submit` does."""
        return self._start(request, sink)

    @contextmanager
    def group(self) -> Iterator[None]:
        """Send the requests that are started meanwhile in one message: one for each costs more than most of its requests do."""
        with self._lock:
            self._num_groups += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_groups -= 1
                self._send_unsent()

    def cancel(self, request_id: str) -> None:
        """Stop a request, which still ends through its sink. Does nothing for an unknown id."""
        with self._lock:
            if request_id not in self._sinks:
                return
            if self._boot_id is not None:
                self._send_unsent()
                self._send(Cancel(client=self._name, boot_id=self._boot_id, request_ids=[request_id]))
                return
            self._unsent = [request for request in self._unsent if request.id != request_id]
            sink = self._sinks.pop(request_id)
        sink.on_end(EngineLost(request_id=request_id, was_running=False))

    def stream(self, request_id: str) -> None:
        """Stream a running request from now on; its first delta has all text so far. Does nothing for an unknown id."""
        with self._lock:
            if request_id not in self._sinks:
                return
            if self._boot_id is not None:
                self._send_unsent()
                self._send(StreamRequest(client=self._name, boot_id=self._boot_id, request_ids=[request_id]))
                return
            self._unsent = [
                msgspec.structs.replace(each, stream=True)
                if not isinstance(each, EmbedRequest) and each.id == request_id
                else each
                for each in self._unsent
            ]

    def close(self) -> None:
        """Close the connection; running requests end as lost."""
        self._is_closing = True
        os.eventfd_write(self._closing, 1)
        self._thread.join()
        os.close(self._closing)
        self._end_as_lost(frozenset(), keep_unsent=False)
        self._output_socket.disable_monitor()
        for socket in (self._monitor, self._output_socket, self._submit_socket):
            socket.close(linger=0)
        self._context.term()

    def _socket(self, kind: int, path: Path) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.IDENTITY, self._name.encode())
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)  # milliseconds: a model is served that much later
        socket.connect(f"ipc://{path}")
        return socket

    def _start(self, request: AnyRequest, sink: Sink | EmbedSink) -> str:
        with self._lock:
            if request.id in self._sinks:  # of a holder that has lost its lease, until the engine has cancelled it
                request = msgspec.structs.replace(request, id=f"{request.id}~{next(self._numbers)}")
            self._sinks[request.id] = sink
            self._unsent.append(request)
            if not self._num_groups:
                self._send_unsent()
        return request.id

    def _send_unsent(self) -> None:
        """Send the requests that wait, if an engine is connected. Called under the lock."""
        if self._unsent and self._boot_id is not None:
            self._send(Submit(client=self._name, boot_id=self._boot_id, requests=self._unsent))
            self._unsent = []

    def _send(self, message: ToEngine) -> None:
        """Send a message. Called under the lock."""
        self._submit_socket.send(_encode(message), zmq.NOBLOCK)

    def _run(self) -> None:
        """Run the client's thread: send hellos, receive messages, and notice when the engine disconnects."""
        poller = zmq.Poller()
        poller.register(self._output_socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        poller.register(self._closing, zmq.POLLIN)
        decoder = msgspec.msgpack.Decoder(FromEngine)
        while not self._is_closing:
            if time.monotonic() >= self._next_hello_at:
                pause = _HELLO_SECONDS if self._boot_id is None else self._hello_seconds
                self._next_hello_at = time.monotonic() + pause
                with self._lock:
                    self._send(Hello(client=self._name))
            ready = dict(poller.poll(1 + max(0, int(1000 * (self._next_hello_at - time.monotonic())))))
            if self._output_socket in ready:
                self._handle(decoder.decode(self._output_socket.recv()))
            if self._monitor in ready:
                zmq.utils.monitor.recv_monitor_message(self._monitor)
                self._on_disconnect()

    def _handle(self, message: FromEngine) -> None:
        match message:
            case HelloReply(boot_id=boot_id, info=info):
                self._on_hello_reply(boot_id, info)
            case Tick() if message.boot_id == self._boot_id:
                self.ticked_at, self.tick = time.monotonic(), message
            case Outputs() if message.boot_id == self._boot_id:
                self._deliver(message.items)

    def _on_hello_reply(self, boot_id: str, info: EngineInfo) -> None:
        if self._boot_id not in (None, boot_id):
            self._on_disconnect()
        with self._lock:
            self._boot_id, self.info = boot_id, info
            self.ticked_at = self.answered_at = time.monotonic()
            self._send_unsent()
        self._is_ready.set()

    def _deliver(self, items: list[Delta | Finished | Embedded | Failed]) -> None:
        """Pass the outputs of a step to their sinks, in order."""
        with self._lock:
            sinks = [
                (self._sinks.get if isinstance(item, Delta) else self._sinks.pop)(item.request_id, None)
                for item in items
            ]
        for item, sink in zip(items, sinks, strict=True):
            if sink is None:
                continue
            if isinstance(item, Delta):
                sink.on_delta(item)
            else:
                sink.on_end(item)

    def _on_disconnect(self) -> None:
        """End every request that the engine had; its in-flight log shows which of them were running."""
        inflight = None if self._boot_id is None else read_inflight_log(self._folder, self._boot_id)
        self._next_hello_at = 0.0
        self._end_as_lost(inflight, keep_unsent=True)

    def _end_as_lost(self, inflight: frozenset[RequestKey] | None, *, keep_unsent: bool) -> None:
        """End the requests of an engine that is gone. With `keep_unsent`, those never sent wait for the next engine.

        `inflight`: keys of the requests that were running; None if unknown.
        """
        with self._lock:
            self._boot_id = self.tick = None
            self._is_ready.clear()
            kept = {request.id for request in self._unsent} if keep_unsent else set()
            lost = {request_id: sink for request_id, sink in self._sinks.items() if request_id not in kept}
            for request_id in lost:
                del self._sinks[request_id]
        for request_id, sink in lost.items():
            key = (self._name, request_id)
            was_running = inflight is None or key in inflight
            sink.on_end(
                EngineLost(request_id=request_id, was_running=was_running, was_alone=inflight == frozenset({key}))
            )
