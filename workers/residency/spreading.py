"""Spreading: how many devices may have a model in memory for its batches."""

from __future__ import annotations


def most_engines(shards: int, lanes: int, replicas: int | None) -> int:
    """Return the number of engines that have enough to do: `shards` left to be taken fill the `lanes` of each.

    It is at least 1, and at most the `replicas` of the model; None is no limit.
    """
    most = max(1, shards // lanes)
    return most if replicas is None else min(most, replicas)
