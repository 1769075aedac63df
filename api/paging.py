"""Pages of lists: OpenAI's cursors are the ids of objects."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from core.wire.objects import ListObject


def page(objects: Sequence[Any], limit: int) -> ListObject:  # Any: wire objects of one kind
    """A page of at most `limit`, given one more than that if there is one."""
    shown = list(objects[:limit])
    return ListObject(
        data=shown,
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
        has_more=len(objects) > limit,
    )


def unix_seconds(moment: datetime | None) -> int | None:
    """A time as OpenAI writes it."""
    return None if moment is None else int(moment.timestamp())
