"""F29, F31, F34: a write is retried until it succeeds, fails for good, or its lease is lost."""

from __future__ import annotations

import pytest
from psycopg.errors import InFailedSqlTransaction, ReadOnlySqlTransaction
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from db.connections import is_transient
from tests.support.sick import no_reply
from workers.runtime.db_retry import MOST_SECONDS, retry_write


class Writer:
    """Fails a few times, then succeeds; time passes only in `sleep`."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.num_tries = 0
        self.now = 100.0
        self.pauses: list[float] = []

    def write(self) -> str:
        self.num_tries += 1
        if self.errors:
            raise self.errors.pop(0)
        return "written"

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def retry_write(self, is_current: bool = True) -> str:
        return retry_write(self.write, lambda: is_current, clock=lambda: self.now, sleep=self.sleep)


class Deadlock(Exception):
    sqlstate = "40P01"


def test_a_failing_write_is_retried_with_growing_pauses() -> None:
    writer = Writer(*[no_reply() for _ in range(8)], PoolTimeout(), DBAPIError("", None, Deadlock()))
    assert writer.retry_write() == "written"
    assert writer.num_tries == 11
    assert writer.pauses[0] <= 0.05 < 0.5 <= writer.pauses[-1] <= 1


def test_a_permanent_error_is_not_retried() -> None:
    writer = Writer(DataError("", None, Exception("a character that no text may have")))
    with pytest.raises(DataError):
        writer.retry_write()
    assert writer.num_tries == 1


def test_retries_stop_when_the_lease_is_lost() -> None:
    writer = Writer(no_reply(), no_reply())
    with pytest.raises(DBAPIError):
        writer.retry_write(is_current=False)
    assert writer.num_tries == 1


def test_retries_stop_after_a_time_limit() -> None:
    writer = Writer(*[no_reply() for _ in range(1000)])
    with pytest.raises(DBAPIError):
        writer.retry_write()
    assert MOST_SECONDS < writer.now - 100 < MOST_SECONDS + 2


def test_transient_errors_are_distinguished_from_permanent_ones() -> None:
    assert is_transient(no_reply())
    assert is_transient(DBAPIError("", None, Deadlock()))
    assert is_transient(DBAPIError("", None, Exception(), connection_invalidated=True))
    assert is_transient(DBAPIError("", None, ReadOnlySqlTransaction())), "after a failover"
    assert not is_transient(DBAPIError("", None, InFailedSqlTransaction()))
    assert not is_transient(DataError("", None, Exception()))
