"""Files of a stack are private to its user, and no process can write a core dump."""

from __future__ import annotations

import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
import redis

from cli.stack.services import Services
from core.process.runtime_dirs import socket_directory
from tests.support.guarded import Guarded

Answer = TypeVar("Answer")


def ask_each(secured: Guarded, question: Callable[[psutil.Process], Answer]) -> list[Answer]:
    """Ask all processes of the stack something; a process of Postgres may end meanwhile, as its connections do."""
    answers = []
    for process in [psutil.Process(secured.process.pid), *secured.process.descendants()]:
        with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            answers.append(question(process))
    assert len(answers) > 8
    return answers


def proc_line(process: psutil.Process, file: str, name: str) -> list[str]:
    """The words of a line of a file in `/proc`."""
    text = Path(f"/proc/{process.pid}/{file}").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith(name)]
    return line.split()


def test_no_process_can_dump_its_memory(secured: Guarded) -> None:
    cores = ask_each(secured, lambda process: proc_line(process, "limits", "Max core file size")[-3:-1])
    assert cores == [["0", "0"]] * len(cores)


def test_every_process_has_a_umask_of_077(secured: Guarded) -> None:
    assert set(ask_each(secured, lambda process: proc_line(process, "status", "Umask")[1])) == {"0077"}


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


def test_sockets_are_in_a_private_directory_and_only_the_api_listens(secured: Guarded) -> None:
    folder = socket_directory(secured.process.state_dir)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "valkey.sock").stat().st_mode & 0o077 == 0
    connections = ask_each(secured, lambda process: process.net_connections("inet"))
    listening = {
        f"{connection.laddr.ip}:{connection.laddr.port}"
        for of_process in connections
        for connection in of_process
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {secured.url.removeprefix("http://")}


def test_no_process_has_a_secret_in_its_arguments(secured: Guarded) -> None:
    for command in ask_each(secured, psutil.Process.cmdline):
        assert "postgresql://" not in " ".join(command)
        assert secured.owner.text not in " ".join(command)
