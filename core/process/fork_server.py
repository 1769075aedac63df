"""Fork server: starts programs as forks of a process that has imported them, so that all of them share that memory.

A process imports the modules of its programs, and forks its server from itself, while it has no other thread. For each start
the server clones itself, and the clone calls `main` of the program's module. The clone is a child of the process that asked,
as one that is started by exec: its exit code, its parent-death signal, its place in the tree and its CPUs are the same.
A clone inherits no open file but its standard streams, no signal handler and no environment variable that it was not given.
Where that is not possible (see `core.process.clone`), and when the server is lost, `spawn` returns None, and the caller execs.
"""

from __future__ import annotations

import atexit
import gc
import importlib.util
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

import msgspec
import structlog

from core.process.clone import clone_for_parent, is_supported, set_parent_death_signal, set_title
from core.process.hardening import harden_process

log = structlog.get_logger()

_START_SECONDS: Final = 60.0  # for the imports of a program on a slow disk
_LENGTH: Final = struct.Struct("!I")
_PID: Final = struct.Struct("!i")  # or the negative number of an error


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """A request to start a program: `python -P -m MODULE ARGUMENTS`. A file descriptor for its output comes with it."""

    command: list[str]
    environment: dict[str, str]
    parent: int
    death_signal: int
    cpus: set[int]

    @property
    def module(self) -> str:
        """The module that the command names."""
        return self.command[3]


