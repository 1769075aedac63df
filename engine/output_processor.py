"""What the answers of running requests have become: text by sequence, and the one `Finished` of each request.

Knows text and messages. A request with several answers ends when the last of them has.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.outputs.output_stream import OutputDelta, OutputStream, merge_deltas
from engine.scheduler.sequence import Sequence
from engine.scheduler.step import SampleResult
from engine.tokenizer import Tokenizer
from engine.types import Choice, Delta, Finished, FinishReason, TokenLogprob, ToolCallDelta, Usage


@dataclass(slots=True)
class _Answer:
    """`logprobs` are of all its tokens but the one that ends it. `num_shown` of them went out with text; those of text that
    is held back go with it, or with the end.

    `pending_deltas` is what every answer begins with: it is shown with the first sampled token. Where `waits`, the answer is
    not streamed and no stop string can end it, so it becomes text once, at its end.
    """

    stream: OutputStream
    waits: bool
    pending_deltas: list[OutputDelta] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_shown: int = 0
    echo: str = ""


@dataclass(slots=True)
class _Request:
    """`num_open` answers are still being generated."""

    num_open: int
    choices: list[Choice] = field(default_factory=list)
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int | None = None


class OutputProcessor:
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
            stream = OutputStream(sequence.spec)
            waits = stream.is_plain and not (sequence.stream or sequence.spec.stop) and sequence.logprobs is None
            answer = self._answers[sequence] = _Answer(stream, waits)
            if sequence.echo:
                answer.echo = self._text(sequence.tokens[: sequence.num_prompt_tokens])
                answer.pending_deltas.append(OutputDelta(answer.echo))
            for token in sequence.tokens[sequence.num_prompt_tokens :] if not waits else ():
                answer.pending_deltas.append(stream.push(token, self._piece(token)))

    def knows(self, sequence: Sequence) -> bool:
        """Is it still being written?"""
        return sequence in self._answers

    def grow(
        self, sequence: Sequence, tokens: list[int], sampled: SampleResult
    ) -> tuple[Delta | None, FinishReason | None]:
        """Take new tokens; returns what may be shown of them, and why the answer ends if it does."""
        answer, reason = self._answers[sequence], sequence.finish_reason
        if answer.waits:
            return None, reason
        stream = answer.stream
        if not answer.logprobs:
            answer.logprobs += sequence.prompt_logprobs
        parts, answer.pending_deltas = answer.pending_deltas, []
        for number, token in enumerate(tokens):
            if sequence.ignore_eos or not self._is_end(token):
                parts.append(stream.push(token, self._piece(token)))
                answer.logprobs += sampled.logprobs[number : number + 1]
                if stream.is_stopped:
                    reason = FinishReason.STOP
                    break
        if reason is not None:
            parts.append(stream.finish())
            if reason is FinishReason.STOP and stream.tool_calls:
                reason = FinishReason.TOOL_CALLS
        part = parts[0] if len(parts) == 1 else merge_deltas(parts)
        is_owed = reason is not None and answer.num_shown < len(answer.logprobs)
        return self._delta(sequence, answer, part) if is_owed or not part.is_empty else None, reason

    def watch(self, sequence: Sequence) -> Delta | None:
        """Somebody begins to look: what may be shown of it by now, if anything. `grow` tells the rest."""
        answer = self._answers[sequence]
        stream, answer.pending_deltas = answer.stream, []
        if answer.waits:
            answer.waits = False
            stream.push_all(self._bytes(sequence))
        calls = [
            ToolCallDelta(index=index, id=call.id, name=call.name, arguments=call.arguments)
            for index, call in enumerate(stream.tool_calls)
        ]
        part = OutputDelta(answer.echo + stream.text, stream.reasoning, calls)
        answer.num_shown = 0
        return None if part.is_empty else self._delta(sequence, answer, part)

    def _text(self, tokens: list[int]) -> str:
        return b"".join(map(self._piece, tokens)).decode(errors="replace")

    def _bytes(self, sequence: Sequence) -> bytes:
        """Of the whole answer, but for the token that ended it."""
        tokens = sequence.tokens[sequence.num_prompt_tokens :]
        return b"".join(self._piece(token) for token in tokens if sequence.ignore_eos or not self._is_end(token))

    def _delta(self, sequence: Sequence, answer: _Answer, part: OutputDelta) -> Delta:
        logprobs = answer.logprobs[answer.num_shown :]
        answer.num_shown = len(answer.logprobs)
        return Delta(
            request_id=sequence.request_id,
            num_tokens=sequence.num_generated,
            index=sequence.index,
            text=part.content,
            reasoning=part.reasoning,
            tool_calls=part.tool_calls,
            logprobs=logprobs,
        )

    def finish(self, sequence: Sequence, reason: FinishReason) -> Finished | None:
        """An answer is over; returns the end of its request when it was the last one."""
        answer, request = self._answers.pop(sequence), self._requests[sequence.key]
        if answer.waits:
            answer.stream.push_all(self._bytes(sequence))
            answer.stream.finish()
        request.choices.append(
            Choice(
                reason=reason,
                text=answer.echo + answer.stream.text,
                index=sequence.index,
                reasoning=answer.stream.reasoning,
                tool_calls=answer.stream.tool_calls,
                logprobs=None if sequence.logprobs is None else answer.logprobs,
            )
        )
        request.completion_tokens += sequence.num_generated
        request.reasoning_tokens += answer.stream.num_reasoning_tokens
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
