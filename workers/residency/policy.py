"""Residency policy: which model is loaded next on a device, and which one leaves its memory.

`ResidencyPolicy.decide` is called again and again with the present state, and returns at most one action. It starts nothing,
and has no thread and no clock. The rules, the first that applies:

1. A model that is not wanted any more (an admin's request, another file) is drained.
2. Pinned models are loaded, then those that chats and admins wait for, by age. Room is made by models that nothing has used
   for their minimum residence, then by the model that chat has not used for longest; lines that run there are given back.
   A chat that has waited for `chat_patience_seconds` also drains models with running chats.
3. Models that batches wait for come after them, by priority, then by age. Room is made by idle models that chat did not use
   within their minimum residence, and by models with batches of a lower priority, after their minimum residence. A batch that
   has waited for `batch_patience_seconds` counts as a chat of that age: it also gets the place of a model that batches or
   chats use, and keeps it for `batch_turn_seconds`. A further device for a model takes only free memory, or that of idle models
   that other devices have too.
4. Eager models are loaded once, in order of their names, while there is room.
5. A model that nothing has used for its `keep_alive_seconds` is drained.

One model loads or leaves at a time, except that a model is loaded for a chat into free memory while another is drained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workers.residency.device_state import DeviceState, Rank, Wish
from workers.residency.types import (
    NEVER,
    Action,
    Demand,
    Limits,
    Load,
    Resident,
    ResidentState,
    Retire,
    RetireHow,
    ServableModel,
)


@dataclass(slots=True)
class _Failures:
    count: int = 0
    retry_at: float = NEVER


class ResidencyPolicy:
    """The policy of one device, with a memory of failed loads, of waiting batches and of eager models that had their turn."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._failures: dict[str, _Failures] = {}
        self._waiting_since: dict[str, float] = {}  # of batches and of pinned models, while they are not resident
        self._begun: set[str] = set()  # models that were loaded, and eager ones that had no room
        self._in_turn: set[str] = set()  # resident models that a batch got after its patience

    def decide(
        self,
        now: float,
        models: Mapping[str, ServableModel],
        residents: Sequence[Resident],
        demands: Sequence[Demand],
        budget: int,
    ) -> Action | None:
        """Return the next action on a device with `budget` bytes; None: nothing to do until something changes or time passes.

        `models` are those that may be loaded, by name. Demands of others, of models that can never fit (see `room_for`) and
        of models that have failed lately are left alone.
        """
        self._in_turn &= {each.name for each in residents}
        state = DeviceState(now, self.limits, models, residents, demands, budget, frozenset(self._in_turn))
        wishes = self._wishes(state)
        if any(each.state is ResidentState.LOADING for each in residents):
            return None
        if any(each.state is ResidentState.RETIRING for each in residents):
            action = _while_retiring(state, wishes)
        else:
            action = state.unwanted() or _serve(state, wishes) or self._load_eager(state, wishes) or state.expired()
        if isinstance(action, Load):
            self._begun.add(action.name)
            self._in_turn.update(each.name for each in wishes if each.name == action.name and each.rank is Rank.OVERDUE)
        return action

    def record_failure(self, name: str, now: float) -> float:
        """Record that a model could not be loaded, and return the time before which it is not tried again."""
        failures = self._failures.setdefault(name, _Failures())
        seconds = min(self.limits.retry_seconds * 2**failures.count, self.limits.max_retry_seconds)
        failures.count += 1
        failures.retry_at = now + seconds
        return failures.retry_at

    def clear_failures(self, name: str) -> None:
        """Forget the failures of a model: it has loaded, or an admin asks for it."""
        self._failures.pop(name, None)

    def note_begun(self, name: str) -> None:
        """Note that an eager model is loaded at the start, without a decision."""
        self._begun.add(name)

    def forget(self, name: str) -> None:
        """Forget all about a model whose file has changed: its failures, and that it was loaded as an eager one."""
        self.clear_failures(name)
        self._begun.discard(name)

    def may_try(self, name: str, now: float) -> bool:
        """Has the model not failed, or is its pause over?"""
        return name not in self._failures or self._failures[name].retry_at <= now

    def _wishes(self, state: DeviceState) -> list[Wish]:
        """The models that should be loaded, in order; notes since when they wait that have no time of their own."""
        absent = [model for model in state.absent() if self.may_try(model.name, state.now)]
        self._waiting_since = {
            each.name: self._waiting_since.get(each.name, state.now) for each in absent if state.waits(each)
        }
        wishes = [state.wish(model, self._waiting_since[model.name]) for model in absent if state.waits(model)]
        return sorted(wishes, key=lambda wish: wish.order)

    def _load_eager(self, state: DeviceState, wishes: list[Wish]) -> Load | None:
        """Load the next eager model that was not loaded yet. One that finds no room is loaded on demand."""
        if any(wish.is_urgent for wish in wishes):
            return None
        for model in state.absent():
            if model.is_eager and model.name not in self._begun:
                self._begun.add(model.name)
                if model.num_bytes <= state.free:
                    return Load(model.name)
        return None


def _serve(state: DeviceState, wishes: list[Wish]) -> Action | None:
    """Load the first model that there is room for, or make room. A chat out of patience is passed by no other, and
    batches wait while something urgent does.
    """
    for wish in wishes:
        if not wish.is_urgent and wishes[0].is_urgent:
            return None
        if (action := state.make_room(wish)) is not None:
            return action
        if wish.rank is Rank.URGENT and wish.is_out_of_patience:
            return None
    return None


def _while_retiring(state: DeviceState, wishes: list[Wish]) -> Action | None:
    """Hurry a model that leaves, or load another one into memory that the first chat does not need."""
    urgent = [wish for wish in wishes if wish.is_urgent]
    if not urgent:
        return None
    first, coming = urgent[0], state.free + state.leaving
    if first.num_bytes <= state.free:
        return Load(first.name)
    for each in state.residents:
        if each.retiring is RetireHow.DRAIN and each.num_lines and first.rank is Rank.URGENT:
            return Retire(each.name, RetireHow.ABORT)
    fitting = (each for each in urgent[1:] if each.num_bytes <= min(state.free, coming - first.num_bytes))
    return next((Load(each.name) for each in fitting), None)
