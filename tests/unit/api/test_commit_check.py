"""A commit whose reply was lost is looked up before its error is reported."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError

from api.writes.commit_check import create_or_find

LOST = OperationalError("COMMIT", {}, Exception("connection reset"))


async def lose_reply() -> str:
    raise LOST


@pytest.mark.parametrize("num_misses", [0, 1, 3])
async def test_an_object_whose_commit_was_on_its_way_is_found(num_misses: int) -> None:
    found = [*[None] * num_misses, "the object"]

    async def find() -> str | None:
        return found.pop(0)

    assert await create_or_find(lose_reply, find) == "the object"
    assert found == []


async def test_an_object_that_does_not_appear_is_the_error_of_its_commit() -> None:
    async def find() -> None:
        return None

    with pytest.raises(OperationalError) as raised:
        await create_or_find(lose_reply, find)
    assert raised.value is LOST


async def test_a_lookup_that_fails_too_ends_the_wait() -> None:
    lookups = 0

    async def find() -> None:
        nonlocal lookups
        lookups += 1
        raise OperationalError("SELECT", {}, Exception("connection refused"))

    with pytest.raises(OperationalError):
        await create_or_find(lose_reply, find)
    assert lookups == 1


async def test_an_error_that_is_not_transient_is_not_looked_up() -> None:
    async def refuse() -> str:
        raise IntegrityError("INSERT", {}, Exception("duplicate key"))

    async def find() -> str:
        raise AssertionError("not needed")

    with pytest.raises(IntegrityError):
        await create_or_find(refuse, find)
