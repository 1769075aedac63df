"""Upgrades of a database in use: rows of the first schema on their way to the newest one, and code beside newer schemas."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from cli.stack.services import Services
from core.errors import SchemaLocked, SchemaMismatch
from core.settings import ROOT
from core.states import BatchState, JobState
from db import batch_requests, batches, files, jobs, schema_version, shards
from db.batch_requests import LineFilter
from db.connections import database_engine
from db.jobs import Provenance
from db.schema_version import check_schema, current_version, downgrade, needed_version, upgrade
from db.shards import LineResult
from db.tables import DEFAULT_TENANT, Base
from tests.support.rows import make_batch, make_running_batch

FIRST = "2026_11_23_first"
AHEAD = "2099_01_01_ahead"
LEASE = timedelta(seconds=60)

# A day of the first version: two tenants, a batch in each state, lines and requests in each state, a shard at a worker.
ROWS = """
INSERT INTO tenants (id) VALUES ('lab');
INSERT INTO api_keys (id, tenant_id, name, prefix, digest) VALUES ('key', 'lab', 'ours', 'sk-', 'digest');
INSERT INTO usage_daily (tenant_id, model, day, requests, prompt_tokens) VALUES ('lab', 'm', '2026-11-23', 7, 70);
INSERT INTO webhooks (id, tenant_id, url, secret, events, disabled_at)
    VALUES ('we', 'lab', 'https://lab.example/', 's', 'batch.completed', now());
INSERT INTO files (id, tenant_id, purpose, filename, bytes) VALUES
    ('file-in', 'lab', 'batch', 'tickets.jsonl', 300), ('file-out', 'lab', 'batch_output', 'out.jsonl', 200);
INSERT INTO batches (id, tenant_id, endpoint, model, status, outcome, input_file_id, output_file_id, completion_window,
    window_seconds, metadata_json, lines, lines_completed, lines_failed, in_progress_at, expires_at, completed_at) VALUES
    ('batch_new', 'lab', '/v1/chat/completions', NULL, 'validating', NULL, 'file-in', NULL, '24h', 86400, NULL,
        0, 0, 0, NULL, NULL, NULL),
    ('batch_run', 'lab', '/v1/chat/completions', 'm', 'in_progress', NULL, 'file-in', NULL, '24h', 86400, '{"name": "run"}',
        4, 0, 1, now(), now() + interval '1 day', NULL),
    ('batch_end', 'lab', '/v1/chat/completions', 'm', 'finalizing', 'completed', 'file-gone', NULL, '24h', 86400, NULL,
        1, 1, 0, now(), now() + interval '1 day', NULL),
    ('batch_old', 'default', '/v1/chat/completions', 'm', 'completed', 'completed', 'file-in', 'file-out', '24h', 86400,
        NULL, 2, 2, 0, now(), now() + interval '1 day', now());
INSERT INTO shards (id, batch_id, tenant_id, model, position, state, owner, fence, lease_until, attempt, lines) VALUES
    ('shard_a', 'batch_run', 'lab', 'm', 0, 'running', 'worker-1', 1, now() + interval '1 minute', 1, 2),
    ('shard_b', 'batch_run', 'lab', 'm', 1, 'ready', NULL, 0, NULL, 0, 1),
    ('shard_c', 'batch_old', 'default', 'm', 0, 'done', NULL, 1, NULL, 1, 2);
INSERT INTO jobs (id, tenant_id, batch_id, shard_id, line, custom_id, model, state, body, answer, problem, finished_at) VALUES
    ('line-1', 'lab', 'batch_run', 'shard_a', 1, 'a', 'm', 'queued', '{"n": 1}', NULL, NULL, NULL),
    ('line-2', 'lab', 'batch_run', 'shard_a', 2, 'b', 'm', 'completed', '{"n": 2}', '{"ok": 2}', NULL, now()),
    ('line-3', 'lab', 'batch_run', 'shard_b', 3, 'c', 'm', 'queued', '{"n": 3}', NULL, NULL, NULL),
    ('line-4', 'lab', 'batch_run', NULL, 4, 'd', 'm', 'failed', '{"n": 4}', NULL, '{"status": 400, "message": "no"}', now()),
    ('line-5', 'default', 'batch_old', 'shard_c', 1, 'a', 'm', 'completed', '{"n": 5}', '{"ok": 5}', NULL, now()),
    ('line-6', 'default', 'batch_old', 'shard_c', 2, 'b', 'm', 'completed', '{"n": 6}', '{"ok": 6}', NULL, now()),
    ('chat-1', 'lab', NULL, NULL, NULL, NULL, 'm', 'queued', '{"n": 7}', NULL, NULL, NULL),
    ('chat-2', 'lab', NULL, NULL, NULL, NULL, 'm', 'cancelled', '{"n": 8}', NULL, NULL, now());
