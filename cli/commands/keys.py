"""`millrace keys`: create, list, revoke and rotate API keys, and cap tenants, directly in the database."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.errors import CommandFailed, ExitCode
from cli.options import AsJson, StateDir, given_settings
from cli.output import Column, print_table
from core.api_keys import DEFAULT_SCOPES, KEY, NewKey, Scope, new_key

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from db.keys import KeyRow

keys = typer.Typer(help="API keys and tenants.", no_args_is_help=True)


def _limit(meaning: str) -> Any:  # Any: typer's own type
    return typer.Option(min=1, help=meaning, show_default="no limit")


KeyId = Annotated[str, typer.Argument(help="An id from `millrace keys list`.", metavar="KEY_ID")]

_EXTRA: Final = ("MODELS", "SCOPES", "KEY")
_SPAN: Final = re.compile(r"^([0-9]{1,5})([smhd])$")
_UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@keys.command()
def create(
    name: Annotated[str, typer.Option(help="Name of the key.")] = "key",
    tenant: Annotated[str, typer.Option(help="Tenant of the key; created if missing.")] = "default",
    scope: Annotated[
        list[Scope] | None, typer.Option(help="Scope of the key; may be repeated.", show_default="inference, files")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model it may use; may be repeated.", show_default="all")
    ] = None,
    requests_per_minute: Annotated[int | None, _limit("Requests that use a model, per minute.")] = None,
    tokens_per_minute: Annotated[int | None, _limit("Tokens of requests, per minute.")] = None,
    queued_tokens: Annotated[int | None, _limit("Prompt tokens of lines that wait.")] = None,
    concurrent_streams: Annotated[int | None, _limit("Streams that are open at the same time.")] = None,
    calls_per_minute: Annotated[
        int | None,
        typer.Option(min=1, help="Calls that use no model, per minute.", show_default="the server's setting"),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="Time after which the key ends, such as 90d.", show_default="never")
    ] = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and print it once: only a digest of it is stored."""
    from core.ids import new_id
    from db.keys import add_tenant, create_key

    _check_name(tenant)
    columns = {
        "tenant_id": tenant,
        "name": name,
        "scopes": [str(each) for each in scope or DEFAULT_SCOPES],
        "models": model or None,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "queued_tokens": queued_tokens,
        "concurrent_streams": concurrent_streams,
        "calls_per_minute": calls_per_minute,
        "expires_at": _moment(expires),
    }
    made = new_key()
    with _transaction(state_dir, may_create=True) as connection:
        connection.execute(add_tenant(tenant))
        row = create_key(new_id(KEY), made, **columns).fetch_one(connection)
    _print_new(made, row, as_json=as_json)


@keys.command("list")
def list_keys(state_dir: StateDir = None, as_json: AsJson = False) -> None:
    """List every key with its tenant, age and rights, never the key itself."""
    from cli.stack.services import NoDatabase
    from db.keys import list_keys as statement

    try:
        with _transaction(state_dir) as connection:
            shown = [_shown(row) for row in statement().fetch_all(connection)]
    except NoDatabase:
        shown = []
    if as_json:
        print(json.dumps(shown))
    elif not shown:
        print("There are no keys. Create one with: millrace keys create")
    else:
        _print_table(shown)


@keys.command()
def revoke(key_id: KeyId, state_dir: StateDir = None, as_json: AsJson = False) -> None:
    """Revoke a key. Running servers notice within the setting key_cache_seconds; running work of the key finishes."""
    from db.keys import find_key, revoke_key

    with _transaction(state_dir) as connection:
        if connection.execute(revoke_key(key_id)).one_or_none() is None:
            raise _unknown(key_id)
        shown = _shown(find_key(key_id).fetch_one(connection))
    print(json.dumps(shown) if as_json else f"{key_id} is revoked.")


