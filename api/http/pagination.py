"""Pages of lists: OpenAI's cursors are the ids of objects."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol, TypeVar

from core.errors import bad_request
from core.ids import has_prefix
from core.schemas.objects import ListObject


def check_cursor(after: str | None, prefix: str) -> None:
    """Raise the 400 of an `after` that is no id of this kind.

    No row is looked up: ids sort by time, so an id stays a valid place after its object was deleted.
    """
    if after is not None and not has_prefix(after, prefix):
        message = f"Invalid value for 'after': send the id of an object of this list, such as '{prefix}…'."
        raise bad_request(message, code="invalid_value", param="after")


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


def page_of_list(objects: Sequence[_Item], after: str | None, limit: int) -> ListObject[_Item]:
    """A page of a list that is here as a whole. Raises the 400 of an `after` that is not in it."""
    known = [each.id for each in objects]
    if after is not None and after not in known:
        raise bad_request(f"There is no item '{after[:64]}'.", code="invalid_value", param="after")
    start = 0 if after is None else known.index(after) + 1
    return page(objects[start : start + limit + 1], limit)


def unix_seconds(moment: datetime | None) -> int | None:
    """Unix seconds, as OpenAI writes a time."""
    return None if moment is None else int(moment.timestamp())
