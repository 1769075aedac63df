from __future__ import annotations

import io
import re
from pathlib import Path
from urllib.parse import unquote

import httpx2
import openai
import pytest
from openai import OpenAI

from tests.support.check import check_problem
from tests.support.stack import StackProcess, batch_lines, result_lines, wait_for, write_lines


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


def test_a_deleted_file_stays_a_valid_cursor(client: OpenAI) -> None:
    """The usual loop of a clean-up."""
    made = {upload(client, purpose="vision", name=f"{n}.png").id for n in range(5)}
    deleted = []
    for file in client.files.list(purpose="vision", limit=2):
        client.files.delete(file.id)
        deleted.append(file.id)
    assert made <= set(deleted)
    assert len(deleted) == len(set(deleted))


@pytest.mark.parametrize("name", ["upload", "batch", "a/b/in.jsonl", "C:\\in.JSONL"])
def test_a_batch_file_may_have_no_extension_and_keeps_the_last_part_of_its_path(client: OpenAI, name: str) -> None:
    assert upload(client, name=name).filename == name.replace("\\", "/").rpartition("/")[2]


def test_bytes_without_a_name_are_taken(client: OpenAI) -> None:
    for file in (
        client.files.create(file=b"{}\n", purpose="batch"),
        client.files.create(file=io.BytesIO(b"{}\n"), purpose="batch"),
    ):
        assert file.filename == "upload"
    by_parts = client.uploads.create(bytes=3, filename="tmp/x7", mime_type="text/jsonl", purpose="batch")
    assert by_parts.filename == "x7"


def test_a_batch_file_of_another_extension_is_refused_and_the_message_names_it(http: httpx2.Client) -> None:
    for name in ("in.json", "in.jsonl.gz", "a.jsonl/in.csv"):
        refused = http.post("/v1/files", data={"purpose": "batch"}, files={"file": (name, b"{}")})
        error = check_problem(refused, 400, "invalid_file_format", "file")
        assert f"'.{name.rpartition('.')[2]}'" in error["message"]


def test_names_are_kept_as_inert_text(client: OpenAI, http: httpx2.Client) -> None:
    file = upload(client, name='../../e "v;il\u202e\n.jsonl')
    assert file.filename.endswith(".jsonl")
    assert not set("\n\u202e") & set(file.filename)
    header = http.get(f"/v1/files/{file.id}/content").headers["content-disposition"]
    match = re.fullmatch(r"""attachment; filename="([^"]*)"; filename\*=UTF-8''([^";]*)""", header)
    assert match is not None, header
    assert match[1] == "e _22v_il_0A.jsonl", "the client itself escapes quotes and line ends"
    assert unquote(match[2]) == file.filename


def test_an_upload_may_say_when_it_expires(client: OpenAI) -> None:
    file = client.files.create(
        file=("a.txt", b"x"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at is not None
    assert 3590 <= file.expires_at - file.created_at <= 3610


def test_batch_files_are_kept_thirty_days_and_others_until_deleted(client: OpenAI) -> None:
    batch, other = upload(client), upload(client, purpose="assistants")
    assert batch.expires_at is not None
    assert abs(batch.expires_at - batch.created_at - 30 * 86400) <= 10
    assert other.expires_at is None


@pytest.mark.parametrize("purpose", ["assistants", "batch", "fine-tune", "vision", "user_data", "evals"])
def test_every_purpose_of_the_contract_is_taken_and_ready_at_once(client: OpenAI, purpose: str) -> None:
    file = upload(client, purpose=purpose)
    assert client.files.wait_for_processing(file.id, poll_interval=0, max_wait_seconds=1) == file


def test_files_that_a_batch_made_are_listed_and_live_as_long_as_it_asked(client: OpenAI, tmp_path: Path) -> None:
    with write_lines(tmp_path / "in.jsonl", batch_lines(2)).open("rb") as stream:
        input_id = client.files.create(file=stream, purpose="batch").id
    batch = client.batches.create(
        input_file_id=input_id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        output_expires_after={"anchor": "created_at", "seconds": 7200},
    )
    client.files.delete(input_id)
    wait_for(lambda: client.batches.retrieve(batch.id).status == "completed", "a deleted input is read all the same")
    output_id = client.batches.retrieve(batch.id).output_file_id
    output = next(file for file in client.files.list(purpose="batch_output") if file.id == output_id)
    assert output.expires_at is not None
    assert abs(output.expires_at - output.created_at - 7200) <= 10
    assert len(result_lines(client, output_id)) == 2


CONTENT = bytes(range(256)) * 8000


@pytest.fixture(scope="module")
def content_url(server: StackProcess) -> str:
    """The url of a file with `CONTENT`, which takes a few reads."""
    with server.client() as client:
        data = CONTENT[:250_000]
        return f"/v1/files/{upload(client, name='a.bin', data=data, purpose='vision').id}/content"


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=249990-", 249_990, 250_000),
        ("bytes=-10", 249_990, 250_000),
        ("bytes=249990-999999", 249_990, 250_000),
        ("bytes=-999999", 0, 250_000),
    ],
)
def test_a_range_of_the_content_is_sent_alone(
    http: httpx2.Client, content_url: str, wanted: str, start: int, end: int
) -> None:
    answer = http.get(content_url, headers={"range": wanted})
    assert answer.content == CONTENT[start:end]
    assert answer.headers["content-length"] == str(end - start)
    if end - start == 250_000:
        assert answer.status_code == 200
    else:
        assert answer.status_code == 206
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/250000"


@pytest.mark.parametrize("wanted", ["bytes=0-1,5-6", "lines=0-1", "bytes=9-1", "bytes=-", "bytes=a-b", "bytes"])
def test_ranges_we_do_not_serve_give_the_whole(http: httpx2.Client, content_url: str, wanted: str) -> None:
    answer = http.get(content_url, headers={"range": wanted})
    assert (answer.status_code, len(answer.content)) == (200, 250_000)
    assert answer.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize("wanted", ["bytes=250000-", "bytes=999999-9999999", "bytes=-0"])
def test_a_range_behind_the_end_is_refused_with_the_size(http: httpx2.Client, content_url: str, wanted: str) -> None:
    refused = http.get(content_url, headers={"range": wanted})
    check_problem(refused, 416, "range_not_satisfiable", "Range")
    assert refused.headers["content-range"] == "bytes */250000"


def test_a_download_goes_on_only_where_the_content_is_the_same(http: httpx2.Client, content_url: str) -> None:
    whole = http.get(content_url)
    for name, status in ((whole.headers["etag"], 206), (whole.headers["last-modified"], 206), ('"other"', 200)):
        answer = http.get(content_url, headers={"range": "bytes=1-", "if-range": name})
        assert answer.status_code == status
        assert answer.content == whole.content[1 if status == 206 else 0 :]


@pytest.mark.parametrize("seconds", ["3599", "2592001", "x", "²", "-3600", "0000036009999999999", ""])
def test_an_expiry_out_of_bounds_names_the_field(http: httpx2.Client, seconds: str) -> None:
    fields = form(**{"expires_after[anchor]": "created_at", "expires_after[seconds]": seconds})
    refused = http.post("/v1/files", data=fields, files={"file": ("a.jsonl", b"{}")})
    check_problem(refused, 400, "invalid_value", "expires_after[seconds]")


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


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=10001", "order=up", f"after=file-{'0' * 31}1"])
def test_bad_queries_name_the_parameter(http: httpx2.Client, query: str) -> None:
    check_problem(http.get(f"/v1/files?{query}"), 400, "invalid_value", query.split("=")[0])
