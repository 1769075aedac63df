"""Engine loop: inbox → admit → plan → decode → sample → emit, on the one thread that owns the model.

Other threads put commands into its inbox. It passes outputs to `emit`, once per step and client.
"""

from __future__ import annotations

import queue
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn, Protocol

from core.failpoints import Point, failpoint
from engine.backends.base import Backend, LayoutChanger
from engine.config import EngineConfig, Switch, Tuning, tuned
from engine.embedding import EmbeddingQueue
from engine.errors import DecodeFailed, EngineError, OutOfKvMemory
from engine.log import log_stderr
from engine.output_processor import OutputProcessor
from engine.progress import FIRST_DECODE_SECONDS, Pace, Progress
from engine.scheduler.chat_share import EmbedShare
from engine.scheduler.scheduler import Scheduler
from engine.scheduler.sequence import Sequence
from engine.scheduler.step import SampleResult, StepPlan
from engine.tuning.tuner import Tuner
from engine.turn import OwnCores, Turn
from engine.types import Delta, Embedded, EmbedRequest, Failed, Finished, FinishReason, Priority, RequestKey

Output = Delta | Finished | Embedded | Failed
Emit = Callable[[str, list[Output]], None]
RecordInflight = Callable[[list[RequestKey]], None]


class OnTuned(Protocol):
    """Gets the result of a search, with which the engine serves from then on, or None; `is_kept`: also after the next load."""

    def __call__(self, tuning: Tuning | None, *, is_kept: bool) -> None: ...


