"""Queries: rows with names and types, checked against the columns of their statement."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from sqlalchemy import Connection, false, literal, select
from sqlalchemy.exc import MultipleResultsFound, NoResultFound

from core.states import JobState
from db.query import Query, columns_of, total
from db.tables import Job
from tests.support.rows import make_job


class JobStateRow(NamedTuple):
    id: str
    state: JobState


class WrongRow(NamedTuple):
    state: JobState
    id: str


class TotalRow(NamedTuple):
    fences: int


STATEMENT = select(*columns_of(Job, JobStateRow))


def test_rows_have_names_and_states_are_members_of_their_enumeration(connection: Connection) -> None:
    job_id = make_job(connection)
    row = Query(STATEMENT, JobStateRow).fetch_one(connection)
    assert row == JobStateRow(id=job_id, state=JobState.QUEUED)
    assert row.state is JobState.QUEUED
    assert Query(STATEMENT, JobStateRow).fetch_all(connection) == [row]


def test_one_row_and_an_optional_row_are_at_most_one(connection: Connection) -> None:
    nothing = Query(STATEMENT.where(false()), JobStateRow)
    assert nothing.fetch_optional(connection) is None
    with pytest.raises(NoResultFound):
        nothing.fetch_one(connection)
    make_job(connection)
    make_job(connection)
    with pytest.raises(MultipleResultsFound):
        Query(STATEMENT, JobStateRow).fetch_optional(connection)


def test_a_row_class_with_other_columns_than_the_statement_is_an_error(connection: Connection) -> None:
    with pytest.raises(AssertionError, match="WrongRow"):
        Query(STATEMENT, WrongRow).fetch_all(connection)


def test_a_total_of_bigints_is_an_integer_and_0_without_rows(connection: Connection) -> None:
    fences = Query(select(total(Job.fence + literal(2**40)).label("fences")), TotalRow)
    assert fences.fetch_one(connection) == TotalRow(0)
    make_job(connection)
    sum_of_fences = fences.fetch_one(connection).fences
    assert type(sum_of_fences) is int
    assert sum_of_fences == 2**40
