"""The filter of lists by metadata: `metadata[KEY]=VALUE` in the query, which FastAPI does not parse."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from fastapi import Depends, Request

from core.errors import bad_request

_PARAMETER: Final = re.compile(r"metadata\[(.{1,64})\]", re.DOTALL)

# the operation's part of the OpenAPI document
METADATA_PARAMETER: Final[dict[str, Any]] = {  # Any: a piece of an OpenAPI document
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "required": False,
            "style": "deepObject",
            "explode": True,
            "description": "Only objects whose metadata has all these pairs: `metadata[KEY]=VALUE`.",
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
        }
    ]
}


async def _wanted_metadata(request: Request) -> dict[str, str]:
    """The pairs that an object must have; raises the 400 of a name that is not of this form."""
    wanted: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name != "metadata" and not name.startswith("metadata["):
            continue
        match = _PARAMETER.fullmatch(name)
        if match is None or "\0" in name + value:
            message = "Write a filter by metadata as 'metadata[KEY]=VALUE', with a key of 1 to 64 characters."
            raise bad_request(message, code="invalid_value", param="metadata")
        if wanted.setdefault(match[1], value) != value:
            message = f"'metadata[{match[1]}]' is given twice with different values; no object has both."
            raise bad_request(message, code="invalid_value", param="metadata")
    return wanted


MetadataDep = Annotated[dict[str, str], Depends(_wanted_metadata)]
