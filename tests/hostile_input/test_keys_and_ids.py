"""B1 to B6: invalid keys, and ids of other tenants or of no object."""

from __future__ import annotations

import statistics
import time
from urllib.parse import quote

import pytest

from core.api_keys import new_key
from tests.hostile_input.target import Target

LOOK_ALIKE = new_key().text

KEYS = {
    "B1-none": None,
    "B1-malformed": b"Bearer nonsense",
    "B1-no-bearer": b"Basic c2stYTpi",
    "B1-unknown": f"Bearer {LOOK_ALIKE}".encode(),
    "B3-non-ascii": "Bearer sk-ключ".encode(),
    "B3-latin-1": b"Bearer sk-\xff\xfe",
    "B3-100-kB": b"Bearer sk-" + b"x" * 100_000,
    "B3-sql": b"Bearer ' OR 1=1; DROP TABLE api_keys; --",
    "B3-format": b"Bearer %s%n{0}${jndi:ldap://127.0.0.1/x}",
}


@pytest.mark.parametrize("header", KEYS.values(), ids=KEYS.keys())
def test_every_invalid_key_gets_the_same_401(target: Target, header: bytes | None) -> None:
    with target.guarded.http(None) as http:
        expected = target.refused(http.get("/v1/models"), 401, "invalid_api_key")
        given = {} if header is None else {b"authorization": header}
        answer = http.get("/v1/models", headers=given)
    assert target.refused(answer, 401, "invalid_api_key", mark=LOOK_ALIKE) == expected


def test_wrong_keys_of_all_kinds_take_the_same_time(target: Target) -> None:
    """B1: one class of timing, whether a key is well formed or not."""
    with target.guarded.http(None) as http:

        def seconds(key: str) -> float:
            began = time.perf_counter()
            http.get("/v1/models", headers={"authorization": f"Bearer {key}"})
            return time.perf_counter() - began

        kinds = ["nonsense", LOOK_ALIKE, target.owner.text[:-1] + ("a" if target.owner.text[-1] != "a" else "b")]
        taken = {kind: statistics.median(seconds(kind) for _ in range(30)) for kind in kinds}
    assert max(taken.values()) < 10 * min(taken.values()) + 0.01


def test_a_key_with_a_nul_is_refused_by_the_http_server(target: Target) -> None:
    """B3: NUL is not allowed in a header; the HTTP server refuses it."""
    from tests.hostile_input import raw

    answer = raw.exchange(target.address, raw.request("GET", "/v1/models", "Authorization: Bearer sk-\0x"))
    assert answer.status == 400
    assert answer.error()["code"] == "invalid_http"


MALFORMED = {
    "B6-up": "..",
    "B6-up-encoded": "..%2f..%2fetc%2fpasswd",
    "B6-backslashes": "..%5c..%5cwindows",
    "B6-nul": "%00",
    "B6-nul-inside": "file-%00abc",
    "B6-10-kB": "a" * 10_000,
    "B6-line-end": "file-a%0d%0aSet-Cookie:%20x=y",
    "B6-bad-utf-8": "%ff%fe",
    "B6-surrogate": "%ed%a0%80",
    "B6-emoji": quote("😀"),
    "B6-sql": quote("' OR 1=1 --"),
    "B6-template": quote("{{7*7}}${7*7}"),
    "B6-twice-encoded": "%252e%252e%252f",
    "B6-overlong": "%c0%ae%c0%ae",
}
ROUTES = [
    ("GET", "/v1/files/{}"),
    ("DELETE", "/v1/files/{}"),
    ("GET", "/v1/files/{}/content"),
    ("GET", "/v1/batches/{}"),
    ("POST", "/v1/batches/{}/cancel"),
    ("GET", "/v1/batches/{}/requests"),
    ("GET", "/v1/batches/{}/output"),
    ("GET", "/v1/batches/{}/events"),
    ("GET", "/v1/jobs/{}"),
    ("POST", "/v1/jobs/{}/cancel"),
    ("GET", "/v1/jobs/{}/events"),
    ("GET", "/v1/responses/{}"),
    ("DELETE", "/v1/responses/{}"),
    ("POST", "/v1/uploads/{}/cancel"),
    ("GET", "/v1/models/{}"),
    ("GET", "/v1/api_keys/{}"),
    ("POST", "/v1/api_keys/{}/revoke"),
    ("POST", "/v1/api_keys/{}/rotate"),
    ("GET", "/v1/webhook_endpoints/{}/deliveries"),
]


@pytest.mark.parametrize("malformed", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_id_is_a_404_on_every_route(target: Target, malformed: str) -> None:
    for method, path in ROUTES:
        answer = target.http.request(method, path.format(malformed))
        assert answer.status_code in ((404, 405) if malformed == ".." else (404,)), (method, path, answer.text)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert len(answer.content) < 1000
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("malformed", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_query_is_a_4xx_or_finds_nothing(target: Target, malformed: str) -> None:
    file_id = target.upload(b"{}\n")
    batch_id = target.start_batch(file_id)
    for path in (
        "/v1/files?purpose={}",
        "/v1/files?after={}",
        "/v1/files?limit={}",
        "/v1/batches?after={}",
        f"/v1/batches/{batch_id}/requests?q={{}}",
        f"/v1/batches/{batch_id}/requests?code={{}}",
        f"/v1/batches/{batch_id}/requests?text={{}}",
        f"/v1/batches/{batch_id}/requests?after_line={{}}",
        f"/v1/batches/{batch_id}/requests?include={{}}",
        f"/v1/batches/{batch_id}/timeline?points={{}}",
        f"/v1/batches/{batch_id}/requests?after={{}}",
        f"/v1/batches/{batch_id}/requests?status={{}}",
        f"/v1/batches/{batch_id}/requests/{{}}",
        f"/v1/batches/{batch_id}/output?after={{}}",
        "/v1/usage?start={}",
        "/v1/usage?group_by={}",
        "/v1/webhook_endpoints?after={}",
        "/v1/webhook_endpoints/we_none/deliveries?state={}",
        "/v1/api_keys?after={}",
        "/v1/api_keys?limit={}",
    ):
        answer = target.http.get(path.format(malformed))
        assert answer.status_code < 500, (path, answer.text)
        assert len(answer.content) < 1000, path
        if answer.status_code == 200 and answer.headers["content-type"] == "application/json":
            assert answer.json().get("data", []) == [], path
