"""Files of a stack are private to its user, and no process can write a core dump."""

from __future__ import annotations

import stat
from pathlib import Path

import psutil
import pytest
import redis

from cli.stack.services import Services
from core.process.runtime_dirs import socket_directory
from tests.support.guarded import Guarded


@pytest.fixture(scope="module")
def processes(secured: Guarded) -> list[psutil.Process]:
    found = [psutil.Process(secured.process.pid), *secured.process.descendants()]
    assert len(found) > 8
    return found


def test_no_process_can_dump_its_memory(processes: list[psutil.Process]) -> None:
    for process in processes:
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        (core,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert core.split()[-3:-1] == ["0", "0"], process.cmdline()


def test_every_process_has_a_umask_of_077(processes: list[psutil.Process]) -> None:
    for process in processes:
        status = Path(f"/proc/{process.pid}/status").read_text()
        (mask,) = [line.split()[1] for line in status.splitlines() if line.startswith("Umask")]
        assert mask == "0077", process.cmdline()


def test_no_file_of_a_stack_is_open_to_other_users(secured: Guarded) -> None:
    state_dir = secured.process.state_dir
    open_to_others = [
        f"{path} {path.lstat().st_mode & 0o777:o}"
        for path in (state_dir, *state_dir.rglob("*"))
        if not path.is_socket() and path.lstat().st_mode & 0o077
    ]
    assert open_to_others == []


@pytest.mark.parametrize(
    "command",
    [
        "DEBUG SLEEP 0", "MODULE LOAD /x.so", "CONFIG SET dir /tmp", "CONFIG SET dbfilename x", "REPLICAOF 127.0.0.1 1",
        "MONITOR", "MIGRATE 127.0.0.1 1 key 0 1", "ACL SETUSER default +@all", "PSYNC ? -1",
    ],
)  # fmt: skip
def test_the_bundled_broker_refuses_dangerous_commands(services: Services, command: str) -> None:
    with (
        redis.Redis.from_url(services.redis_url) as client,
        pytest.raises(redis.ResponseError, match="NOPERM|allow|protected|no permissions"),
    ):
        client.execute_command(*command.split())


def test_sockets_are_in_a_private_directory_and_only_the_api_listens(
    secured: Guarded, processes: list[psutil.Process]
) -> None:
    folder = socket_directory(secured.process.state_dir)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "valkey.sock").stat().st_mode & 0o077 == 0
    listening = {
        f"{connection.laddr.ip}:{connection.laddr.port}"
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {secured.url.removeprefix("http://")}


def test_no_process_has_a_secret_in_its_arguments(secured: Guarded, processes: list[psutil.Process]) -> None:
    for process in processes:
        assert "postgresql://" not in " ".join(process.cmdline())
        assert secured.owner.text not in " ".join(process.cmdline())
