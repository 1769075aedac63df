"""What the answers of running requests have become: text by sequence, and the one `Finished` of each request.

Knows text and messages. A request with several answers ends when the last of them has.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.backend import Tokenizer
from engine.messages import Choice, Delta, Finished, FinishReason, TokenLogprob, Usage
from engine.plan import Sampled
from engine.sequence import Sequence
from engine.text import TextStream


@dataclass(slots=True)
class _Answer:
    stream: TextStream
    logprobs: list[TokenLogprob] = field(default_factory=list)


@dataclass(slots=True)
class _Request:
    """`num_open` answers are still being generated."""

    num_open: int
    choices: list[Choice] = field(default_factory=list)
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int | None = None


class Answers:
    """The answers of one engine. Used by the loop's thread only."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._piece = tokenizer.piece
        self._is_end = tokenizer.is_end
        self._answers: dict[Sequence, _Answer] = {}
        self._requests: dict[tuple[str, str], _Request] = {}

    def begin(self, sequences: list[Sequence]) -> None:
        """A request came, with a sequence for each answer."""
        self._requests[sequences[0].key] = _Request(len(sequences))
        for sequence in sequences:
            self._answers[sequence] = _Answer(TextStream(sequence.stop))

    def grow(self, sequence: Sequence, tokens: list[int], sampled: Sampled) -> tuple[Delta | None, FinishReason | None]:
        """Take new tokens; returns what may be shown of them, and why the answer ends if it does."""
        answer, reason = self._answers[sequence], sequence.finish_reason
        text = answer.stream
        answer.logprobs += sampled.logprobs
        shown = ""
        for token in tokens:
            if sequence.ignore_eos or not self._is_end(token):
                shown += text.push(self._piece(token))
                if text.is_stopped:
                    reason = FinishReason.STOP
                    break
        if reason is not None:
            shown += text.finish()
        if not shown:
            return None, reason
        delta = Delta(
            request_id=sequence.request_id, num_tokens=sequence.num_generated, index=sequence.index, text=shown
        )
        return delta, reason

    def finish(self, sequence: Sequence, reason: FinishReason) -> Finished | None:
        """An answer is over; returns the end of its request when it was the last one."""
        answer, request = self._answers.pop(sequence), self._requests[sequence.key]
        request.choices.append(
            Choice(
                reason=reason,
                text=answer.stream.text,
                index=sequence.index,
                logprobs=None if sequence.logprobs is None else answer.logprobs,
            )
        )
        request.completion_tokens += sequence.num_generated
        if sequence.index == 0:
            request.cached_tokens = sequence.num_cached
        request.num_open -= 1
        if request.num_open:
            return None
        del self._requests[sequence.key]
        return Finished(
            request_id=sequence.request_id,
            choices=sorted(request.choices, key=lambda choice: choice.index),
            usage=Usage(
                prompt_tokens=sequence.num_prompt_tokens,
                completion_tokens=request.completion_tokens,
                cached_tokens=request.cached_tokens or 0,
                reasoning_tokens=request.reasoning_tokens,
            ),
        )

    def forget(self, sequence: Sequence) -> None:
        """Nobody wants to know any more."""
        self._answers.pop(sequence, None)
        self._requests.pop(sequence.key, None)
