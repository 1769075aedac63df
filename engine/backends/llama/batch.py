"""The batch arrays of llama.cpp, filled through numpy views of the same memory. Only sampled rows request logits."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp as llama
import numpy as np
from numpy.typing import NDArray

from engine.scheduler.step import StepEntry, StepPlan


class Batch:
    """The tokens of one step."""

    def __init__(self, room: int) -> None:
        self.raw = llama.llama_batch_init(room, 0, 1)
        self.tokens = _view(self.raw.token, room, np.int32)
        self.positions = _view(self.raw.pos, room, np.int32)
        self.wants_logits = _view(self.raw.logits, room, np.int8)
        self.slots = np.zeros(room, np.int32)
        for index in range(room):  # the list of sequence ids of a token is one cell of `slots`
            cell = ctypes.cast(self.slots.ctypes.data + 4 * index, ctypes.POINTER(llama.llama_seq_id))
            self.raw.seq_id[index] = cell
        _view(self.raw.n_seq_id, room, np.int32)[:] = 1

    def fill(self, plan: StepPlan) -> None:
        """Write a step."""
        if all(len(entry.tokens) == 1 and entry.num_rows == 1 for entry in plan.entries):
            self._fill_singles(plan.entries)
            return
        at = 0
        for entry in plan.entries:
            end = at + len(entry.tokens)
            self.tokens[at:end] = entry.tokens
            self.positions[at:end] = range(entry.start, entry.start + len(entry.tokens))
            self.slots[at:end] = entry.slot
            self.wants_logits[at:end] = 0
            if entry.num_rows:
                self.wants_logits[end - entry.num_rows : end] = 1
            at = end
        self.raw.n_tokens = at

    def _fill_singles(self, entries: list[StepEntry]) -> None:
        """Write a step in which every sequence decodes one token, by far the most frequent kind."""
        number = len(entries)
        self.tokens[:number] = [entry.tokens[0] for entry in entries]
        self.positions[:number] = [entry.start for entry in entries]
        self.slots[:number] = [entry.slot for entry in entries]
        self.wants_logits[:number] = 1
        self.raw.n_tokens = number


def _view(pointer: Any, length: int, kind: Any) -> NDArray[Any]:  # Any: a pointer, and any scalar type
    size = length * np.dtype(kind).itemsize
    memory = (ctypes.c_char * size).from_address(ctypes.addressof(pointer.contents))
    return np.frombuffer(memoryview(memory), dtype=kind)
