"""An engine whose answers a test writes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from engine.process.client import EngineLost, Sink
from engine.process.protocol import EngineInfo
from engine.types import Choice, Delta, Failed, Finished, FinishReason, Request, Usage

Answer = Callable[[Request], Finished | Failed | EngineLost | None]


def echo(request: Request) -> Finished:
    """Answer with the last message of the prompt."""
    text = request.prompt.messages[-1]["content"]  # type: ignore[union-attr]
    usage = Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)
    return Finished(request_id=request.id, choices=[Choice(reason=FinishReason.STOP, text=text)], usage=usage)


class ScriptedEngine:
    """Takes the place of an `EngineClient` and answers by a function; None leaves a request running."""

    def __init__(self) -> None:
        self.answer: Answer = echo
        self.info = EngineInfo(
            model="fake", build="scripted", context_size=4096, slots=4, num_vocab=258, template_hash="template"
        )
        self.asked: list[Request] = []
        self.running: dict[str, Sink] = {}
        self.streamed: list[str] = []
        self.max_running = 0
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[tuple[Sink, Finished | Failed | EngineLost] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._deliver, daemon=True)
        self._thread.start()

    def submit(self, request: Request, sink: Sink) -> str:
        with self._lock:
            self.asked.append(request)
            self.running[request.id] = sink
            self.max_running = max(self.max_running, len(self.running))
        outcome = self.answer(request)
        if outcome is not None:
            self.end(request.id, outcome)
        return request.id

    def group(self) -> AbstractContextManager[None]:
        return nullcontext()

    def end(self, request_id: str, outcome: Finished | Failed | EngineLost) -> None:
        with self._lock:
            sink = self.running.pop(request_id, None)
        if sink is not None:
            self._queue.put((sink, outcome))

    def cancel(self, request_id: str) -> None:
        usage = Usage(prompt_tokens=3, completion_tokens=0)
        cancelled = Choice(reason=FinishReason.CANCELLED, text="")
        self.end(request_id, Finished(request_id=request_id, choices=[cancelled], usage=usage))

    def stream(self, request_id: str) -> None:
        """Send one delta of the request, if it runs."""
        with self._lock:
            self.streamed.append(request_id)
            sink = self.running.get(request_id)
        if sink is not None:
            sink.on_delta(Delta(request_id=request_id, num_tokens=1, text="so far"))

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _deliver(self) -> None:
        while (item := self._queue.get()) is not None:
            sink, outcome = item
            sink.on_end(outcome)
