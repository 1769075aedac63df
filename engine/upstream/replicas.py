"""Replicas: the servers of one model, with the health, the pause and the limit of each.

UP ──429, 503──> PAUSED ──its time is over──> UP
 └──not reachable, several broken answers──> DOWN ──a probe is answered──> UP
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec

from engine.types import Priority
from engine.upstream.http_client import Transport
from engine.upstream.limiter import Limiter
from engine.upstream.trouble import (
    Broken,
    Busy,
    Problem,
    Refused,
    Trouble,
    Uniform,
    Unreachable,
    back_off,
    draw,
    problem_of,
)

_CHECK_SECONDS: Final = (
    15.0  # between probes of a server that has answered nothing since the last one, and for an answer
)
_BROKEN_IN_A_ROW: Final = 5
_REFUSALS_IN_A_ROW: Final = 5
_LIST: Final = "/models"


class _Model(msgspec.Struct, frozen=True):
    id: str


class _Models(msgspec.Struct, frozen=True):
    data: list[_Model]


class Replica:
    """One server. `name` is its address for people, `model` its name of the model.

    It is probed by its list of models, or by `health`: a transport and a path that answers 200. `on_wake` is called when it
    may be used again.
    """

    def __init__(
        self,
        name: str,
        transport: Transport,
        model: str,
        limiter: Limiter,
        *,
        health: tuple[Transport, str] | None = None,
        check_seconds: float = _CHECK_SECONDS,
        uniform: Uniform = draw,
    ) -> None:
        self.name = name
        self.transport = transport
        self.limiter = limiter
        self.num_chats = self.num_lines = 0
        self.problem: Problem | None = None
        self.build: str | None = None
        self.on_wake: Callable[[], None] = lambda: None
        self._model = model
        self._health = health
        self._check_seconds = min(check_seconds, _CHECK_SECONDS)
        self._uniform = uniform
        self._num_refusals = self._num_broken = self._num_falls = 0  # since its last answer
        self._timer: asyncio.Handle | None = None  # of a pause
        self._paused_until = 0.0
        self._has_answered = False
        self._down = asyncio.Event()
        self._silent_since: float | None = None
        self._remark: str | None = None

    @property
    def is_available(self) -> bool:
        """Is it UP?"""
        return self._timer is None and not self._down.is_set()

    @property
    def num_running(self) -> int:
        """Requests that it has now."""
        return self.num_chats + self.num_lines

    @property
    def warning(self) -> str | None:
        """A sentence for the operator; None if there is nothing to do."""
        if self._down.is_set() and self.problem is not None:
            return f"{self.name} does not answer. {self.problem.message}"
        if self._num_refusals >= _REFUSALS_IN_A_ROW and self.problem is not None:
            return f"{self.name} refuses requests for now. {self.problem.message}"
        return self._remark

    @property
    def pause_seconds(self) -> float:
        """Seconds that are left of its pause."""
        return 0.0 if self._timer is None else self._paused_until - asyncio.get_running_loop().time()

    @property
    def silent_seconds(self) -> float:
        """Seconds since it stopped answering, probes included; 0 while it answers."""
        return 0.0 if self._silent_since is None else asyncio.get_running_loop().time() - self._silent_since

    def has_room(self, priority: Priority, *, are_chats_active: bool) -> bool:
        """May it have one more request? Chats come first: while there are any, lines have half of the limit.

        A chat does not wait for lines, unless the operator has fixed the limit.
        """
        limit = self.limiter.limit
        if priority is Priority.CHAT:
            return (self.num_running if self.limiter.is_fixed else self.num_chats) < limit
        return self.num_running < limit and (not are_chats_active or self.num_lines < max(1, limit // 2))

    def add(self, priority: Priority, change: int) -> None:
        """Count a request that begins (1) or has ended (-1)."""
        if priority is Priority.CHAT:
            self.num_chats += change
        else:
            self.num_lines += change

    def note_text(self) -> None:
        """Note that it sends the text of an answer."""
        self._has_answered = True
        self._silent_since = None

    def note_answer(self) -> None:
        """Note that it has answered a request."""
        self.note_text()
        self._num_refusals = self._num_broken = self._num_falls = 0

    def note_trouble(self, trouble: Trouble, epoch: int) -> None:
        """Slow down, pause or rest, by what happened to a request that was sent in this epoch of the limit."""
        self.problem = trouble.problem
        match trouble:
            case Busy():
                if epoch == self.limiter.epoch or self.limiter.is_fixed:
                    self._num_refusals += 1
                self.limiter.add_overload(epoch)
                seconds = trouble.retry_after
                self._pause(back_off(self._num_refusals, self._uniform) if seconds is None else seconds)
            case Unreachable():
                self._set_down(trouble.problem)
            case Broken():
                self._num_broken += 1
                if trouble.is_timeout:
                    self.limiter.add_overload(epoch)
                if self._num_broken >= _BROKEN_IN_A_ROW:
                    self._set_down(trouble.problem)

    async def watch(self, on_probe: Callable[[], None]) -> None:
        """Probe it for ever: at the start, while it is down or the operator is warned, and after a while without an answer."""
        while True:
            if self._down.is_set() or self._remark is not None or not self._has_answered:
                await self._probe()
                on_probe()
            self._has_answered = False
            if not self._down.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._down.wait(), self._check_seconds)
            if self._down.is_set():
                await asyncio.sleep(back_off(self._num_falls, self._uniform))

    async def _probe(self) -> None:
        transport, path = self._health or (self.transport, _LIST)
        try:
            async with transport.send("GET", path, None, self._check_seconds) as answer:
                body = await answer.read()
        except (Trouble, Refused) as error:
            if isinstance(error, Broken) and error.is_timeout and self.num_running:
                self._note_silence()  # it may just be busy with them
            else:
                self._set_down(error.problem)
            return
        if answer.status >= 500 or (self._health is not None and answer.status != 200):
            self._set_down(problem_of(answer.status, body))
            return
        self.build = answer.headers.get("server", self.build)
        self._remark = _remark(self.name, self._model, answer.status, body) if self._health is None else None
        self._set_up()

    def _set_up(self) -> None:
        self._down.clear()
        self._silent_since = None
        if self._timer is None:
            self.on_wake()

    def _set_down(self, problem: Problem) -> None:
        self._num_falls += 1
        self.problem = problem
        self._note_silence()
        self._down.set()

    def _note_silence(self) -> None:
        if self._silent_since is None:
            self._silent_since = asyncio.get_running_loop().time()

    def _pause(self, seconds: float) -> None:
        """Use it no more for a while, or for longer than before."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        if self._timer is not None:
            if self._paused_until >= until:
                return
            self._timer.cancel()
        self._paused_until = until
        self._timer = loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._timer = None
        self.on_wake()


def _remark(name: str, model: str, status: int, body: bytes) -> str | None:
    """What the list of models shows, besides that the server answers; many servers have no list, or a longer one."""
    if status in (401, 403):
        return f"{name} refuses the key of `api_key_env` (HTTP {status})."
    try:
        models = msgspec.json.decode(body, type=_Models).data if status == 200 else []
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    names = [each.id for each in models]
    if not names or model in names:
        return None
    return f"{name} does not list the model {model!r}; it lists {', '.join(map(repr, names[:5]))}."
