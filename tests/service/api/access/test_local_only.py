"""Without keys, programs of this machine are accepted and pages of other sites are not. On the real stack."""

from __future__ import annotations

import httpx2
import pytest

from tests.support.check import check_problem
from tests.support.guarded import Guarded


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8000"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "evil.example/127.0.0.1"},
        {"host": "[::1"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_what_a_page_of_another_origin_sends_is_refused(http: httpx2.Client, headers: dict[str, str]) -> None:
    read = http.get("/v1/files", headers=headers)
    check_problem(read, 403, "not_local", None)
    written = http.post("/v1/files", headers=headers, files={"file": ("a.jsonl", b"{}")}, data={"purpose": "batch"})
    check_problem(written, 403, "not_local", None)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost"},
        {"host": "LOCALHOST:1"},
        {"host": "127.0.0.1:80"},
        {"host": "[::1]:8000"},
        {"host": "millrace.localhost"},
        {"origin": "http://localhost:3000"},
        {"sec-fetch-site": "same-origin"},
    ],
)
def test_what_this_machine_sends_is_not(http: httpx2.Client, headers: dict[str, str]) -> None:
    assert http.get("/v1/files", headers=headers).status_code == 200


def test_with_a_key_it_does_not_matter_where_one_comes_from(guarded: Guarded) -> None:
    headers = {"host": "millrace.example", "origin": "https://millrace.example"}
    assert guarded.owner.http.get("/v1/files", headers=headers).status_code == 200


def test_health_needs_no_key(http: httpx2.Client) -> None:
    assert http.get("/healthz", headers={"host": "balancer.example"}).status_code == 200
