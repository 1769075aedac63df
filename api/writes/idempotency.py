"""`Idempotency-Key`: a create that is sent twice makes one object.

The key is bound to the object's id before the object is made, and that id is the primary key of the object's row. So a
request that takes over from one that died, even right after its commit, finds the object or makes that same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final, TypeVar

import structlog
from fastapi import Request
from sqlalchemy import Executable
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from api.dependencies import AppState
from api.writes.commit_check import create_or_find
from core import ids
from core.errors import ApiError, Problem, bad_request
from core.failpoints import Point, failpoint
from db import idempotency

log = structlog.get_logger()

HEADER: Final = "Idempotency-Key"
_MAX_KEY: Final = 255
_LOCK: Final = timedelta(minutes=2)  # far longer than a create takes once its body is here
_RETRY_AFTER_SECONDS: Final = 1

_Object = TypeVar("_Object")


async def create_once(
    request: Request,
    state: AppState,
    tenant: str,
    prefix: str,
    *,
    body_digest: Callable[[], Awaitable[str]],
    find: Callable[[str], Awaitable[_Object]],
    create: Callable[[str], Awaitable[_Object]],
) -> _Object:
    """Make an object under a new id, or give back the one that the request's key stands for.

    `find` raises the 404 of an unknown id. Raises 409: the key was used for another request, or that request still runs.
    A refused request uses up no key.
    """
    key = _read_key(request)
    object_id = ids.new_id(prefix)
    if key is None:
        return await create_or_find(lambda: create(object_id), lambda: _find_or_none(find, object_id))
    digest = await body_digest()
    fingerprint = hashlib.sha256(f"{request.method} {request.url.path} {digest}".encode()).hexdigest()
    claimed_id = await _claim(state, tenant, key, fingerprint, object_id)
    if claimed_id is None:
        return await find(await _known_object(state, tenant, key, fingerprint))
    failpoint(Point.KEY_CLAIMED)
    return await _make(state, tenant, key, claimed_id, find, create, is_inherited=claimed_id != object_id)


async def digest_of_body(request: Request) -> str:
    """Two JSON bodies are the same when their bytes are."""
    return hashlib.sha256(await request.body()).hexdigest()


def _read_key(request: Request) -> str | None:
    key = request.headers.get(HEADER)
    if key is not None and not (0 < len(key) <= _MAX_KEY and key.isascii() and key.isprintable()):
        message = f"Invalid value for '{HEADER}': use 1 to {_MAX_KEY} printable ASCII characters."
        raise bad_request(message, code="invalid_value", param=HEADER)
    return key


async def _claim(state: AppState, tenant: str, key: str, fingerprint: str, object_id: str) -> str | None:
    kept = timedelta(hours=state.settings.idempotency_hours)
    claim = idempotency.claim_key(tenant, key, fingerprint=fingerprint, object_id=object_id, lock=_LOCK)
    async with state.database.begin() as connection:
        await connection.execute(idempotency.delete_key(tenant, key, kept))
        claimed: str | None = (await connection.execute(claim)).scalar_one_or_none()
    return claimed


async def _known_object(state: AppState, tenant: str, key: str, fingerprint: str) -> str:
    """The id of the object that was made already."""
    async with state.database.connect() as connection:
        row = await idempotency.find_key(tenant, key).async_fetch_optional(connection)
    if row is not None and row.fingerprint != fingerprint:
        raise _used_for_another()
    if row is None or row.finished_at is None:
        raise _still_running()
    return str(row.object_id)


async def _make(
    state: AppState,
    tenant: str,
    key: str,
    object_id: str,
    find: Callable[[str], Awaitable[_Object]],
    create: Callable[[str], Awaitable[_Object]],
    *,
    is_inherited: bool,
) -> _Object:
    """Create under a key that is ours; the last holder of one that `is_inherited` may have done so."""
    try:
        made = await _find_or_none(find, object_id) if is_inherited else None
        if made is None:
            made = await create_or_find(lambda: create(object_id), lambda: _find_or_none(find, object_id))
    except ApiError as error:
        is_refused = error.problem.status < 500
        end = idempotency.release_key if is_refused else idempotency.unlock_key
        await _execute(state, end(tenant, key))
        raise
    except IntegrityError:
        raise _still_running() from None  # the holder that we took for dead was quicker
    except BaseException:
        await _execute(state, idempotency.unlock_key(tenant, key))
        raise
    failpoint(Point.KEY_USED)
    try:
        await _execute(state, idempotency.finish_key(tenant, key))
    except SQLAlchemyError as error:  # whoever inherits the key finds the object
        log.warning("key_not_finished", reason=type(error).__name__)
    return made


async def _find_or_none(find: Callable[[str], Awaitable[_Object]], object_id: str) -> _Object | None:
    try:
        return await find(object_id)
    except ApiError as error:
        if error.problem.status != 404:
            raise
        return None


async def _execute(state: AppState, statement: Executable) -> None:
    async with state.database.begin() as connection:
        await connection.execute(statement)


def _used_for_another() -> ApiError:
    message = f"This '{HEADER}' was used for another request. Use a new key for a new request."
    problem = Problem(status=409, message=message, code="idempotency_key_reused", param=HEADER)
    return ApiError(problem)  # every 409 says x-should-retry: false


def _still_running() -> ApiError:
    message = f"The request with this '{HEADER}' still runs. Try again shortly."
    problem = Problem(status=409, message=message, code="idempotency_key_in_use", param=HEADER)
    return ApiError(problem, {"Retry-After": str(_RETRY_AFTER_SECONDS), "x-should-retry": "true"})
