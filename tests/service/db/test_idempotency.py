"""Idempotency keys: claims, and takeovers after a holder died."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Connection

from db import idempotency
from db.tables import DEFAULT_TENANT, Tenant


def claim(
    connection: Connection, object_id: str, *, seconds: float = 60, body: str = "a", tenant: str = DEFAULT_TENANT
) -> str | None:
    """Claim the key, and return the id of its object."""
    statement = idempotency.claim_key(
        tenant, "key", fingerprint=body, object_id=object_id, lock=timedelta(seconds=seconds)
    )
    claimed: str | None = connection.execute(statement).scalar_one_or_none()
    return claimed


def test_a_key_is_held_by_one(connection: Connection) -> None:
    assert claim(connection, "first") == "first"
    assert claim(connection, "second") is None


def test_a_key_whose_holder_died_is_taken_over_with_its_object(connection: Connection) -> None:
    assert claim(connection, "first", seconds=0) == "first"
    assert claim(connection, "second") == "first"
    assert claim(connection, "third") is None


def test_a_key_whose_holder_died_is_not_taken_for_another_request(connection: Connection) -> None:
    claim(connection, "first", seconds=0)
    assert claim(connection, "second", body="b") is None


def test_a_key_that_made_its_object_is_never_taken_again(connection: Connection) -> None:
    claim(connection, "first", seconds=0)
    connection.execute(idempotency.finish_key(DEFAULT_TENANT, "key"))
    connection.execute(idempotency.unlock_key(DEFAULT_TENANT, "key"))
    connection.execute(idempotency.release_key(DEFAULT_TENANT, "key"))
    assert claim(connection, "second") is None
    assert idempotency.find_key(DEFAULT_TENANT, "key").fetch_one(connection).object_id == "first"


def test_a_released_key_is_as_if_never_used(connection: Connection) -> None:
    claim(connection, "first")
    connection.execute(idempotency.release_key(DEFAULT_TENANT, "key"))
    assert claim(connection, "second", body="b") == "second"


def test_tenants_do_not_share_keys(connection: Connection) -> None:
    connection.execute(Tenant.__table__.insert().values(id="other"))  # type: ignore[attr-defined]
    assert claim(connection, "first") == "first"
    assert claim(connection, "second", body="b", tenant="other") == "second"
