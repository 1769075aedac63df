"""Embedding queue: packs the inputs of requests into steps of limited size, and joins their vectors into answers.

A step is one decode. It takes inputs up to its budget of tokens, chat before batch and each in order of arrival:

    request a  ■■■ ■■■■■         two short inputs
    request b  ■■                of another client, or another line of a batch
    request c  ■■■■■■■■■■····    the beginning of an input that is longer than the budget; the next step goes on with it

Vectors are float32 of shape (inputs, dimensions), of length 1, cut to the requested dimensions.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from engine.backends.base import Embedder, InputPiece
from engine.backends.vectors import Vectors, shortened
from engine.errors import DecodeFailed, EngineError, InvalidPrompt, PromptTooLong
from engine.log import log_stderr
from engine.tokenizer import Tokenizer, check_token_ids
from engine.types import Embedded, EmbedRequest, Failed, Priority, RequestKey, TextPrompt, TokenPrompt, Usage

_SEND_TEXT: Final = (  # that client sends ids of OpenAI's tokenizer by default
    " These are ids of another tokenizer: send text instead. With LangChain, set check_embedding_ctx_length=False."
)
_FAILED: Final = "The engine failed while it embedded these inputs."


def encode_inputs(request: EmbedRequest, tokenizer: Tokenizer, max_tokens: int) -> list[list[int]]:
    """Encode each input, with the tokens that the model adds around a text; may be called from any thread.

    Raises InvalidPrompt, and PromptTooLong for an input of more than `max_tokens`, before any vector is computed.
    """
    if not request.inputs:
        raise InvalidPrompt("There is no input.", param="input")
    prompts = [_encode(prompt, tokenizer) for prompt in request.inputs]
    if (longest := max(map(len, prompts))) > max_tokens:
        message = f"An input has {longest} tokens, and this model embeds {max_tokens} at most."
        raise PromptTooLong(message, param="input")
    return prompts


def check_dimensions(request: EmbedRequest, most: int) -> None:
    """Raise InvalidPrompt if the model has no vectors of the requested length."""
    if request.dimensions is not None and not 1 <= request.dimensions <= most:
        raise InvalidPrompt(f"dimensions must be from 1 to {most} for this model.", param="dimensions")


@dataclass(slots=True, eq=False)
class _Job:
    """A request. Its inputs are computed in order; `num_computed` tokens of the next one are computed, in `slot`.

    `is_alone`: its inputs share no step with those of other requests.
    """

    key: RequestKey
    request: EmbedRequest
    prompts: list[list[int]]
    is_alone: bool
    vectors: list[Vectors] = field(default_factory=list)
    num_computed: int = 0
    slot: int | None = None

    @property
    def is_done(self) -> bool:
        return len(self.vectors) == len(self.prompts)

    def result(self) -> Embedded:
        vectors = shortened(np.stack(self.vectors), self.request.dimensions)
        return Embedded(
            request_id=self.request.id,
            vectors=[vector.astype("<f4").tobytes() for vector in vectors],
            usage=Usage(prompt_tokens=sum(map(len, self.prompts)), completion_tokens=0),
        )


@dataclass(frozen=True, slots=True)
class EmbedStep:
    """The pieces of one decode, each with the request it belongs to."""

    entries: list[tuple[_Job, InputPiece]]

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole step."""
        return sum(len(piece.tokens) for _, piece in self.entries)

    @property
    def has_batch(self) -> bool:
        """Is an input of a batch in the step?"""
        return any(job.request.priority is Priority.BATCH for job, _ in self.entries)

    @property
    def jobs(self) -> list[_Job]:
        """The requests of the step, each once."""
        return list(dict.fromkeys(job for job, _ in self.entries))

    @property
    def keys(self) -> list[RequestKey]:
        """Their keys."""
        return [job.key for job in self.jobs]


@dataclass(slots=True)
class _Packing:
    """A step in the making: at most `budget` tokens, each input in one of the free `slots`."""

    budget: int
    slots: Iterator[int]
    entries: list[tuple[_Job, InputPiece]] = field(default_factory=list)
    num_tokens: int = 0
    is_full: bool = False

    @property
    def num_left(self) -> int:
        return self.budget - self.num_tokens

    def add(self, job: _Job, piece: InputPiece) -> None:
        self.entries.append((job, piece))
        self.num_tokens += len(piece.tokens)
        self.is_full = self.num_left <= 0


