"""The address of the server and the key, as people write them; and the server of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.address import api_key, api_url, local_url
from cli.errors import CommandFailed
from cli.state_lock import StateLock, running_launcher
from core.errors import ConfigError
from core.settings import Settings


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("localhost:8000/v1/", "http://localhost:8000/v1"),
        (" gpu-box:9000 ", "http://gpu-box:9000/v1"),
        ("[::1]:8000", "http://[::1]:8000/v1"),
        ("HTTPS://models.example.com", "https://models.example.com/v1"),
        ("https://example.com/llm/v1", "https://example.com/llm/v1"),
        ("http://127.0.0.1:8000/v1/chat/completions", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1/batches?limit=3", "http://127.0.0.1:8000/v1"),
    ],
)
def test_an_address_is_completed(given: str, url: str) -> None:
    assert api_url(given) == url


@pytest.mark.parametrize("given", ["ftp://a/v1", "http://", "http://a:many/v1", "a b", "http://a:99999"])
def test_something_else_than_an_address_is_named(given: str) -> None:
    with pytest.raises(CommandFailed, match=r"is not the address of a server .*OPENAI_BASE_URL") as refused:
        api_url(given)
    assert refused.value.code == 2


def test_an_empty_key_is_any_key_and_a_broken_one_is_named() -> None:
    assert [api_key(given) for given in ("", " \n", "sk-a\n")] == ["none", "none", "sk-a"]
    for given in ("sk a", "sk-ü", "a\nb"):
        with pytest.raises(CommandFailed, match="OPENAI_API_KEY"):
            api_key(given)


def test_the_server_of_this_machine_is_found_by_port_or_by_its_state_directory(tmp_path: Path) -> None:
    assert local_url(Settings(state_dir=tmp_path)) == "http://127.0.0.1:8000/v1"
    assert local_url(Settings(state_dir=tmp_path, port=9000, host="0.0.0.0")) == "http://127.0.0.1:9000/v1"
    assert local_url(Settings(state_dir=tmp_path, port=0, host="::")) == "http://[::1]:8000/v1"
    lock = StateLock(tmp_path)
    assert local_url(Settings(state_dir=tmp_path)) == "http://127.0.0.1:8000/v1", "it has not announced its address"
    lock.write("http://127.0.0.1:4711")
    assert local_url(Settings(state_dir=tmp_path)) == "http://127.0.0.1:4711/v1"
    assert local_url(Settings(state_dir=tmp_path, port=9000)) == "http://127.0.0.1:9000/v1"
    with pytest.raises(ConfigError, match=r"in use by a running Millrace \(pid \d+, http://127\.0\.0\.1:4711\)"):
        StateLock(tmp_path)
    lock.release()
    assert running_launcher(tmp_path) is None
    StateLock(tmp_path).release()


def test_a_file_of_the_users_is_not_taken_for_a_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("the key is under the mat\n")
    with pytest.raises(ConfigError, match="is not a lock of Millrace"):
        StateLock(tmp_path)
    assert (tmp_path / "lock").read_text() == "the key is under the mat\n"
