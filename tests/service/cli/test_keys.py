"""`millrace keys` on a real database: one that is started for the command, one that runs, and one of the settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text

from cli.stack.services import Services
from core.api_keys import key_digest
from db import keys
from db.tables import ApiKey, Tenant
from tests.support.command import millrace

Run = Callable[..., Any]


@pytest.fixture
def run(services: Services, migrated: Engine, tmp_path: Path) -> Run:
    """A command on an empty database; the JSON it prints if asked for, else the finished process."""
    with migrated.begin() as connection:
        connection.execute(text("TRUNCATE api_keys; DELETE FROM tenants WHERE id <> 'default'"))

    def call(*arguments: str) -> Any:
        done = millrace("keys", *arguments, cwd=tmp_path, DATABASE_URL=services.database_url)
        assert "Traceback" not in done.stderr
        if "--json" not in arguments:
            return done
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


@pytest.fixture(autouse=True)
def leave_no_key(request: pytest.FixtureRequest) -> Any:
    """Other tests of this database would need a key."""
    yield
    if "migrated" in request.fixturenames:
        with request.getfixturevalue("migrated").begin() as connection:
            connection.execute(text("TRUNCATE api_keys"))


def test_a_key_is_printed_once_and_only_its_digest_is_stored(run: Run, migrated: Engine) -> None:
    made = run("create", "--name", "laptop", "--tenant", "acme", "--json")
    assert made["key"].startswith(made["prefix"] + "-")
    with migrated.connect() as connection:
        row = connection.execute(select(ApiKey.__table__)).one()
        assert connection.execute(select(Tenant.id).where(Tenant.id == "acme")).scalar_one()
    assert row.digest == key_digest(made["key"])
    assert made["key"].rpartition("-")[2] not in str(row)
    (shown,) = run("list", "--json")
    assert (shown["id"], shown["name"], shown["state"], shown["scopes"]) == (
        made["id"], "laptop", "valid", ["inference", "files"]
    )  # fmt: skip
    assert "key" not in shown
    assert made["key"] not in run("list").stdout


def test_scopes_models_limits_and_an_end_are_stored(run: Run, migrated: Engine) -> None:
    made = run(
        "create", "--scope", "read-only", "--scope", "files", "--model", "a", "--model", "b", "--requests-per-minute", "60",
        "--tokens-per-minute", "1000", "--queued-tokens", "5000", "--concurrent-streams", "2", "--calls-per-minute", "30",
        "--expires", "90d", "--json",
    )  # fmt: skip
    with migrated.connect() as connection:
        row = keys.find_key(made["id"]).fetch_one(connection)
    assert (row.scopes, row.models) == (["read-only", "files"], ["a", "b"])
    assert (row.requests_per_minute, row.tokens_per_minute) == (60, 1000)
    assert (row.queued_tokens, row.concurrent_streams, row.calls_per_minute) == (5000, 2, 30)
    assert timedelta(days=89) < row.expires_at - row.created_at <= timedelta(days=90, seconds=5)  # type: ignore[operator]


def test_a_revoked_key_is_no_longer_valid(run: Run, migrated: Engine) -> None:
    made = run("create", "--json")
    assert run("revoke", made["id"]).returncode == 0
    assert run("revoke", made["id"], "--json")["state"] == "revoked"
    with migrated.connect() as connection:
        assert keys.find_valid_key(key_digest(made["key"])).fetch_optional(connection) is None
        assert connection.execute(keys.any_key()).scalar_one()
    assert run("list", "--json")[0]["state"] == "revoked"
    assert run("rotate", made["id"]).returncode == 1


def test_rotation_leaves_the_old_key_valid_for_the_grace_period(run: Run, migrated: Engine) -> None:
    old = run("create", "--scope", "admin", "--model", "a", "--requests-per-minute", "5",
              "--calls-per-minute", "9", "--json")  # fmt: skip
    new = run("rotate", old["id"], "--grace", "12h", "--json")
    assert new["key"] != old["key"]
    same = ("tenant_id", "name", "scopes", "models", "requests_per_minute", "calls_per_minute")
    assert [new[name] for name in same] == [old[name] for name in same]
    with migrated.connect() as connection:
        for made in (old, new):
            assert keys.find_valid_key(key_digest(made["key"])).fetch_one(connection).id == made["id"]
        left: Any = connection.execute(
            select(ApiKey.expires_at - func.now()).where(ApiKey.id == old["id"])
        ).scalar_one()
    assert timedelta(hours=11, minutes=55) < left <= timedelta(hours=12)
    newest = run("rotate", new["id"], "--grace", "0s", "--expires", "1h", "--json")
    assert newest["expires_at"] - newest["created_at"] in range(3595, 3601)
    assert new["expires_at"] is None
    states = {key["id"]: key["state"] for key in run("list", "--json")}
    assert states == {old["id"]: "valid", new["id"]: "expired", newest["id"]: "valid"}


def test_a_second_rotation_does_not_lengthen_the_life_of_a_key(run: Run, migrated: Engine) -> None:
    old = run("create", "--expires", "1h", "--json")
    run("rotate", old["id"], "--grace", "30d")
    with migrated.connect() as connection:
        row = keys.find_key(old["id"]).fetch_one(connection)
    assert row.expires_at - row.created_at <= timedelta(hours=1, seconds=5)  # type: ignore[operator]


def test_caps_are_set_and_taken_away(run: Run, migrated: Engine) -> None:
    run("create", "--tenant", "acme")
    caps = select(Tenant.open_batches, Tenant.queued_lines, Tenant.storage_bytes).where(Tenant.id == "acme")
    done = run("cap", "acme", "--open-batches", "3", "--storage-bytes", "5000")
    assert done.stdout == "acme: open batches 3, queued lines no cap, storage bytes 5000.\n"
    with migrated.connect() as connection:
        assert connection.execute(caps).one() == (3, None, 5000)
    none = {"open_batches": None, "queued_lines": None, "storage_bytes": None}
    assert run("cap", "acme", "--queued-lines", "100", "--json") == {"tenant": "acme", **none, "queued_lines": 100}
    assert run("cap", "acme", "--json") == {"tenant": "acme", **none}
    with migrated.connect() as connection:
        assert connection.execute(caps).one() == (None, None, None)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["revoke", "key_none"], 1, "There is no such key"),
        (["revoke", "sk-1f9c02ab-5e"], 1, "not the key itself"),
        (["rotate", "key_none"], 1, "There is no such key"),
        (["rotate", "key_none", "--grace", "soon"], 2, "not a duration"),
        (["create", "--scope", "root"], 2, "root"),
        (["create", "--requests-per-minute", "0"], 2, "greater than or"),
        (["create", "--tenant", "a b"], 2, "A tenant's name"),
        (["cap", "nobody"], 1, "There is no tenant nobody"),
    ],
)
def test_errors_have_a_message_and_an_exit_code(run: Run, arguments: list[str], code: int, said: str) -> None:
    done = run(*arguments)
    assert said in done.stderr
    assert done.returncode == code
    assert "sk-1f9c02ab-5e" not in done.stderr


def test_the_first_key_is_made_before_anything_ran_and_more_while_it_runs(tmp_path: Path) -> None:
    first = millrace("keys", "create", "--state-dir", "state", "--json", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    with Services(tmp_path / "state"):
        second = millrace("keys", "create", "--state-dir", "state", "--json", cwd=tmp_path)
        assert second.returncode == 0, second.stderr
        listed = json.loads(millrace("keys", "list", "--state-dir", "state", "--json", cwd=tmp_path).stdout)
    assert [key["id"] for key in listed] == [json.loads(made.stdout)["id"] for made in (first, second)]


def test_a_server_beyond_loopback_does_not_start_without_a_key(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "fake.yaml").write_text("name: fake\nbackend: fake\n")
    arguments = ("--host", "0.0.0.0", "--port", "0", "--state-dir", "state", "--models-dir", "models")
    done = millrace("serve", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "millrace keys create" in done.stderr
    assert "MILLRACE_OPEN_WITHOUT_KEYS" in done.stderr
    assert "Traceback" not in done.stderr
