"""Memory of a device before slots are allocated: their cost, and as many as it holds."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from engine.backends.memory import GPU_SHARE, SlotCost, host_bytes, slots_that_fit
from engine.backends.transformers.lanes import LaneShape
from engine.config import AUTO_SLOTS, EngineConfig


def resolve_slots(shapes: Iterable[LaneShape], config: EngineConfig, device: torch.device) -> int:
    """The configured slots, or with AUTO_SLOTS as many as memory holds beside the spare ones."""
    if config.slots != AUTO_SLOTS:
        return config.slots
    on_gpu = device.type != "cpu"
    memory_bytes = int(torch.cuda.mem_get_info(device)[0] * GPU_SHARE) if on_gpu else host_bytes()
    cost = SlotCost(bytes_per_token=sum(shape.token_bytes for shape in shapes))
    return slots_that_fit(cost, config, memory_bytes=memory_bytes, on_gpu=on_gpu)
