"""Embedding queue: turns the inputs of requests into vectors of length 1, cut to the requested dimensions.

Vectors are float32 of shape (inputs, dimensions).
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from engine.backends.base import Embedder
from engine.backends.vectors import Vectors, shortened
from engine.errors import EngineError, InvalidPrompt, PromptTooLong
from engine.log import log_stderr
from engine.tokenizer import Tokenizer, check_token_ids
from engine.types import Embedded, EmbedRequest, Failed, Priority, RequestKey, TextPrompt, TokenPrompt, Usage

_CHUNK: Final = 32


def encode_inputs(request: EmbedRequest, tokenizer: Tokenizer, max_tokens: int) -> list[list[int]]:
    """Encode each input, with the tokens that the model adds around a text; may be called from any thread.

    Raises InvalidPrompt, and PromptTooLong for an input of more than `max_tokens`, before any vector is computed.
    """
    prompts = [_encode(prompt, tokenizer) for prompt in request.inputs]
    if (longest := max(map(len, prompts), default=0)) > max_tokens:
        message = f"An input has {longest} tokens, and this model embeds {max_tokens} at most."
        raise PromptTooLong(message, param="input")
    return prompts


@dataclass(slots=True, eq=False)
class _Job:
    client: str
    request: EmbedRequest
    prompts: list[list[int]]
    parts: list[Vectors] = field(default_factory=list)

    @property
    def num_done(self) -> int:
        return sum(map(len, self.parts))


class EmbeddingQueue:
    """Embedding requests, computed a few prompts at a time so that generation is delayed by no more than that."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._jobs: list[_Job] = []

    def add(self, client: str, request: EmbedRequest, prompts: list[list[int]]) -> None:
        """Queue a request with encoded inputs: chat before batch, each in order of arrival."""
        is_urgent = request.priority is Priority.CHAT
        overtaken = [
            job for job in self._jobs if is_urgent and job.request.priority is Priority.BATCH and not job.parts
        ]
        index = self._jobs.index(overtaken[0]) if overtaken else len(self._jobs)
        self._jobs.insert(index, _Job(client, request, prompts))

    def cancel(self, client: str, request_ids: list[str] | None) -> list[str]:
        """Remove requests of a client, all of them for None; return the ids of the removed ones."""
        cancelled = [
            job for job in self._jobs if job.client == client and (request_ids is None or job.request.id in request_ids)
        ]
        for job in cancelled:
            self._jobs.remove(job)
        return [job.request.id for job in cancelled]

    @property
    def next_key(self) -> RequestKey | None:
        """Client and id of the first request; None when the queue is empty."""
        return (self._jobs[0].client, self._jobs[0].request.id) if self._jobs else None

    def run_chunk(self) -> Embedded | Failed | None:
        """Compute a chunk of the first request, which must exist; return its result when it ends, else None."""
        job = self._jobs[0]
        ended: Embedded | Failed | None
        try:
            ended = self._advance(job)
        except MemoryError:
            raise
        except EngineError as error:
            ended = Failed.from_error(job.request.id, error)
        except Exception:  # otherwise the request would stay first, and fail every iteration of the loop
            log_stderr(traceback.format_exc())
            ended = Failed.from_error(job.request.id, EngineError())
        if ended is not None:
            self._jobs.remove(job)
        return ended

    def _advance(self, job: _Job) -> Embedded | None:
        dimensions = job.request.dimensions
        if dimensions is not None and not 1 <= dimensions <= self._embedder.dimensions:
            most = self._embedder.dimensions
            raise InvalidPrompt(f"dimensions must be from 1 to {most} for this model.", param="dimensions")
        done = job.num_done
        job.parts.append(self._embedder.embed(job.prompts[done : done + _CHUNK]))
        if job.num_done < len(job.prompts):
            return None
        vectors = shortened(np.concatenate(job.parts), dimensions)
        return Embedded(
            request_id=job.request.id,
            vectors=[vector.astype("<f4").tobytes() for vector in vectors],
            usage=Usage(prompt_tokens=sum(map(len, job.prompts)), completion_tokens=0),
        )


def _encode(prompt: TextPrompt | TokenPrompt, tokenizer: Tokenizer) -> list[int]:
    match prompt:
        case TextPrompt(text=text):
            tokens = tokenizer.encode(text, special=False, add_bos=True)
        case TokenPrompt(tokens=tokens):
            check_token_ids(tokens, tokenizer.num_vocab, param="input")
    if not tokens:
        raise InvalidPrompt("An input is empty.", param="input")
    return list(tokens)