class EmbeddingQueue:
    """Embedding requests that have not ended. Alternate `plan` and `compute`."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._jobs: dict[Priority, dict[RequestKey, _Job]] = {Priority.CHAT: {}, Priority.BATCH: {}}
        self._partial: list[_Job] = []  # those with a slot: one of each priority at most, since inputs come in order

    def __len__(self) -> int:
        return sum(map(len, self._jobs.values()))

    def add(self, client: str, request: EmbedRequest, prompts: list[list[int]]) -> None:
        """Queue a request with encoded inputs; one with the key of a queued request is dropped."""
        key = (client, request.id)
        if all(key not in jobs for jobs in self._jobs.values()):
            self._jobs[request.priority][key] = _Job(key, request, prompts, request.exclusive)

    def cancel(self, client: str, request_ids: list[str] | None) -> list[str]:
        """Remove requests of a client, all of them for None; return the ids of the removed ones."""
        jobs = [job for jobs in self._jobs.values() for job in jobs.values() if job.key[0] == client]
        cancelled = [job for job in jobs if request_ids is None or job.key[1] in request_ids]
        for job in cancelled:
            self._remove(job)
        return [job.key[1] for job in cancelled]

    @property
    def priority(self) -> Priority | None:
        """The priority of the most urgent request; None when the queue is empty."""
        return next((priority for priority in (Priority.CHAT, Priority.BATCH) if self._jobs[priority]), None)

    @property
    def has_batch(self) -> bool:
        """Is there a request of a batch?"""
        return bool(self._jobs[Priority.BATCH])

    def plan(self, max_tokens: int, *, with_batch: bool = True) -> EmbedStep | None:
        """The next step, of `max_tokens` at most; without `with_batch`, of chat requests only. None if there is none.

        An input that the model cannot compute in pieces may be a step of more tokens, and is then alone in it.
        """
        used = {job.slot for job in self._partial}
        packing = _Packing(
            budget=min(max_tokens, self._embedder.step_tokens),
            slots=(slot for slot in range(self._embedder.slots) if slot not in used),
        )
        for priority in (Priority.CHAT, Priority.BATCH) if with_batch else (Priority.CHAT,):
            for job in self._jobs[priority].values():
                if packing.entries and (job.is_alone or packing.is_full):
                    break
                self._pack(job, packing)
                packing.is_full = packing.is_full or job.is_alone
        return EmbedStep(packing.entries) if packing.entries else None

    def compute(self, step: EmbedStep) -> list[tuple[str, Embedded | Failed]]:
        """Compute a planned step; return the requests that ended in it, each with its client.

        If the step fails, each of its requests is computed again alone; one that was alone ends as failed.
        """
        try:
            vectors = self._embedder.embed([piece for _, piece in step.entries])
        except MemoryError:
            raise  # ends the process; the in-flight log names the requests of this step
        except Exception as error:  # an unexpected error must not end the engine for the other requests
            return self._on_failure(step, error)
        return self._apply(step, vectors)

    def _pack(self, job: _Job, packing: _Packing) -> None:
        """Add the next inputs of a request to a step, as many as it has room for."""
        start, slot = job.num_computed, job.slot
        for prompt in itertools.islice(job.prompts, len(job.vectors), None):
            num_left = len(prompt) - start
            is_whole = num_left <= packing.num_left or not (packing.entries or self._embedder.can_split)
            if not is_whole and not self._may_split(job, packing, start, num_left):
                packing.is_full = True
                return
            if slot is None and (slot := next(packing.slots, None)) is None:
                packing.is_full = True
                return
            tokens = prompt[start:] if is_whole else prompt[start : start + packing.num_left]
            packing.add(job, InputPiece(slot, start, tokens, is_last=is_whole))
            if not is_whole:
                return
            start, slot = 0, None

    def _may_split(self, job: _Job, packing: _Packing, start: int, num_left: int) -> bool:
        """May the rest of the step be filled with a part of this input? Not if a later step can take all of it."""
        if not (self._embedder.can_split and packing.num_left > 0 and (start or num_left > packing.budget)):
            return False
        ending = [other for other, _ in packing.entries]  # their memory is free after this step
        others = [other for other in self._partial if other is not job and other not in ending]
        held = sum(other.num_computed for other in others)
        if held + start + packing.num_left <= self._embedder.max_tokens:
            return True
        if job.request.priority is Priority.BATCH:
            return False
        for other in others:
            self._restart(other)
        return True

    def _apply(self, step: EmbedStep, vectors: Vectors) -> list[tuple[str, Embedded | Failed]]:
        rows = iter(vectors)
        failed = set()
        for job, piece in step.entries:
            if piece.is_last:
                job.vectors.append(next(rows))
                self._set_computed(job, 0, None)
                if not np.isfinite(job.vectors[-1]).all():
                    failed.add(job)
            else:
                self._set_computed(job, piece.start + len(piece.tokens), piece.slot)
        ended: list[tuple[str, Embedded | Failed]] = []
        for job in step.jobs:
            if job in failed:
                error = DecodeFailed("The model computed a vector with values that are not numbers.")
                ended.append((job.key[0], Failed.from_error(job.key[1], error)))
            elif job.is_done:
                ended.append((job.key[0], job.result()))
            else:
                continue
            self._remove(job)
        return ended

    def _on_failure(self, step: EmbedStep, error: Exception) -> list[tuple[str, Embedded | Failed]]:
        if not isinstance(error, EngineError):
            log_stderr(traceback.format_exc())
            error = EngineError(_FAILED)
        for job in [*self._partial, *step.jobs]:
            self._set_computed(job, 0, None)
        self._embedder.reset()
        if len(step.jobs) > 1:
            for job in step.jobs:
                job.is_alone = True
            return []
        (job,) = step.jobs
        self._remove(job)
        return [(job.key[0], Failed.from_error(job.key[1], error))]

    def _set_computed(self, job: _Job, num_computed: int, slot: int | None) -> None:
        job.num_computed, job.slot = num_computed, slot
        if slot is None and job in self._partial:
            self._partial.remove(job)
        elif slot is not None and job not in self._partial:
            self._partial.append(job)

    def _restart(self, job: _Job) -> None:
        """Free the memory of an input that is computed in part; it is computed again from its first token."""
        if job.slot is not None:
            self._embedder.clear(job.slot)
            self._set_computed(job, 0, None)

    def _remove(self, job: _Job) -> None:
        self._restart(job)
        del self._jobs[job.request.priority][job.key]


def _encode(prompt: TextPrompt | TokenPrompt, tokenizer: Tokenizer) -> list[int]:
    match prompt:
        case TextPrompt(text=text):
            tokens = tokenizer.encode(text, special=False, add_bos=True, add_end=True)
        case TokenPrompt(tokens=tokens):
            check_token_ids(tokens, tokenizer.num_vocab, param="input", advice=_SEND_TEXT)
    if not tokens:
        raise InvalidPrompt("An input is empty.", param="input")
    return list(tokens)
