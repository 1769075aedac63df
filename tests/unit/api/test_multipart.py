"""Forms of uploads: the expiry, as two fields or as one."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta

import pytest
from starlette.datastructures import FormData, UploadFile

from api.files.multipart import check_upload
from core.errors import ApiError
from core.settings import Settings

FIELD = "expires_after"


def form(**fields: str) -> FormData:
    content = UploadFile(io.BytesIO(b"{}"), size=2, filename="a.jsonl")
    return FormData({"purpose": "batch", "file": content, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {f"{FIELD}[anchor]": "created_at", f"{FIELD}[seconds]": "3600"},
        {FIELD: '{"anchor": "created_at", "seconds": 3600}'},
    ],
    ids=["two fields", "one field"],
)
def test_an_expiry_is_two_fields_or_one_of_json(fields: dict[str, str]) -> None:
    expires_at = check_upload(form(**fields), Settings()).expires_at
    assert expires_at is not None
    assert timedelta(minutes=59) < expires_at - datetime.now(UTC) <= timedelta(hours=1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (FIELD, "3600"),
        (FIELD, ""),
        (FIELD, "{"),
        (FIELD, '{"anchor": "created_at", "seconds": 60}'),
        (FIELD, '{"anchor": "last_active_at", "seconds": 3600}'),
        (f"{FIELD}.seconds", "3600"),
        (f"{FIELD}_seconds", "3600"),
    ],
)
def test_an_expiry_in_another_form_is_refused(field: str, value: str) -> None:
    with pytest.raises(ApiError) as caught:
        check_upload(form(**{field: value}), Settings())
    assert (caught.value.problem.status, caught.value.problem.param) == (400, field)
