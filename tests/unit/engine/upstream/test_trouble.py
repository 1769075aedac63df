"""Kinds of trouble, pauses, and errors as clients get them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from engine.upstream.trouble import Broken, Busy, Problem, Refused, back_off, error_answer, problem_of, retry_after

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("Thu, 01 Jan 2026 12:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0.0),
        ("999999999", 3600.0),
        ("soon", None),
        ("nan", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": value}, NOW) == seconds


def test_retry_after_in_milliseconds_is_more_exact() -> None:
    assert retry_after({"retry-after-ms": "250", "retry-after": "1"}, NOW) == 0.25
    assert retry_after({}, NOW) is None


def test_back_off_doubles_up_to_half_a_minute() -> None:
    longest = [back_off(number, lambda _, high: high) for number in range(1, 9)]
    assert longest == [1, 2, 4, 8, 16, 30, 30, 30]
    assert back_off(10_000, lambda low, _: low) == 0


@pytest.mark.parametrize(
    ("status", "kind"),
    [(429, Busy), (503, Busy), (408, Broken), (425, Broken), (500, Broken), (502, Broken), (504, Broken), (529, Broken)]
    + [(number, Refused) for number in (301, 307, 400, 401, 403, 404, 409, 413, 422)],
)
def test_statuses_are_of_three_kinds(status: int, kind: type[Exception]) -> None:
    assert type(error_answer(status, {}, b"", NOW)) is kind


def test_an_error_of_the_server_is_passed_on_as_it_is() -> None:
    body = b'{"error": {"message": "too long", "type": "invalid_request_error", "param": "messages", "code": "ctx"}}'
    assert problem_of(400, body) == Problem(
        message="too long", code="ctx", status=400, kind="invalid_request_error", param="messages"
    )


@pytest.mark.parametrize(
    ("body", "message", "kind"),
    [
        (
            b'{"object":"error","message":"bad","type":"BadRequestError","param":null,"code":400}',
            "bad",
            "BadRequestError",
        ),
        (b'{"detail": "Not Found"}', "Not Found", None),
        (b'{"detail": [{"loc": ["body"]}]}', '[{"loc":["body"]}]', None),
        (b'{"error": "model is loading"}', "The server of this model answered with HTTP 400: model is loading", None),
        (b"<html>\n no </html>", "The server of this model answered with HTTP 400: <html> no </html>", None),
        (b"", "The server of this model answered with HTTP 400.", None),
        (b'{"error": {}}', "The server of this model answered with HTTP 400.", None),
        (b"\xff\xfe", "The server of this model answered with HTTP 400: \ufffd\ufffd", None),
    ],
)
def test_errors_of_other_shapes_are_read_too(body: bytes, message: str, kind: str | None) -> None:
    assert problem_of(400, body) == Problem(message=message, status=400, kind=kind)


def test_a_refused_key_is_not_shown_as_the_key_of_the_client() -> None:
    error = error_answer(401, {}, b'{"error": {"message": "bad key"}}', NOW)
    assert isinstance(error, Refused)
    assert (error.problem.status, error.problem.code) == (502, "upstream_unauthorized")
    assert "api_key_env" in error.problem.message


def test_a_redirect_names_its_target() -> None:
    error = error_answer(308, {"location": "https://other/v1"}, b"", NOW)
    assert isinstance(error, Refused)
    assert "https://other/v1" in error.problem.message
    assert error.problem.status == 502


def test_secrets_are_removed_from_every_text_of_an_error() -> None:
    problem = Problem(message="key k1 is bad", code="k1", kind="k1", param="k1")
    failed = problem.failed("r", lambda text: text.replace("k1", "*"))
    assert "k1" not in repr(failed)


def test_the_pause_that_a_server_asks_for_reaches_the_client() -> None:
    error = error_answer(429, {"retry-after": "7"}, b"", NOW)
    assert isinstance(error, Busy)
    assert error.problem.failed("r", lambda text: text).retry_seconds == 7
