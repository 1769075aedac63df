"""The history of the schema: one line, whose steps neither hold long locks nor break the code of the step before.

The first version was upgraded while it was stopped, so migrations up to LAST_FREE are free of the rules.
"""

from __future__ import annotations

import pytest
from alembic.script import ScriptDirectory

from core.settings import ROOT
from tests.support.migration_rules import broken_rules, printed_sql

LAST_FREE = "2026_11_30_origins"
SCRIPT = ScriptDirectory(str(ROOT / "migrations"))


def test_the_migrations_have_one_head() -> None:
    assert len(SCRIPT.get_heads()) == 1


def ruled() -> list[tuple[str, str | None]]:
    """The migrations that keep the rules, with their predecessors."""
    scripts = SCRIPT.iterate_revisions("head", LAST_FREE)
    return [(each.revision, each.down_revision) for each in scripts]  # type: ignore[misc] # one line: no tuples


@pytest.mark.parametrize(("revision", "down_revision"), ruled())
def test_a_migration_keeps_the_rules(revision: str, down_revision: str | None) -> None:
    assert list(broken_rules(printed_sql(revision, down_revision))) == []


def test_a_migration_raises_the_oldest_code_to_a_known_one() -> None:
    known = {each.revision for each in SCRIPT.walk_revisions()}
    for revision, down_revision in ruled():
        for _, _, rest in (
            each.partition("SET oldest_code = '") for each in printed_sql(revision, down_revision).splitlines()
        ):
            assert not rest or rest.split("'")[0] in known, revision


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("CREATE INDEX ix_jobs_model ON jobs (model);", "use postgresql_concurrently"),
        ("CREATE UNIQUE INDEX uq_files_x ON files (x);", "use postgresql_concurrently"),
        ("DROP INDEX ix_jobs_running;", "use postgresql_concurrently"),
        ("ALTER TABLE batches ADD CONSTRAINT ck CHECK (x > 0);", "add it NOT VALID"),
        ("ALTER TABLE jobs ALTER COLUMN line TYPE bigint;", "copy it in chunks"),
        ("ALTER TABLE shards ALTER COLUMN owner SET NOT NULL;", "VALIDATE"),
        ("UPDATE jobs SET model = 'm';", "in chunks"),
        ("ALTER TABLE jobs ADD COLUMN token UUID DEFAULT gen_random_uuid();", "writes every row"),
        ("ALTER TABLE jobs ADD COLUMN region TEXT NOT NULL;", "give it a default"),
        ("ALTER TABLE workers DROP COLUMN card;", "older code reads the column"),
        ("DROP TABLE counters;", "older code reads the table"),
        ("ALTER TABLE jobs RENAME body TO request;", "older code uses the old name"),
        ("ALTER TABLE workers ADD CONSTRAINT ck CHECK (pid > 0);", "older code may write"),
    ],
)
def test_a_step_that_locks_for_long_or_breaks_older_code_is_found(sql: str, sentence: str) -> None:
    assert any(sentence in found for found in broken_rules(sql))


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE regions (id TEXT NOT NULL); CREATE INDEX ix_regions_id ON regions (id);",
        "CREATE INDEX CONCURRENTLY ix_jobs_model ON jobs (model);",
        "CREATE INDEX ix_workers_host ON workers (host);",
        "ALTER TABLE jobs ADD COLUMN region TEXT;",
        "ALTER TABLE batches ADD COLUMN seen_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL;",
        "ALTER TABLE workers DROP COLUMN card; UPDATE schema_compatibility SET oldest_code = '2026_11_30_devices';",
    ],
)
def test_a_step_beside_which_older_code_can_work_is_allowed(sql: str) -> None:
    assert list(broken_rules(sql)) == []
