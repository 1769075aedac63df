"""`files_url`: the forms that are accepted, and the sentences about all others; stores of every cloud without a network."""

from __future__ import annotations

import sys
from base64 import b64encode
from pathlib import Path

import pytest

from core.errors import ConfigError
from core.files.directory import DirectoryStore
from core.files.file_store import FileStoreUnavailable
from core.files.object_errors import unavailable_store
from core.files.open_store import open_file_store
from core.settings import Settings, load_settings

AZURE_KEY = b64encode(b"a key of the tests").decode()


def settings_of(**values: str) -> Settings:
    return load_settings(**values)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MILLRACE_FILES_URL", "MILLRACE_FILES_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("/srv/files", "must be a URL of a place for files, such as s3://BUCKET/PREFIX"),
        ("ftp://host/files", "not ftp://…"),
        ("https://bucket.s3.amazonaws.com/files", "not https://…"),
        ("s3://", "has no bucket: write s3://BUCKET/PREFIX"),
        ("s3:///prefix", "has no bucket: write s3://BUCKET/PREFIX"),
        ("s3://key:secret@bucket/files", "must have no credentials in it"),
        ("s3://bucket/files?region=eu", "nothing follows the prefix"),
        ("s3://bucket/../files", "must be s3://BUCKET/PREFIX"),
        ("s3://bucket//files", "must be s3://BUCKET/PREFIX"),
        ("s3://bucket:9000/files", "must be s3://BUCKET/PREFIX"),
        ("file://files", "must have three slashes and an absolute path"),
        ("file:///srv/files?x=1", "must have three slashes and an absolute path"),
    ],
)
def test_a_url_of_another_form_is_refused_with_the_right_one(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of(files_url=url)
    assert str(caught.value).startswith("files_url ")
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_directory_and_a_url_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_FILES_DIR", "/srv/files")
    monkeypatch.setenv("MILLRACE_FILES_URL", "s3://bucket/files")
    with pytest.raises(ConfigError, match="MILLRACE_FILES_URL and files_dir are both set: remove one"):
        load_settings()


def test_a_file_url_is_a_directory(tmp_path: Path) -> None:
    settings = settings_of(files_url=f"file://{tmp_path}/a%20place")
    assert settings.files_root == tmp_path / "a place"
    assert isinstance(open_file_store(settings), DirectoryStore)


@pytest.mark.parametrize(
    ("url", "environment"),
    [
        ("s3://bucket/some/prefix/", {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}),
        ("s3://bucket", {}),
        ("gs://bucket/prefix", {}),
        ("az://container/prefix", {"AZURE_STORAGE_ACCOUNT_NAME": "acme", "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY}),
    ],
)
def test_a_store_of_each_cloud_is_made_without_a_network(
    url: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = settings_of(files_url=url)
    store = open_file_store(settings)
    assert (settings.files_root, store.directory) == (None, None)
    assert store.place == url.rstrip("/")


@pytest.mark.parametrize(
    ("url", "environment", "said"),
    [
        ("az://container/files", {}, r"account must be specified.* AZURE_STORAGE_ACCOUNT_NAME"),
        (
            "az://container/files",
            {"AZURE_STORAGE_ACCOUNT_NAME": "acme", "AZURE_STORAGE_ACCOUNT_KEY": "not base64!"},
            r"invalid Access Key\. .* AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
        ),
        (
            "gs://bucket/files",
            {"GOOGLE_APPLICATION_CREDENTIALS": "/none.json"},
            r"unable to open service account file.* GOOGLE_APPLICATION_CREDENTIALS",
        ),
    ],
)
def test_credentials_that_cannot_be_read_are_named(
    url: str, environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FileStoreUnavailable, match=said):
        open_file_store(settings_of(files_url=url))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(ConfigError, match=r"MILLRACE_FILES_URL .* pip install 'millrace\[objects\]'"):
        open_file_store(settings_of(files_url="s3://bucket/files"))


@pytest.mark.parametrize(
    ("url", "text", "said"),
    [
        (
            "s3://b/f",
            "Error performing PUT http://169.254.169.254/latest/api/token",
            "there are no credentials. Set AWS_",
        ),
        ("gs://b/f", "Error performing token request: connection refused", "there are no credentials. Set GOOGLE_"),
        (
            "az://c/f",
            "status code: 404 Not Found: <Code>ContainerNotFound</Code>",
            "the bucket does not exist. Create it",
        ),
        ("gs://b/f", "status code: 404 Not Found: The specified bucket does not exist.", "the bucket does not exist"),
        (
            "az://c/f",
            "status code: 403 Forbidden: <Code>AuthenticationFailed</Code>",
            "credentials (AuthenticationFailed)",
        ),
        ("s3://b/f", "status code: 301 Moved Permanently: <Code>PermanentRedirect</Code>", "PermanentRedirect"),
        ("s3://b/f", "", "unknown reason"),
    ],
)
def test_each_failure_has_its_remedy(url: str, text: str, said: str) -> None:
    assert said in str(unavailable_store(url, RuntimeError(f"{text}\n\nDebug source:\nkey=secret")))
    assert "secret" not in str(unavailable_store(url, RuntimeError(f"{text}\n\nDebug source:\nkey=secret")))
