"""Routing: keys of a model file that send requests to other models, and the choice between models that share an alias."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Final, Protocol, TypeVar

from pydantic import BaseModel, Field, field_validator

_DIGEST_BYTES: Final = 8


class RoutingFields(BaseModel):
    """Other models for a chat that this one cannot answer, and its part of the requests for a shared alias."""

    fallback: tuple[str, ...] = Field(
        (),
        description="Models that answer a chat while this one cannot, in order; each may have a fallback of its own.",
    )
    weight: float | None = Field(
        None,
        gt=0,
        le=1_000_000,
        description="Part of the requests for an alias that other files have too, each with a weight.",
    )

    @field_validator("fallback", mode="before")
    @classmethod
    def _names_are_listed(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class Sharer(Protocol):
    """The parts of a model that the choice looks at."""

    @property
    def name(self) -> str:
        """Name of the model."""

    @property
    def aliases(self) -> tuple[str, ...]:
        """Its other names."""

    @property
    def weight(self) -> float | None:
        """Its part of the requests."""


SharerT = TypeVar("SharerT", bound=Sharer)


def check_fallback(name: str, aliases: Sequence[str], fallback: Sequence[str]) -> None:
    """Raise ValueError for a fallback to the model itself, or one that is named twice."""
    if own := next((each for each in fallback if each in (name, *aliases)), None):
        raise ValueError(f"fallback: {own} is this model itself; name others")
    if len(set(fallback)) < len(fallback):
        raise ValueError("fallback: names a model twice")


def may_share(name: str, models: Sequence[Sharer]) -> bool:
    """May these models have a name in common? They may if it is an alias of each, and each has a weight."""
    return all(model.weight is not None and model.name != name for model in models)


def ranked(models: Sequence[SharerT], key: str) -> list[SharerT]:
    """Order models by their turn for a key: each comes first for its part of all keys, and always for the same ones.

    Weighted rendezvous hashing: the largest of weight / -ln(draw), where the draw is a hash of the key and the name. When a
    model is left out, only its own keys go to others. (Schindelhauer and Schomaker, Weighted distributed hash tables, 2005.)
    """
    return sorted(models, key=lambda model: _score(model, key), reverse=True)


def _score(model: Sharer, key: str) -> float:
    digest = hashlib.blake2b(f"{model.name}\0{key}".encode(), digest_size=_DIGEST_BYTES).digest()
    draw = (int.from_bytes(digest, "big") + 1) / (256**_DIGEST_BYTES + 1)
    return -(model.weight or 1.0) / math.log(draw)
