"""Create a batch from the requests of a table: its two files are stored, then all rows are inserted at once."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import IO, Annotated

import anyio.to_thread
from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncEngine

from api.access.admission import check_open_batches
from api.access.quotas import check_storage
from api.dependencies import CallerDep, DatabaseDep, FilesDep, SettingsDep, TenantDep
from api.files.disk_space import check_room
from api.files.multipart import MAX_FILENAME, store
from api.http.request_log import current_origin
from api.schemas.batch_tables import BatchMap, as_document
from api.tables.table_input import TABLE_PURPOSE, TableInput
from core import ids
from core.errors import ApiError
from core.failpoints import Point
from core.files.file_store import FileStore
from core.settings import Settings
from db import batches, files
from db.batches import BatchRow
from db.connections import async_transaction


@dataclass(frozen=True, slots=True)
class _NewFile:
    id: str
    content: IO[bytes]
    purpose: str
    name: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchWriter:
    """Creates the batches of a tenant."""

    database: AsyncEngine
    file_store: FileStore
    settings: Settings
    tenant: str
    key_id: str | None

    async def create(self, batch_id: str, source: TableInput[BatchMap], endpoint: str, content: IO[bytes]) -> BatchRow:
        """Store the lines in `content`, and the table if it was sent with the request, then insert the batch.

        Raises the 429 of a quota, and the 507 of a full disk.
        """
        name = f"{source.name}.jsonl"[-MAX_FILENAME:]
        lines = _NewFile(ids.new_id(ids.FILE), content, "batch", name, content.seek(0, os.SEEK_END))
        new, table_id = [lines], source.file_id
        if table_id is None:
            table_id = ids.new_id(ids.FILE)
            new.append(_NewFile(table_id, source.stream, TABLE_PURPOSE, source.name, source.size))
        num_bytes = sum(file.size for file in new)
        await check_room(self.file_store, self.settings.free_disk_bytes, num_bytes)
        async with self.database.begin() as connection:
            await check_storage(connection, self.settings, self.tenant, num_bytes, param="file")
        for file in new:
            await store(file.content, self.file_store, file.id)
        options = source.options
        batch = batches.insert_batch(
            id=batch_id,
            tenant_id=self.tenant,
            key_id=self.key_id,
            endpoint=endpoint,
            input_file_id=lines.id,
            table_file_id=table_id,
            mapping_json=json.dumps(as_document(options.mapping)),
            origin_json=current_origin().to_json(),
            **options.columns(),
        )
        try:
            async with async_transaction(
                self.database, committing=Point.BATCH_INSERTED, committed=Point.BATCH_COMMITTED
            ) as connection:
                await check_open_batches(connection, self.tenant)
                await check_storage(connection, self.settings, self.tenant, num_bytes, param="file")
                for file in new:
                    await connection.execute(files.add_file(**self._columns(file)))
                return await batch.async_fetch_one(connection)
        except ApiError:
            await anyio.to_thread.run_sync(self.file_store.delete, *(file.id for file in new))
            raise

    def _columns(self, file: _NewFile) -> dict[str, object]:
        """The columns of a file's row. A table expires as other files of batches do, and never before the results."""
        return {
            "id": file.id,
            "tenant_id": self.tenant,
            "purpose": file.purpose,
            "filename": file.name,
            "bytes": file.size,
            "expires_at": datetime.now(UTC) + timedelta(days=self.settings.file_days),
        }


async def get_batch_writer(
    database: DatabaseDep, file_store: FilesDep, settings: SettingsDep, tenant: TenantDep, caller: CallerDep
) -> BatchWriter:
    """The writer of a request; a class as dependency would be constructed in a thread."""
    return BatchWriter(database=database, file_store=file_store, settings=settings, tenant=tenant, key_id=caller.key_id)


BatchWriterDep = Annotated[BatchWriter, Depends(get_batch_writer)]