INSERT INTO jobs (id, tenant_id, model, state, owner, fence, lease_until, body, started_at)
    VALUES ('chat-3', 'lab', 'm', 'running', 'worker-1', 1, now() + interval '1 minute', '{"n": 9}', now());
"""
KEPT = {  # columns that every version has
    "tenants": "id",
    "api_keys": "id, tenant_id, name, digest",
    "usage_daily": "tenant_id, model, day, requests, prompt_tokens",
    "webhooks": "id, tenant_id, url, secret, events",
    "files": "id, tenant_id, purpose, filename, bytes",
    "batches": "id, tenant_id, status, outcome, lines, lines_completed, lines_failed, metadata_json, expires_at, completed_at",
    "shards": "id, batch_id, position, state, owner, fence, lease_until, lines",
    "jobs": "id, batch_id, shard_id, line, custom_id, state, owner, fence, lease_until, body, answer, problem, finished_at",
}


@pytest.fixture
def scratch(services: Services, migrated: Engine) -> Iterator[Engine]:
    """A database without a schema."""
    with migrated.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
        admin.execute(text("DROP DATABASE IF EXISTS upgrades"))
        admin.execute(text("CREATE DATABASE upgrades"))
    engine = database_engine(services.database_url.replace("/millrace?", "/upgrades?"), pool_size=1)
    yield engine
    engine.dispose()


def kept(engine: Engine) -> dict[str, list[tuple[object, ...]]]:
    with engine.connect() as connection:
        return {
            table: [tuple(row) for row in connection.execute(text(f"SELECT {columns} FROM {table} ORDER BY 1"))]
            for table, columns in KEPT.items()
        }


def revisions() -> list[str]:
    """From the first to the newest."""
    script = ScriptDirectory(str(ROOT / "migrations"))
    return [each.revision for each in script.walk_revisions()][::-1]


def test_rows_of_the_first_schema_survive_every_step_up_and_down(scratch: Engine) -> None:
    upgrade(scratch, FIRST)
    with scratch.begin() as connection:
        connection.execute(text(ROWS))
    before = kept(scratch)
    steps = revisions()
    for revision in steps[1:]:
        upgrade(scratch, revision)
        assert kept(scratch) == before, revision
    with scratch.connect() as connection:
        unchecked = text("SELECT conname FROM pg_constraint WHERE NOT convalidated")
        assert connection.execute(unchecked).all() == []
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    for revision in steps[-2::-1]:
        downgrade(scratch, revision)
        assert kept(scratch) == before, revision


INDEX_WITHOUT_LOCK = """
from alembic import op