@keys.command()
def rotate(
    key_id: KeyId,
    grace: Annotated[str, typer.Option(help="Time after which the old key ends, such as 12h; 0s is at once.")] = "24h",
    expires: Annotated[
        str | None, typer.Option(help="Time after which the new key ends, such as 90d.", show_default="never")
    ] = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Create a key with the same rights and print it. The old one stays valid for a while."""
    from core.ids import new_id
    from db.keys import find_key, rotate_key

    after, made = _span(grace), new_key()
    expires_at = _moment(expires)
    with _transaction(state_dir) as connection:
        if find_key(key_id).fetch_optional(connection) is None:
            raise _unknown(key_id)
        statement = rotate_key(key_id, new_id(KEY), made, grace=after, expires_at=expires_at)
        row = statement.fetch_optional(connection)
        if row is None:
            raise CommandFailed(f"The key {key_id} is revoked; create another with: millrace keys create")
        ends_at = find_key(key_id).fetch_one(connection).expires_at
    _print_new(made, row, as_json=as_json)
    if not as_json:
        print(f"The old key {key_id} is valid until {ends_at:%Y-%m-%d %H:%M:%S} UTC.")


@keys.command()
def cap(
    tenant: Annotated[str, typer.Argument(help="Name of the tenant.", metavar="TENANT")],
    open_batches: Annotated[int | None, _limit("Batches that have not ended.")] = None,
    queued_lines: Annotated[int | None, _limit("Lines that wait.")] = None,
    storage_bytes: Annotated[
        int | None, typer.Option(min=1, help="Bytes of all its files together.", show_default="the server's setting")
    ] = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Set the caps of a tenant. Caps that are not given are removed."""
    from db.keys import set_caps

    caps = {"open_batches": open_batches, "queued_lines": queued_lines, "storage_bytes": storage_bytes}
    with _transaction(state_dir) as connection:
        statement = set_caps(tenant, **caps)
        if connection.execute(statement).one_or_none() is None:
            raise CommandFailed(f"There is no tenant {tenant}. Create it with its first key: millrace keys create")
    if as_json:
        print(json.dumps({"tenant": tenant, **caps}))
        return
    summary = ", ".join(f"{name.replace('_', ' ')} {value or 'no cap'}" for name, value in caps.items())
    print(f"{tenant}: {summary}.")


@contextmanager
def _transaction(state_dir: Path | None, *, may_create: bool = False) -> Iterator[Connection]:
    """Open a transaction on the database of the settings, of a running stack, or of the bundled Postgres started for it."""
    from cli.stack.services import database_url
    from db.connections import database_engine
    from db.schema_version import check_schema, upgrade

    with database_url(given_settings(state_dir=state_dir), may_create=may_create) as (url, is_exclusive):
        engine = database_engine(url, pool_size=1)
        if is_exclusive:
            upgrade(engine)
        check_schema(engine)
        with engine.begin() as connection:
            yield connection
        engine.dispose()


def _span(text: str) -> timedelta:
    match = _SPAN.match(text)
    if match is None:
        message = f"{text!r} is not a duration: use seconds, minutes, hours or days, such as 30m, 12h or 90d."
        raise CommandFailed(message, ExitCode.USAGE)
    return timedelta(seconds=int(match[1]) * _UNIT_SECONDS[match[2]])


def _moment(after: str | None) -> datetime | None:
    return datetime.now(UTC) + _span(after) if after else None


def _check_name(tenant: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", tenant):
        message = "A tenant's name has up to 64 letters, digits, dots, dashes and underscores."
        raise CommandFailed(message, ExitCode.USAGE)


def _unknown(key_id: str) -> CommandFailed:
    hint = "give its id, not the key itself" if key_id.startswith("sk-") else "see: millrace keys list"
    return CommandFailed(f"There is no such key; {hint}.")


def _shown(row: KeyRow) -> dict[str, Any]:  # Any: columns, as JSON takes them
    """A key without its digest."""
    from db.keys import COPIED

    moments = {name: getattr(row, name) for name in ("created_at", "expires_at", "revoked_at")}
    return {
        "id": row.id,
        "prefix": row.prefix,
        "state": row.state,
        **{name: getattr(row, name) for name in COPIED},
        **{name: None if moment is None else int(moment.timestamp()) for name, moment in moments.items()},
    }


def _print_new(made: NewKey, row: KeyRow, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**_shown(row), "key": made.text}))
        return
    print(f"{made.text}\n")
    print(f"This is shown once. Its id is {row.id}, its tenant {row.tenant_id}, its scopes {', '.join(row.scopes)}.")


def _print_table(shown: list[dict[str, Any]]) -> None:
    columns: list[str | Column] = ["ID", "TENANT", "STATE", Column("NAME", can_shrink=True)]
    columns += [Column(name, is_extra=True) for name in _EXTRA]
    rows = [
        (
            key["id"],
            key["tenant_id"],
            key["state"],
            key["name"],
            ", ".join(key["models"]) if key["models"] else "all",
            ", ".join(key["scopes"]),
            f"{key['prefix']}…",
        )
        for key in shown
    ]
    print_table(columns, rows)
