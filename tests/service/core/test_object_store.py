"""Object storage that is slow, busy, gone or closed: what is repeated, what the error says, and what is left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core import ids
from core.files.file_store import FileStoreUnavailable
from core.files.object_store import ObjectStore
from core.files.open_store import open_file_store
from core.settings import Settings
from tests.service.core.conftest import BUCKET
from tests.support.s3_server import Fault, S3Server

LARGE = os.urandom(20_000_000)
BODY = 1000  # bytes of a request that carries a part


def write(store: ObjectStore) -> str:
    file_id = ids.new_id(ids.FILE)
    with store.write(file_id) as stream:
        stream.write(LARGE)
    return file_id


@pytest.mark.parametrize("fault", ["slow_down", "reset"])
def test_requests_that_fail_are_repeated(s3: S3Server, objects: ObjectStore, fault: Fault) -> None:
    s3.fail(fault, 3, method="PUT", body_over=BODY)
    file_id = write(objects)
    s3.fail(fault, 3, method="GET")
    assert b"".join(objects.read(file_id, 0, len(LARGE))) == LARGE
    s3.fail("slow_down", 1, method="POST", query="delete")
    objects.delete(file_id)
    assert s3.objects(BUCKET) == {}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("slow_down", "it answers SlowDown"),
        ("reset", "it does not answer"),
        ("forbidden", "it refuses the credentials"),
    ],
)
@pytest.mark.parametrize("place", [{"method": "PUT", "body_over": BODY}, {"method": "POST", "query": "uploadId"}])
def test_a_write_that_fails_for_good_says_why_and_leaves_nothing(
    s3: S3Server, objects: ObjectStore, fault: Fault, reason: str, place: dict[str, str]
) -> None:
    s3.fail(fault, 10_000, **place)  # type: ignore[arg-type]
    with pytest.raises(FileStoreUnavailable, match=reason) as caught:
        write(objects)
    assert len(str(caught.value).splitlines()) == 1
    assert (s3.objects(BUCKET), s3.unfinished(BUCKET)) == ({}, [])


def test_a_download_asks_for_its_range_alone(s3: S3Server, objects: ObjectStore) -> None:
    file_id = write(objects)
    s3.requests()
    assert b"".join(objects.read(file_id, 19_000_000, 19_000_010)) == LARGE[19_000_000:19_000_010]
    (request,) = s3.requests()
    assert request.startswith("GET")
    assert request.endswith("bytes=19000000-19000009")


def test_one_part_is_joined_by_the_server(s3: S3Server, objects: ObjectStore) -> None:
    part = write(objects)
    s3.requests()
    objects.join(ids.new_id(ids.FILE), [part])
    assert [request.partition(" ")[0] for request in s3.requests()] == ["PUT"]


def test_a_bucket_that_goes_away_is_no_missing_file(s3: S3Server, objects: ObjectStore) -> None:
    file_id = write(objects)
    s3.delete_bucket(BUCKET)
    try:
        calls = (
            objects.ping,
            objects.check,
            lambda: objects.open(file_id),
            lambda: objects.read(file_id, 0, 10),
            lambda: objects.exists(file_id),
            lambda: objects.delete(file_id),
            lambda: objects.old_ids(0, 0),
            lambda: write(objects),
            lambda: objects.join(ids.new_id(ids.FILE), [file_id]),
        )
        for call in calls:
            with pytest.raises(FileStoreUnavailable) as caught:
                call()
            assert str(caught.value) == (
                f"The file store s3://{BUCKET}/files cannot be used: the bucket does not exist. "
                "Create it, or correct MILLRACE_FILES_URL."
            )
    finally:
        s3.create_bucket(BUCKET)


def check(url: str, tmp_path: Path) -> str:
    """The sentence with which a process refuses to start."""
    with pytest.raises(FileStoreUnavailable) as caught:
        open_file_store(Settings(state_dir=tmp_path, files_url=url)).check()
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert said.startswith(f"The file store {url} cannot be used: ")
    return said


def test_wrong_credentials_are_named_at_the_start(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASOMEONEELSE")
    said = check(f"s3://{BUCKET}/files", tmp_path)
    assert "it refuses the credentials (InvalidAccessKeyId). Correct AWS_ACCESS_KEY_ID" in said
    assert "AKIASOMEONEELSE" not in said


def test_a_key_that_may_only_list_is_found_at_the_start(s3: S3Server, tmp_path: Path) -> None:
    s3.fail("forbidden", 1, method="PUT")
    assert "allow them to read, write, list and delete there" in check(f"s3://{BUCKET}/files", tmp_path)


def test_a_server_that_does_not_answer_is_named_at_the_start(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "it does not answer" in (said := check(f"s3://{BUCKET}/files", tmp_path))
    assert "AWS_ENDPOINT_URL" in said
