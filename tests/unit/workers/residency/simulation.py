"""A device in simulated time: chats arrive, batches wait, and the policy decides which models are in memory.

A launcher and its consumers behave here as their protocols promise: a drained model takes nothing new and leaves when its chats
and lines have ended, an aborted one gives its lines back at the next step.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from workers.residency.policy import ResidencyPolicy
from workers.residency.types import (
    NEVER,
    Demand,
    Load,
    Resident,
    ResidentState,
    Retire,
    RetireHow,
    ServableModel,
)

STEP_SECONDS = 0.2
LINE_SECONDS = 3.0


@dataclass(slots=True)
class Chat:
    """A chat; the times are set when it begins and ends."""

    model: str
    arrives_at: float
    seconds: float = 2.0
    began_at: float | None = None

    @property
    def wait(self) -> float:
        """Seconds from its arrival to its first step; endless if it never came."""
        return float("inf") if self.began_at is None else self.began_at - self.arrives_at


@dataclass(slots=True)
class Batch:
    """A batch that needs its model for so many seconds."""

    model: str
    seconds: float
    priority: int = 0
    arrives_at: float = 0.0
    worked: float = 0.0
    waits: list[float] = field(default_factory=lambda: [0.0])

    @property
    def is_done(self) -> bool:
        return self.worked >= self.seconds - 1e-9


@dataclass(slots=True)
class _Engine:
    model: ServableModel
    load_seconds: float
    loads_until: float
    is_for_chat: bool
    last_chat_at: float = NEVER
    last_used_at: float = NEVER
    retiring: RetireHow | None = None
    lines_until: float = NEVER
    chats: list[float] = field(default_factory=list)


class Simulation:
    """One device; `load_seconds` of a model, and whether its load fails at a time, are functions."""

    def __init__(
        self,
        models: Sequence[ServableModel],
        budget: int,
        *,
        chats: Sequence[Chat] = (),
        batches: Sequence[Batch] = (),
        load_seconds: Callable[[str], float] = lambda name: 3.0,
        fails: Callable[[str, float], bool] = lambda name, now: False,
    ) -> None:
        self.policy = ResidencyPolicy()
        self.models = {each.name: each for each in models}
        self.budget = budget
        self.chats = sorted(chats, key=lambda chat: chat.arrives_at)
        self.batches = list(batches)
        self.loads: list[tuple[float, str]] = []
        self.failures: list[tuple[float, str]] = []
        self.requested: dict[str, float] = {}  # loads that an admin asks for, by model
        self.unwanted: set[str] = set()
        self.engines: dict[str, _Engine] = {}
        self.now = 0.0
        self._load_seconds = load_seconds
        self._fails = fails
        self._open: list[Chat] = []
        self._num_arrived = 0

    def run(self, seconds: float) -> Simulation:
        """Go on for so many seconds."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self._arrive()
            self._work()
            self._act()
            self.check()
            self.now = round(self.now + STEP_SECONDS, 6)
        return self

    def check(self) -> None:
        """What is in memory fits into it."""
        assert sum(each.model.num_bytes for each in self.engines.values()) <= self.budget

    def _arrive(self) -> None:
        while self._num_arrived < len(self.chats) and self.chats[self._num_arrived].arrives_at <= self.now:
            self._open.append(self.chats[self._num_arrived])
            self._num_arrived += 1

    def _is_serving(self, name: str) -> bool:
        engine = self.engines.get(name)
        return engine is not None and engine.retiring is None and engine.loads_until <= self.now

    def _waiting_batches(self) -> list[Batch]:
        return [each for each in self.batches if each.arrives_at <= self.now and not each.is_done]

    def _work(self) -> None:
        """Move loads, chats, lines and retirements on to now."""
        for name, engine in list(self.engines.items()):
            engine.chats = [until for until in engine.chats if until > self.now]
            if engine.loads_until <= self.now and self._fails(name, self.now) and engine.last_used_at == NEVER:
                self.failures.append((self.now, name))
                self.policy.record_failure(name, self.now)
                del self.engines[name]
            elif engine.retiring is not None and not engine.chats and engine.lines_until <= self.now:
                del self.engines[name]
                self.unwanted.discard(name)
        for name in [name for name in self.requested if self._is_serving(name)]:
            del self.requested[name]
        for chat in [chat for chat in self._open if self._is_serving(chat.model)]:
            engine = self.engines[chat.model]
            chat.began_at = self.now
            engine.chats.append(self.now + chat.seconds)
            self._open.remove(chat)
        for engine in self.engines.values():
            if engine.chats:
                engine.last_chat_at = engine.last_used_at = self.now
        for batch in self._waiting_batches():
            if self._is_serving(batch.model):
                engine = self.engines[batch.model]
                batch.worked += STEP_SECONDS
                batch.waits.append(0.0)
                engine.last_used_at, engine.lines_until = self.now, self.now + LINE_SECONDS
            else:
                batch.waits[-1] += STEP_SECONDS

    def _act(self) -> None:
        action = self.policy.decide(
            self.now,
            self.models,
            [self._resident(each) for each in self.engines.values()],
            self._demands(),
            self.budget,
        )
        match action:
            case Load(name):
                assert name not in self.engines
                self.loads.append((self.now, name))
                seconds = self._load_seconds(name)
                is_for_chat = name in self.requested or any(chat.model == name for chat in self._open)
                self.engines[name] = _Engine(self.models[name], seconds, self.now + seconds, is_for_chat)
            case Retire(name, how):
                engine = self.engines[name]
                assert not self.models[name].is_pinned or name in self.unwanted
                engine.retiring = how
                if how is RetireHow.ABORT:
                    engine.lines_until = min(engine.lines_until, self.now + STEP_SECONDS)

    def _resident(self, engine: _Engine) -> Resident:
        state = ResidentState.READY
        if engine.loads_until > self.now:
            state = ResidentState.LOADING
        elif engine.retiring is not None:
            state = ResidentState.RETIRING
        return Resident(
            name=engine.model.name,
            num_bytes=engine.model.num_bytes,
            state=state,
            ready_at=engine.loads_until,
            load_seconds=engine.load_seconds,
            num_chats=len(engine.chats),
            num_lines=int(engine.lines_until > self.now),
            last_chat_at=max(engine.last_chat_at, engine.loads_until if engine.is_for_chat else NEVER),
            last_used_at=engine.last_used_at,
            retiring=engine.retiring,
            is_unwanted=engine.model.name in self.unwanted,
        )

    def _demands(self) -> list[Demand]:
        since = dict(self.requested)
        for chat in self._open:
            since[chat.model] = min(since.get(chat.model, chat.arrives_at), chat.arrives_at)
        priorities: dict[str, int] = {}
        for batch in self._waiting_batches():
            priorities[batch.model] = max(batch.priority, priorities.get(batch.model, batch.priority))
        return [
            Demand(name=name, waiting_since=since.get(name), batch_priority=priorities.get(name))
            for name in sorted(since.keys() | priorities.keys())
        ]


def random_chats(
    names: Sequence[str], weights: Sequence[float], per_second: float, seconds: float, seed: int
) -> list[Chat]:
    """Chats that arrive at random times, for models drawn by weight."""
    chosen, chats, now = random.Random(seed), [], 0.0
    while (now := now + chosen.expovariate(per_second)) < seconds:
        chats.append(Chat(chosen.choices(names, weights)[0], now, chosen.uniform(0.5, 4.0)))
    return chats