revision, down_revision, branch_labels, depends_on = "2099_01_01_index", {head!r}, None, None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.create_index("ix_jobs_later", "jobs", ["model"], postgresql_concurrently=True)
"""


def test_a_migration_can_create_an_index_without_a_long_lock(
    scratch: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade(scratch)
    later = shutil.copytree(ROOT / "migrations", tmp_path / "migrations")
    (later / "versions" / "2099_01_01_index.py").write_text(INDEX_WITHOUT_LOCK.format(head=revisions()[-1]))
    monkeypatch.setattr(schema_version, "_MIGRATIONS", later)
    upgrade(scratch, "2099_01_01_index")
    with scratch.connect() as connection:
        assert current_version(connection) == "2099_01_01_index"
        assert connection.scalar(text("SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_jobs_later'::regclass"))
        assert connection.scalar(text("SHOW lock_timeout")) != "5s", "the limits of the upgrade do not stay"


def test_work_of_the_first_schema_goes_on_after_the_upgrade(scratch: Engine) -> None:
    upgrade(scratch, FIRST)
    with scratch.begin() as connection:
        connection.execute(text(ROWS))
    upgrade(scratch)
    check_schema(scratch)
    with scratch.begin() as connection:
        run = batches.find_batch("batch_run", "lab").fetch_one(connection)
        assert (run.input_file_name, run.priority, run.paused_at) == ("tickets.jsonl", 0, None)
        lines = batch_requests.list_requests("batch_run", LineFilter(), 10).fetch_all(connection)
        assert [(line.custom_id, line.state) for line in lines] == [
            ("a", JobState.QUEUED),
            ("b", JobState.COMPLETED),
            ("c", JobState.QUEUED),
            ("d", JobState.FAILED),
        ]
        assert jobs.claim_job("chat-1", "worker-2", LEASE).fetch_one(connection).endpoint == "/v1/chat/completions"
        answer_waiting_lines(connection, "batch_run", "m", ["line-3"])
        assert [row.id for row in batches.result_rows("batch_old", 0, 10).fetch_all(connection)] == ["line-5", "line-6"]


def answer_waiting_lines(connection: Connection, batch_id: str, model: str, expected: list[str]) -> None:
    """Claim the next shard of a batch, answer its lines and leave it, as a worker does."""
    claimed = shards.claim_next_shard(model, "worker-2", LEASE).fetch_one(connection)
    waiting = shards.queued_lines(claimed.id).fetch_all(connection)
    assert (claimed.batch_id, [line.id for line in waiting]) == (batch_id, expected)
    results = [LineResult(job_id=line.id, answer="{}", prompt_tokens=1, completion_tokens=1) for line in waiting]
    connection.execute(shards.write_lines(claimed.id, claimed.fence, results, Provenance(build="b", model_hash=None)))
    assert shards.count_lines(claimed.id, claimed.fence, results).fetch_one(connection).status is BatchState.IN_PROGRESS
    assert connection.execute(shards.leave_shard(claimed.id, claimed.fence)).scalar_one() == "done"


@pytest.fixture
def ahead(scratch: Engine) -> Engine:
    """A database that a newer version has expanded: columns, a table and an index that this code does not know."""
    upgrade(scratch)
    with scratch.begin() as connection:
        connection.execute(text("ALTER TABLE jobs ADD COLUMN region text"))
        connection.execute(text("ALTER TABLE batches ADD COLUMN labels text[] NOT NULL DEFAULT '{}'"))
        connection.execute(text("CREATE TABLE regions (id text PRIMARY KEY)"))
        connection.execute(text("CREATE INDEX ix_jobs_region ON jobs (region) WHERE region IS NOT NULL"))
        connection.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": AHEAD})
    return scratch


def test_code_runs_on_a_newer_schema_that_is_compatible(ahead: Engine) -> None:
    assert check_schema(ahead) == AHEAD
    upgrade(ahead)
    with ahead.begin() as connection:
        assert current_version(connection) == AHEAD
        batch_id, (shard_id,) = make_running_batch(connection, (2,), model="old")
        waiting = [line.id for line in shards.queued_lines(shard_id).fetch_all(connection)]
        answer_waiting_lines(connection, batch_id, "old", waiting)
        assert batches.begin_finalizing(batch_id).fetch_optional(connection) is not None
        ended = batches.result_rows(batch_id, 0, 10).fetch_all(connection)
        assert [(row.answer, row.prompt_tokens) for row in ended] == [("{}", 1), ("{}", 1)]
        new = make_batch(connection)
        file_id = batches.find_batch(new, DEFAULT_TENANT).fetch_one(connection).input_file_id
        assert files.find_file(file_id, DEFAULT_TENANT).fetch_optional(connection) is not None


def test_code_refuses_a_newer_schema_that_has_dropped_what_it_reads(ahead: Engine) -> None:
    with ahead.begin() as connection:
        connection.execute(text("UPDATE schema_compatibility SET oldest_code = '2098_12_31_later'"))
    for attempt in (check_schema, upgrade):
        with pytest.raises(SchemaMismatch) as refusal:
            attempt(ahead)
        assert str(refusal.value) == (
            f"A newer Millrace has upgraded the database, to schema {AHEAD}, which needs code of schema 2098_12_31_later "
            f"or later. Start that version here too; this one needs schema {needed_version()}."
        )


def test_an_upgrade_that_waits_for_a_table_gives_up_names_it_and_can_be_repeated(scratch: Engine) -> None:
    upgrade(scratch, "2026_11_24_quarantine")
    with scratch.connect() as reader:
        reader.execute(text("SELECT * FROM jobs"))  # a transaction that stays open
        with pytest.raises(
            SchemaLocked, match=r"did not get the table that it changes \(ALTER TABLE jobs .*db upgrade"
        ):
            upgrade(scratch, lock_seconds=0.02)
        assert current_version(reader) == "2026_11_28_validation_claims"
    upgrade(scratch)
    check_schema(scratch)
