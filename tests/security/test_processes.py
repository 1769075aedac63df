"""What a stack leaves on the machine is for its user alone, and no death of a process leaves an image of its memory."""

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


def test_what_any_process_writes_is_for_its_user_alone(processes: list[psutil.Process]) -> None:
    for process in processes:
        status = Path(f"/proc/{process.pid}/status").read_text()
        (mask,) = [line.split()[1] for line in status.splitlines() if line.startswith("Umask")]
        assert mask == "0077", process.cmdline()


def test_nothing_of_a_stack_can_be_entered_or_read_by_others(secured: Guarded) -> None:
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
def test_the_bundled_broker_gives_nobody_its_machine_or_its_memory(services: Services, command: str) -> None:
    with (
        redis.Redis.from_url(services.redis_url) as client,
        pytest.raises(redis.ResponseError, match="NOPERM|allow|protected|no permissions"),
    ):
        client.execute_command(*command.split())


def test_sockets_lie_in_a_directory_of_the_user_and_nothing_listens_but_the_api(
    secured: Guarded, processes: list[psutil.Process]
) -> None:
    folder = socket_directory(secured.process.state_dir)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "valkey.sock").stat().st_mode & 0o077 == 0
    heard = {
        f"{connection.laddr.ip}:{connection.laddr.port}"
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert heard == {secured.url.removeprefix("http://")}


def test_a_process_of_an_engine_or_a_worker_shows_no_secret_in_its_arguments(
    secured: Guarded, processes: list[psutil.Process]
) -> None:
    for process in processes:
        assert "postgresql://" not in " ".join(process.cmdline())
        assert secured.owner.text not in " ".join(process.cmdline())
