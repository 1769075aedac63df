"""Text completions, whole or as a stream of the same objects, as JSON bytes ready to send."""

from __future__ import annotations

import msgspec

from core.schemas.chunks import TEXT_COMPLETION, ChunkEncoder, text_choice
from engine.types import Choice, Delta, Finished, TokenLogprob
from workers.generation.endpoints.base import ResponseHeader, StreamEncoder, to_usage
from workers.generation.endpoints.chat_response import MIN_LOGPROB

_encode = msgspec.json.Encoder().encode


def text_completion(header: ResponseHeader, finished: Finished, *, is_echo: bool) -> str:
    """The whole answer."""
    choices = [_choice(choice, is_echo=is_echo) for choice in finished.choices]
    return _encode({**header.fields(TEXT_COMPLETION), "choices": choices, "usage": to_usage(finished.usage)}).decode()


class CompletionStreamEncoder(StreamEncoder):
    """Chunks of one request's stream."""

    def __init__(self, header: ResponseHeader, *, is_echo: bool, include_usage: bool) -> None:
        self._chunks = ChunkEncoder(header.fields(TEXT_COMPLETION), include_usage=include_usage)
        self._is_echo = is_echo
        self._logprobs: dict[int, LogprobWriter] = {}

    def encode_delta(self, delta: Delta) -> list[bytes]:
        logprobs = None
        if delta.logprobs:
            writer = self._logprobs.setdefault(delta.index, LogprobWriter(is_echo=self._is_echo))
            logprobs = writer.write(delta.logprobs)
        return [self._chunks.chunk(text_choice(delta.index, delta.text, logprobs=logprobs))]

    def encode_end(self, finished: Finished) -> list[bytes]:
        ends = [text_choice(choice.index, "", finish_reason=choice.reason) for choice in finished.choices]
        return [self._chunks.chunk(end) for end in ends] + self._chunks.usage_chunks(to_usage(finished.usage))


class LogprobWriter:
    """OpenAI's older logprobs of one answer, a few tokens at a time.

    `text_offset` counts characters from the beginning of the text, in which control tokens are not. Each token of a character
    that several tokens share has the offset of that character.
    """

    def __init__(self, *, is_echo: bool) -> None:
        self._is_prompt_start = is_echo  # the first token of a prompt follows nothing, so it has no probability
        self._num_characters = 0

    def write(self, logprobs: list[TokenLogprob]) -> dict[str, object]:
        """The logprobs of the next tokens."""
        written: dict[str, list[object]] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
        for each in logprobs:
            written["text_offset"].append(self._offset(b"" if each.is_hidden else each.piece))
            written["tokens"].append(_text(each))
            written["token_logprobs"].append(None if self._is_prompt_start else _number(each))
            written["top_logprobs"].append(None if self._is_prompt_start else _top(each))
            self._is_prompt_start = False
        return dict(written)

    def _offset(self, piece: bytes) -> int:
        num_starts = sum(byte & 0xC0 != 0x80 for byte in piece)  # bytes that begin a character of UTF-8
        is_continuation = bool(piece) and piece[0] & 0xC0 == 0x80
        offset = max(self._num_characters - is_continuation, 0)
        self._num_characters += num_starts
        return offset


def _choice(choice: Choice, *, is_echo: bool) -> dict[str, object]:
    logprobs = None if choice.logprobs is None else LogprobWriter(is_echo=is_echo).write(choice.logprobs)
    return {"text": choice.text, "index": choice.index, "logprobs": logprobs, "finish_reason": choice.reason}


def _top(token: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens, and the chosen one if it is not among them."""
    likeliest = {_text(top): _number(top) for top in token.top}
    return {_text(token): _number(token)} | likeliest if _text(token) not in likeliest else likeliest


def _text(token: TokenLogprob) -> str:
    return token.piece.decode(errors="replace")


def _number(token: TokenLogprob) -> float:
    return max(token.logprob, MIN_LOGPROB)
