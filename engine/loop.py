"""The engine: inbox → admit → plan → decode → sample → emit, on the one thread that owns the model.

Knows sequences and text; nothing of sockets. Everyone else hands it values through its inbox; what it has to say goes to
`emit`, once per step and client.
"""

from __future__ import annotations

import queue
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from engine.backend import Backend
from engine.config import EngineConfig
from engine.errors import DecodeFailed, EngineError
from engine.messages import Choice, Delta, Failed, Finished, FinishReason, Usage
from engine.scheduler import Plan, Scheduler
from engine.sequence import Sequence
from engine.text import TextStream

Output = Delta | Finished | Failed
Emit = Callable[[str, list[Output]], None]


@dataclass(frozen=True, slots=True)
class Add:
    """A sequence to generate."""

    sequence: Sequence


@dataclass(frozen=True, slots=True)
class Stop:
    """Cancel these requests of a client; None means all of them."""

    client: str
    request_ids: list[str] | None


@dataclass(frozen=True, slots=True)
class Call:
    """Run something on the loop's thread, between steps."""

    action: Callable[[], None]


Command = Add | Stop | Call


class Engine:
    """Generates. `run` is called by one thread; `inbox` takes commands from any."""

    def __init__(self, backend: Backend, config: EngineConfig, emit: Emit, *, idle: Callable[[], None]) -> None:
        self.inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self.scheduler = Scheduler(
            slots=config.slots,
            context_size=config.context_size,
            batch_tokens=config.batch_tokens,
            prefill_tokens=min(config.prefill_tokens, config.batch_tokens),
            is_end=backend.tokenizer.is_end,
        )
        self.num_steps = 0
        self.step_began_at: float | None = None
        self._tokenizer = backend.tokenizer
        self._decoder = backend.decoder
        self._emit = emit
        self._idle = idle
        self._texts: dict[Sequence, TextStream] = {}
        self._outputs: dict[str, list[Output]] = {}

    def run(self, is_stopping: Callable[[], bool], *, idle_seconds: float) -> None:
        """Step until told to stop; `idle` is called at least every `idle_seconds`, busy or not."""
        due = time.monotonic() + idle_seconds
        while not is_stopping():
            if not self.turn():
                self._wait(max(0.0, due - time.monotonic()))
            if time.monotonic() >= due:
                self._idle()
                due = time.monotonic() + idle_seconds

    def turn(self) -> bool:
        """Take what is in the inbox and do one step; False when there was nothing to compute."""
        self._drain_inbox()
        try:
            did_step = self.step()
        except Exception as error:  # whatever it is, it must not take the other requests' engine down
            self._recover(error)
            did_step = True
        self._flush()
        return did_step

    def step(self) -> bool:
        """One decode."""
        for sequence in self.scheduler.admit():
            self._texts[sequence] = TextStream(sequence.stop)
            self._decoder.open(sequence)
        plan = self.scheduler.plan()
        if not plan.entries:
            return False
        for sequence in self.scheduler.apply(plan, self._decode(plan)):
            self._grow(sequence)
        self.num_steps += 1
        return True

    def _decode(self, plan: Plan) -> list[int]:
        self.step_began_at = time.monotonic()
        try:
            return self._decoder.run(plan)
        finally:
            self.step_began_at = None

    def _grow(self, sequence: Sequence) -> None:
        """A sequence got a token: show its text, and end it where it ends."""
        text = self._texts[sequence]
        reason = sequence.finish_reason
        is_end_token = reason is FinishReason.STOP
        delta = "" if is_end_token else text.push(self._tokenizer.piece(sequence.tokens[-1]))
        if text.is_stopped:
            reason = FinishReason.STOP
        if reason is not None:
            delta += text.finish()
        if delta and sequence.stream:
            self._say(sequence, Delta(request_id=sequence.request_id, text=delta, num_tokens=sequence.num_generated))
        if reason is not None:
            self._finish(sequence, reason)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        text = self._texts.get(sequence)
        usage = Usage(
            prompt_tokens=sequence.num_prompt_tokens,
            completion_tokens=sequence.num_generated,
            cached_tokens=sequence.num_cached,
        )
        choice = Choice(reason=reason, text=text.text if text else "")
        finished = Finished(request_id=sequence.request_id, choices=[choice], usage=usage)
        self._say(sequence, finished)
        self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        if sequence.slot is not None:
            self._decoder.release(sequence)
        self.scheduler.release(sequence)
        self._texts.pop(sequence, None)

    def _drain_inbox(self) -> None:
        while not self.inbox.empty():
            self._take(self.inbox.get())

    def _wait(self, timeout_seconds: float) -> None:
        try:
            self._take(self.inbox.get(timeout=timeout_seconds))
        except queue.Empty:
            return

    def _take(self, command: Command) -> None:
        match command:
            case Add(sequence=sequence):
                if self.scheduler.find(*sequence.key) is None:
                    self.scheduler.add(sequence)
            case Stop(client=client, request_ids=None):
                for sequence in self.scheduler.of_client(client):
                    self._release(sequence)
            case Stop(client=client, request_ids=request_ids):
                for request_id in request_ids or ():
                    if (found := self.scheduler.find(client, request_id)) is not None:
                        self._finish(found, FinishReason.CANCELLED)
            case Call(action=action):
                action()

    def _recover(self, error: Exception) -> None:
        """A step failed: what ran is told so, the memory is cleared, those who waited go on."""
        known = isinstance(error, EngineError)
        if not isinstance(error, DecodeFailed):
            traceback.print_exc(file=sys.stderr)
        message = str(error) if known else "The engine failed while it ran this request."
        for sequence in self.scheduler.running:
            self._say(sequence, Failed(request_id=sequence.request_id, code=EngineError.code, message=message))
            self.scheduler.release(sequence)
            self._texts.pop(sequence, None)
        self._decoder.reset()

    def _say(self, sequence: Sequence, output: Output) -> None:
        self._outputs.setdefault(sequence.client, []).append(output)

    def _flush(self) -> None:
        for client, items in self._outputs.items():
            self._emit(client, items)
        self._outputs.clear()
