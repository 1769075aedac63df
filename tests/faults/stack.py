"""A stack for fault tests: real processes behind proxies, a handle on each process, failpoints that can be armed while it runs.

`millrace serve` runs the api, the clerk and the worker with its engine. Postgres and Valkey belong to the test, so that it
can
stop them separately. There are keys of two tenants: `default`, which works, and `other`.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import httpx2
import openai
import psutil
import redis
from openai import OpenAI
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from cli.stack.services import Services
from core import ids
from core.api_keys import KEY, new_key
from core.failpoints import FOLDER_VARIABLE, Point
from core.files.directory import DirectoryStore
from core.process.runtime_dirs import socket_directory
from db import keys
from db.connections import database_engine
from db.schema_version import upgrade
from tests.faults.proxy import Proxy
from tests.support.stack import StackProcess, wait_for

LEASE_SECONDS: Final = 2.0
SWEEP_SECONDS: Final = 0.5
MODEL: Final = "name: fake\nbackend: fake\nslots: 8\nstep_seconds: 0.001\n"

QUICK: Final = {
    "MILLRACE_LEASE_SECONDS": str(LEASE_SECONDS),
    "MILLRACE_HEARTBEAT_SECONDS": "0.4",
    "MILLRACE_SWEEP_SECONDS": str(SWEEP_SECONDS),
    "MILLRACE_TICKET_SECONDS": "1",
    "MILLRACE_POLL_SECONDS": "1",
    "MILLRACE_COMMIT_SECONDS": "0.05",
    "MILLRACE_COMMIT_LINES": "4",
    "MILLRACE_SHARD_LINES": "8",
    "MILLRACE_KEEP_ALIVE_SECONDS": "1",
    "MILLRACE_KEY_CACHE_SECONDS": "1",
    "MILLRACE_UNREAD_SECONDS": "2",
    "MILLRACE_DRAIN_SECONDS": "5",
    "MILLRACE_ENGINE_RESTART_SECONDS": "0.00001",  # doubled after each crash, sixteen times
    "MILLRACE_WEBHOOK_HOSTS": "*",
    "MILLRACE_WEBHOOK_NETWORKS": "127.0.0.1/32",
}

_Result = TypeVar("_Result")


class Role(StrEnum):
    """Role of a process of the stack."""

    API = "api"
    CLERK = "clerk"
    WORKER = "worker"  # the launcher of the next three
    CHAT = "chat"
    BATCH = "batch"
    ENGINE = "engine"
    POSTGRES = "postgres"
    VALKEY = "valkey"


_COMMANDS: Final = {
    Role.API: r"-m api$",
    Role.CLERK: r"-m workers\.consumers\.main clerk",
    Role.WORKER: r"-m workers ",
    Role.CHAT: r"-m workers\.consumers\.main chat",
    Role.BATCH: r"-m workers\.consumers\.main batch",
    Role.ENGINE: r"-m engine\.process\.server",
    Role.POSTGRES: r"/postgres -D ",
    Role.VALKEY: r"valkey-server",
}


class FaultStack:
    """A stack from `start` to `close`; `postgres` and `valkey` are the proxies, `database` and `redis` connect past
    them.
    """

    def __init__(self, folder: Path, *, model: str = MODEL, **settings: str) -> None:
        self.folder = folder
        self.failpoints = folder / "failpoints"
        self.failpoints.mkdir()
        models = folder / "models"
        models.mkdir()
        (models / "fake.yaml").write_text(model)
        self.services = Services(folder / "services")
        sockets = socket_directory(folder / "services")
        self._places = {Role.POSTGRES: str(folder / "services" / "postgres"), Role.VALKEY: str(sockets)}
        self.services.start()
        self.postgres = Proxy(_postgres_socket(self.services.database_url))
        self.valkey = Proxy(sockets / "valkey.sock")
        self.database: Engine = database_engine(self.services.database_url, pool_size=3)
        self.redis = redis.Redis.from_url(self.services.redis_url)
        addresses = {
            "MILLRACE_DATABASE_URL": f"postgresql://millrace@127.0.0.1:{self.postgres.port}/millrace",
            "MILLRACE_REDIS_URL": f"redis://127.0.0.1:{self.valkey.port}/0",
            FOLDER_VARIABLE: str(self.failpoints),
        }
        self.process = StackProcess(folder, models, **{**QUICK, **addresses, **settings})
        self.files = DirectoryStore(self.process.state_dir / "files")
        self.keys = self._make_keys()  # by tenant
        self._clients: dict[str, OpenAI] = {}

    def start(self) -> None:
        """Start the stack and wait until everything is ready."""
        self.process.start()

    def start_again(self) -> None:
        """Start again after `millrace serve` and its children have ended; the api then listens on another port."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self.process.start()

    @property
    def url(self) -> str:
        """Address of the api."""
        return self.process.url

    # --- clients ------------------------------------------------------------------------------------------------------

    @property
    def client(self) -> OpenAI:
        """The official client of tenant `default`, without retries of its own: see `retry`."""
        return self.client_of("default")

    @property
    def other_tenant(self) -> OpenAI:
        """The official client of tenant `other`."""
        return self.client_of("other")

    def client_of(self, tenant: str) -> OpenAI:
        """Return the client of `default` or `other`."""
        if tenant not in self._clients:
            key = self.keys[tenant]
            self._clients[tenant] = OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)
        return self._clients[tenant]

    def http(self, tenant: str = "default", timeout: float = 30) -> httpx2.Client:
        """Return a plain HTTP client, which the caller closes."""
        headers = {"authorization": f"Bearer {self.keys[tenant]}"}
        return httpx2.Client(base_url=self.url, timeout=timeout, headers=headers)

    def retry(self, action: Callable[[], _Result], timeout_seconds: float = 30) -> _Result:
        """Repeat a request after a broken connection or stream, a 5xx or a 429, until the time-out."""
        return retry(action, timeout_seconds)

    # --- rows ---------------------------------------------------------------------------------------------------------

    def query(self, statement: str, **values: object) -> Sequence[Any]:
        """Return rows, past the proxy; repeated while the database restarts."""
        deadline = time.monotonic() + 20
        while True:
            try:
                with self.database.begin() as connection:
                    return connection.execute(text(statement), values).all()
            except DBAPIError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def execute(self, statement: str, **values: object) -> None:
        """Change rows past the proxy, to the state that time or a crashed process would leave."""
        with self.database.begin() as connection:
            connection.execute(text(statement), values)

    # --- processes ----------------------------------------------------------------------------------------------------

    def find(self, role: Role) -> psutil.Process:
        """Return the process of a role; raises AssertionError while there is none. Services of other tests are not
        matched.
        """
        parent = psutil.Process() if role in self._places else psutil.Process(self.process.pid)
        for process in parent.children(recursive=True):
            with suppress(psutil.Error):
                is_alive, command = process.status() != psutil.STATUS_ZOMBIE, " ".join(process.cmdline())
                if is_alive and re.search(_COMMANDS[role], command) and self._places.get(role, "") in command:
                    return process
        raise AssertionError(f"there is no {role}")

    def pid(self, role: Role) -> int:
        """Return the process id of a role, waiting while the process restarts."""
        wait_for(lambda: self.find(role) is not None, f"a {role}", 30)
        return self.find(role).pid

    def kill(self, role: Role) -> int:
        """Send SIGKILL and return the process id; the supervisor starts the process again."""
        process = self.find(role)
        process.kill()
        return process.pid

    def send(self, role: Role, number: signal.Signals) -> None:
        """Send a signal to the process of a role."""
        self.find(role).send_signal(number)

    @contextmanager
    def frozen(self, *roles: Role) -> Iterator[None]:
        """Send SIGSTOP, and SIGCONT after the block; for Postgres to its backends too."""
        processes = [self.find(role) for role in roles]
        if Role.POSTGRES in roles:
            processes += self.find(Role.POSTGRES).children(recursive=True)
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    @contextmanager
    def without(self, role: Role, number: signal.Signals = signal.SIGKILL) -> Iterator[None]:
        """End Postgres or Valkey by this signal, and start it again after the block."""
        assert role in (Role.POSTGRES, Role.VALKEY), "the other roles are restarted by their supervisor"
        process = self.find(role)
        process.send_signal(number)
        wait_for(lambda: bool(self.services.database_url) and not _is_running(process), f"{role} has ended", 20)
        try:
            yield
        finally:  # a process with a zombie main thread ends only with its other threads
            wait_for(lambda: role in self.services.restart_dead(), f"{role} is started again", 30)

    def restart(self, role: Role) -> int:
        """Kill the process, wait for the next one, and return its process id."""
        old = self.kill(role)
        wait_for(lambda: self.find(role).pid != old, f"another {role}", 30)
        return self.find(role).pid

    # --- failpoints ---------------------------------------------------------------------------------------------------

    @contextmanager
    def armed(self, point: Point, action: str) -> Iterator[None]:
        """Arm a point during the block: the next process that passes it acts (see `core.failpoints`)."""
        (self.failpoints / f"{point}.hit").unlink(missing_ok=True)
        staged = self.failpoints / f"{point}.new"
        staged.write_text(action)
        staged.rename(self.failpoints / point)
        try:
            yield
        finally:
            (self.failpoints / point).unlink(missing_ok=True)

    def hit_by(self, point: Point) -> int | None:
        """Return the id of the process that acted."""
        with suppress(FileNotFoundError, ValueError):
            return int((self.failpoints / f"{point}.hit").read_text())
        return None

    def release(self, point: Point) -> None:
        """Let the process go on that a point holds."""
        (self.failpoints / f"{point}.hit").unlink()

    # --- the end ------------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Remove all faults of the proxies and disarm all points."""
        for proxy in (self.postgres, self.valkey):
            proxy.heal()
        for path in self.failpoints.iterdir():
            path.unlink(missing_ok=True)

    def logs(self) -> Iterator[tuple[str, str]]:
        """Yield the name and the text of every log file."""
        for folder in (self.process.state_dir / "logs", self.folder / "services" / "logs"):
            for path in sorted(folder.glob("*.log")):
                yield path.name, path.read_text(errors="replace")

    def close(self) -> None:
        """End the stack in whatever state it is."""
        self.heal()
        for client in self._clients.values():
            client.close()
        try:
            self.process.close()
        finally:
            self.database.dispose()
            self.redis.close()
            self.postgres.close()
            self.valkey.close()
            self.services.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _make_keys(self) -> dict[str, str]:
        upgrade(self.database)
        made = {tenant: new_key() for tenant in ("default", "other")}
        with self.database.begin() as connection:
            for tenant, key in made.items():
                columns: dict[str, Any] = {
                    "id": ids.new_id(KEY),
                    "tenant_id": tenant,
                    "name": "faults",
                    "scopes": ["admin"],
                }
                connection.execute(keys.add_tenant(tenant))
                connection.execute(keys.insert_key(prefix=key.prefix, digest=key.digest, **columns))
        return {tenant: key.text for tenant, key in made.items()}


def retry(action: Callable[[], _Result], timeout_seconds: float) -> _Result:
    """Repeat a request after a broken connection or stream, a 5xx or a 429, until the time-out."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            return action()
        except (openai.APIError, httpx2.HTTPError) as error:
            if time.monotonic() > deadline or _is_client_error(error):
                raise
            time.sleep(0.05)


def _is_client_error(error: Exception) -> bool:
    response = getattr(error, "response", None)
    return response is not None and response.status_code < 500 and response.status_code != 429


def _is_running(process: psutil.Process) -> bool:
    return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE


def _postgres_socket(url: str) -> Path:
    """Return the socket of `postgresql://user@/name?host=FOLDER`, which is in that folder."""
    return Path(url.partition("host=")[2]) / ".s.PGSQL.5432"
