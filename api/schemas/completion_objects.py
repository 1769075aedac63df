"""Schemas of text completions and embeddings for `/openapi.json`; tests compare the workers' output with them."""

from __future__ import annotations

from typing import Literal

from core.schemas.objects import ResponseModel, Usage


class CompletionLogprobs(ResponseModel):
    """Parallel lists with one entry per token; null for the first token of an echoed prompt, which nothing precedes."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(ResponseModel):
    """One choice; in a stream its next part, with `finish_reason` null except in the last."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length", "content_filter"] | None


class CompletionObject(ResponseModel):
    """The answer to `POST /v1/completions`, and each event of its stream; with `include_usage` the last event has `usage`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class EmbeddingObject(ResponseModel):
    """One vector of norm 1: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(ResponseModel):
    """Number of tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(ResponseModel):
    """The answer to `POST /v1/embeddings`: one vector per input, in order."""

    object: Literal["list"]
    data: list[EmbeddingObject]
    model: str
    usage: EmbeddingUsage
