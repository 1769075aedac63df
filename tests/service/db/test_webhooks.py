"""Statements on webhook endpoints: of one tenant, and without secrets."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from db import webhooks
from db.query import Query
from db.tables import DEFAULT_TENANT

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def webhook_id(connection: Connection) -> str:
    columns = {"id": "we_1", "name": "n", "url": "https://x/", "secret": SECRET, "events": "batch.failed"}
    return str(webhooks.insert_webhook(tenant_id=DEFAULT_TENANT, **columns).fetch_one(connection).id)


def reached(webhook_id: str, tenant: str) -> list[Any]:
    return [
        webhooks.find_webhook(webhook_id, tenant),
        webhooks.list_webhooks(tenant, after=None, limit=9),
        webhooks.change_webhook(webhook_id, tenant, name="new"),
        webhooks.rotate_secret(webhook_id, tenant, SECRET, overlap=None),
        webhooks.delete_webhook(webhook_id, tenant),
    ]


def rows(connection: Connection, statement: Any) -> list[Any]:
    """Rows of a Query, or of a statement of one column."""
    return list(statement.fetch_all(connection) if isinstance(statement, Query) else connection.execute(statement))


def test_another_tenant_reaches_nothing(connection: Connection, webhook_id: str) -> None:
    for statement in reached(webhook_id, "other"):
        assert rows(connection, statement) == [], str(statement)
    assert connection.execute(webhooks.count_webhooks("other")).scalar_one() == 0
    for statement in reached(webhook_id, DEFAULT_TENANT):
        assert len(rows(connection, statement)) == 1, str(statement)


def test_rows_of_endpoints_have_no_secret(connection: Connection, webhook_id: str) -> None:
    for statement in reached(webhook_id, DEFAULT_TENANT):
        assert SECRET not in str(rows(connection, statement))


@pytest.mark.parametrize(
    "impossible",
    [
        "UPDATE webhooks SET old_secret = 'x'",
        "UPDATE webhooks SET failing_since = now()",
        "INSERT INTO webhook_deliveries (event_id, webhook_id, tenant_id, event_type, payload, is_delivered) "
        "VALUES ('evt_1', 'we_1', 'default', 'batch.failed', '{}', true)",
        "INSERT INTO webhook_deliveries (event_id, webhook_id, tenant_id, event_type, payload) "
        "VALUES ('evt_1', 'we_none', 'default', 'batch.failed', '{}')",
    ],
    ids=[
        "an old secret for ever",
        "a failure without a reason",
        "taken at no time",
        "for an endpoint that is not there",
    ],
)
def test_the_database_refuses(connection: Connection, webhook_id: str, impossible: str) -> None:
    with pytest.raises(IntegrityError):
        connection.execute(text(impossible))
