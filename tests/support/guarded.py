"""A stack with API keys, inserted into its database as `millrace keys` does."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
from openai import OpenAI
from sqlalchemy import Engine

from cli.stack.services import running_database
from core import ids
from core.api_keys import KEY, new_key
from db import keys
from db.connections import database_engine
from tests.support.stack import StackProcess, wait_for


class Guarded:
    """A running stack and its database."""

    def __init__(self, process: StackProcess) -> None:
        self.process = process
        self.url = process.url
        database_url = running_database(process.state_dir)
        assert database_url is not None, "it runs"
        self.database: Engine = database_engine(database_url, pool_size=1)
        self._stack = ExitStack()
        self._stack.callback(self.database.dispose)
        self.owner = self.key(scopes=["admin"])
        with self.http(None) as keyless:
            wait_for(lambda: keyless.get("/v1/models").status_code == 401, "a key is required")

    def key(self, tenant: str = "default", **columns: Any) -> Key:
        """Insert a key; `columns` are those of `api_keys`."""
        made = new_key()
        key_id = ids.new_id(KEY)
        with self.database.begin() as connection:
            connection.execute(keys.add_tenant(tenant))
            connection.execute(
                keys.insert_key(
                    id=key_id, tenant_id=tenant, name="test", prefix=made.prefix, digest=made.digest, **columns
                )
            )
        key = Key(self, key_id, made.text)
        self._stack.callback(key.http.close)
        self._stack.callback(key.client.close)
        return key

    def close(self) -> None:
        """Close the clients, the database and the stack."""
        self._stack.close()
        self.process.close()

    def http(self, text: str | None) -> httpx2.Client:
        """Return a client with this key, or without one."""
        headers = {} if text is None else {"authorization": f"Bearer {text}"}
        return httpx2.Client(base_url=self.url, timeout=30, headers=headers)


class Key:
    """A key of a guarded stack."""

    def __init__(self, stack: Guarded, key_id: str, text: str) -> None:
        self.id = key_id
        self.text = text
        self.http = stack.http(text)
        self.client = OpenAI(base_url=f"{stack.url}/v1", api_key=text, max_retries=0, timeout=60)


def write_guarded_models(folder: Path) -> None:
    """Two quick models and a slow one."""
    folder.mkdir()
    (folder / "fake.yaml").write_text("name: fake\nbackend: fake\nslots: 8\ncontext_size: 4096\naliases: [also-fake]\n")
    (folder / "other.yaml").write_text("name: other\nbackend: fake\n")
    (folder / "slow.yaml").write_text("name: slow\nbackend: fake\nslots: 4\nstep_seconds: 0.02\n")
