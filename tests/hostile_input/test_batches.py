"""B42 and B58 to B65: batches that cannot be created, listed or cancelled."""

from __future__ import annotations

from typing import Any

import pytest

from core import ids
from tests.hostile_input.target import CHAT, MARK, Target, batch_line, chat
from tests.support.check import check_problem
from tests.support.stack import wait_for

WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    **{
        f"B58-window-{window!r}": ({"completion_window": window}, "invalid_value", "completion_window")
        for window in ("1s", "999h", "0h", "-1h", "24", "24h ", "24h\n", " 24h", "٢٤h", "1e3h", "", "31d", "24H", "24h24h")
    },
    "B58-window-number": ({"completion_window": 24}, "invalid_type", "completion_window"),
    "B58-window-long": ({"completion_window": "1" * 5000 + "h"}, "invalid_value", "completion_window"),
    "B58-no-window": ({"completion_window": ...}, "missing_required_parameter", "completion_window"),
    "B58-endpoint": ({"endpoint": f"/v1/{MARK}"}, "invalid_value", "endpoint"),
    "B58-endpoint-slash": ({"endpoint": CHAT + "/"}, "invalid_value", "endpoint"),
    "B58-endpoint-url": ({"endpoint": f"http://127.0.0.1{CHAT}"}, "invalid_value", "endpoint"),
    "B58-endpoint-null": ({"endpoint": None}, "invalid_type", "endpoint"),
    "B59-17-pairs": ({"metadata": {f"k{n}": "v" for n in range(17)}}, "invalid_value", "metadata"),
    "B59-long-key": ({"metadata": {"k" * 65: "v"}}, "invalid_value", "metadata"),
    "B59-long-value": ({"metadata": {"k": "v" * 513}}, "invalid_value", "metadata"),
    "B59-nested": ({"metadata": {"k": {"a": MARK}}}, "invalid_type", "metadata.k"),
    "B59-number": ({"metadata": {"k": 1}}, "invalid_type", "metadata.k"),
    "B59-list": ({"metadata": [MARK]}, "invalid_type", "metadata"),
    "B59-nul": ({"metadata": {"k": MARK + "\0"}}, "invalid_json", ""),
    "B59-nul-in-a-key": ({"metadata": {MARK + "\0": "v"}}, "invalid_json", ""),
    "B58-expiry-short": (
        {"output_expires_after": {"anchor": "created_at", "seconds": 60}},
        "invalid_value",
        "output_expires_after.seconds",
    ),
    "B58-expiry-anchor": (
        {"output_expires_after": {"anchor": MARK, "seconds": 3600}},
        "invalid_value",
        "output_expires_after.anchor",
    ),
    "B60-empty": ({"input_file_id": ""}, "invalid_value", "input_file_id"),
    "B60-number": ({"input_file_id": 5}, "invalid_type", "input_file_id"),
    "B60-long": ({"input_file_id": "f" * 10_000}, "invalid_value", "input_file_id"),
    "B60-missing": ({"input_file_id": ...}, "missing_required_parameter", "input_file_id"),
}  # fmt: skip


def body(**fields: Any) -> dict[str, Any]:
    whole = {"input_file_id": ids.new_id(ids.FILE), "endpoint": CHAT, "completion_window": "24h", **fields}
    return {name: value for name, value in whole.items() if value is not ...}


@pytest.mark.parametrize(("fields", "code", "param"), WRONG.values(), ids=WRONG.keys())
def test_an_impossible_batch_is_a_400_that_names_the_field(
    target: Target, fields: dict[str, Any], code: str, param: str
) -> None:
    answer = target.http.post("/v1/batches", json=body(**fields))
    target.refused(answer, 400, code, param or None)


def test_metadata_at_its_limits_comes_back_exactly(target: Target) -> None:
    """B59: 16 pairs, 64 characters, 512 characters, any characters; empty ones too."""
    metadata = {f"{n:x}" + "ключ😀"[:5] * 12: "é\u2028" * 256 for n in range(15)} | {"": ""}
    made = target.http.post("/v1/batches", json=body(input_file_id=target.upload(b"\n"), metadata=metadata))
    assert made.json()["metadata"] == metadata
    assert target.http.get(f"/v1/batches/{made.json()['id']}").json()["metadata"] == metadata


FILES = {
    "B60-nonsense": MARK + "?",
    "B60-up": "../../etc/passwd",
    "B60-batch": ids.new_id(ids.BATCH),
    "B60-emoji": "😀",
}


@pytest.mark.parametrize("file_id", FILES.values(), ids=FILES.keys())
def test_a_file_that_does_not_exist_is_a_404(target: Target, file_id: str) -> None:
    for path, sent in (
        ("/v1/batches", body(input_file_id=file_id)),
        ("/v1/batches/validate", {"input_file_id": file_id}),
    ):
        check_problem(target.http.post(path, json=sent), 404, None, "input_file_id")


def test_only_an_existing_batch_file_can_be_run(target: Target) -> None:
    """B60: a file of another purpose is a 400, results too; a deleted file is a 404."""
    other = target.upload(batch_line(), "a.jsonl", "user_data")
    ended = target.batch_of(batch_line("good") + batch_line("bad", body={}))
    for file_id in (other, ended.output_file_id, ended.error_file_id):
        check_problem(
            target.http.post("/v1/batches", json=body(input_file_id=file_id)),
            400,
            "invalid_file_purpose",
            "input_file_id",
        )
    gone = target.upload(batch_line())
    target.client.files.delete(gone)
    check_problem(target.http.post("/v1/batches", json=body(input_file_id=gone)), 404, None, "input_file_id")


