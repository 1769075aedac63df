"""Rows of logits of every shape that a sampler meets, as a vocabulary of `size` tokens has them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rows_of(size: int) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(size)
    usual = (random.standard_normal(size) * 4.5 - 4).astype(np.float32)
    late = usual.copy()
    late[-2] = usual.max() + 3
    last = usual.copy()
    last[-2] = usual.max() + 13
    few = np.full(size, -np.inf, np.float32)
    few[[3, size // 2, size - 1]] = [1.0, 2.0, 0.5]
    return {
        "usual": usual,
        "best at the end": late,
        "peaked at the end": last,
        "best at the start": late[::-1].copy(),
        "peaked": np.where(np.arange(size) == size // 3, usual.max() + 20, usual).astype(np.float32),
        "flat": np.zeros(size, np.float32),
        "many ties": np.round(usual * 2).astype(np.float32),
        "nearly flat": (usual / 1000).astype(np.float32),
        "half forbidden": np.where(random.random(size) < 0.5, -np.inf, usual).astype(np.float32),
        "three allowed": few,
        "large": (usual * 1000).astype(np.float32),
        "ascending": np.sort(usual),
    }
