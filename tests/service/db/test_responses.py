"""Stored responses: their tenant, and the ones they go on from."""

from __future__ import annotations

from sqlalchemy import Connection, text

from db import responses
from db.tables import DEFAULT_TENANT
from tests.support.rows import make_job


def keep(connection: Connection, name: str, previous: str | None = None, tenant: str = DEFAULT_TENANT) -> str:
    """Insert a response; returns the id of its job."""
    job_id = make_job(connection)
    connection.execute(
        responses.insert_response(
            response_id=name,
            tenant_id=tenant,
            job_id=job_id,
            previous_id=previous,
            model="fake",
            request="{}",
            input_items="[]",
        )
    )
    return job_id


def turns(connection: Connection, name: str, tenant: str = DEFAULT_TENANT) -> list[str]:
    return [row.id for row in responses.conversation(name, tenant).fetch_all(connection)]


def test_a_conversation_is_read_from_its_beginning_whatever_the_ids(connection: Connection) -> None:
    keep(connection, "z")
    keep(connection, "a", "z")
    keep(connection, "m", "a")
    keep(connection, "other", "z")
    assert turns(connection, "m") == ["z", "a", "m"]
    assert turns(connection, "z") == ["z"]


def test_a_foreign_response_is_not_found_nor_gone_on_from(connection: Connection) -> None:
    keep(connection, "theirs", tenant="b")
    keep(connection, "mine", "theirs")
    assert responses.find_response("theirs", DEFAULT_TENANT).fetch_optional(connection) is None
    assert turns(connection, "theirs") == []
    assert turns(connection, "mine") == ["mine"]
    connection.execute(responses.delete_response("theirs", DEFAULT_TENANT))
    assert responses.find_response("theirs", "b").fetch_one(connection).state == "queued"


def test_a_response_and_its_job_go_together(connection: Connection) -> None:
    first, second = keep(connection, "first"), keep(connection, "second")
    connection.execute(responses.delete_response("first", DEFAULT_TENANT))
    assert connection.execute(text("SELECT id FROM jobs")).scalars().all() == [second]
    connection.execute(text("DELETE FROM jobs"))
    assert responses.find_response("second", DEFAULT_TENANT).fetch_optional(connection) is None
    assert first != second


def test_a_circle_of_responses_has_an_end(connection: Connection) -> None:
    keep(connection, "x", "y")
    keep(connection, "y", "x")
    assert len(turns(connection, "x")) == responses.MAX_TURNS + 1
