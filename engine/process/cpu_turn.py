"""Turns of the engines that compute on the same cores: one step at a time, since two at once wait for each other's threads.

The turn is a set of System V semaphores: a process waits for several at once and with a timeout, and the kernel takes back
what a killed process held (SEM_UNDO). A value of 0 is free:

    RUN      the engine that computes
    CHAT     the next engine with chat in its step; batch waits as long as there is one
    BATCH    the next engine with batch alone

An engine passes CHAT or BATCH to RUN in one operation, so no equal overtakes it. It keeps RUN for some steps, since each
change costs a part of a millisecond, but batch gives way to waiting chat after its step. Chat keeps it twice as long as it
waited, so a step of batch delays a chat once, and batch never starves.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Callable
from typing import Final

from engine.log import log_stderr
from engine.turn import OwnCores, Turn

RUN: Final = 0
CHAT: Final = 1
BATCH: Final = 2
_NUM_SEMAPHORES: Final = 3

_KEEP_SECONDS: Final = 0.01
_BATCH_KEEP_SECONDS: Final = (
    0.03  # among engines without chat: two models of the demo's size together lose half as much
)
_CHAT_SHARE: Final = 2.0  # seconds that chat keeps the turn for each second that it waited
_ASK_SECONDS: Final = 0.005  # of one wait, after which the loop reads its inbox: a batch may get a chat
_LONGEST_WAIT_SECONDS: Final = 10.0  # a frozen process may hold the turn

_IPC_CREAT: Final = 0o1000
_IPC_NOWAIT: Final = 0o4000
_IPC_STAT: Final = 2
_GETVAL: Final = 12
_SEM_UNDO: Final = 0o10000
_STAT_BYTES: Final = 256
_BUSY: Final = (errno.EAGAIN, errno.EINTR)

_libc: Final = ctypes.CDLL(None, use_errno=True)
_quick_libc: Final = ctypes.PyDLL(None, use_errno=True)  # keeps Python's lock: for calls that do not wait


class _Operation(ctypes.Structure):
    """`struct sembuf`."""

    _fields_ = (("number", ctypes.c_ushort), ("change", ctypes.c_short), ("flags", ctypes.c_short))


class _Duration(ctypes.Structure):
    """`struct timespec`."""

    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Semaphores:
    """A set of semaphores of this user, made on first use; raises OSError where the system has none to give."""

    def __init__(self, key: int) -> None:
        self._key = key
        self._id = self._open()

    def change(self, *changes: tuple[int, int], wait_seconds: float = 0.0) -> bool:
        """Apply all changes (number, difference) at once, or none; False when they would have to wait longer.

        A difference of 0 waits until the value is 0. The kernel reverses the changes when the process ends.
        """
        flags = _SEM_UNDO if wait_seconds else _SEM_UNDO | _IPC_NOWAIT
        operations = (_Operation * len(changes))(*[_Operation(*change, flags) for change in changes])
        duration = _Duration(0, int(wait_seconds * 1e9))
        libc = _libc if wait_seconds else _quick_libc
        if libc.semtimedop(self._id, operations, len(changes), ctypes.byref(duration)) == 0:
            return True
        if ctypes.get_errno() in _BUSY:
            return False
        raise self._error()

    def value(self, number: int) -> int:
        """The value of a semaphore."""
        value: int = _quick_libc.semctl(self._id, number, _GETVAL)
        if value < 0:
            raise self._error()
        return value

    def _open(self) -> int:
        identity: int = _libc.semget(
            self._key, _NUM_SEMAPHORES, _IPC_CREAT | 0o600
        )  # Linux makes them with the value 0
        status = ctypes.create_string_buffer(_STAT_BYTES)
        if identity < 0 or _libc.semctl(identity, 0, _IPC_STAT, status) < 0:
            raise self._error()
        owner = ctypes.c_uint32.from_buffer(status, 4).value  # of `struct ipc_perm`, after its key
        if owner != os.geteuid():
            raise PermissionError(errno.EPERM, "the semaphores belong to another user")
        return identity

    def _error(self) -> OSError:
        number = ctypes.get_errno()
        return OSError(number, os.strerror(number))


class CpuTurn:
    """The turn of one engine on cores that others use too."""

    def __init__(self, semaphores: Semaphores, clock: Callable[[], float] = time.monotonic) -> None:
        self._semaphores = semaphores
        self._is_lost = False
        self._clock = clock
        self._has_turn = False
        self._place: int | None = None  # CHAT or BATCH, while this engine is the next one
        self._asked_at: float | None = None
        self._taken_at = 0.0
        self._waited_seconds = 0.0

    def take(self, *, is_chat: bool) -> bool:
        try:
            return self._is_lost or self._take(is_chat=is_chat)
        except OSError as error:  # removed by ipcrm, or with the last login of the user
            self._lose(error)
            return True

    def give_back(self) -> None:
        try:
            self._leave_place()
            if self._has_turn:
                self._release()
        except OSError as error:
            self._lose(error)
        self._asked_at = None

    def _take(self, *, is_chat: bool) -> bool:
        now = self._clock()
        if self._has_turn:
            if now - self._taken_at < self._keep_seconds(is_chat=is_chat):
                return True
            self._release()
            if is_chat:  # lets the next batch pass, which chat would overtake
                self._semaphores.change((BATCH, 0), wait_seconds=_ASK_SECONDS)
        if self._asked_at is None:
            self._asked_at = now
        self._has_turn = self._pass(CHAT if is_chat else BATCH)
        now = self._clock()
        if self._has_turn:
            self._taken_at, self._waited_seconds, self._asked_at = now, now - self._asked_at, None
            return True
        return now - self._asked_at > _LONGEST_WAIT_SECONDS

    def _pass(self, place: int) -> bool:
        """Pass through the place of the next engine to the turn; False while either is taken."""
        if self._place != place:
            self._leave_place()
        free = [(place, 0)] if place == CHAT else [(place, 0), (CHAT, 0)]
        if self._place is None:
            if self._semaphores.change(*free, (RUN, 0), (RUN, 1)):
                return True
            if not self._semaphores.change((place, 0), (place, 1), wait_seconds=_ASK_SECONDS):
                return False
            self._place = place
        if not self._semaphores.change(*free[1:], (RUN, 0), (RUN, 1), (place, -1), wait_seconds=_ASK_SECONDS):
            return False
        self._place = None
        return True

    def _keep_seconds(self, *, is_chat: bool) -> float:
        """Seconds from its start for which this engine may keep the turn."""
        if self._semaphores.value(CHAT):
            return _KEEP_SECONDS if is_chat else 0.0
        return max(_KEEP_SECONDS, _CHAT_SHARE * self._waited_seconds) if is_chat else _BATCH_KEEP_SECONDS

    def _leave_place(self) -> None:
        if self._place is not None:
            self._semaphores.change((self._place, -1))
            self._place = None

    def _release(self) -> None:
        self._semaphores.change((RUN, -1))
        self._has_turn = False

    def _lose(self, error: OSError) -> None:
        """Compute without turns from now on, as the other engines do that lost the same semaphores."""
        log_stderr(f"engines no longer take turns on the cores: {error.strerror}\n")
        self._is_lost, self._has_turn, self._place = True, False, None


def open_turn(key: int | None) -> Turn:
    """The turn of an engine that shares cores by the semaphores of this key, or has cores of its own."""
    if key is None:
        return OwnCores()
    try:
        return CpuTurn(Semaphores(key))
    except OSError as error:
        log_stderr(f"engines do not take turns on the cores: {error.strerror}\n")
        return OwnCores()
