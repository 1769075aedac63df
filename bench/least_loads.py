"""The least number of loads that serves requests in a given order: the model leaves that is needed last (Belady, 1966)."""

from __future__ import annotations

from collections.abc import Sequence


def least_loads(order: Sequence[str], places: int) -> int:
    """Count the loads for requests of these models, with room for so many of equal size and none at the start."""
    resident: set[str] = set()
    loads = 0
    for place, name in enumerate(order):
        if name in resident:
            continue
        loads += 1
        if len(resident) == places:
            rest = list(order[place:])
            resident.remove(max(resident, key=lambda each: rest.index(each) if each in rest else len(rest)))
        resident.add(name)
    return loads
