"""Output processing: tokens of sequences become text, deltas and the one `Finished` of each request.

A request with several choices ends when its last choice ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from engine.outputs.detokenizer import plain_text
from engine.outputs.output_stream import OutputDelta, OutputStream, merge_deltas
from engine.scheduler.sequence import Sequence
from engine.scheduler.step import SampleResult
from engine.tokenizer import Tokenizer
from engine.types import Choice, Delta, Finished, FinishReason, RequestKey, TokenLogprob, ToolCallDelta, Usage


@dataclass(slots=True)
class _Output:
    """The output of one sequence.

    `logprobs` cover all tokens except the one that ends the output. `num_logprobs_sent` of them were sent with text; the
    logprobs of held-back text are sent with that text, or at the end.

    `pending_deltas` begin every output and are sent with the first sampled token. An output without a `stream` is plain text
    that is not streamed and cannot be ended by a stop string, so its tokens become text once, at the end.
    """

    stream: OutputStream | None
    pending_deltas: list[OutputDelta] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_logprobs_sent: int = 0
    echoed_text: str = ""
    first_token_at: float | None = None


@dataclass(slots=True)
class _RequestOutputs:
    """`num_open` sequences of the request still generate. It arrived at `began`; times are those of the clock."""

    num_open: int
    began: float
    first_token_at: float | None = None
    choices: list[Choice] = field(default_factory=list)
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int | None = None


class OutputProcessor:
    """The outputs of one engine. Only the thread of the loop uses it.

    `silent` are the sequences of which nothing is sent, and nothing to do, until they end.
    """

    def __init__(self, tokenizer: Tokenizer, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._piece = tokenizer.piece
        self._adds_space = tokenizer.adds_space
        self._is_end = tokenizer.is_end
        self._outputs: dict[Sequence, _Output] = {}
        self._requests: dict[RequestKey, _RequestOutputs] = {}
        self.silent: set[Sequence] = set()

    def add_request(self, sequences: list[Sequence]) -> None:
        """Start the outputs of a request: one for each of its sequences."""
        self._requests[sequences[0].key] = _RequestOutputs(len(sequences), self._clock())
        for sequence in sequences:
            spec = sequence.spec
            is_deferred = spec.is_plain and not (sequence.stream or spec.stop) and sequence.logprobs is None
            stream = None if is_deferred else OutputStream(spec)
            output = self._outputs[sequence] = _Output(stream)
            if sequence.echo:
                output.echoed_text = self._text(sequence.tokens[: sequence.num_prompt_tokens])
                output.pending_deltas.append(OutputDelta(output.echoed_text))
            if stream is not None:
                forced = sequence.tokens[sequence.num_prompt_tokens :]
                output.pending_deltas += [stream.push(token, self._piece(token)) for token in forced]

    def is_active(self, sequence: Sequence) -> bool:
        """Is this sequence still generating?"""
        return sequence in self._outputs

    def append_tokens(
        self, sequence: Sequence, tokens: list[int], sampled: SampleResult
    ) -> tuple[Delta | None, FinishReason | None]:
        """Add new tokens; return the delta to send and the reason why the output ends, None for neither."""
        output, reason = self._outputs[sequence], sequence.finish_reason
        if output.first_token_at is None and tokens:
            output.first_token_at = self._clock()
        stream = output.stream
        if stream is None:
            if tokens:
                self.silent.add(sequence)
            return None, reason
        if not output.logprobs:
            output.logprobs += self._without_added_space(sequence.prompt_logprobs)
        parts, output.pending_deltas = output.pending_deltas, []
        for number, token in enumerate(tokens):
            if sequence.ignore_eos or not self._is_end(token):
                parts.append(stream.push(token, self._piece(token)))
                output.logprobs += sampled.logprobs[number : number + 1]
                if stream.is_stopped:
                    reason = FinishReason.STOP
                    break
        if reason is not None:
            parts.append(stream.finish())
            if reason is FinishReason.STOP and stream.tool_calls:
                reason = FinishReason.TOOL_CALLS
        if not sequence.stream:
            return None, reason
        part = parts[0] if len(parts) == 1 else merge_deltas(parts)
        has_unsent_logprobs = reason is not None and output.num_logprobs_sent < len(output.logprobs)
        return self._delta(sequence, output, part) if has_unsent_logprobs or not part.is_empty else None, reason

    def start_streaming(self, sequence: Sequence) -> Delta | None:
        """Return everything generated so far as one delta; None if there is nothing. `append_tokens` returns the rest."""
        output = self._outputs[sequence]
        stream, output.pending_deltas = output.stream, []
        if stream is None:
            stream = output.stream = OutputStream(sequence.spec)
            self.silent.discard(sequence)
            stream.push_all(self._bytes(sequence))
        calls = [
            ToolCallDelta(index=index, id=call.id, name=call.name, arguments=call.arguments)
            for index, call in enumerate(stream.tool_calls)
        ]
        part = OutputDelta(output.echoed_text + stream.text, stream.reasoning, calls)
        output.num_logprobs_sent = 0
        return None if part.is_empty else self._delta(sequence, output, part)

    def _text(self, prompt: list[int]) -> str:
        """Text of a prompt, without the space that its encoding added."""
        text = b"".join(map(self._piece, prompt)).decode(errors="replace")
        return text.removeprefix(" ") if self._adds_space else text

    def _without_added_space(self, prompt: list[TokenLogprob]) -> list[TokenLogprob]:
        first = next((index for index, token in enumerate(prompt) if not token.is_hidden), None)
        if first is None or not self._adds_space:
            return prompt
        piece = prompt[first].piece.removeprefix(b" ")
        return [*prompt[:first], msgspec.structs.replace(prompt[first], piece=piece), *prompt[first + 1 :]]

    def _bytes(self, sequence: Sequence) -> bytes:
        """Bytes of the whole output, without the token that ends it."""
        tokens = sequence.tokens[sequence.num_prompt_tokens :]
        if not sequence.ignore_eos:
            tokens = [token for token in tokens if not self._is_end(token)]
        return b"".join(map(self._piece, tokens))

    def _delta(self, sequence: Sequence, output: _Output, part: OutputDelta) -> Delta:
        logprobs = output.logprobs[output.num_logprobs_sent :]
        output.num_logprobs_sent = len(output.logprobs)
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
        """End an output; return the `Finished` of its request if this output was the last one."""
        output, request = self._outputs.pop(sequence), self._requests[sequence.key]
        self.silent.discard(sequence)
        if (stream := output.stream) is None:
            text = plain_text(self._bytes(sequence))
            choice = Choice(reason=reason, text=output.echoed_text + text, index=sequence.index)
        else:
            choice = Choice(
                reason=reason,
                text=output.echoed_text + stream.text,
                index=sequence.index,
                reasoning=stream.reasoning,
                tool_calls=stream.tool_calls,
                logprobs=None if sequence.logprobs is None else output.logprobs,
            )
            request.reasoning_tokens += stream.num_reasoning_tokens
        request.choices.append(choice)
        request.completion_tokens += sequence.num_generated
        if sequence.index == 0:
            request.cached_tokens = sequence.num_cached
        times = (request.first_token_at, output.first_token_at)
        request.first_token_at = min((each for each in times if each is not None), default=None)
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
            first_token_seconds=None if request.first_token_at is None else request.first_token_at - request.began,
        )

    def discard(self, sequence: Sequence) -> None:
        """Drop the output of a sequence, and its request, without a result."""
        self._outputs.pop(sequence, None)
        self.silent.discard(sequence)
        self._requests.pop(sequence.key, None)
