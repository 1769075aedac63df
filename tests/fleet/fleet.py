"""A fleet of five hosts: services and nginx on the first, an api and a clerk on two, a worker of two devices on two.

Nothing is shared but the network: no folder, no clock. Half of the hosts are 150 s early and the others 150 s late, so that
two hosts differ by five minutes.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from openai import DefaultHttpxClient, OpenAI
from sqlalchemy import Engine, text

from core.process.clone import set_parent_death_signal
from db.connections import database_engine
from tests.faults.stack import retry
from tests.faults.test_clocks import WRONG_CLOCK
from tests.fleet.hosts import Host, Network
from tests.fleet.services import API_PORT, HTTPS_PORT, FleetServices
from tests.support.devices import CUDA_BUILD, fake_devices, gpus
from tests.support.forwarder import Forwarder
from tests.support.stack import clean_environment, wait_for

LEASE_SECONDS: Final = 10.0
READY_SECONDS: Final = 120.0
CLOCK_SECONDS: Final = 150
NUM_DEVICES: Final = 2
SETTINGS: Final = {
    "MILLRACE_LEASE_SECONDS": str(LEASE_SECONDS),
    "MILLRACE_HEARTBEAT_SECONDS": "1",
    "MILLRACE_SWEEP_SECONDS": "1",
    "MILLRACE_TICKET_SECONDS": "2",
    "MILLRACE_POLL_SECONDS": "2",
    "MILLRACE_COMMIT_SECONDS": "0.1",
    "MILLRACE_COMMIT_LINES": "4",
    "MILLRACE_SHARD_LINES": "8",
    "MILLRACE_KEEP_ALIVE_SECONDS": "2",
    "MILLRACE_DRAIN_SECONDS": "15",
}
MODEL: Final = "name: fake\nbackend: fake\nslots: 4\nstep_seconds: 0.015\n"
_Result = TypeVar("_Result")


@dataclass(slots=True)
class FleetProcess:
    """`millrace ROLE` on a host, which can be stopped and started again."""

    role: str
    host: Host
    folder: Path
    environment: dict[str, str]
    popen: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _log_begin: int = field(default=0, init=False)

    @property
    def log(self) -> Path:
        """The log of all its starts."""
        return self.folder / f"{self.role}.log"

    @property
    def pid(self) -> int:
        """The process id; its children are others."""
        assert self.popen is not None
        return self.popen.pid

    def start(self) -> None:
        """Start it; it is not ready yet."""
        self._log_begin = self.log.stat().st_size if self.log.exists() else 0
        self.popen = self.host.call(self._open)

    def output(self) -> str:
        """The log since its last start."""
        return self.log.read_bytes()[self._log_begin :].decode(errors="replace")

    @property
    def has_ended(self) -> bool:
        """Has it ended, or was it never started?"""
        return self.popen is None or self.popen.poll() is not None

    def _open(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [str(Path(sys.executable).with_name("millrace")), self.role],
                cwd=self.folder,
                env={**clean_environment(), **self.environment},
                stdout=log,
                stderr=log,
                preexec_fn=partial(set_parent_death_signal, os.getpid(), signal.SIGTERM),
            )

    def stop(self) -> None:
        """Stop it as an operator does, and wait for its end."""
        if self.popen is not None and not self.has_ended:
            self.popen.terminate()
            try:
                self.popen.wait(60)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
                raise AssertionError(
                    f"{self.role} on {self.host.name} does not stop: {self.output()[-3000:]}"
                ) from None


class Fleet:
    """The hosts, their services and their processes, from `start` to `close`.

    `client` is the official client through nginx, `apis` are those past it, one for each api.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = Network(5)
        self.hosts = self.network.hosts
        self.services = FleetServices(folder, self.hosts[0], self.hosts[1:3])
        self.key = ""
        self.processes: list[FleetProcess] = []
        self.client: OpenAI
        self.apis: list[OpenAI] = []
        self._closers: list[Callable[[], None]] = []
        self.database: Engine = database_engine(self.services.postgres.url, pool_size=3)

    @property
    def workers(self) -> list[FleetProcess]:
        """The two workers."""
        return [each for each in self.processes if each.role == "worker"]

    def start(self) -> None:
        """Start everything, and return when every process is ready."""
        self.services.start()
        for host, shift in zip(self.hosts[1:], (-1, 1, -1, 1), strict=True):
            environment = self._environment(host, shift * CLOCK_SECONDS)
            roles = ("api", "clerk") if host in self.hosts[1:3] else ("worker",)
            self.processes += [FleetProcess(role, host, self.folder / host.name, environment) for role in roles]
        session = {"DATABASE_URL": self.services.database_url.replace("/millrace?", "/millrace_session?")}
        made = self.millrace(self.processes[0], "db", "upgrade", "--create-key", **session)
        self.key = made.stdout.strip().rpartition(" ")[2]
        for process in self.processes:
            process.start()
        with ThreadPoolExecutor(len(self.processes)) as threads:
            list(threads.map(self.wait_ready, self.processes))
        self.client = self._client("https", self.hosts[0], HTTPS_PORT)
        self.apis = [self._client("http", host, API_PORT) for host in self.hosts[1:3]]

    def millrace(self, process: FleetProcess, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the host of a process, with its settings."""
        return process.host.call(
            partial(
                subprocess.run,
                [str(Path(sys.executable).with_name("millrace")), *arguments],
                cwd=process.folder,
                env={**clean_environment(), **process.environment, **environment},
                capture_output=True,
                text=True,
                check=False,
            )
        )

    def wait_ready(self, process: FleetProcess) -> None:
        """Wait until a process, with all that belongs to it, is ready."""

        def is_ready() -> bool:
            assert process.popen is not None
            match process.role:
                case "api":
                    return "listening on" in process.output()
                case "worker":
                    return process.output().count("worker_ready") == NUM_DEVICES
                case _:
                    return bool(
                        self.query("SELECT 1 FROM workers WHERE kind = 'clerk' AND pid = :pid", pid=process.pid)
                    )

        try:
            wait_for(lambda: is_ready() or process.has_ended, f"{process.role} is ready", READY_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}: {process.output()[-3000:]}") from None
        assert not process.has_ended, process.output()[-3000:]

    def _environment(self, host: Host, shift: int) -> dict[str, str]:
        """Make the folder of a host, with model files, devices and a wrong clock; return the settings of its processes."""
        folder = self.folder / host.name
        (folder / "models").mkdir(parents=True)
        (folder / "models" / "fake.yaml").write_text(MODEL)
        (folder / "clock").mkdir()
        (folder / "clock" / "sitecustomize.py").write_text(WRONG_CLOCK)
        path = os.pathsep.join([str(folder / "clock"), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {
            **SETTINGS,
            **self.services.environment,
            **fake_devices(folder, gpus=gpus(NUM_DEVICES), build=CUDA_BUILD),
            "MILLRACE_HOST": host.address,
            "MILLRACE_PORT": str(API_PORT),
            "MILLRACE_STATE_DIR": str(folder / "state"),
            "MILLRACE_MODELS_DIR": str(folder / "models"),
            "PYTHONPATH": path,
            "SHIFT_SECONDS": str(shift),
        }

    def _client(self, scheme: str, host: Host, port: int) -> OpenAI:
        """The official client of an address, without retries of its own: see `retry`."""
        forwarder = Forwarder(socket.create_server(("127.0.0.1", 0)), (host.address, port), enter=host.enter)
        http = DefaultHttpxClient(verify=ssl.create_default_context(cafile=str(self.services.authority)))
        self._closers += [http.close, forwarder.close]
        url = f"{scheme}://127.0.0.1:{forwarder.port}/v1"
        return OpenAI(base_url=url, api_key=self.key, max_retries=0, timeout=60, http_client=http)

    # --- clients and rows, as tests/faults/load.py uses them -----------------------------------------------------------

    def retry(self, action: Callable[[], _Result], timeout_seconds: float = 60) -> _Result:
        """Repeat a request after a broken connection or stream, a 5xx or a 429, until the time-out."""
        return retry(action, timeout_seconds)

    def query(self, statement: str, **values: object) -> Sequence[Any]:
        """Return rows, past PgBouncer."""
        with self.database.begin() as connection:
            return connection.execute(text(statement), values).all()

    def execute(self, statement: str, **values: object) -> None:
        """Change rows past PgBouncer, to the state that time or a crashed process would leave."""
        with self.database.begin() as connection:
            connection.execute(text(statement), values)

    def close(self) -> None:
        """End everything, in whatever state it is."""
        for close in self._closers:
            close()
        with ThreadPoolExecutor(6) as threads:
            list(threads.map(FleetProcess.stop, self.processes))
        self.database.dispose()
        self.services.close()
        self.network.close()
