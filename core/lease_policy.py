"""Rules of leases: how long a holder may trust one, and when lost ones make a row suspect."""

from __future__ import annotations

from typing import Final

LOST_LEASES: Final = 3  # leases of a row that may be lost before its lines are suspected of it


def trust_seconds(lease_seconds: float) -> float:
    """Return how long a holder may begin new work after a renewal *began*: shorter than the lease, by its own clock."""
    return max(lease_seconds * 0.75, lease_seconds - 15)


def is_suspicious(attempt: int) -> bool:
    """Has a row lost so many leases that it may be the cause? `attempt` counts the present claim."""
    return attempt > LOST_LEASES
