"""Bit masks on logits, against a loop over the vocabulary."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.structured.bitmask import best_allowed, forbid

SIZES = (1, 31, 32, 33, 258, 1000, 4099)
DENSITIES = (0.0, 0.01, 0.5, 0.99, 1.0)


def make_mask(allowed: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Words of a mask, with random bits past the vocabulary."""
    words = np.full((len(allowed) + 31) // 32, -1, np.int32)
    for token, is_allowed in enumerate(allowed):
        if not is_allowed:
            words[token // 32] &= ~np.int32(np.uint32(1 << token % 32).view(np.int32))
    return words


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("density", DENSITIES)
def test_masks_do_what_a_loop_over_the_vocabulary_does(size: int, density: float) -> None:
    random = np.random.default_rng(size)
    for _ in range(20):
        logits = random.standard_normal(size).astype(np.float32)
        allowed = random.random(size) < density
        mask = make_mask(allowed)
        tokens = [token for token in range(size) if allowed[token]]
        if tokens:
            assert best_allowed(logits, mask) == max(tokens, key=lambda token: logits[token])
        else:
            with pytest.raises(ValueError, match="no token"):
                best_allowed(logits, mask)
        masked = logits.copy()
        forbid(masked, mask)
        assert [*masked] == [logit if ok else -np.inf for logit, ok in zip(logits, allowed, strict=True)]


def test_of_equal_logits_the_first_allowed_wins() -> None:
    logits = np.array([1, 3, 3, 3], np.float32)
    assert best_allowed(logits, make_mask(np.array([True, False, True, True]))) == 2


def test_a_forbidden_token_never_wins_where_all_allowed_ones_are_ruled_out() -> None:
    logits = np.array([5, -np.inf, 4, -np.inf], np.float32)
    assert best_allowed(logits, make_mask(np.array([False, True, False, True]))) == 1


def test_an_infinite_logit_survives_where_it_is_allowed() -> None:
    logits = np.array([np.inf, np.inf, 0], np.float32)
    forbid(logits, make_mask(np.array([False, True, True])))
    assert [*logits] == [-np.inf, np.inf, 0]


def test_a_row_of_many_is_masked_in_place_and_alone() -> None:
    rows = np.zeros((3, 40), np.float32)
    forbid(rows[1], make_mask(np.arange(40) == 33))
    assert np.isneginf(rows).sum() == 39
    assert rows[1, 33] == 0


def test_rows_may_be_masked_by_several_threads() -> None:
    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for size in random.integers(100, 5000, 200):
            logits = random.standard_normal(size).astype(np.float32)
            allowed = random.random(size) < 0.3
            allowed[0] = True
            best = best_allowed(logits, make_mask_fast(allowed))
            right.append(best == np.where(allowed, logits, -np.inf).argmax())

    right: list[bool] = []
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(right) == 800
    assert all(right)


def make_mask_fast(allowed: NDArray[np.bool_]) -> NDArray[np.int32]:
    padded = np.zeros((len(allowed) + 31) // 32 * 32, np.bool_)
    padded[: len(allowed)] = allowed
    return np.packbits(padded, bitorder="little").view(np.int32)
