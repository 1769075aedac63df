"""The rights that a key may give: no more than it has itself. Rights that a new key does not name are its creator's.

A caller has the scope ADMIN here, which includes all scopes; so models, limits and the end remain to be compared.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, fields, replace
from datetime import datetime
from typing import Any

from api.services.key_ring import Caller
from core.api_keys import KeyLimits
from core.errors import ApiError, Problem
from core.settings import Settings


def grant(
    caller: Caller, settings: Settings, *, models: Collection[str] | None, limits: KeyLimits
) -> dict[str, Any]:  # Any: columns of `api_keys`
    """The columns of models and limits of a key that the caller creates. Raises the 403 of more than its own."""
    if models is None and caller.models is not None:
        models = sorted(caller.models)
    own, asked = asdict(caller.limits), asdict(limits)
    filled = KeyLimits(**{name: own[name] if asked[name] is None else asked[name] for name in asked})
    check_covers(caller, settings, models=models, limits=filled)
    return {"models": None if models is None else list(models), **asdict(filled)}


def check_covers(caller: Caller, settings: Settings, *, models: Collection[str] | None, limits: KeyLimits) -> None:
    """Raise the 403 of rights that exceed those of the caller."""
    if caller.models is not None and (models is None or not caller.models.issuperset(models)):
        raise _too_much("models", "it may not use all of these models itself")
    own, wanted = _effective(caller.limits, settings), _effective(limits, settings)
    for each in fields(KeyLimits):
        most, value = getattr(own, each.name), getattr(wanted, each.name)
        if caller.key_id is not None and most is not None and (value is None or value > most):
            raise _too_much(each.name, f"its own limit is {most}")


def end_of(caller: Caller, asked: datetime | None) -> datetime | None:
    """The moment when a key that the caller creates expires. Raises the 403 of one after the caller's own end."""
    if caller.expires_at is None or asked is None:
        return asked or caller.expires_at
    if asked > caller.expires_at:
        raise _too_much("expires_after_seconds", f"it expires itself at {caller.expires_at:%Y-%m-%d %H:%M:%S} UTC")
    return asked


def _effective(limits: KeyLimits, settings: Settings) -> KeyLimits:
    return replace(limits, calls_per_minute=limits.calls_per_minute or settings.calls_per_minute or None)


def _too_much(param: str, reason: str) -> ApiError:
    message = f"This API key may give no more than it has: {reason} (see '{param}')."
    return ApiError(Problem(status=403, message=message, code="insufficient_permissions", param=param))
