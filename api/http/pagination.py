"""Pages of lists: OpenAI's cursors are the ids of objects."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol, TypeVar

from core.schemas.objects import ListObject


class Identified(Protocol):
    """An object with an id, which is its cursor."""

    @property
    def id(self) -> str:
        """Unique among its kind."""


_Item = TypeVar("_Item", bound=Identified)


def page(objects: Sequence[_Item], limit: int) -> ListObject[_Item]:
    """A page of at most `limit`, given one more than that if there is one."""
    shown = list(objects[:limit])
    return ListObject(
        data=shown,
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
        has_more=len(objects) > limit,
    )


def unix_seconds(moment: datetime | None) -> int | None:
    """Unix seconds, as OpenAI writes a time."""
    return None if moment is None else int(moment.timestamp())
