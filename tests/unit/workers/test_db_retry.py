"""F29, F31, F34: an end is written however often that takes, unless it never will be or is not ours any more."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from db.connections import is_transient
from tests.support.sick import no_reply
from workers.runtime.db_retry import MOST_SECONDS, retry_write


class Writer:
    """Fails so often, then succeeds; time passes only while somebody sleeps."""

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

    def retry_write(self, is_ours: bool = True) -> str:
        return retry_write(self.write, lambda: is_ours, clock=lambda: self.now, sleep=self.sleep)


class Deadlock(Exception):
    sqlstate = "40P01"


def test_what_fails_for_a_while_is_written_in_the_end_with_longer_and_longer_pauses() -> None:
    writer = Writer(*[no_reply() for _ in range(8)], PoolTimeout(), DBAPIError("", None, Deadlock()))
    assert writer.retry_write() == "written"
    assert writer.num_tries == 11
    assert writer.pauses[0] <= 0.05 < 0.5 <= writer.pauses[-1] <= 1


def test_what_will_never_be_taken_is_not_tried_again() -> None:
    writer = Writer(DataError("", None, Exception("a character that no text may have")))
    with pytest.raises(DataError):
        writer.retry_write()
    assert writer.num_tries == 1


def test_what_is_not_ours_any_more_is_given_up() -> None:
    writer = Writer(no_reply(), no_reply())
    with pytest.raises(DBAPIError):
        writer.retry_write(is_ours=False)
    assert writer.num_tries == 1


def test_nobody_insists_for_ever() -> None:
    writer = Writer(*[no_reply() for _ in range(1000)])
    with pytest.raises(DBAPIError):
        writer.retry_write()
    assert MOST_SECONDS < writer.now - 100 < MOST_SECONDS + 2


def test_errors_that_pass_are_told_from_those_that_stay() -> None:
    assert is_transient(no_reply())
    assert is_transient(DBAPIError("", None, Deadlock()))
    assert is_transient(DBAPIError("", None, Exception(), connection_invalidated=True))
    assert not is_transient(DataError("", None, Exception()))
