"""The slots and the context of a new model, chosen by the memory of its device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cli.models.facts import ModelFacts
from core.memory_sizes import format_bytes
from engine.config import AUTO_SLOTS, EngineConfig
from engine.folder_sizing import folder_need, folder_slots
from engine.sizing import MemoryNeed, chosen_slots, memory_need

MIN_CONTEXT: Final = 64
_USUAL_CONTEXT: Final = 8192
_LEAST_CONTEXT: Final = 2048
_SHARE: Final = 0.5  # of the device's memory, so that another model has room
_MEASURED_SLOTS: Final = 8  # that have room beside the context, where their number is measured later
Slots = int | Literal["auto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The memory of the device: of all its models, and what is free now."""

    device: str
    budget: int
    free_bytes: int
    on_gpu: bool
    usual_slots: Slots


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was chosen, why, and what it needs. `slots` is None for an encoder, which has none."""

    context_size: int
    slots: Slots | None
    need: MemoryNeed
    context_reason: str
    slots_reason: str
    room: Room

    @property
    def fits(self) -> bool:
        return self.need.total <= self.room.budget

    def describe_need(self) -> str:
        """One line on the memory."""
        need = self.need
        parts = (
            f"{format_bytes(need.weights_bytes)} weights + {format_bytes(need.kv_bytes)} keys and values + "
            f"{format_bytes(need.compute_bytes)} to compute"
        )
        return f"{format_bytes(need.total)} of {format_bytes(self.room.budget)} on {self.room.device}: {parts}"


def choose_plan(facts: ModelFacts, room: Room, *, slots: Slots | None, context: int | None) -> Plan:
    """Choose what was not given: the usual slots and context, or less, down to one slot, until they need half of the memory."""
    if not facts.generates:
        return _encoder_plan(facts, room, context)
    trained = facts.trained_context or _USUAL_CONTEXT
    candidates = list(_candidates(trained, room.usual_slots, slots, context))
    needs = [(each, _need(facts, room, *each)) for each in candidates]
    limits = (int(room.budget * _SHARE), room.budget)
    fitting = (found for limit in limits for found in needs if found[1].total <= limit)
    (number, chosen_context), need = next(fitting, needs[-1])
    chosen = "auto" if slots is None and room.usual_slots == "auto" else number
    return Plan(
        context_size=chosen_context,
        slots=chosen,
        need=need,
        context_reason=_context_reason(trained, chosen_context, context),
        slots_reason=_slots_reason(room, chosen, slots),
        room=room,
    )


def _candidates(trained: int, usual: Slots, slots: Slots | None, context: int | None) -> Iterator[tuple[Slots, int]]:
    """Slots and contexts from the best to the least: first the context shrinks to 2048, then the slots."""
    contexts = [context] if context is not None else list(_halves(min(trained, _USUAL_CONTEXT), _LEAST_CONTEXT))
    most = _MEASURED_SLOTS if usual == "auto" else usual
    numbers: list[Slots] = [slots] if slots is not None else list(_halves(most, 1))
    for number in numbers:
        for size in contexts if number == numbers[0] else contexts[-1:]:
            yield number, size


def _halves(most: int, least: int) -> Iterator[int]:
    most = max(most, MIN_CONTEXT) if least == _LEAST_CONTEXT else most
    yield most
    while most // 2 >= least:
        most //= 2
        yield most


def _need(facts: ModelFacts, room: Room, slots: Slots, context: int) -> MemoryNeed:
    config = _config(facts, room, AUTO_SLOTS if slots == "auto" else slots, context)
    if slots == "auto":
        free = room.free_bytes - _need(facts, room, 1, context).weights_bytes if room.on_gpu else room.free_bytes
        config = _config(facts, room, _auto_slots(facts, config, max(0, free), on_gpu=room.on_gpu), context)
    if isinstance(facts.weights, Path):
        return folder_need(facts.weights, config)
    return memory_need(facts.weights, config)


def _auto_slots(facts: ModelFacts, config: EngineConfig, free_bytes: int, *, on_gpu: bool) -> int:
    if isinstance(facts.weights, Path):
        return folder_slots(facts.weights, config, free_bytes=free_bytes, on_gpu=on_gpu)
    return chosen_slots(facts.weights, config, free_bytes=free_bytes, on_gpu=on_gpu)


def _config(facts: ModelFacts, room: Room, slots: int, context: int) -> EngineConfig:
    return EngineConfig(
        model="new",
        endpoint="",
        slots=slots,
        context_size=context,
        gpu_layers=-1 if room.on_gpu else 0,
        embeddings=facts.is_embedding,
        batch_tokens=max(2048, slots),
    )


def _encoder_plan(facts: ModelFacts, room: Room, context: int | None) -> Plan:
    size = context if context is not None else max(MIN_CONTEXT, min(facts.trained_context or 512, _USUAL_CONTEXT))
    return Plan(
        context_size=size,
        slots=None,
        need=_need(facts, room, 1, size),
        context_reason="The longest text that is embedded, in tokens.",
        slots_reason="",
        room=room,
    )


def _context_reason(trained: int, chosen: int, given: int | None) -> str:
    if given is not None:
        beyond = ", which is less, so that answers get worse beyond it" if chosen > trained else ""
        return f"As asked for; the model was trained on {trained:,} tokens{beyond}."
    if chosen == trained:
        return "As many tokens as the model was trained on."
    return f"The model was trained on {trained:,} tokens; each slot needs memory for as many as this."


def _slots_reason(room: Room, chosen: Slots, given: Slots | None) -> str:
    if chosen == "auto":
        return "The fastest number on its device, measured when the model is first loaded, as far as memory holds it."
    if given is not None:
        return "As asked for."
    if chosen == room.usual_slots:
        return "Answers that are generated side by side."
    return f"Answers that are generated side by side; {room.usual_slots} need too much memory."
