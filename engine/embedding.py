"""Embeddings: from a request's inputs to vectors of length 1, cut to the dimensions that were asked for.

Knows token ids and vectors; how they are computed is behind `Embedder`. Vectors are float32, (inputs, dimensions).
"""

from __future__ import annotations

from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.backend import Tokenizer
from engine.errors import InvalidPrompt
from engine.messages import Embedded, EmbedRequest, TextPrompt, TokenPrompt, Usage

Vectors = NDArray[np.float32]
_TINY: Final = np.float32(1e-12)


class Embedder(Protocol):
    """Computes vectors. Used by the loop's thread only."""

    @property
    def dimensions(self) -> int:
        """Numbers of a vector."""

    @property
    def max_tokens(self) -> int:
        """The longest prompt."""

    def embed(self, prompts: list[list[int]]) -> Vectors:
        """(prompts, dimensions), each of length 1. Raises PromptTooLong before anything is computed, or DecodeFailed."""


def encode_inputs(request: EmbedRequest, tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of each input, with the marks the model puts around a text; raises InvalidPrompt. Any thread may call it."""
    return [_encode(prompt, tokenizer) for prompt in request.inputs]


def answer(request: EmbedRequest, prompts: list[list[int]], embedder: Embedder) -> Embedded:
    """Compute a request whose inputs are encoded; raises an EngineError that says what is wrong with it."""
    if request.dimensions is not None and not 1 <= request.dimensions <= embedder.dimensions:
        raise InvalidPrompt(f"dimensions must be from 1 to {embedder.dimensions} for this model.", param="dimensions")
    vectors = shortened(embedder.embed(prompts), request.dimensions)
    return Embedded(
        request_id=request.id,
        vectors=[vector.astype("<f4").tobytes() for vector in vectors],
        usage=Usage(prompt_tokens=sum(map(len, prompts)), completion_tokens=0),
    )


def normalised(vectors: Vectors) -> Vectors:
    """Each vector at length 1; one of nothing but zeros stays as it is."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, _TINY), np.float32)


def shortened(vectors: Vectors, dimensions: int | None) -> Vectors:
    """The first `dimensions` numbers of each vector, at length 1 again; None keeps all."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    return normalised(vectors[:, :dimensions])


def _encode(prompt: TextPrompt | TokenPrompt, tokenizer: Tokenizer) -> list[int]:
    match prompt:
        case TextPrompt(text=text):
            tokens = tokenizer.encode(text, special=False, add_bos=True)
        case TokenPrompt(tokens=tokens):
            if any(not 0 <= token < tokenizer.num_vocab for token in tokens):
                raise InvalidPrompt(f"Token ids must be from 0 to {tokenizer.num_vocab - 1}.", param="input")
    if not tokens:
        raise InvalidPrompt("An input is empty.", param="input")
    return list(tokens)
