"""Uploads in parts, through the official client."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import openai
import pytest
from openai import OpenAI

from tests.support.check import check_problem
from tests.support.stack import batch_lines, result_lines, wait_for, write_lines

MISSING = "upload_0000000000000000000000000000000000000"


def announce(client: OpenAI, size: int, name: str = "big.txt", **more):
    return client.uploads.create(
        bytes=size, filename=name, mime_type="text/plain", purpose=more.pop("purpose", "user_data"), **more
    )


def send(client: OpenAI, upload_id: str, data: bytes) -> str:
    return client.uploads.parts.create(upload_id, data=data).id


def test_the_clients_chunked_upload_makes_a_file_of_the_same_bytes(client: OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "big.txt"
    path.write_bytes(bytes(range(256)) * 1000)
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    upload = client.uploads.upload_file_chunked(
        file=path, mime_type="text/plain", purpose="user_data", part_size=100_000, md5=digest
    )
    assert (upload.object, upload.status, upload.bytes) == ("upload", "completed", 256_000)
    assert upload.expires_at - upload.created_at == 3600
    assert upload.file is not None
    assert (upload.file.filename, upload.file.bytes, upload.file.purpose) == ("big.txt", 256_000, "user_data")
    assert client.files.retrieve(upload.file.id) == upload.file
    assert client.files.content(upload.file.id).content == path.read_bytes()


def test_a_batch_runs_on_a_file_that_came_in_parts(client: OpenAI, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", batch_lines(5))
    upload = client.uploads.upload_file_chunked(file=path, mime_type="text/jsonl", purpose="batch", part_size=100)
    assert upload.file is not None
    assert upload.file.expires_at is not None, "batch files are kept 30 days, however they came"
    batch = client.batches.create(
        input_file_id=upload.file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    wait_for(lambda: client.batches.retrieve(batch.id).status == "completed", "the batch ends")
    assert len(result_lines(client, client.batches.retrieve(batch.id).output_file_id)) == 5


def test_parts_sent_side_by_side_are_joined_in_the_order_of_the_list(client: OpenAI) -> None:
    parts = [bytes([65 + index]) * 1000 for index in range(8)]
    upload = announce(client, 8000)
    with ThreadPoolExecutor(8) as pool:
        part_ids = list(pool.map(lambda data: send(client, upload.id, data), parts))
    done = client.uploads.complete(upload.id, part_ids=part_ids[::-1])
    assert done.file is not None
    assert client.files.content(done.file.id).content == b"".join(parts[::-1])


def test_completing_again_gives_the_same_file(client: OpenAI) -> None:
    upload = announce(client, 3)
    part = send(client, upload.id, b"abc")
    first = client.uploads.complete(upload.id, part_ids=[part])
    assert client.uploads.complete(upload.id, part_ids=[part]) == first


def test_completing_many_times_at_once_makes_one_file(client: OpenAI) -> None:
    upload = announce(client, 3, name="raced.txt")
    part = send(client, upload.id, b"abc")
    with ThreadPoolExecutor(6) as pool:
        ended = list(pool.map(lambda _: client.uploads.complete(upload.id, part_ids=[part]).file, range(6)))
    assert len({file.id for file in ended if file}) == 1
    assert [file.filename for file in client.files.list(purpose="user_data")].count("raced.txt") == 1


def test_the_file_lives_as_long_as_the_upload_asked(client: OpenAI) -> None:
    upload = announce(client, 1, expires_after={"anchor": "created_at", "seconds": 7200})
    file = client.uploads.complete(upload.id, part_ids=[send(client, upload.id, b"x")]).file
    assert file is not None
    assert file.expires_at is not None
    assert 7190 <= file.expires_at - file.created_at <= 7210


def test_what_does_not_add_up_is_refused_and_the_upload_stays_open(client: OpenAI, http: httpx2.Client) -> None:
    upload = announce(client, 6)
    one, two = send(client, upload.id, b"abc"), send(client, upload.id, b"def")
    other = send(client, announce(client, 3).id, b"xyz")
    url = f"/v1/uploads/{upload.id}/complete"
    check_problem(http.post(url, json={"part_ids": [one]}), 400, "bytes_mismatch", "part_ids")
    check_problem(http.post(url, json={"part_ids": [one, one]}), 400, "invalid_value", "part_ids")
    check_problem(http.post(url, json={"part_ids": [one, other]}), 400, "invalid_value", "part_ids[1]")
    check_problem(http.post(url, json={}), 400, "missing_required_parameter", "part_ids")
    wrong = {"part_ids": [two, one], "md5": hashlib.md5(b"abcdef").hexdigest()}
    check_problem(http.post(url, json=wrong), 400, "md5_mismatch", "md5")
    check_problem(http.post(url, json={**wrong, "md5": "x"}), 400, "invalid_value", "md5")
    assert http.post(url, json={**wrong, "part_ids": [one, two]}).json()["status"] == "completed"


def test_a_cancelled_upload_takes_no_parts_and_cannot_be_completed(client: OpenAI, http: httpx2.Client) -> None:
    upload = announce(client, 3)
    part = send(client, upload.id, b"abc")
    assert client.uploads.cancel(upload.id).status == "cancelled"
    assert client.uploads.cancel(upload.id).status == "cancelled"
    url = f"/v1/uploads/{upload.id}"
    check_problem(http.post(f"{url}/parts", files={"data": b"x"}), 400, "upload_not_pending", "upload_id")
    refused = http.post(f"{url}/complete", json={"part_ids": [part]})
    check_problem(refused, 400, "upload_not_pending", "upload_id")


def test_a_completed_upload_cannot_be_cancelled(client: OpenAI) -> None:
    upload = announce(client, 3)
    client.uploads.complete(upload.id, part_ids=[send(client, upload.id, b"abc")])
    with pytest.raises(openai.BadRequestError, match="completed"):
        client.uploads.cancel(upload.id)


def test_bad_uploads_in_parts_name_the_field(client: OpenAI, http: httpx2.Client) -> None:
    good = {"bytes": 10, "filename": "a.jsonl", "mime_type": "text/jsonl", "purpose": "batch"}
    url = "/v1/uploads"
    for field in good:
        without = {name: value for name, value in good.items() if name != field}
        check_problem(http.post(url, json=without), 400, "missing_required_parameter", field)
    check_problem(http.post(url, json={**good, "filename": "a.csv"}), 400, "invalid_file_format", "filename")
    check_problem(http.post(url, json={**good, "purpose": "fun"}), 400, "invalid_value", "purpose")
    check_problem(http.post(url, json={**good, "bytes": 0}), 400, "invalid_value", "bytes")
    check_problem(http.post(url, json={**good, "bytes": 200_001}), 413, "file_too_large", "bytes")
    check_problem(
        http.post(url, json={**good, "purpose": "user_data", "bytes": 9 << 30}), 413, "file_too_large", "bytes"
    )
    soon = {"anchor": "created_at", "seconds": 3599}
    check_problem(http.post(url, json={**good, "expires_after": soon}), 400, "invalid_value", "expires_after.seconds")
    parts = f"{url}/{announce(client, 10).id}/parts"
    check_problem(http.post(parts, data={"x": "y"}, files={"no": b"x"}), 400, "missing_required_parameter", "data")
    check_problem(http.post(parts, files={"data": b""}), 400, "invalid_value", "data")
    check_problem(http.post(parts, files={"data": bytes((64 << 20) + 100_000)}), 413, "request_too_large")


@pytest.mark.parametrize("upload_id", [MISSING, "nonsense", "a" * 500])
def test_uploads_that_are_not_ours_are_404s(http: httpx2.Client, upload_id: str) -> None:
    url = f"/v1/uploads/{upload_id}"
    check_problem(http.post(f"{url}/parts", files={"data": b"x"}), 404, None, "upload_id")
    check_problem(http.post(f"{url}/complete", json={"part_ids": ["a"]}), 404, None, "upload_id")
    check_problem(http.post(f"{url}/cancel"), 404, None, "upload_id")
