"""Text completions and embeddings as they are published. Workers write these shapes as bytes; tests hold the two together."""

from __future__ import annotations

from typing import Literal

from core.schemas.objects import ResponseModel, Usage


class CompletionLogprobs(ResponseModel):
    """Of each token, side by side; the first token of an echoed prompt follows nothing, and so has null."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(ResponseModel):
    """One answer; in a stream, more of it, with `finish_reason` null up to its last piece."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionObject(ResponseModel):
    """The answer to `POST /v1/completions`, and each event of its stream; there only the last has a usage, where asked for."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class EmbeddingObject(ResponseModel):
    """One vector, of length 1: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(ResponseModel):
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(ResponseModel):
    """The answer to `POST /v1/embeddings`: a vector for each input, in order."""

    object: Literal["list"]
    data: list[EmbeddingObject]
    model: str
    usage: EmbeddingUsage
