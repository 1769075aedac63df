"""The history of the schema is one line: two branches that both add a migration would leave a database without a way up."""

from __future__ import annotations

from alembic.script import ScriptDirectory

from core.settings import ROOT


def test_the_migrations_have_one_head() -> None:
    assert len(ScriptDirectory(str(ROOT / "migrations")).get_heads()) == 1
