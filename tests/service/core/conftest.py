"""An S3 server, and a store in an empty bucket of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.files.object_store import ObjectStore
from tests.support.s3_server import S3Server

BUCKET = "bucket"


@pytest.fixture(scope="package")
def s3_server() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server with an empty bucket, and its address and credentials in the environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.fail("slow_down", 0)
    s3_server.create_bucket(BUCKET)
    yield s3_server
    s3_server.delete_bucket(BUCKET)


@pytest.fixture
def objects(s3: S3Server) -> ObjectStore:
    return ObjectStore(f"s3://{BUCKET}/files", patience_seconds=2)
