"""The schema: reversible migrations, equal to the tables, with CHECKs that hold."""

from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import IntegrityError

from cli.stack.services import Services
from core.errors import SchemaMismatch
from core.settings import ROOT
from core.states import JobState
from db.connections import database_engine
from db.schema_version import check_schema, current_version, downgrade, needed_version, upgrade
from db.shards import queued_lines
from db.tables import Base


@pytest.fixture
def empty(services: Services, migrated: Engine):
    """Create a database without a schema."""
    with migrated.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
        admin.execute(text("DROP DATABASE IF EXISTS empty"))
        admin.execute(text("CREATE DATABASE empty"))
    engine = database_engine(services.database_url.replace("/millrace?", "/empty?"), pool_size=1)
    yield engine
    engine.dispose()


def tables(engine: Engine) -> set[str]:
    with engine.connect() as connection:
        return set(connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).scalars())


def test_migrations_go_up_and_all_the_way_down(empty: Engine) -> None:
    upgrade(empty)
    assert {"tenants", "jobs", "batches", "shards", "files", "usage_daily"} <= tables(empty)
    check_schema(empty)
    downgrade(empty, "base")
    assert tables(empty) == {"alembic_version"}
    upgrade(empty)
    check_schema(empty)


def test_the_migrated_database_is_equal_to_the_tables(migrated: Engine) -> None:
    with migrated.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
        assert current_version(connection) == needed_version()


def test_the_version_that_is_needed_is_the_one_alembic_goes_to(empty: Engine) -> None:
    assert needed_version() == ScriptDirectory(str(ROOT / "migrations")).get_current_head()
    with empty.connect() as connection:
        assert current_version(connection) is None
    upgrade(empty, "2026_11_24_keys")
    with empty.connect() as connection:
        assert current_version(connection) == "2026_11_24_keys"
    downgrade(empty, "base")
    with empty.connect() as connection:
        assert current_version(connection) is None


def test_lines_that_wait_when_the_plan_comes_keep_their_order(empty: Engine) -> None:
    upgrade(empty, "2026_11_23_first")
    with empty.begin() as connection:
        connection.execute(text(f"{BATCH}) VALUES ('b', 'default', '/', 'f', '24h', 1, 'validating')"))
        for line in (3, 1, 2):
            values = f"('j{line}', 'default', 'm', '', 'queued', 'b', 's', {line}, 'c{line}')"
            connection.execute(text(f"{JOB}, batch_id, shard_id, line, custom_id) VALUES {values}"))
        connection.execute(text(f"{JOB}) VALUES ('chat', 'default', 'm', '', 'queued')"))
    upgrade(empty)
    with empty.begin() as connection:
        waiting = queued_lines("s").fetch_all(connection)
        assert [row[0] for row in waiting] == ["j1", "j2", "j3"]
        assert connection.execute(text("SELECT position FROM jobs WHERE id = 'chat'")).scalar_one() is None
    downgrade(empty, "2026_11_23_first")
    downgrade(empty, "base")


def test_usage_of_several_keys_is_added_up_when_keys_are_taken_back(empty: Engine) -> None:
    upgrade(empty, "2026_11_24_keys")
    usage = "INSERT INTO usage_daily (tenant_id, model, day, key_id, requests, prompt_tokens) VALUES"
    with empty.begin() as connection:
        for key, requests in (("", 1), ("a", 2), ("b", 3)):
            connection.execute(text(f"{usage} ('default', 'm', '2026-11-24', '{key}', {requests}, 10)"))
    downgrade(empty, "2026_11_24_batch_plan")
    with empty.begin() as connection:
        assert connection.execute(text("SELECT requests, prompt_tokens FROM usage_daily")).all() == [(6, 30)]
    upgrade(empty)
    downgrade(empty, "base")


def test_a_database_that_is_behind_is_refused_with_what_to_do(empty: Engine) -> None:
    with pytest.raises(SchemaMismatch, match="millrace db upgrade"):
        check_schema(empty)


JOB = "INSERT INTO jobs (id, tenant_id, model, body, state"
BATCH = "INSERT INTO batches (id, tenant_id, endpoint, input_file_id, completion_window, window_seconds, status"
KEY = "INSERT INTO api_keys (id, tenant_id, name, prefix, digest"
SHARD = "INSERT INTO shards (id, batch_id, tenant_id, model, position, lines"

IMPOSSIBLE = {
    "a job in no known state": f"{JOB}) VALUES ('a', 'default', 'm', '', 'resting')",
    "a job that ended at no time": f"{JOB}) VALUES ('a', 'default', 'm', '', 'cancelled')",
    "a waiting job that ended": f"{JOB}, finished_at) VALUES ('a', 'default', 'm', '', 'queued', now())",
    "a completed job without an answer": f"{JOB}, finished_at) VALUES ('a', 'default', 'm', '', 'completed', now())",
    "a failed job without a reason": f"{JOB}, finished_at) VALUES ('a', 'default', 'm', '', 'failed', now())",
    "a running job without a holder": f"{JOB}) VALUES ('a', 'default', 'm', '', 'running')",
    "a line without a batch": f"{JOB}, line) VALUES ('a', 'default', 'm', '', 'queued', 1)",
    "a job in a shard without a place in it": f"{JOB}, shard_id) VALUES ('a', 'default', 'm', '', 'queued', 's')",
    "a batch in no known state": f"{BATCH}) VALUES ('b', 'default', '/', 'f', '24h', 1, 'lost')",
    "a completed batch without a time": f"{BATCH}) VALUES ('b', 'default', '/', 'f', '24h', 1, 'completed')",
    "a batch that finalizes to nothing": f"{BATCH}) VALUES ('b', 'default', '/', 'f', '24h', 1, 'finalizing')",
    "a batch of an unknown tenant": f"{BATCH}) VALUES ('b', 'nobody', '/', 'f', '24h', 1, 'validating')",
    "more lines done than there are": (
        f"{BATCH}, lines, lines_failed) VALUES ('b', 'default', '/', 'f', '24h', 1, 'validating', 1, 2)"
    ),
    "a tenant that may have nothing": "UPDATE tenants SET open_batches = 0",
    "a tenant that may store nothing": "UPDATE tenants SET storage_bytes = 0",
    "a key with an unknown scope": f"{KEY}, scopes) VALUES ('k', 'default', '', '', 'd', '{{root}}')",
    "a key without a scope": f"{KEY}, scopes) VALUES ('k', 'default', '', '', 'd', '{{}}')",
    "a key with a limit of nothing": f"{KEY}, queued_tokens) VALUES ('k', 'default', '', '', 'd', 0)",
    "a key that may not call": f"{KEY}, calls_per_minute) VALUES ('k', 'default', '', '', 'd', 0)",
    "a shard without a batch": f"{SHARD}) VALUES ('s', 'none', 'default', 'm', 0, 1)",
}  # fmt: skip


@pytest.mark.parametrize("statement", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_the_database_refuses(connection: Connection, statement: str) -> None:
    with pytest.raises(IntegrityError):
        connection.execute(text(statement))


def test_text_that_jsonb_would_change_is_kept(connection: Connection) -> None:
    body = '{"z": 1, "a": 1.50, "z2": "\\u0041"}'
    connection.execute(text(f"{JOB}) VALUES ('a', 'default', 'm', :body, 'queued')"), {"body": body})
    stored = connection.execute(text("SELECT body, state FROM jobs WHERE id = 'a'")).one()
    assert tuple(stored) == (body, JobState.QUEUED)
