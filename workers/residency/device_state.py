"""State of a device at one moment, and the residents that may leave it for another model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from workers.residency.types import (
    Action,
    Demand,
    Limits,
    Load,
    Resident,
    ResidentState,
    Retire,
    RetireHow,
    ServableModel,
    room_for,
)

_REPORT_SECONDS: Final = 2.0  # a request may run for this long before the launcher has its consumer's report


class Rank(IntEnum):
    """The kind of a wish: of a pinned model, of chats and admins, of a batch out of patience, and of a batch."""

    PINNED = 0
    URGENT = 1
    OVERDUE = 2
    BATCH = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A model that should be loaded, and its place in the order."""

    name: str
    num_bytes: int
    rank: Rank
    since: float
    priority: int = 0
    is_out_of_patience: bool = False
    is_further: bool = False

    @property
    def is_urgent(self) -> bool:
        """Does it come before any batch?"""
        return self.rank is not Rank.BATCH

    @property
    def order(self) -> tuple[int, int, float, str]:
        """The key by which wishes are sorted: chats and overdue batches together by age, batches by priority."""
        group = min(self.rank, Rank.URGENT) if self.is_urgent else self.rank
        return group, 0 if self.is_urgent else -self.priority, self.since, self.name


class DeviceState:
    """The residents, the demands and the memory of a device, as `ResidencyPolicy.decide` gets them."""

    def __init__(
        self,
        now: float,
        limits: Limits,
        models: Mapping[str, ServableModel],
        residents: Sequence[Resident],
        demands: Sequence[Demand],
        budget: int,
        in_turn: frozenset[str],
    ) -> None:
        self.now = now
        self.residents = residents
        self.free = budget - sum(each.num_bytes for each in residents)
        self.leaving = sum(each.num_bytes for each in residents if each.state is ResidentState.RETIRING)
        self._limits = limits
        self._models = models
        self._demands = {each.name: each for each in demands}
        self._budget = budget
        self._in_turn = in_turn

    def absent(self) -> list[ServableModel]:
        """The models that are not in memory and fit into it, by name."""
        resident, models = {each.name for each in self.residents}, list(self._models.values())
        absent = sorted((each for each in models if each.name not in resident), key=lambda each: each.name)
        return [each for each in absent if each.num_bytes <= room_for(each, models, self._budget)]

    def waits(self, model: ServableModel) -> bool:
        """Is there a reason to load it now, beyond being eager?"""
        demand = self._demand(model.name)
        return model.is_pinned or demand.waiting_since is not None or demand.batch_priority is not None

    def wish(self, model: ServableModel, seen_since: float) -> Wish:
        """The wish to load a model that is waited for, by a batch since `seen_since`."""
        demand, limits = self._demand(model.name), self._limits
        since = seen_since if demand.waiting_since is None else demand.waiting_since
        waited, rank = self.now - since, Rank.BATCH
        if model.is_pinned:
            rank = Rank.PINNED
        elif demand.waiting_since is not None:
            rank = Rank.URGENT
        elif waited >= limits.batch_patience_seconds and not demand.is_further:
            rank = Rank.OVERDUE
        return Wish(
            name=model.name,
            num_bytes=model.num_bytes,
            rank=rank,
            since=since,
            priority=demand.batch_priority or 0,
            is_out_of_patience=rank is not Rank.BATCH and waited >= limits.chat_patience_seconds,
            is_further=demand.is_further,
        )

    def make_room(self, wish: Wish) -> Action | None:
        """Load the model if it fits; else retire the first resident of those that make room for it; None: they may not go."""
        if wish.num_bytes <= self.free:
            return Load(wish.name)
        leaving, free = list[Resident](), self.free
        for resident in self._victims(wish):
            leaving.append(resident)
            free += resident.num_bytes
            if free >= wish.num_bytes:
                break
        else:
            return None
        for resident in reversed(leaving):  # of models of unequal size, those that are not needed for this one stay
            if free - resident.num_bytes >= wish.num_bytes:
                leaving.remove(resident)
                free -= resident.num_bytes
        how = RetireHow.ABORT if leaving[0].num_lines and wish.rank <= Rank.URGENT else RetireHow.DRAIN
        return Retire(leaving[0].name, how)

    def unwanted(self) -> Retire | None:
        """Drain a model that is not wanted any more."""
        gone = (each for each in self.residents if each.is_unwanted and each.state is ResidentState.READY)
        return next((Retire(each.name, RetireHow.DRAIN) for each in gone), None)

    def expired(self) -> Retire | None:
        """Drain a model that nothing has used for its `keep_alive_seconds`."""
        for each in self._movable():
            model = self._models.get(each.name)
            seconds = None if model is None else model.keep_alive_seconds
            if (
                seconds is not None
                and self._is_idle(each)
                and self._unused_seconds(each) >= max(seconds, _REPORT_SECONDS)
            ):
                return Retire(each.name, RetireHow.DRAIN)
        return None

    def _victims(self, wish: Wish) -> list[Resident]:
        """The residents that may leave for this model, the first one first."""
        if wish.rank <= Rank.URGENT:
            movable = [each for each in self._movable() if not self._is_in_turn(each)]
            victims = [each for each in movable if wish.is_out_of_patience or not self._is_chatting(each)]
            return sorted(victims, key=self._order_for_chat)
        victims = [each for each in self._movable() if self._may_leave_for_batch(each, wish)]
        return sorted(victims, key=self._order_for_batch)

    def _may_leave_for_batch(self, each: Resident, wish: Wish) -> bool:
        is_settled = self.now - each.ready_at >= self._min_residence(each)
        is_of_chat = each.last_chat_at >= each.ready_at or self._is_chatting(each)
        if wish.rank is Rank.OVERDUE:
            return is_settled or is_of_chat or self._is_idle(each)
        if self._is_chatting(each) or self.now - each.last_chat_at < self._min_residence(each):
            return False
        if wish.is_further:
            return self._is_idle(each) and each.is_elsewhere
        own = self._demand(each.name).batch_priority
        return self._is_idle(each) or (is_settled and own is not None and own < wish.priority)

    def _order_for_chat(self, each: Resident) -> tuple[bool, bool, float, float, str]:
        is_stale = self._is_idle(each) and self._unused_seconds(each) >= self._min_residence(each)
        return self._is_chatting(each), not is_stale, each.last_chat_at, each.ready_at, each.name

    def _order_for_batch(self, each: Resident) -> tuple[bool, bool, float, float, str]:
        priority = self._demand(each.name).batch_priority or 0
        return (
            self._is_chatting(each),
            not self._is_idle(each),
            priority,
            max(each.last_chat_at, each.ready_at),
            each.name,
        )

    def _movable(self) -> Iterator[Resident]:
        """The residents that serve and are not pinned."""
        for each in self.residents:
            model = self._models.get(each.name)
            if each.state is ResidentState.READY and (model is None or not model.is_pinned):
                yield each

    def _is_in_turn(self, each: Resident) -> bool:
        return each.name in self._in_turn and self.now - each.ready_at < self._limits.batch_turn_seconds

    def _is_chatting(self, each: Resident) -> bool:
        return each.num_chats > 0 or self._demand(each.name).waiting_since is not None

    def _is_idle(self, each: Resident) -> bool:
        return not self._is_chatting(each) and not each.num_lines and self._demand(each.name).batch_priority is None

    def _unused_seconds(self, each: Resident) -> float:
        return self.now - max(each.last_chat_at, each.last_used_at, each.ready_at)

    def _min_residence(self, each: Resident) -> float:
        return max(self._limits.min_residence_seconds, self._limits.min_residence_loads * each.load_seconds)

    def _demand(self, name: str) -> Demand:
        return self._demands.get(name) or Demand(name=name)