class ForkedProcess:
    """A process that was started by a fork server: the part of `subprocess.Popen` that its owner needs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._exit_code: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return the exit code; None while it runs, a negative code is a signal."""
        with self._lock:
            if self._exit_code is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid == self.pid:
                    self._exit_code = os.waitstatus_to_exitcode(status)
            return self._exit_code

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once it has ended. Raises TimeoutExpired, as Popen does."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.0005
        while (exit_code := self.poll()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return exit_code


class ForkServer:
    """A server of this process. It starts with the first program, or with `start`, and ends with this process.

    `modules` are imported in this process, so that it shares their memory. A server that has ended is started again where that
    is still possible.
    """

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        self._server: ForkedProcess | None = None
        self._channel: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The id of the server that runs; None without one."""
        return None if self._server is None else self._server.pid

    def load(self) -> None:
        """Import the modules, as `start` does; does nothing where there will be no server."""
        if not is_supported() or _num_threads() > 1:
            return
        gc.disable()  # a collection would find nothing
        for module in self._modules:
            _try_import(module)
        gc.enable()

    def start(self) -> None:
        """Fork the server, unless it runs, or this process has other threads: one of them might hold a lock."""
        if self._server is not None or not is_supported() or _num_threads() > 1:
            return
        self.load()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        ours, theirs = socket.socketpair()
        gc.freeze()  # a collection would write to all objects, and so copy the memory that is shared
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _serve(theirs, parent)
        theirs.close()
        ours.settimeout(_START_SECONDS)
        self._server, self._channel = ForkedProcess(pid), ours

    def spawn(
        self, command: Sequence[str], output: int, environment: Mapping[str, str], death_signal: signal.Signals
    ) -> ForkedProcess | None:
        """Start `python -P -m MODULE …` with a file for its output; None without a server. Raises OSError if it cannot fork."""
        self.check()
        for _ in range(2):  # the server may end just now
            self.start()
            if self._channel is None:
                return None
            start = Start(
                command=list(command),
                environment=dict(environment),
                parent=os.getpid(),
                death_signal=int(death_signal),
                cpus=os.sched_getaffinity(0),
            )
            try:
                pid = _request(self._channel, start, output)
            except (OSError, EOFError) as error:
                self._lose(reason=repr(error))
            else:
                if pid < 0:
                    raise OSError(-pid, os.strerror(-pid))
                return ForkedProcess(pid)
        return None

    def check(self) -> None:
        """Notice that the server has ended."""
        if self._server is not None and (exit_code := self._server.poll()) is not None:
            self._lose(reason=f"exit code {exit_code}")

    def close(self) -> None:
        """End the server; what it has started runs on."""
        if self._server is not None and self._channel is not None:
            self._channel.close()
            with suppress(ProcessLookupError):
                os.kill(self._server.pid, signal.SIGKILL)
            self._server.wait()
        self._server = self._channel = None

    def _lose(self, *, reason: str) -> None:
        log.warning("fork_server_lost", reason=reason)
        self.close()


def _request(channel: socket.socket, start: Start, output: int) -> int:
    """Send a request; return the reply. Raises OSError or EOFError when the server has ended, or is silent."""
    data = msgspec.msgpack.encode(start)
    socket.send_fds(channel, [_LENGTH.pack(len(data))], [output])
    channel.sendall(data)
    pid: int = _PID.unpack(_receive(channel, _PID.size))[0]
    return pid


def _num_threads() -> int:
    """Count the threads of this process, with those of libraries."""
    return len(list(Path("/proc/self/task").iterdir()))


# --- the server ------------------------------------------------------------------------------------------------------


def _serve(channel: socket.socket, parent: int) -> NoReturn:
    """Serve until the other end is closed. Nothing here returns, so that no code of the process that was forked runs on."""
    try:
        os.setsid()
        set_parent_death_signal(parent, signal.SIGKILL)
        atexit._clear()
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        _close_files(channel.fileno())
        _replace_environment(dict(os.environ))
        set_title([sys.executable, "-P", "-m", __name__])
        gc.disable()
        while True:
            _answer(channel)
    except EOFError:
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _answer(channel: socket.socket) -> None:
    """Start one program. Raises EOFError once the other end is closed."""
    head, files, *_ = socket.recv_fds(channel, _LENGTH.size, 1)
    if not head:
        raise EOFError
    (output,) = files
    start = msgspec.msgpack.decode(_receive(channel, _LENGTH.unpack(head)[0]), type=Start)
    _try_import(start.module)
    gc.freeze()
    try:
        pid = clone_for_parent()
    except OSError as error:
        pid = -(error.errno or 1)
    if pid == 0:
        _run(start, output)
    os.close(output)
    channel.sendall(_PID.pack(pid))


def _try_import(module: str) -> None:
    """Import a module. If that fails, it fails in the program too, which reports it."""
    with suppress(Exception):
        importlib.import_module(_entry(module))


def _entry(module: str) -> str:
    """The module with the `main` of `python -m MODULE`."""
    spec = importlib.util.find_spec(module)
    return module if spec is None or spec.submodule_search_locations is None else f"{module}.__main__"


# --- the program -----------------------------------------------------------------------------------------------------


def _run(start: Start, output: int) -> NoReturn:
    """Run the program in the clone, and exit as the interpreter would."""
    exit_code = 1
    try:
        set_parent_death_signal(start.parent, signal.Signals(start.death_signal))
        os.setsid()
        os.sched_setaffinity(0, start.cpus)
        _set_streams(output)
        _replace_environment(start.environment)
        harden_process()
        set_title(start.command)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        gc.enable()
        exit_code = _call_main(start)
        threading._shutdown()  # type: ignore[attr-defined]  # it waits for threads, as multiprocessing does
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
        exit_code = 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(exit_code)


def _call_main(start: Start) -> int:
    """Call `main` of the program's module; return its exit code."""
    try:
        module = importlib.import_module(_entry(start.module))
        sys.argv = [module.__file__ or start.module, *start.command[4:]]
        module.main()
    except SystemExit as exit_:
        if exit_.code is None or isinstance(exit_.code, int):
            return (exit_.code or 0) & 0xFF
        sys.stderr.write(f"{exit_.code}\n")
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _set_streams(output: int) -> None:
    """Write to the file that came with the request, and read nothing; close everything else."""
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    _close_files()
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - while it runs
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - while it runs
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115 - while it runs


def _close_files(kept: int = 2) -> None:
    """Close all files but the standard streams and this one. Their objects stay, and are never finalized."""
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))


def _replace_environment(environment: Mapping[str, str]) -> None:
    """Set the environment variables; none of them then lies where the kernel has put them, and where the title goes."""
    os.environ.clear()
    os.environ.update(environment)


def _receive(channel: socket.socket, size: int) -> bytes:
    """Receive so many bytes. Raises EOFError when the other end is closed before."""
    data = b""
    while len(data) < size:
        part = channel.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data
