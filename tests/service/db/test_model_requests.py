"""Requests of admins to load and unload models."""

from __future__ import annotations

from datetime import datetime

import pytest
from sqlalchemy import Connection, text

from core.states import ModelAction
from db import model_requests
from db.model_requests import PendingRequest


def ask(connection: Connection, action: ModelAction, model: str = "org/a") -> None:
    connection.execute(model_requests.add_request(model, action))


def age(connection: Connection, seconds: int) -> None:
    ago = f"interval '{seconds} s'"
    connection.execute(text(f"UPDATE model_requests SET load_at = load_at - {ago}, unload_at = unload_at - {ago}"))


def pending(connection: Connection) -> PendingRequest | None:
    return model_requests.pending_requests().fetch_optional(connection)


def open_loads(connection: Connection) -> list[str]:
    return [each.model for each in model_requests.model_wishes().fetch_all(connection) if each.has_load]


def pins(connection: Connection) -> list[str]:
    known = {each.model for each in model_requests.model_wishes().fetch_all(connection) if each.is_pinned}
    listed = list(connection.execute(model_requests.pinned_models()).scalars())
    assert set(listed) == known
    return listed


def test_a_load_is_open_until_it_is_finished_and_keeps_its_age(connection: Connection) -> None:
    ask(connection, ModelAction.LOAD)
    age(connection, 30)
    ask(connection, ModelAction.LOAD)
    request = pending(connection)
    assert request is not None
    assert (request.model, request.unload_seconds) == ("org/a", None)
    assert request.load_seconds == pytest.approx(30, abs=0.5)
    assert open_loads(connection) == ["org/a"]
    assert isinstance(request.load_at, datetime)
    connection.execute(model_requests.finish_load("org/a", request.load_at))
    assert (open_loads(connection), pending(connection)) == ([], None)


def test_a_reload_that_follows_a_load_is_not_finished_with_it(connection: Connection) -> None:
    ask(connection, ModelAction.LOAD)
    age(connection, 30)
    first = pending(connection)
    ask(connection, ModelAction.RELOAD)
    assert first is not None
    assert first.load_at is not None
    connection.execute(model_requests.finish_load("org/a", first.load_at))
    second = pending(connection)
    assert second is not None
    assert second.load_seconds == second.unload_seconds == pytest.approx(0, abs=0.5)


def test_an_unload_withdraws_an_open_load_and_is_still_read_by_a_slow_launcher(connection: Connection) -> None:
    ask(connection, ModelAction.LOAD)
    ask(connection, ModelAction.UNLOAD)
    age(connection, 60)
    request = pending(connection)
    assert request is not None
    assert (request.load_at, request.unload_seconds) == (None, pytest.approx(60, abs=0.5))
    assert open_loads(connection) == []


def test_a_load_after_an_unload_keeps_the_time_of_the_unload(connection: Connection) -> None:
    ask(connection, ModelAction.UNLOAD)
    age(connection, 60)
    ask(connection, ModelAction.LOAD)
    request = pending(connection)
    assert request is not None
    assert (request.load_seconds, request.unload_seconds) == (pytest.approx(0, abs=0.5), pytest.approx(60, abs=0.5))


def test_old_requests_are_left_alone_then_deleted(connection: Connection) -> None:
    ask(connection, ModelAction.RELOAD, "old")
    age(connection, 3600)
    ask(connection, ModelAction.LOAD, "new")
    assert open_loads(connection) == ["new"]
    connection.execute(model_requests.delete_old_requests())
    assert connection.execute(text("SELECT model FROM model_requests")).scalars().all() == ["new"]


def test_a_pin_loads_its_model_and_outlives_all_other_requests_until_it_is_taken_back(connection: Connection) -> None:
    ask(connection, ModelAction.PIN)
    assert (open_loads(connection), pins(connection)) == (["org/a"], ["org/a"])
    for action in (ModelAction.RELOAD, ModelAction.UNLOAD, ModelAction.LOAD):
        ask(connection, action)
    age(connection, 7200)
    connection.execute(model_requests.delete_old_requests())
    assert (open_loads(connection), pins(connection)) == ([], ["org/a"])
    ask(connection, ModelAction.UNPIN)
    assert pins(connection) == []
    connection.execute(model_requests.delete_old_requests())
    assert connection.execute(text("SELECT count(*) FROM model_requests")).scalar_one() == 0


def test_the_oldest_pin_comes_first_also_when_it_is_repeated(connection: Connection) -> None:
    for model in ("b", "a"):
        ask(connection, ModelAction.PIN, model)
        connection.execute(text("UPDATE model_requests SET pinned_at = pinned_at - interval '1 s'"))
    ask(connection, ModelAction.PIN, "b")
    assert pins(connection) == ["b", "a"]


def test_taking_back_a_pin_leaves_an_open_load_alone(connection: Connection) -> None:
    ask(connection, ModelAction.LOAD)
    ask(connection, ModelAction.UNPIN)
    assert (open_loads(connection), pins(connection)) == (["org/a"], [])
