"""The first API key, which a command creates where there is none yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.api_keys import DEFAULT_SCOPES, KEY, new_key
from core.ids import new_id

if TYPE_CHECKING:
    from sqlalchemy import Connection


def create_first_key(connection: Connection) -> str:
    """Create a key with the default scopes, and return its text."""
    from db.keys import insert_key
    from db.tables import DEFAULT_TENANT

    made = new_key()
    columns = {"prefix": made.prefix, "digest": made.digest, "scopes": [str(scope) for scope in DEFAULT_SCOPES]}
    connection.execute(insert_key(id=new_id(KEY), tenant_id=DEFAULT_TENANT, name="first", **columns))
    return made.text
