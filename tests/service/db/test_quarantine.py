"""Quarantine: suspects, blocked requests, their duration, and unexplained crashes."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Connection, func, select, update

from db import jobs, quarantine
from db.quarantine import QuarantineEntry
from db.tables import DEFAULT_TENANT, EngineCrash, Quarantine
from tests.support.rows import make_job

DAY = timedelta(days=1)
WINDOW = timedelta(minutes=10)


def entry(fingerprint: str = "f", model: str = "fake") -> QuarantineEntry:
    return QuarantineEntry(
        fingerprint=fingerprint, tenant_id=DEFAULT_TENANT, model=model, endpoint="/v1/chat/completions", job_id="j"
    )


def record(connection: Connection, crashes: int = 1, **of: str) -> None:
    connection.execute(quarantine.record_crash(entry(**of), crashes=crashes, most=2, kept=DAY))


def known(connection: Connection, model: str = "fake", kept: timedelta = DAY) -> dict[str, bool]:
    return dict(quarantine.list_quarantined(DEFAULT_TENANT, model, kept).fetch_all(connection))


def age(connection: Connection, table: type[Quarantine] | type[EngineCrash], by: timedelta) -> None:
    connection.execute(update(table).values(crashed_at=table.crashed_at - by))
    if table is Quarantine:
        connection.execute(update(Quarantine).values(blocked_at=Quarantine.blocked_at - by))


def test_a_crash_in_company_makes_a_suspect_and_two_alone_block_it(connection: Connection) -> None:
    for _ in range(5):
        record(connection, crashes=0)
    assert known(connection) == {"f": False}
    record(connection)
    assert known(connection) == {"f": False}
    record(connection)
    assert known(connection) == {"f": True}
    assert known(connection, "other") == {}


def test_enough_crashes_at_once_block_at_once(connection: Connection) -> None:
    record(connection, crashes=3)
    assert known(connection) == {"f": True}


def test_crashes_of_days_ago_do_not_count_any_more(connection: Connection) -> None:
    record(connection)
    age(connection, Quarantine, 2 * DAY)
    assert known(connection) == {}
    record(connection)
    assert known(connection) == {"f": False}, "the first of today"


def test_a_suspect_that_ran_alone_is_cleared_and_a_blocked_request_is_not(connection: Connection) -> None:
    record(connection, fingerprint="innocent", crashes=0)
    record(connection, fingerprint="guilty", crashes=2)
    for fingerprint in ("innocent", "guilty"):
        connection.execute(quarantine.clear(fingerprint))
    assert known(connection) == {"guilty": True}


def test_a_block_ends_with_its_time(connection: Connection) -> None:
    record(connection, crashes=2)
    connection.execute(quarantine.delete_old_entries(DAY))
    assert known(connection) == {"f": True}
    age(connection, Quarantine, 2 * DAY)
    connection.execute(quarantine.delete_old_entries(DAY))
    assert connection.execute(select(func.count()).select_from(Quarantine)).scalar_one() == 0


def test_a_claim_returns_whether_requests_are_quarantined(connection: Connection) -> None:
    def claim(model: str) -> bool:
        job_id = make_job(connection, model)
        return jobs.claim_job(job_id, "me", WINDOW).fetch_one(connection).has_quarantined

    record(connection)
    assert claim("fake")
    assert not claim("other")


def crash(connection: Connection, times: int, worker: str = "host/cpu") -> None:
    for _ in range(times):
        connection.execute(quarantine.add_engine_crash("fake", worker, -11))


def unexplained(connection: Connection) -> int:
    return connection.execute(quarantine.unexplained_crashes("fake", "host/cpu", WINDOW)).scalar_one()


def test_unexplained_crashes_degrade_a_model_on_their_worker(connection: Connection) -> None:
    crash(connection, 3)
    crash(connection, 1, "other/cpu")
    assert unexplained(connection) == 3
    assert quarantine.degraded_models(3, WINDOW).fetch_all(connection) == []
    assert quarantine.degraded_models(2, WINDOW).fetch_all(connection) == [("fake", "host/cpu", 3)]


def test_a_block_explains_the_crashes_before_it(connection: Connection) -> None:
    crash(connection, 3)
    age(connection, EngineCrash, timedelta(seconds=1))
    record(connection, crashes=2)
    assert unexplained(connection) == 0
    age(connection, Quarantine, timedelta(seconds=1))
    crash(connection, 1)
    assert unexplained(connection) == 1


def test_crashes_are_deleted_after_the_window(connection: Connection) -> None:
    crash(connection, 9)
    age(connection, EngineCrash, timedelta(minutes=11))
    assert unexplained(connection) == 0
    assert quarantine.degraded_models(2, WINDOW).fetch_all(connection) == []
    connection.execute(quarantine.delete_engine_crashes(timedelta(minutes=5)))
    assert connection.execute(select(func.count()).select_from(EngineCrash)).scalar_one() == 0


def test_what_metrics_count(connection: Connection) -> None:
    crash(connection, 2)
    record(connection, crashes=0)
    record(connection, crashes=2, fingerprint="g")
    assert sorted(quarantine.count_quarantined().fetch_all(connection)) == [("fake", False, 1), ("fake", True, 1)]


def test_the_last_crash_of_each_model_has_its_place_and_its_reason(connection: Connection) -> None:
    connection.execute(quarantine.add_engine_crash("fake", "host/cpu", -11, "it was ended by SIGSEGV"))
    age(connection, EngineCrash, timedelta(minutes=5))
    connection.execute(quarantine.add_engine_crash("fake", "host/cuda:1", 86, "a decode step hung"))
    crash(connection, 0)
    connection.execute(quarantine.add_engine_crash("other", "host/cpu", -6))
    found = {each.model: each[1:3] for each in quarantine.last_crashes().fetch_all(connection)}
    assert found == {"fake": ("host/cuda:1", "a decode step hung"), "other": ("host/cpu", "")}