def _ignore_tuning(tuning: Tuning | None, *, is_kept: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class AddRequest:
    """Generate the sequences of one request: one for each of its choices."""

    sequences: list[Sequence]


@dataclass(frozen=True, slots=True)
class AddEmbedding:
    """Embed the encoded inputs of a request."""

    client: str
    request: EmbedRequest
    prompts: list[list[int]]


@dataclass(frozen=True, slots=True)
class CancelRequests:
    """Cancel these requests of a client; None means all of them."""

    client: str
    request_ids: list[str] | None


@dataclass(frozen=True, slots=True)
class StartStreaming:
    """Stream these requests of a client from now on."""

    client: str
    request_ids: list[str]


@dataclass(frozen=True, slots=True)
class RunInLoop:
    """Run a function on the thread of the loop, between steps."""

    action: Callable[[], None]


Command = AddRequest | AddEmbedding | CancelRequests | StartStreaming | RunInLoop


class EngineLoop:
    """The loop of one engine. One thread calls `run`; any thread may put commands into `inbox`.

    `record_inflight` gets the requests of a step before that step is computed. `turn` is asked before each step. With a `tuner`
    the model is measured meanwhile, and `on_tuned` gets the result.
    """

    def __init__(
        self,
        backend: Backend,
        config: EngineConfig,
        emit: Emit,
        *,
        record_inflight: RecordInflight = lambda _: None,
        turn: Turn | None = None,
        clock: Callable[[], float] = time.monotonic,
        tuner: Tuner | None = None,
        on_tuned: OnTuned = _ignore_tuning,
    ) -> None:
        self.inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._decoder = backend.decoder
        self._decoder.reset()
        self.scheduler = Scheduler(
            slots=self._decoder.slots,
            spare_slots=self._decoder.spare_slots,
            context_size=config.context_size,
            batch_tokens=config.batch_tokens,
            prefill_tokens=min(config.prefill_tokens, config.batch_tokens),
            is_end=backend.tokenizer.is_end,
            traits=self._decoder.traits,
            first_position=self._decoder.first_position,
            shifts_context=config.context_shift,
            max_drafts=self._decoder.max_drafts,
            drafts_always=config.speculation is Switch.ON,
        )
        self._config = config
        self._tuner = tuner
        self._on_tuned = on_tuned
        if config.tuning is not None:
            self.scheduler.share.cost.begin_with(config.tuning.row_seconds, config.tuning.prompt_seconds)
        self.num_steps = 0
        self.progress = Progress(config.hang_seconds)
        self._pace, self._embed_pace = Pace(), Pace()
        self._output_processor = OutputProcessor(backend.tokenizer)
        self._embedder = backend.embedder
        self._embeddings = EmbeddingQueue(backend.embedder) if backend.embedder is not None else None
        self._embed_share = EmbedShare(self.scheduler.share)
        self._embeds_next = False
        self._emit = emit
        self._record_inflight = record_inflight
        self._turn = turn or OwnCores()
        self._clock = clock
        self._recorded: list[Sequence] = []
        self._pending_outputs: dict[str, list[Output]] = {}

    @property
    def num_embeddings(self) -> int:
        """Requests for embeddings that have not ended."""
        return 0 if self._embeddings is None else len(self._embeddings)

    def warm_up(self) -> None:
        """Compute one token, so that the time limit of the first step follows the speed of the model.

        It takes turns like a batch: engines that serve on the same cores go on.
        """
        for pace, model in ((self._pace, self._decoder), (self._embed_pace, self._embedder)):
            if model is not None:
                while not self._turn.take(is_chat=False):
                    pass  # `take` waits for some milliseconds
                with self.progress.decode(pace, 1):
                    model.warm_up()
                self._turn.give_back()
        self.progress.end()

    def run(self) -> NoReturn:
        """Run steps for as long as the process lives."""
        while True:
            if not self.run_once():
                with suppress(queue.Empty):
                    self._handle(self.inbox.get(timeout=None if self._tuner is None else self._tuner.pause_seconds))

    def run_once(self) -> bool:
        """Handle the commands in the inbox and run a step if it is this engine's turn; False when there is none to run."""
        self.progress.begin()
        try:
            self._drain_inbox()
            has_turn = self._take_turn()
            has_work = self._compute() if has_turn else True
            self._flush()
            if self._tuner is not None and has_turn:
                has_work = self._tune(self._tuner, is_idle=not has_work) or has_work
        finally:
            self.progress.end()
        return has_work

    def _tune(self, tuner: Tuner, *, is_idle: bool) -> bool:
        """Measure one more step of the model unless a chat waits or runs, and use the result; return whether more is to do."""
        if self.scheduler.has_chat or not self.inbox.empty():
            return True
        if tuner.allows_step(is_idle=is_idle) and (not is_idle or self._turn.take(is_chat=False)):
            self.progress.begin(FIRST_DECODE_SECONDS)
            try:
                tuner.step()
            except Exception as error:  # requests go on with the settings that there are
                tuner.fail(error)
        if tuner.is_running:
            goes_on = tuner.allows_step(is_idle=is_idle)
            if is_idle and not goes_on:
                self._turn.give_back()
            return goes_on
        if tuner.result is not None and self.scheduler.has_shifted:
            return False  # later
        self._tuner = None
        if tuner.result is not None:
            self._use(tuner, tuned(self._config, tuner.result))
        self._on_tuned(tuner.result, is_kept=not tuner.is_disturbed)
        return True

    def _use(self, tuner: Tuner, config: EngineConfig) -> None:
        """Serve with a tuned configuration, if it fits. Sequences that have begun compute their tokens anew in a new memory."""
        is_new, decoder = tuner.apply(config), self._decoder
        if tuner.result is None:
            config = self._config
        else:
            self.scheduler.share.cost.begin_with(tuner.result.row_seconds, tuner.result.prompt_seconds)
        if is_new:
            prefill = min(config.prefill_tokens, config.batch_tokens)
            self.scheduler.set_memory(decoder.slots, decoder.spare_slots, prefill, decoder.traits)

    def _take_turn(self) -> bool:
        """Take the turn for the next step; without work, give it back."""
        priorities = {self.scheduler.priority, self._embeddings.priority if self._embeddings is not None else None}
        if priorities == {None}:
            self._turn.give_back()
            return True
        return self._turn.take(is_chat=Priority.CHAT in priorities)

    def _compute(self) -> bool:
        """Run one decode: of generation and of embeddings in turns."""
        try:
            if self._embeds_next:
                return self._embed() or self.step()
            return self.step() or self._embed()
        except MemoryError:
            raise  # ends the process; the in-flight log names the requests of this step
        except Exception as error:  # an unexpected error must not end the engine for the other requests
            self._recover(error)
            return True

    def step(self) -> bool:
        """Run one step of the decoder."""
        began = self._clock()
        self._follow_work()
        self._open_sequences(self.scheduler.admit())
        plan = self.scheduler.plan()
        self._record([entry.sequence for entry in plan.entries])
        if not plan.entries:
            return False
        self._embeds_next = True
        failpoint(Point.ENGINE_STEP)
        decoded = self.scheduler.apply(plan, self._decode(plan))
        failpoint(Point.ENGINE_STEPPED)
        silent = self._output_processor.silent
        for sequence, tokens, sampled in decoded:
            if sequence in silent and sequence.finish_reason is None and sampled.failure is None:
                continue
            if self._output_processor.is_active(sequence):  # another choice of this step may have failed the request
                self._process_tokens(sequence, tokens, sampled)
        seconds = self._clock() - began
        self.scheduler.record_seconds(plan, seconds)
        if self._tuner is not None:
            self._tuner.earn(seconds)
        self.num_steps += 1
        return True

    def _follow_work(self) -> None:
        """Change the layout of the memory if the other one suits the work better."""
        decoder = self._decoder
        if decoder.traits.can_change_layout and self.scheduler.wants_other_layout:
            assert isinstance(decoder, LayoutChanger), "a decoder that can change its layout has the method"
            decoder.change_layout()
            self.scheduler.set_traits(decoder.traits)

    def _open_sequences(self, admitted: list[Sequence]) -> None:
        if admitted:
            self._record(admitted)
        for sequence in admitted:
            self._decoder.open(sequence)

    def _record(self, sequences: list[Sequence]) -> None:
        """Record the sequences that are computed from now on as in flight."""
        if sequences != self._recorded:
            self._recorded = sequences
            self._record_inflight([sequence.key for sequence in sequences])

    def _embed(self) -> bool:
        """Compute a step of embeddings: small ones beside a chat, and none of a batch while a chat waits for its first token.

        Those of a batch beside a chat have a part of the batch's share of the time.
        """
        if self._embeddings is None or self._embedder is None:
            return False
        scheduler, budget, with_batch = self.scheduler, self._embedder.step_tokens, True
        scheduler.share.has_embeddings = self._embeddings.has_batch
        if scheduler.has_chat:
            budget = self._embed_share.tokens(budget)
            with_batch = not scheduler.has_new_chat and self._embed_share.allows_batch(budget)
        step = self._embeddings.plan(budget, with_batch=with_batch)
        if step is None:
            return False
        began = self._clock()
        self._embeds_next = False
        self._recorded = []
        self._record_inflight(step.keys)
        failpoint(Point.ENGINE_STEP)
        self.scheduler.counts.prompt += step.num_tokens
        with self.progress.decode(self._embed_pace, step.num_tokens):
            ended = self._embeddings.compute(step)
        self._record_inflight([])
        for client, result in ended:
            self._queue_output(client, result)
        seconds = self._clock() - began
        self._embed_share.record(step.num_tokens, seconds, from_chat=scheduler.has_chat and step.has_batch)
        self.num_steps += 1
        return True

    def _decode(self, plan: StepPlan) -> list[SampleResult]:
        self._decoder.update_memory(plan.forks, plan.shifts)
        while True:
            try:
                with self.progress.decode(self._pace, plan.num_tokens):
                    return self._decoder.run(plan)
            except OutOfKvMemory:
                self._decoder.update_memory([self.scheduler.evict()], [])

    def _process_tokens(self, sequence: Sequence, tokens: list[int], sampled: SampleResult) -> None:
        """Turn the new tokens of a sequence into output, and finish the sequence at its end."""
        if sampled.failure is not None:
            self._fail(sequence.key, sampled.failure)
            return
        delta, reason = self._output_processor.append_tokens(sequence, tokens, sampled)
        if delta is not None and sequence.stream:
            self._queue_output(sequence.client, delta)
        if reason is not None:
            self._finish(sequence, reason)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        finished = self._output_processor.finish(sequence, reason)
        self._release(sequence)
        if finished is not None:
            self._queue_output(sequence.client, finished)

    def _release(self, sequence: Sequence) -> None:
        self._decoder.close(sequence)
        self.scheduler.release(sequence)

    def _drain_inbox(self) -> None:
        while not self.inbox.empty():
            self._handle(self.inbox.get())

    def _handle(self, command: Command) -> None:
        match command:
            case AddRequest(sequences=sequences):
                self._add(sequences)
            case AddEmbedding(client=client, request=request, prompts=prompts):
                assert self._embeddings is not None, "the server accepts embeddings only with an embedder"
                self._embeddings.add(client, request, prompts)
            case CancelRequests(client=client, request_ids=None):
                self._cancel_embeddings(client, None)
                for sequence in self.scheduler.of_client(client):
                    self._output_processor.discard(sequence)
                    self._release(sequence)
            case CancelRequests(client=client, request_ids=request_ids):
                self._cancel_embeddings(client, request_ids)
                for request_id in request_ids or ():
                    for sequence in self.scheduler.find(client, request_id):
                        self._finish(sequence, FinishReason.CANCELLED)
            case StartStreaming(client=client, request_ids=request_ids):
                for request_id in request_ids:
                    self._start_streaming(client, request_id)
            case RunInLoop(action=action):
                action()

    def _add(self, sequences: list[Sequence]) -> None:
        """Add a request. A request that cannot start fails by itself: it has no slot yet, so it affects no other request."""
        key = sequences[0].key
        if self.scheduler.find(*key):
            return
        try:
            self._output_processor.add_request(sequences)
            for sequence in sequences:
                if sequence.max_tokens == 0 and not sequence.wants_prompt_logprobs:
                    self._end_at_once(sequence)
                else:
                    self.scheduler.add(sequence)
        except MemoryError:
            raise
        except Exception:
            log_stderr(f"request {key[1]} failed: {traceback.format_exc()}")
            self._fail(key, EngineError())
            for sequence in sequences:
                self._output_processor.discard(sequence)

    def _end_at_once(self, sequence: Sequence) -> None:
        """End a sequence without any token to compute: its prompt is only counted, and echoed if that was asked for."""
        sequence.finish_reason = FinishReason.LENGTH
        self._process_tokens(sequence, [], SampleResult([]))

    def _start_streaming(self, client: str, request_id: str) -> None:
        for sequence in self.scheduler.find(client, request_id):
            if not sequence.stream and self._output_processor.is_active(sequence):
                sequence.stream = True
                if (delta := self._output_processor.start_streaming(sequence)) is not None:
                    self._queue_output(sequence.client, delta)

    def _cancel_embeddings(self, client: str, request_ids: list[str] | None) -> None:
        if self._embeddings is not None:
            for request_id in self._embeddings.cancel(client, request_ids):
                cancelled = Failed(request_id=request_id, code="cancelled", message="The request was cancelled.")
                self._queue_output(client, cancelled)

    def _recover(self, error: Exception) -> None:
        """Fail the running requests and clear the memory after a failed step; waiting requests continue."""
        is_engine_error = isinstance(error, EngineError)
        if not isinstance(error, DecodeFailed):
            log_stderr(traceback.format_exc())
        message = str(error) if is_engine_error else "The engine failed while it ran this request."
        for key in {sequence.key for sequence in self.scheduler.running}:
            self._fail(key, EngineError(message))
        self.scheduler.reset_memory()
        self._decoder.reset()

    def _fail(self, key: RequestKey, error: EngineError) -> None:
        """End a request with an error, and drop its other choices."""
        client, request_id = key
        self._queue_output(client, Failed.from_error(request_id, error))
        for sequence in self.scheduler.find(client, request_id):
            self._output_processor.discard(sequence)
            self._release(sequence)

    def _queue_output(self, client: str, output: Output) -> None:
        self._pending_outputs.setdefault(client, []).append(output)

    def _flush(self) -> None:
        for client, items in self._pending_outputs.items():
            self._emit(client, items)
        self._pending_outputs.clear()
