"""A client of an engine process: requests in, their outputs to the sink each came with.

Knows the socket protocol. `submit` and `cancel` may be called from any thread; sinks are called by the client's own thread
and must not block. Every request ends exactly once: Finished, Failed, or EngineLost when its engine went away.
"""

from __future__ import annotations

import threading
import time
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
from engine.types import Delta, Embedded, EmbedRequest, Failed, Finished, Request, RequestKey

_HELLO_SECONDS: Final = 0.1
_HELLO_AGAIN_SECONDS: Final = 1.0  # to one that has answered: does it still?
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLost:
    """The engine ended while it had this request.

    `was_running`: it was at this one when it ended, or nothing is known of that; else the request only waited there, or was
    between two steps. `was_alone`: for certain it was at this one, and at nothing else.
    """

    request_id: str
    was_running: bool = True
    was_alone: bool = False


class Sink(Protocol):
    """Where a request's outputs go."""

    def on_delta(self, delta: Delta) -> None:
        """More text; only for streamed requests."""

    def on_end(self, outcome: Finished | Failed | EngineLost) -> None:
        """The end, once."""


class EmbedSink(Protocol):
    """Where the end of a request for embeddings goes."""

    def on_end(self, outcome: Embedded | Failed | EngineLost) -> None:
        """The end, once."""


