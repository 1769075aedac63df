"""`/v1/me` and `/v1/api_keys` over HTTP, on the real stack."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
import redis
from sqlalchemy import Engine, select, text

from core.settings import Settings
from db.tables import IdempotencyKey
from tests.support.check import check_problem
from tests.support.guarded import Guarded
from tests.support.inside import inside
from workers.context import Database

URL = "/v1/api_keys"


# The caller


def test_a_caller_without_a_key_sees_the_rights_of_this_machine(http: httpx2.Client) -> None:
    assert http.get("/v1/me").json() == {
        "object": "caller",
        "tenant": "default",
        "api_key_id": None,
        "name": None,
        "scopes": ["admin"],
        "models": None,
        "expires_at": None,
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


# Creating


def test_a_new_key_works_and_only_its_prefix_is_shown_again(guarded: Guarded) -> None:
    admin = guarded.key("makers", scopes=["admin"])
    body = {
        "name": "<b>laptop</b>", "scopes": ["inference", "read-only", "inference"], "models": ["fake"],
        "requests_per_minute": 60, "expires_after_seconds": 3600,
    }  # fmt: skip
    answer = admin.http.post(URL, json=body)
    assert answer.status_code == 200, answer.text
    made = answer.json()
    secret = made.pop("key")
    assert secret.startswith(made["prefix"] + "-")
    assert (made["object"], made["state"], made["name"]) == ("api_key", "valid", "<b>laptop</b>")
    assert (made["scopes"], made["models"], made["requests_per_minute"]) == (["inference", "read-only"], ["fake"], 60)
    assert made["expires_at"] - made["created_at"] in (3599, 3600)
    assert made.pop("warning") is None
    with guarded.http(secret) as http:
        assert http.get("/v1/me").json()["api_key_id"] == made["id"]
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["fake", "also-fake"]
    listed = admin.http.get(URL)
    assert made in listed.json()["data"]
    assert admin.http.get(f"{URL}/{made['id']}").json() == made
    assert secret not in listed.text
    logs = "".join(path.read_text() for path in (guarded.process.state_dir / "logs").glob("*.log"))
    assert made["id"] in logs
    assert secret.rpartition("-")[2] not in logs


def test_keys_are_listed_newest_first_in_pages_and_only_to_their_tenant(guarded: Guarded) -> None:
    admin, stranger = guarded.key("listed", scopes=["admin"]), guarded.key("listless", scopes=["read-only"])
    made = [admin.http.post(URL, json={"name": f"{n}"}).json()["id"] for n in range(3)]
    first = admin.http.get(URL, params={"limit": 2}).json()
    assert ([key["id"] for key in first["data"]], first["has_more"]) == (made[:0:-1], True)
    second = admin.http.get(URL, params={"after": first["last_id"]}).json()
    assert ([key["id"] for key in second["data"]], second["has_more"]) == ([made[0], admin.id], False)
    assert [key["id"] for key in stranger.http.get(URL).json()["data"]] == [stranger.id]
    behind = stranger.http.get(URL, params={"after": made[0]}).json()["data"]
    assert [key["id"] for key in behind] == [stranger.id], "the id of another tenant is a place in time"


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"name": ""}, "invalid_value", "name"),
        ({"name": "a\nb"}, "invalid_value", "name"),
        ({"name": 7}, "invalid_type", "name"),
        ({"scopes": []}, "invalid_value", "scopes"),
        ({"scopes": ["admin", "root"]}, "invalid_value", "scopes[1]"),
        ({"scopes": "admin"}, "invalid_type", "scopes"),
        ({"models": []}, "invalid_value", "models"),
        ({"models": [""]}, "invalid_value", "models[0]"),
        ({"requests_per_minute": 0}, "invalid_value", "requests_per_minute"),
        ({"queued_tokens": 10**13}, "invalid_value", "queued_tokens"),
        ({"concurrent_streams": "2"}, "invalid_type", "concurrent_streams"),
        ({"expires_after_seconds": 0}, "invalid_value", "expires_after_seconds"),
        ({"expires_after_seconds": 10**10}, "invalid_value", "expires_after_seconds"),
    ],
)
def test_a_bad_field_of_a_key_is_named(guarded: Guarded, changes: dict[str, Any], code: str, param: str) -> None:
    check_problem(guarded.owner.http.post(URL, json=changes), 400, code, param)


def test_a_repeated_create_makes_one_key_and_does_not_repeat_its_secret(guarded: Guarded) -> None:
    admin = guarded.key("repeaters", scopes=["admin"])
    sent: dict[str, Any] = {"json": {"name": "once"}, "headers": {"idempotency-key": "once"}}
    first, again = admin.http.post(URL, **sent).json(), admin.http.post(URL, **sent).json()
    assert first["key"].startswith("sk-")
    assert again == {**first, "key": None}
    with guarded.database.connect() as connection:
        stored = str(connection.execute(select(IdempotencyKey.__table__)).all())
    assert first["id"] in stored
    assert first["key"] not in stored


def test_a_key_gives_no_more_than_it_has(guarded: Guarded) -> None:
    limited = guarded.key("limited", scopes=["admin"], models=["fake"], requests_per_minute=10, calls_per_minute=500)
    for body, param in (
        ({"models": ["fake", "other"]}, "models"),
        ({"requests_per_minute": 11}, "requests_per_minute"),
        ({"calls_per_minute": 501}, "calls_per_minute"),
    ):
        check_problem(limited.http.post(URL, json=body), 403, "insufficient_permissions", param)
    made = limited.http.post(URL, json={"scopes": ["admin"], "tokens_per_minute": 5}).json()
    assert (made["models"], made["requests_per_minute"], made["calls_per_minute"]) == (["fake"], 10, 500)
    assert made["tokens_per_minute"] == 5
    free = guarded.key("limited")
    refused = limited.http.post(f"{URL}/{free.id}/rotate")
    check_problem(refused, 403, "insufficient_permissions", "models")
    assert free.http.get("/v1/me").status_code == 200
    assert limited.http.post(f"{URL}/{free.id}/revoke").json()["state"] == "revoked"


def test_a_key_that_expires_gives_no_longer_life(guarded: Guarded) -> None:
    ends_at = datetime.now(UTC) + timedelta(hours=1)
    admin = guarded.key("brief", scopes=["admin"], expires_at=ends_at)
    check_problem(
        admin.http.post(URL, json={"expires_after_seconds": 7200}), 403, "insufficient_permissions",
        "expires_after_seconds",
    )  # fmt: skip
    assert admin.http.get("/v1/me").json()["expires_at"] == int(ends_at.timestamp())
    assert admin.http.post(URL, json={}).json()["expires_at"] == int(ends_at.timestamp())
    assert admin.http.post(f"{URL}/{admin.id}/rotate").json()["expires_at"] == int(ends_at.timestamp())


def test_there_is_a_limit_of_valid_keys(guarded: Guarded) -> None:
    admin = guarded.key("many", scopes=["admin"])
    rows = text(
        "INSERT INTO api_keys (id, tenant_id, name, prefix, digest) "
        "SELECT 'key_many' || n, 'many', '', '', 'many' || n FROM generate_series(1, 999) n"
    )
    with guarded.database.begin() as connection:
        connection.execute(rows)
    check_problem(admin.http.post(URL, json={}), 400, "too_many_api_keys")
    admin.http.post(f"{URL}/key_many1/revoke")
    assert admin.http.post(URL, json={}).status_code == 200


# Ending


def test_a_revoked_key_is_refused_at_once(guarded: Guarded) -> None:
    admin = guarded.key("enders", scopes=["admin"])
    made = admin.http.post(URL, json={"scopes": ["admin"]}).json()
    with guarded.http(made["key"]) as http:
        assert http.get(URL).status_code == 200
        revoked = admin.http.post(f"{URL}/{made['id']}/revoke").json()
        assert (revoked["state"], revoked["id"]) == ("revoked", made["id"])
        check_problem(http.get(URL), 401, "invalid_api_key")
    assert admin.http.post(f"{URL}/{made['id']}/revoke").json() == revoked
    check_problem(admin.http.post(f"{URL}/{made['id']}/rotate"), 400, "api_key_revoked", "api_key_id")
    listed = {key["id"]: key["state"] for key in admin.http.get(URL).json()["data"]}
    assert listed == {admin.id: "valid", made["id"]: "revoked"}


def test_a_rotated_key_keeps_its_rights_and_the_old_one_its_grace(guarded: Guarded) -> None:
    admin = guarded.key("turners", scopes=["admin"])
    old = admin.http.post(URL, json={"name": "ci", "scopes": ["files"], "calls_per_minute": 100}).json()
    new = admin.http.post(f"{URL}/{old['id']}/rotate", json={"grace_seconds": 600, "expires_after_seconds": 60}).json()
    same = ("name", "scopes", "models", "calls_per_minute", "requests_per_minute")
    assert [new[name] for name in same] == [old[name] for name in same]
    assert new["id"] != old["id"]
    assert new["expires_at"] - new["created_at"] in (59, 60)
    with guarded.http(old["key"]) as before, guarded.http(new["key"]) as after:
        assert before.get("/v1/files").status_code == after.get("/v1/files").status_code == 200
        ends_at = admin.http.get(f"{URL}/{old['id']}").json()["expires_at"]
        assert ends_at - new["created_at"] in (599, 600)
        admin.http.post(f"{URL}/{old['id']}/rotate", json={"grace_seconds": 0})
        assert before.get("/v1/files").status_code == 401
    for body, param in (({"grace_seconds": -1}, "grace_seconds"), ({"grace_seconds": 10**9}, "grace_seconds")):
        check_problem(admin.http.post(f"{URL}/{old['id']}/rotate", json=body), 400, "invalid_value", param)


def test_a_secret_in_place_of_an_id_is_not_repeated_or_logged(guarded: Guarded) -> None:
    admin = guarded.key("mistaken", scopes=["admin"])
    answer = admin.http.post(f"{URL}/{admin.text}/revoke")
    error = check_problem(answer, 404, None, "api_key_id")
    assert "not the key itself" in error["message"]
    logs = "".join(path.read_text() for path in (guarded.process.state_dir / "logs").glob("*.log"))
    for hidden in (admin.text, admin.text.rpartition("-")[2]):
        assert hidden not in answer.text
        assert hidden not in logs


# The first key


async def test_the_first_key_is_an_admins_without_limits_and_ends_access_without_one(
    settings: Settings, database: Database, valkey: redis.Redis, no_keys: Engine
) -> None:
    async with inside(settings) as http:
        for body, param in (
            ({}, "scopes"),
            ({"scopes": ["inference", "files", "read-only"]}, "scopes"),
            ({"scopes": ["admin"], "models": ["fake"]}, "models"),
            ({"scopes": ["admin"], "calls_per_minute": 5}, "calls_per_minute"),
            ({"scopes": ["admin"], "expires_after_seconds": 5}, "expires_after_seconds"),
        ):
            error = check_problem(await http.post(URL, json=body), 400, "invalid_value", param)
            assert "first key" in error["message"]
        made = (await http.post(URL, json={"scopes": ["admin"], "name": "mine"})).json()
        assert "needs a key" in made["warning"]
        check_problem(await http.get("/v1/me"), 401, "invalid_api_key")
        headers = {"authorization": f"Bearer {made['key']}"}
        assert (await http.get("/v1/me", headers=headers)).json()["keys_required"]
        assert (await http.post(URL, json={}, headers=headers)).json()["warning"] is None


async def test_of_two_first_keys_one_is_created(
    settings: Settings, database: Database, valkey: redis.Redis, no_keys: Engine
) -> None:
    """Another api process may still let callers in without a key, for as long as it caches that there are none."""
    async with inside(settings) as here, inside(settings) as there:
        assert (await there.get("/v1/me")).json()["keys_required"] is False
        made = (await here.post(URL, json={"scopes": ["admin"]})).json()
        assert (await there.get("/v1/me")).json()["keys_required"] is False, "it is cached"
        check_problem(await there.post(URL, json={"scopes": ["admin"]}), 401, "invalid_api_key")
        check_problem(await there.post(f"{URL}/{made['id']}/rotate"), 401, "invalid_api_key")
        check_problem(await there.post(f"{URL}/{made['id']}/revoke"), 401, "invalid_api_key")


async def test_a_key_that_was_revoked_elsewhere_creates_no_other(
    settings: Settings, database: Database, valkey: redis.Redis, no_keys: Engine
) -> None:
    async with inside(settings) as here, inside(settings) as there:
        first = (await here.post(URL, json={"scopes": ["admin"]})).json()
        headers = {"authorization": f"Bearer {first['key']}"}
        second = (await here.post(URL, json={"scopes": ["admin"]}, headers=headers)).json()
        stolen = {"authorization": f"Bearer {second['key']}"}
        assert (await there.get("/v1/me", headers=stolen)).status_code == 200
        await here.post(f"{URL}/{second['id']}/revoke", headers=headers)
        assert (await there.get("/v1/me", headers=stolen)).status_code == 200, "it is cached"
        for path in ("", f"/{first['id']}/rotate", f"/{first['id']}/revoke"):
            check_problem(await there.post(URL + path, json={}, headers=stolen), 401, "invalid_api_key")


@pytest.mark.parametrize(
    "headers",
    [
        {"x-from": "203.0.113.9"},
        {"host": "millrace.example"},
        {"origin": "https://app.example"},
        {"sec-fetch-site": "cross-site"},
    ],
    ids=str,
)
async def test_only_a_program_of_this_machine_creates_the_first_key_whatever_the_settings_allow(
    settings: Settings, database: Database, valkey: redis.Redis, no_keys: Engine, headers: dict[str, str]
) -> None:
    """Anybody else could lock the others out."""
    update = {"open_without_keys": True, "cors_origins": "https://app.example"}
    peer = headers.pop("x-from", "127.0.0.1")
    async with inside(settings.model_copy(update=update), peer=peer) as http:
        assert (await http.get("/v1/me", headers=headers)).status_code == 200
        refused = await http.post(URL, json={"scopes": ["admin"]}, headers=headers)
        check_problem(refused, 403, "not_local")
        assert (await http.get("/v1/me", headers=headers)).json()["keys_required"] is False