def test_an_idempotency_key_of_one_tenant_does_not_affect_another(target: Target) -> None:
    """B42: the same Idempotency-Key of two tenants makes two objects, independent of each other."""
    other = target.guarded.key("other", scopes=["admin"])
    key = {"idempotency-key": "the-same"}
    made = []
    for key_owner in (target.owner, other):
        file_id = key_owner.client.files.create(file=("in.jsonl", b"\n"), purpose="batch").id
        made.append(key_owner.http.post("/v1/batches", json=body(input_file_id=file_id), headers=key))
    assert [answer.status_code for answer in made] == [200, 200]
    assert made[0].json()["id"] != made[1].json()["id"]
    check_problem(other.http.get(f"/v1/batches/{made[0].json()['id']}"), 404, None, "batch_id")


KEYS = {"B42-long": "k" * 256, "B42-10-kB": "k" * 10_000, "B42-non-ascii": b"\xff", "B42-tab": "a\tb", "B42-empty": ""}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
def test_an_invalid_idempotency_key_is_a_400(target: Target, key: str | bytes) -> None:
    answer = target.http.post("/v1/batches", json=body(), headers={"idempotency-key": key})  # type: ignore[arg-type]
    target.refused(answer, 400, "invalid_value", "Idempotency-Key")


QUERIES: dict[str, tuple[str, str]] = {
    "B62-limit-0": ("/v1/batches?limit=0", "limit"),
    "B62-limit-101": ("/v1/batches?limit=101", "limit"),
    "B62-limit-1e9": ("/v1/batches?limit=1000000000", "limit"),
    "B62-limit-negative": ("/v1/batches?limit=-1", "limit"),
    "B62-limit-text": ("/v1/batches?limit=x", "limit"),
    "B62-limit-digits": ("/v1/batches?limit=" + "9" * 5000, "limit"),
    "B62-limit-other-digits": ("/v1/batches?limit=%C2%B2", "limit"),
    "B62-limit-fraction": ("/v1/batches?limit=1.5", "limit"),
    "B62-limit-nan": ("/v1/batches?limit=NaN", "limit"),
    "B62-after-junk": (f"/v1/batches?after={MARK}!", "after"),
    "B62-after-file": (f"/v1/batches?after={ids.new_id(ids.FILE)}", "after"),
    "B62-after-long": ("/v1/batches?after=" + "a" * 5000, "after"),
    "B62-after-nul": ("/v1/batches?after=%00", "after"),
    "B62-files-limit": ("/v1/files?limit=10001", "limit"),
    "B62-files-order": ("/v1/files?order=sideways", "order"),
    "B62-files-after": (f"/v1/files?after={ids.new_id(ids.BATCH)}", "after"),
    "B62-files-purpose": ("/v1/files?purpose=%00", "purpose"),
    "B62-files-long-purpose": ("/v1/files?purpose=" + "p" * 5000, "purpose"),
    "B62-usage-first-day": ("/v1/usage?end=0001-01-02", "end"),
    "B62-usage-day-0": ("/v1/usage?end=0001-01-01", "end"),
    "B62-usage-last-day": ("/v1/usage?start=9999-12-31", "start"),
    "B62-usage-digits": ("/v1/usage?start=" + "9" * 5000, "start"),
    "B62-usage-negative": ("/v1/usage?start=-1", "start"),
    "B62-usage-week": ("/v1/usage?start=2026-W99-1", "start"),
}


@pytest.mark.parametrize(("path", "param"), QUERIES.values(), ids=QUERIES.keys())
def test_a_query_out_of_bounds_is_a_400_that_names_it(target: Target, path: str, param: str) -> None:
    target.refused(target.http.get(path), 400, "invalid_value", param)


def test_usage_of_any_day_is_a_200_or_a_400(target: Target) -> None:
    """B62: the ends of the calendar."""
    for query in ("start=1970-01-01&end=1970-01-02", "start=8999-12-31&end=9000-01-01", "end=86400", "end=1970-01-01"):
        assert target.http.get(f"/v1/usage?{query}").status_code in (200, 400), query


def test_only_a_running_batch_can_be_cancelled(target: Target) -> None:
    """B63: an unknown id is a 404, an ended batch a 400 that must not be retried; the second cancel returns the same
    object.
    """
    check_problem(target.http.post(f"/v1/batches/{ids.new_id(ids.BATCH)}/cancel"), 404, None, "batch_id")
    ended = target.batch_of(batch_line())
    refused = target.http.post(f"/v1/batches/{ended.id}/cancel")
    check_problem(refused, 400, "batch_not_cancellable")
    assert refused.headers["x-should-retry"] == "false"
    lines = b"".join(batch_line(f"l{n}", body=chat(model="slow", max_tokens=200)) for n in range(50))
    running = target.start_batch(target.upload(lines))
    first, second = (target.http.post(f"/v1/batches/{running}/cancel") for _ in range(2))
    assert (first.status_code, second.status_code) == (200, 200)
    wait_for(lambda: target.client.batches.retrieve(running).status == "cancelled", "it is cancelled")
    assert target.http.post(f"/v1/batches/{running}/cancel").json()["status"] == "cancelled"
