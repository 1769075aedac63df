from __future__ import annotations

import io
import uuid

import httpx2
import openai
import pytest
from openai import OpenAI

from tests.api.check import check_problem


def upload(client: OpenAI, name: str = "in.jsonl", data: bytes = b"{}\n", purpose: str = "batch"):
    return client.files.create(file=(name, io.BytesIO(data)), purpose=purpose)  # type: ignore[arg-type]


def test_a_file_can_be_stored_seen_read_and_deleted(client: OpenAI) -> None:
    data = "line one\r\nсемь\x00\n".encode()
    file = upload(client, data=data)
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(data), "in.jsonl", "batch")
    assert file.status == "processed"
    assert file.expires_at is not None
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).content == data
    assert file.id in [one.id for one in client.files.list()]
    assert client.files.delete(file.id).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file.id)


def test_lists_come_newest_first_in_pages_that_join(client: OpenAI) -> None:
    before = upload(client, purpose="assistants", name="before.txt").id
    made = [upload(client, purpose="assistants", name=f"{n}.txt").id for n in range(5)]
    newest = [file.id for file in client.files.list(purpose="assistants", limit=2)]
    assert newest[:5] == made[::-1], "the client fetches all pages by itself"
    page = client.files.list(purpose="assistants", limit=2, order="asc", after=before)
    assert page.has_more
    assert [one.id for one in page.data] == made[:2]
    for one in [before, *made]:
        client.files.delete(one)


def test_names_are_kept_as_inert_text(client: OpenAI, http: httpx2.Client) -> None:
    file = upload(client, name='../../e "v;il\u202e\n.jsonl')
    assert file.filename.endswith(".jsonl")
    assert not set("\n\u202e") & set(file.filename)
    header = http.get(f"/v1/files/{file.id}/content").headers["content-disposition"]
    assert header.startswith("attachment; filename*=UTF-8''")
    assert not set('"\n;') & set(header.split("''")[1])


def test_an_upload_may_say_when_it_expires(client: OpenAI) -> None:
    file = client.files.create(
        file=("a.txt", b"x"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at is not None
    assert 3590 <= file.expires_at - file.created_at <= 3610


def form(**fields: str) -> dict[str, str]:
    return {"purpose": "batch", **fields}


def test_bad_uploads_name_the_field(http: httpx2.Client) -> None:
    file = {"file": ("a.jsonl", b"{}")}
    url = "/v1/files"
    check_problem(http.post(url, data={"x": "y"}, files=file), 400, "missing_required_parameter", "purpose")
    check_problem(http.post(url, data=form(purpose="fun"), files=file), 400, "invalid_value", "purpose")
    check_problem(http.post(url, data=form(), files={"x": ("a", b"")}), 400, "missing_required_parameter", "file")
    check_problem(http.post(url, data=form(), files={"file": ("a.csv", b"")}), 400, "invalid_file_format", "file")
    check_problem(
        http.post(url, data=form(**{"expires_after[anchor]": "x"}), files=file),
        400,
        "invalid_value",
        "expires_after[anchor]",
    )
    check_problem(http.post(url, json={}), 415, "unsupported_media_type")
    check_problem(
        http.post(url, content=b"garbage", headers={"content-type": "multipart/form-data; boundary=x"}),
        400,
        "invalid_multipart",
    )
    check_problem(
        http.post(url, content=b"garbage", headers={"content-type": "multipart/form-data"}), 400, "invalid_multipart"
    )


def test_files_over_the_limits_are_refused(http: httpx2.Client) -> None:
    url = "/v1/files"
    check_problem(
        http.post(url, data=form(), files={"file": ("a.jsonl", b"x" * 200_001)}), 413, "file_too_large", "file"
    )
    big = http.post(url, data=form(purpose="user_data"), files={"file": ("a", b"x" * 500_000)})
    check_problem(big, 413, "request_too_large")


@pytest.mark.parametrize("file_id", ["file-unknown", "nonsense", "..%2f..%2fetc%2fpasswd", "a" * 500, "%00", "😀"])
def test_ids_that_are_not_ours_are_404s(http: httpx2.Client, file_id: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
        response = http.request(method, f"/v1/files/{file_id}{path}")
        assert response.status_code == 404, (method, path, response.text)
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=10001", "order=up", f"after=file-{uuid.uuid4().hex}"])
def test_bad_queries_name_the_parameter(http: httpx2.Client, query: str) -> None:
    check_problem(http.get(f"/v1/files?{query}"), 400, "invalid_value", query.split("=")[0])
