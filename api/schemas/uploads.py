"""Schemas of OpenAI's uploads in parts. Times are unix seconds."""

from __future__ import annotations

import re
from typing import Final, Literal

from pydantic import Field, field_validator

from core.schemas.base import RequestModel
from core.schemas.batch import OutputExpiry
from core.schemas.objects import FileObject, ResponseModel

PURPOSES: Final = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
_MAX_PARTS: Final = 100_000
_MD5: Final = re.compile(r"[0-9a-fA-F]{32}")


class UploadCreate(RequestModel):
    """`POST /v1/uploads`."""

    bytes: int = Field(gt=0)
    filename: str = Field(min_length=1, max_length=10_000)
    mime_type: str = Field(max_length=255)
    purpose: str
    expires_after: OutputExpiry | None = None

    @field_validator("purpose")
    @classmethod
    def _valid_purpose(cls, value: str) -> str:
        if value not in PURPOSES:
            raise ValueError(f"use one of {', '.join(PURPOSES)}")
        return value

    @field_validator("mime_type")
    @classmethod
    def _printable_mime_type(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("use a type such as 'text/jsonl'")
        return value


class UploadComplete(RequestModel):
    """`POST /v1/uploads/{id}/complete`: the parts, in the order of their bytes."""

    part_ids: list[str] = Field(min_length=1, max_length=_MAX_PARTS)
    md5: str | None = None

    @field_validator("part_ids")
    @classmethod
    def _distinct_parts(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise ValueError("a part is named twice")
        return value

    @field_validator("md5")
    @classmethod
    def _hex_digest(cls, value: str | None) -> str | None:
        if value and not _MD5.fullmatch(value):
            raise ValueError("use 32 hexadecimal digits")
        return value.lower() if value else None


class UploadObject(ResponseModel):
    """An upload; `file` is set once it is completed."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None = None


class UploadPartObject(ResponseModel):
    """A stored part."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str