class EngineClient:
    """One connection to one engine; survives the engine's restarts.

    A request submitted while there is no engine waits for the next one: its caller has a deadline of its own.
    `answered_at` is when, by the monotonic clock, an engine last answered a Hello: it took a message, and its loop turned.
    """

    def __init__(self, endpoint: str, name: str) -> None:
        self._name = name
        self._folder = Path(endpoint)
        self._context = zmq.Context()
        self._lock = threading.Lock()
        self._sinks: dict[str, Any] = {}  # Any: a Sink, or an EmbedSink for what is to be embedded
        self._unsent: list[Request | EmbedRequest] = []
        self._boot_id: str | None = None
        self._info: EngineInfo | None = None
        self._last_tick_at = 0.0
        self.answered_at = 0.0
        self._hello_at = 0.0
        self._is_ready = threading.Event()
        self._is_closing = False
        self._submit = self._socket(zmq.PUSH, Path(endpoint) / "submit.sock")  # under the lock
        self._outputs = self._socket(zmq.DEALER, Path(endpoint) / "output.sock")  # the thread's own
        self._monitor = self._outputs.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._thread = threading.Thread(target=self._run, name=f"engine-client-{name}", daemon=True)
        self._thread.start()

    @property
    def info(self) -> EngineInfo | None:
        """What the engine said of itself; None before the first one was there."""
        return self._info

    def wait_ready(self, timeout_seconds: float) -> EngineInfo:
        """Wait for an engine; raises TimeoutError."""
        if not self._is_ready.wait(timeout_seconds) or self._info is None:
            raise TimeoutError(f"no engine answered within {timeout_seconds:.0f} s")
        return self._info

    def seconds_since_tick(self, now: float) -> float:
        """How long ago (by the monotonic clock) the engine's loop last showed that it turns."""
        return now - self._last_tick_at

    def submit(self, request: Request, sink: Sink) -> None:
        """Start a request; its id must not be running here already."""
        self._start(request, sink)

    def embed(self, request: EmbedRequest, sink: EmbedSink) -> None:
        """Start a request for embeddings; its id must not be running here already."""
        self._start(request, sink)

    def cancel(self, request_id: str) -> None:
        """Stop a request; it still ends through its sink. Nothing happens for unknown ids."""
        with self._lock:
            if request_id not in self._sinks:
                return
            if self._boot_id is not None:
                self._send(Cancel(client=self._name, boot_id=self._boot_id, request_ids=[request_id]))
                return
            self._unsent = [request for request in self._unsent if request.id != request_id]
            sink = self._sinks.pop(request_id)
        sink.on_end(EngineLost(request_id=request_id, was_running=False))

    def stream(self, request_id: str) -> None:
        """Stream a request from here on: its first delta has all there is by now. Nothing happens for unknown ids."""
        with self._lock:
            if request_id not in self._sinks:
                return
            if self._boot_id is not None:
                self._send(StreamRequest(client=self._name, boot_id=self._boot_id, request_ids=[request_id]))
                return
            self._unsent = [_as_stream(request, request_id) for request in self._unsent]

    def close(self) -> None:
        """End the connection; running requests end as lost."""
        self._is_closing = True
        self._thread.join()
        self._end_as_lost(frozenset(), keep_unsent=False)
        self._outputs.disable_monitor()
        for socket in (self._monitor, self._outputs, self._submit):
            socket.close(linger=0)
        self._context.term()

    def _socket(self, kind: int, path: Path) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.IDENTITY, self._name.encode())
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
        socket.connect(f"ipc://{path}")
        return socket

    def _start(self, request: Request | EmbedRequest, sink: Sink | EmbedSink) -> None:
        with self._lock:
            assert request.id not in self._sinks, "request ids are unique while they run"
            self._sinks[request.id] = sink
            if self._boot_id is None:
                self._unsent.append(request)
            else:
                self._send(Submit(client=self._name, boot_id=self._boot_id, requests=[request]))

    def _send(self, message: ToEngine) -> None:
        """Under the lock."""
        self._submit.send(_encode(message), zmq.NOBLOCK)

    def _run(self) -> None:
        """The client's thread."""
        poller = zmq.Poller()
        poller.register(self._outputs, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        decoder = msgspec.msgpack.Decoder(FromEngine)
        while not self._is_closing:
            if time.monotonic() >= self._hello_at:
                self._hello_at = time.monotonic() + (_HELLO_SECONDS if self._boot_id is None else _HELLO_AGAIN_SECONDS)
                with self._lock:
                    self._send(Hello(client=self._name))
            ready = dict(poller.poll(100 if self._boot_id else 20))
            if self._outputs in ready:
                self._handle(decoder.decode(self._outputs.recv()))
            if self._monitor in ready:
                zmq.utils.monitor.recv_monitor_message(self._monitor)
                self._on_disconnect()

    def _handle(self, message: FromEngine) -> None:
        match message:
            case HelloReply(boot_id=boot_id, info=info):
                self._on_hello_reply(boot_id, info)
            case Tick(boot_id=boot_id):
                if boot_id == self._boot_id:
                    self._last_tick_at = time.monotonic()
            case Outputs(boot_id=boot_id, items=items):
                if boot_id == self._boot_id:
                    for item in items:
                        self._deliver(item)

    def _on_hello_reply(self, boot_id: str, info: EngineInfo) -> None:
        if self._boot_id not in (None, boot_id):
            self._on_disconnect()
        with self._lock:
            self._boot_id, self._info = boot_id, info
            self._last_tick_at = self.answered_at = time.monotonic()
            if self._unsent:
                self._send(Submit(client=self._name, boot_id=boot_id, requests=self._unsent))
                self._unsent = []
        self._is_ready.set()

    def _deliver(self, item: Delta | Finished | Embedded | Failed) -> None:
        if isinstance(item, Delta):
            sink = self._sinks.get(item.request_id)
            if sink is not None:
                sink.on_delta(item)
            return
        with self._lock:
            sink = self._sinks.pop(item.request_id, None)
        if sink is not None:
            sink.on_end(item)

    def _on_disconnect(self) -> None:
        """The engine has died: find out what it was at."""
        boot_id = self._boot_id
        self._hello_at = 0.0
        self._end_as_lost(None if boot_id is None else read_inflight_log(self._folder, boot_id), keep_unsent=True)

    def _end_as_lost(self, inflight: frozenset[RequestKey] | None, *, keep_unsent: bool) -> None:
        """The engine is gone: everything it had is lost; what was never sent may wait for the next one.

        `inflight` has the keys it was at; None when that is not known.
        """
        with self._lock:
            self._boot_id = None
            self._is_ready.clear()
            kept = {request.id for request in self._unsent} if keep_unsent else set()
            lost = {key: sink for key, sink in self._sinks.items() if key not in kept}
            for key in lost:
                del self._sinks[key]
        for request_id, sink in lost.items():
            sink.on_end(self._lost_outcome(request_id, inflight))

    def _lost_outcome(self, request_id: str, inflight: frozenset[RequestKey] | None) -> EngineLost:
        if inflight is None:
            return EngineLost(request_id=request_id)
        key = (self._name, request_id)
        return EngineLost(request_id=request_id, was_running=key in inflight, was_alone=inflight == {key})


def _as_stream(request: Request | EmbedRequest, request_id: str) -> Request | EmbedRequest:
    """The request as a stream, if it is the one that is meant and has a stream."""
    if request.id == request_id and isinstance(request, Request):
        return msgspec.structs.replace(request, stream=True)
    return request
