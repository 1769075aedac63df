"""Numbers of examples for slow properties: few in every run, thousands with `pytest --hypothesis-profile thorough`."""

from __future__ import annotations

from typing import Final

from hypothesis import settings

_THOROUGH: Final = 3000
settings.register_profile("thorough", max_examples=_THOROUGH)


def examples(usually: int) -> int:
    """Return the number for `max_examples`."""
    return _THOROUGH if settings().max_examples == _THOROUGH else usually
