"""`/v1/jobs`: accepted at once, answered later, streamed with event ids."""

from __future__ import annotations

from typing import Any

import httpx2

from tests.support.check import check_problem
from tests.support.stack import wait_for

HELLO = [{"role": "user", "content": "hello"}]


def submit(http: httpx2.Client, **more: Any) -> str:
    response = http.post("/v1/jobs", json={"model": "fake", "messages": HELLO, **more})
    assert response.status_code == 202, response.text
    assert response.json()["object"] == "job"
    return str(response.json()["id"])


def get(http: httpx2.Client, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = http.get(f"/v1/jobs/{job_id}").json()
    return job


def ended(http: httpx2.Client, job_id: str) -> dict[str, Any]:
    wait_for(lambda: get(http, job_id)["finished_at"] is not None, "the job ends")
    return get(http, job_id)


def events(
    http: httpx2.Client, job_id: str, last: int | None = None, most: int = 10_000
) -> list[tuple[int | None, str]]:
    """Id and data of each event."""
    headers = {} if last is None else {"last-event-id": str(last)}
    found: list[tuple[int | None, str]] = []
    number: int | None = None
    with http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("id: "):
                number = int(line[4:])
            elif line.startswith("data: "):
                found.append((number, line[6:]))
                number = None
            if len(found) >= most:
                break
    return found


def test_a_job_is_accepted_and_answered_later(http: httpx2.Client) -> None:
    job = ended(http, submit(http))
    assert job["status"] == "completed"
    assert job["response"]["choices"][0]["message"]["content"]
    assert job["error"] is None
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]


def test_a_failed_job_has_its_error(http: httpx2.Client) -> None:
    job = ended(http, submit(http, messages=[{"role": "user", "content": "x" * 5000}]))
    assert job["status"] == "failed"
    assert job["error"]["code"] == "context_length_exceeded"


def test_a_job_can_be_followed_while_it_runs_and_read_again_from_any_event(http: httpx2.Client) -> None:
    job_id = submit(http, model="slow", stream=True, max_tokens=30, ignore_eos=True)
    live = events(http, job_id)
    assert live[-1] == (None, "[DONE]")
    assert [number for number, _ in live[:-1]] == list(range(len(live) - 1))
    assert len(live) > 10
    assert events(http, job_id) == live
    assert events(http, job_id, last=9) == live[10:]


def test_a_client_that_reconnects_continues_after_its_last_event(http: httpx2.Client) -> None:
    job_id = submit(http, model="slow", stream=True, max_tokens=60, ignore_eos=True)
    first = events(http, job_id, most=7)
    rest = events(http, job_id, last=6)
    assert [number for number, _ in [*first, *rest][:-1]] == list(range(len(first) + len(rest) - 1))
    assert rest[-1] == (None, "[DONE]")


def test_a_job_that_was_not_streamed_can_still_be_read_as_events(http: httpx2.Client) -> None:
    job_id = submit(http)
    content = ended(http, job_id)["response"]["choices"][0]["message"]["content"]
    found = events(http, job_id)
    assert content in found[1][1]
    assert found[-1] == (None, "[DONE]")


def test_a_running_job_can_be_cancelled_and_an_ended_one_stays(http: httpx2.Client) -> None:
    job_id = submit(http, model="slow", max_tokens=2000, ignore_eos=True)
    wait_for(
        lambda: get(http, job_id)["status"] == "in_progress" or get(http, job_id)["status"] == "running", "it runs"
    )
    assert http.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
    assert ended(http, job_id)["status"] == "cancelled"
    done = ended(http, submit(http))
    assert http.post(f"/v1/jobs/{done['id']}/cancel").json()["status"] == "completed"


def test_a_job_without_a_stream_is_read_again_from_any_event_too(http: httpx2.Client) -> None:
    """Its events are cut from the stored answer, each time with the same numbers."""
    job_id = ended(http, submit(http))["id"]
    whole = events(http, job_id)
    assert len(whole) > 2
    for last in range(len(whole) - 1):
        assert events(http, job_id, last) == whole[last + 1 :]


def test_bad_requests(http: httpx2.Client) -> None:
    check_problem(http.post("/v1/jobs", json={"model": "fake"}), 400, "missing_required_parameter", "messages")
    check_problem(http.get("/v1/jobs/chatcmpl-unknown"), 404, None, "job_id")
    check_problem(http.post("/v1/jobs/nope/cancel"), 404, None, "job_id")
    job_id = submit(http)
    response = http.get(f"/v1/jobs/{job_id}/events", headers={"last-event-id": "x"})
    check_problem(response, 400, "invalid_value", "Last-Event-ID")
