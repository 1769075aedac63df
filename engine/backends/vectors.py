"""Embedding vectors: float32 of shape (inputs, dimensions), scaled to length 1."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
_TINY: Final = np.float32(1e-12)


def normalised(vectors: Vectors) -> Vectors:
    """Scale each vector to length 1; a vector of zeros stays as it is."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, _TINY), np.float32)


def shortened(vectors: Vectors, dimensions: int | None) -> Vectors:
    """Keep the first `dimensions` numbers of each vector and scale to length 1 again; None keeps all."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    return normalised(vectors[:, :dimensions])
