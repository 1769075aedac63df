"""System calls of the fork server: a fork whose parent is the caller's parent, the title of a process, the parent-death signal.

A title is written over the memory in which the kernel has put the arguments of a process, which is what `ps` reads.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG: Final = 1
_PR_GET_TID_ADDRESS: Final = 40
_CLONE_PARENT: Final = 0x00008000
_CLONE_CHILD_CLEARTID: Final = 0x00200000
_CLONE_CHILD_SETTID: Final = 0x01000000
# The number of the system call, and the places of `child_tid` and `tls` among its arguments.
_CLONE: Final = {"x86_64": (56, 3), "aarch64": (220, 4)}


def set_parent_death_signal(parent: int, number: signal.Signals) -> None:
    """Let the kernel send this signal to the calling child when the parent ends. System calls only."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:  # the parent ended before the signal was set
        os._exit(1)


def is_supported() -> bool:
    """Can this process be cloned? On Linux, where the kernel tells the address of the id of its thread."""
    return sys.platform == "linux" and platform.machine() in _CLONE and _thread_id_address() is not None


def clone_for_parent() -> int:
    """Fork a process without other threads; the new process is a child of the caller's parent.

    Returns 0 in the new process, and its id in the caller. Raises OSError. The C library does not notice this fork: what it
    would set, the id of the thread, is set by the kernel, and none of its locks can be held without another thread.
    """
    number, place = _CLONE[platform.machine()]
    address = _thread_id_address()
    flags = _CLONE_PARENT | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID | int(signal.SIGCHLD)
    arguments: list[int] = [flags, 0, 0, 0, 0]
    arguments[place] = address or 0
    system = ctypes.PyDLL(
        None, use_errno=True
    ).syscall  # it keeps the interpreter's lock, which the new process then holds
    system.restype = ctypes.c_long
    python = ctypes.pythonapi
    python.PyOS_BeforeFork()
    pid = int(system(*map(ctypes.c_long, [number, *arguments])))
    if pid == 0:
        python.PyOS_AfterFork_Child()
        return 0
    python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return pid


def set_title(command: Sequence[str]) -> None:
    """Show a command as that of this process. No environment variable may lie where the kernel has put them.

    The kernel reads a title up to its first zero, and over the environment, if the last byte of the arguments is not zero.
    """
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    arguments_start, arguments_end, environment_start, environment_end = map(int, fields[45:49])
    size = arguments_end - arguments_start
    room = environment_end - arguments_start if environment_start == arguments_end else size
    title = " ".join(command).encode()[: room - 1] + b"\0"
    if len(title) < size:
        title = title.ljust(size - 1, b"\0") + b" "
    ctypes.memmove(arguments_start, title, len(title))


def _thread_id_address() -> int | None:
    """The address at which the C library keeps the id of the main thread."""
    address = ctypes.c_void_p()
    if _libc.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(address)) != 0:
        return None
    return address.value
