"""`Idempotency-Key`: a create that is sent twice creates one object.

The key is bound to the object's id before the object is created, and that id is the primary key of the object's row. So a
request that takes over from a crashed one, even if it crashed right after its commit, finds the object or creates that same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Annotated, Final, TypeVar

import structlog
from fastapi import Depends, Request
from sqlalchemy import Executable
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from api.dependencies import DatabaseDep, SettingsDep, TenantDep
from api.http.request_log import note_created
from api.writes.commit_check import create_or_find
from core import ids
from core.errors import ApiError, Problem, bad_request
from core.failpoints import Point, failpoint
from core.settings import Settings
from db import idempotency

log = structlog.get_logger()

HEADER: Final = "Idempotency-Key"
_MAX_KEY: Final = 255
_LOCK: Final = timedelta(minutes=2)  # far longer than a create takes once its body has been read
_RETRY_AFTER_SECONDS: Final = 1

_Object = TypeVar("_Object")


class CreateOnce:
    """Creates the object of one request, once for each `Idempotency-Key` of the tenant."""

    def __init__(self, request: Request, database: AsyncEngine, settings: Settings, tenant: str) -> None:
        self._request = request
        self._database = database
        self._kept = timedelta(hours=settings.idempotency_hours)
        self._tenant = tenant

    async def __call__(
        self,
        prefix: str,
        *,
        find: Callable[[str], Awaitable[_Object]],
        create: Callable[[str], Awaitable[_Object]],
        body_digest: Callable[[], Awaitable[str]] | None = None,
    ) -> _Object:
        """Create an object under a new id, or return the one that the request's key stands for.

        `find` raises the 404 of an unknown id; `body_digest` is that of the JSON body if not given. Raises 409 when the key was
        used for another request, or its request still runs. A refused request uses up no key.
        """
        key = _read_key(self._request)
        object_id = ids.new_id(prefix)
        create = _noted(prefix, create)
        if key is None:
            return await create_or_find(lambda: create(object_id), lambda: _find_or_none(find, object_id))
        digest = await (body_digest or self._digest_of_body)()
        fingerprint = f"{self._request.method} {self._request.url.path} {digest}"
        fingerprint = hashlib.sha256(fingerprint.encode()).hexdigest()
        claimed_id = await self._claim(key, fingerprint, object_id)
        if claimed_id is None:
            return await find(await self._created_id(key, fingerprint))
        failpoint(Point.KEY_CLAIMED)
        return await self._create(key, claimed_id, find, create, is_inherited=claimed_id != object_id)

    async def _digest_of_body(self) -> str:
        return hashlib.sha256(await self._request.body()).hexdigest()

    async def _claim(self, key: str, fingerprint: str, object_id: str) -> str | None:
        """The id to create, which an earlier request may have chosen; None when that request has finished or still runs."""
        claim = idempotency.claim_key(self._tenant, key, fingerprint=fingerprint, object_id=object_id, lock=_LOCK)
        async with self._database.begin() as connection:
            await connection.execute(idempotency.delete_key(self._tenant, key, self._kept))
            claimed: str | None = (await connection.execute(claim)).scalar_one_or_none()
        return claimed

    async def _created_id(self, key: str, fingerprint: str) -> str:
        async with self._database.connect() as connection:
            row = await idempotency.find_key(self._tenant, key).async_fetch_optional(connection)
        if row is not None and row.fingerprint != fingerprint:
            raise _used_for_another()
        if row is None or row.finished_at is None:
            raise _still_running()
        return str(row.object_id)

    async def _create(
        self,
        key: str,
        object_id: str,
        find: Callable[[str], Awaitable[_Object]],
        create: Callable[[str], Awaitable[_Object]],
        *,
        is_inherited: bool,
    ) -> _Object:
        """Create under a claimed key; the previous holder of one that `is_inherited` may have created the object already."""
        try:
            created = await _find_or_none(find, object_id) if is_inherited else None
            if created is None:
                created = await create_or_find(lambda: create(object_id), lambda: _find_or_none(find, object_id))
        except ApiError as error:
            is_refused = error.problem.status < 500
            end = idempotency.release_key if is_refused else idempotency.unlock_key
            await self._execute(end(self._tenant, key))
            raise
        except IntegrityError:
            raise _still_running() from None  # the previous holder, taken for crashed, was faster
        except BaseException:
            await self._execute(idempotency.unlock_key(self._tenant, key))
            raise
        failpoint(Point.KEY_USED)
        try:
            await self._execute(idempotency.finish_key(self._tenant, key))
        except SQLAlchemyError as error:  # the next holder of the key finds the object
            log.warning("key_not_finished", reason=type(error).__name__)
        return created

    async def _execute(self, statement: Executable) -> None:
        async with self._database.begin() as connection:
            await connection.execute(statement)


async def get_create_once(
    request: Request, database: DatabaseDep, settings: SettingsDep, tenant: TenantDep
) -> CreateOnce:
    """The creates of a request; a class as dependency would be constructed in a thread."""
    return CreateOnce(request, database, settings, tenant)


CreateOnceDep = Annotated[CreateOnce, Depends(get_create_once)]


def _noted(prefix: str, create: Callable[[str], Awaitable[_Object]]) -> Callable[[str], Awaitable[_Object]]:
    """The same, with the id of the object in the access log."""

    def create_noted(object_id: str) -> Awaitable[_Object]:
        note_created(prefix, object_id)
        return create(object_id)

    return create_noted


def _read_key(request: Request) -> str | None:
    key = request.headers.get(HEADER)
    if key is not None and not (0 < len(key) <= _MAX_KEY and key.isascii() and key.isprintable()):
        message = f"Invalid value for '{HEADER}': use 1 to {_MAX_KEY} printable ASCII characters."
        raise bad_request(message, code="invalid_value", param=HEADER)
    return key


async def _find_or_none(find: Callable[[str], Awaitable[_Object]], object_id: str) -> _Object | None:
    try:
        return await find(object_id)
    except ApiError as error:
        if error.problem.status != 404:
            raise
        return None


def _used_for_another() -> ApiError:
    message = f"This '{HEADER}' was used for another request. Use a new key for a new request."
    problem = Problem(status=409, message=message, code="idempotency_key_reused", param=HEADER)
    return ApiError(problem)  # every 409 is sent with x-should-retry: false


def _still_running() -> ApiError:
    message = f"The request with this '{HEADER}' still runs. Try again shortly."
    problem = Problem(status=409, message=message, code="idempotency_key_in_use", param=HEADER)
    return ApiError(problem, {"Retry-After": str(_RETRY_AFTER_SECONDS), "x-should-retry": "true"})
