"""`millrace doctor` finds what keeps a stack from running, and says what to do."""

from __future__ import annotations

from cli.doctor import stack as stack_findings
from cli.doctor.findings import Level
from cli.stack.services import Services
from core.settings import Settings


def test_the_schema_of_an_external_database_is_checked(services: Services, migrated: object) -> None:
    good = Settings(database_url=services.database_url, redis_url="redis://mine")
    assert stack_findings.schema(good).level is Level.OK
    assert [finding.message for finding in stack_findings.services(good)] == [
        "external (DATABASE_URL)",
        "external (REDIS_URL)",
    ]
    bare = Settings(database_url=services.database_url.replace("/millrace?", "/postgres?"))
    assert stack_findings.schema(bare).advice == "millrace db upgrade"
    away = Settings(database_url="postgresql://nobody@127.0.0.1:9/none")
    assert "connection refused" in stack_findings.schema(away).message
