"""`/v1/me` and `/v1/api_keys` over HTTP, on the real stack."""

from __future__ import annotations

import httpx2
import pytest

from tests.support.guarded import Guarded

# The caller


def test_a_caller_without_a_key_sees_the_rights_of_this_machine(http: httpx2.Client) -> None:
    assert http.get("/v1/me").json() == {
        "object": "caller",
        "tenant": "default",
        "api_key_id": None,
        "name": None,
        "scopes": ["admin"],
        "models": None,
        "keys_required": False,
    }


@pytest.mark.parametrize("scopes", [["inference"], ["files"], ["read-only"], ["admin", "files"]], ids=str)
def test_every_key_sees_its_own_rights_whatever_they_are(guarded: Guarded, scopes: list[str]) -> None:
    key = guarded.key("acme", scopes=scopes, models=["other", "fake"])
    shown = key.http.get("/v1/me").json()
    assert (shown["tenant"], shown["api_key_id"], shown["name"]) == ("acme", key.id, "test")
    assert set(shown["scopes"]) == {*scopes}
    assert (shown["models"], shown["keys_required"]) == (["fake", "other"], True)
    assert key.text not in str(shown)
