"""An upload that another request ends while its parts are joined, and whose parts are swept then."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from api.routes.uploads import complete_upload
from api.schemas.uploads import UploadComplete
from core import ids
from core.errors import ApiError
from core.settings import Settings
from db import files, uploads
from db.connections import async_database_engine
from db.tables import DEFAULT_TENANT


class SweptStore:
    """A file store whose parts go while they are joined, after the upload has ended."""

    def __init__(self, database: Engine, upload_id: str, status: str) -> None:
        self._database, self._upload_id, self._status = database, upload_id, status
        self.file_id = ids.new_id(ids.FILE) if status == "completed" else None

    def join(self, *_: Any) -> None:
        with self._database.begin() as connection:
            assert uploads.end_upload(self._upload_id, self._status, self.file_id).fetch_optional(connection)
            if self.file_id is not None:
                columns = {"tenant_id": DEFAULT_TENANT, "purpose": "user_data", "filename": "a.txt", "bytes": 3}
                connection.execute(files.add_file(id=self.file_id, **columns))
        raise FileNotFoundError("a part")


@pytest.mark.parametrize("status", ["completed", "cancelled"])
async def test_a_repeated_complete_is_told_how_the_upload_ended(
    status: str, settings: Settings, migrated: Engine
) -> None:
    upload_id, part_id = ids.new_id(ids.UPLOAD), ids.new_id(ids.PART)
    with migrated.begin() as connection:
        uploads.insert_upload(
            lifetime=timedelta(hours=1), id=upload_id, tenant_id=DEFAULT_TENANT, purpose="user_data",
            filename="a.txt", mime_type="text/plain", bytes=3, file_expires_seconds=None,
        ).fetch_one(connection)  # fmt: skip
        uploads.insert_part(part_id, upload_id, 3).fetch_one(connection)
    store = SweptStore(migrated, upload_id, status)
    database = async_database_engine(settings.database_url or "", pool_size=2)
    body = UploadComplete(part_ids=[part_id])
    try:
        if status == "completed":
            found = await complete_upload(upload_id, body, settings, database, store, DEFAULT_TENANT)  # type: ignore[arg-type]
            assert (found.status, found.file and found.file.id) == ("completed", store.file_id)
        else:
            with pytest.raises(ApiError, match="The upload is cancelled"):
                await complete_upload(upload_id, body, settings, database, store, DEFAULT_TENANT)  # type: ignore[arg-type]
    finally:
        await database.dispose()
