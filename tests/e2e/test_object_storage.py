"""A whole batch with its files in S3; a bucket that goes away; credentials that are wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from tests.support.command import millrace
from tests.support.s3_server import S3Server
from tests.support.stack import StackProcess, batch_lines, result_lines, start_batch, wait_for, write_lines

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "fake.yaml").write_text("name: fake\nbackend: fake\nslots: 8\n")
    return folder


@pytest.fixture(scope="module")
def stack(s3: S3Server, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    url = s3.create_bucket("batches")
    process = StackProcess(tmp_path_factory.mktemp("s3"), models, MILLRACE_FILES_URL=url, **s3.environment)
    process.start()
    yield process
    process.close()


def test_a_batch_lives_in_object_storage(stack: StackProcess, s3: S3Server, tmp_path: Path) -> None:
    client, path = stack.client(), write_lines(tmp_path / "in.jsonl", batch_lines(200))
    with path.open("rb") as stream:
        file = client.files.create(file=stream, purpose="batch")
    report = httpx2.post(f"{stack.url}/v1/batches/validate", json={"input_file_id": file.id}, timeout=60).json()
    assert (report["is_valid"], report["lines"]) == (True, 200)
    batch_id = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h").id
    wait_for(lambda: client.batches.retrieve(batch_id).status == "completed", "the batch completes")
    output_id = client.batches.retrieve(batch_id).output_file_id
    assert output_id is not None
    assert len(result_lines(client, output_id)) == 200
    content = client.files.content(output_id).content
    part = httpx2.get(f"{stack.url}/v1/files/{output_id}/content", headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, content[100:200])
    assert {key.rpartition("/")[2] for key in s3.objects("batches")} == {file.id, output_id}
    assert not (stack.state_dir / "files").exists()
    for file_id in (file.id, output_id):
        client.files.delete(file_id)
    wait_for(lambda: not s3.objects("batches"), "the bytes are swept", 20)


def test_parts_of_an_upload_are_joined(stack: StackProcess, tmp_path: Path) -> None:
    path = tmp_path / "parts.txt"
    path.write_bytes(os.urandom(3_000_000))
    upload = stack.client().uploads.upload_file_chunked(
        file=path, mime_type="text/plain", purpose="user_data", part_size=1_000_000
    )
    assert upload.file is not None
    assert stack.client().files.content(upload.file.id).content == path.read_bytes()


def test_a_backup_names_the_bucket_and_has_no_files(stack: StackProcess, s3: S3Server, tmp_path: Path) -> None:
    environment = {**s3.environment, "MILLRACE_FILES_URL": "s3://batches/files"}
    made = millrace("db", "backup", "kept", "--state-dir", stack.state_dir, cwd=tmp_path, **environment)
    assert made.returncode == 0, made.stderr
    assert "The files stay in s3://batches/files" in made.stdout
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["database.dump", "files.url"]


def test_a_bucket_that_goes_away_is_a_503_and_comes_back(stack: StackProcess, s3: S3Server, tmp_path: Path) -> None:
    client = stack.client().with_options(max_retries=0)
    kept = client.files.create(file=("a.txt", b"content"), purpose="user_data")
    s3.delete_bucket("batches")
    for call in (
        lambda: client.files.content(kept.id),
        lambda: client.files.create(file=("b.txt", b"x"), purpose="user_data"),
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            call()
        assert (caught.value.status_code, caught.value.code) == (503, "service_unavailable")
        assert "batches" not in caught.value.message
    ready = httpx2.get(f"{stack.url}/readyz")
    assert (ready.status_code, ready.json()["checks"]["file store"]) == (503, "the bucket does not exist")
    s3.create_bucket("batches")
    assert httpx2.get(f"{stack.url}/readyz").status_code == 200
    batch_id = start_batch(client, write_lines(tmp_path / "in.jsonl", batch_lines(2)))
    wait_for(lambda: client.batches.retrieve(batch_id).status == "completed", "the batch completes")


def test_a_stack_with_wrong_credentials_says_so_and_does_not_start(s3: S3Server, models: Path, tmp_path: Path) -> None:
    environment = {**s3.environment, "AWS_ACCESS_KEY_ID": "AKIAWRONG", "MILLRACE_FILES_URL": "s3://batches/files"}
    places = ("--state-dir", tmp_path / "state", "--models-dir", models)
    said = "The file store s3://batches/files cannot be used: it refuses the credentials (InvalidAccessKeyId)."
    served = millrace("serve", "--port", "0", *places, cwd=tmp_path, **environment)
    assert served.returncode == 5
    assert said in served.stderr
    found = millrace("doctor", *places, cwd=tmp_path, MILLRACE_PORT="0", **environment)
    assert f"files: {said}" in found.stdout
