"""Addresses, headers and keys of upstreams."""

from __future__ import annotations

import pytest

from engine.config import UpstreamConfig
from engine.errors import ModelFailed
from engine.upstream.access import Address, parse_address, read_access


@pytest.mark.parametrize(
    ("url", "address", "authority"),
    [
        ("http://127.0.0.1:8000/v1", Address("http", "127.0.0.1", 8000, "/v1"), "127.0.0.1:8000"),
        ("https://api.example.com/v1/", Address("https", "api.example.com", 443, "/v1"), "api.example.com"),
        ("http://10.0.0.7", Address("http", "10.0.0.7", 80, ""), "10.0.0.7"),
        ("http://[::1]:81/a/b", Address("http", "::1", 81, "/a/b"), "[::1]:81"),
    ],
)
def test_an_address_is_that_of_any_server_of_the_operator(url: str, address: Address, authority: str) -> None:
    assert parse_address(url) == address
    assert address.authority == authority


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "such as"),
        ("ftp://host/v1", "such as"),
        ("localhost:8000/v1", "such as"),
        ("http:///v1", "such as"),
        ("http://host:99999/v1", "valid"),
        ("http://ho st/v1", "such as"),
        ("http://host/v1\r\nx: y", "such as"),
        ("http://user:secret@host/v1", "api_key_env"),
        ("http://host/v1?key=secret", "query"),
        ("http://host/v1#top", "query"),
        ("http://169.254.169.254/v1", "metadata"),
        ("http://[fe80::1%25eth0]/v1", "metadata"),
        ("http://[::ffff:169.254.169.254]/v1", "metadata"),
        ("http://[64:ff9b::a9fe:a9fe]/v1", "metadata"),
        ("http://[2002:a9fe:a9fe::1]/v1", "metadata"),
        ("http://[fd00:ec2::254]/v1", "metadata"),
        ("http://168.63.129.16/v1", "metadata"),
        ("http://100.100.100.200/v1", "metadata"),
        ("http://224.0.0.1/v1", "metadata"),
    ],
)
def test_an_address_that_must_not_be_used_is_refused_without_its_secret(url: str, reason: str) -> None:
    with pytest.raises(ModelFailed, match=reason) as caught:
        parse_address(url)
    assert "secret" not in str(caught.value)


def test_the_key_comes_from_the_environment_and_is_removed_from_texts() -> None:
    access = read_access(UpstreamConfig(model="m", api_key_env="KEY"), {"KEY": "sk-12345678\n"})
    assert access.headers["authorization"] == "Bearer sk-12345678"
    assert access.redact("Incorrect API key: sk-12345678.") == "Incorrect API key: [redacted]."


@pytest.mark.parametrize("environment", [{}, {"KEY": ""}, {"KEY": " \n"}])
def test_a_variable_that_is_not_set_is_named(environment: dict[str, str]) -> None:
    with pytest.raises(ModelFailed, match="variable KEY is (not set|empty)"):
        read_access(UpstreamConfig(model="m", api_key_env="KEY"), environment)


@pytest.mark.parametrize("key", ["sk-1\r\nx: y", "sk-\u20ac"])
def test_a_key_that_cannot_be_a_header_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ModelFailed) as caught:
        read_access(UpstreamConfig(model="m", api_key_env="KEY"), {"KEY": key})
    assert key not in str(caught.value)


def test_headers_hold_the_values_of_variables_which_are_removed_from_texts() -> None:
    config = UpstreamConfig(model="m", headers={"Authorization": "Token ${TOKEN}", "X-Org": "o"})
    access = read_access(config, {"TOKEN": "abcdefgh"})
    assert access.headers == {"user-agent": "millrace", "authorization": "Token abcdefgh", "x-org": "o"}
    assert access.redact("abcdefgh, Token abcdefgh, o") == "[redacted], Token [redacted], o"
