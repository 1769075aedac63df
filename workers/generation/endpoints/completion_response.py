"""OpenAI's text completion, whole or as a stream of the same objects, as JSON bytes ready to send.

Source of the shapes: OpenAI's API description of completions.
"""

from __future__ import annotations

from typing import Final

import msgspec

from engine.types import Choice, Delta, Finished, TokenLogprob
from workers.generation.endpoints.base import ResponseHeader, usage_object

_encode = msgspec.json.Encoder().encode
_LEAST_LOGPROB: Final = -9999.0


def text_completion(head: ResponseHeader, finished: Finished, *, is_echo: bool) -> str:
    """The whole answer."""
    choices = [_choice(choice, is_echo=is_echo) for choice in finished.choices]
    return _encode({**_head(head), "choices": choices, "usage": usage_object(finished.usage)}).decode()


class CompletionFrames:
    """The frames of one request's stream: `more` with each delta, then `last`."""

    def __init__(self, head: ResponseHeader, *, is_echo: bool, include_usage: bool) -> None:
        self._head = _encode(_head(head))[:-1] + b',"choices":['
        self._tail = b'],"usage":null}' if include_usage else b"]}"
        self._include_usage = include_usage
        self._is_echo = is_echo
        self._logprobs: dict[int, LogprobWriter] = {}

    def more(self, delta: Delta) -> list[bytes]:
        """Some more of an answer."""
        logprobs = None
        if delta.logprobs:
            writer = self._logprobs.setdefault(delta.index, LogprobWriter(is_echo=self._is_echo))
            logprobs = writer.write(delta.logprobs)
        return [self._frame(delta.index, delta.text, logprobs=logprobs)]

    def last(self, finished: Finished) -> list[bytes]:
        """Why each answer ended, and what all of them used if the caller asked."""
        frames = [self._frame(choice.index, "", reason=choice.reason) for choice in finished.choices]
        if self._include_usage:
            frames.append(self._head + b'],"usage":' + _encode(usage_object(finished.usage)) + b"}")
        return frames

    def _frame(self, index: int, text: str, *, logprobs: object = None, reason: str | None = None) -> bytes:
        choice = {"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason}
        return self._head + _encode(choice) + self._tail


class LogprobWriter:
    """OpenAI's older logprobs of one answer, piece by piece; `text_offset` counts characters from where the text begins.

    A character of several tokens is where its first one is.
    """

    def __init__(self, *, is_echo: bool) -> None:
        self._follows_nothing = is_echo  # true of a prompt's first token, which so has no probability
        self._num_characters = 0

    def write(self, logprobs: list[TokenLogprob]) -> dict[str, object]:
        """Of the next tokens."""
        written: dict[str, list[object]] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
        for each in logprobs:
            written["text_offset"].append(self._offset(each.piece))
            written["tokens"].append(_text(each))
            written["token_logprobs"].append(None if self._follows_nothing else _number(each))
            written["top_logprobs"].append(None if self._follows_nothing else _top(each))
            self._follows_nothing = False
        return dict(written)

    def _offset(self, piece: bytes) -> int:
        begun = sum(byte & 0xC0 != 0x80 for byte in piece)  # bytes that begin a character of UTF-8
        goes_on = bool(piece) and piece[0] & 0xC0 == 0x80
        offset = max(self._num_characters - goes_on, 0)
        self._num_characters += begun
        return offset


def _head(head: ResponseHeader) -> dict[str, object]:
    return {
        "id": head.job_id,
        "object": "text_completion",
        "created": head.created,
        "model": head.model,
        "system_fingerprint": head.fingerprint,
    }


def _choice(choice: Choice, *, is_echo: bool) -> dict[str, object]:
    logprobs = None if choice.logprobs is None else LogprobWriter(is_echo=is_echo).write(choice.logprobs)
    return {"text": choice.text, "index": choice.index, "logprobs": logprobs, "finish_reason": choice.reason}


def _top(token: TokenLogprob) -> dict[str, float]:
    """The likeliest, and the chosen one if it is not among them."""
    likeliest = {_text(top): _number(top) for top in token.top}
    return {_text(token): _number(token)} | likeliest if _text(token) not in likeliest else likeliest


def _text(token: TokenLogprob) -> str:
    return token.piece.decode(errors="replace")


def _number(token: TokenLogprob) -> float:
    """JSON has no infinity: the least likely are as likely as OpenAI's."""
    return max(token.logprob, _LEAST_LOGPROB)
