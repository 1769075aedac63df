"""The llama.cpp decoder: one context with the slots as sequence ids, in unified memory or with a stream for each slot.

Unified memory shares cells between slots, so that a fork is free, but attention walks the cells of all slots. Split memory
copies a whole stream for a fork, and attention walks only its own cells; `docs/decisions/0004` compares the two.
"""

from __future__ import annotations

import ctypes
import time
from functools import partial
from typing import Any, Final

import llama_cpp as llama
import msgspec
import numpy as np

from engine.backends.llama.batch import Batch
from engine.backends.llama.context import decoding_context, window_cells
from engine.backends.llama.openmp import BoundThread
from engine.backends.llama.sampling import ChainChooser
from engine.backends.llama.tokenizer import LlamaTokenizer
from engine.backends.logits import Logits
from engine.backends.memory import spare_slots
from engine.backends.sampler import Sampler
from engine.config import EngineConfig, KvLayout, Switch
from engine.errors import DecodeFailed, ModelFailed, OutOfKvMemory
from engine.scheduler.sequence import Sequence
from engine.scheduler.slots import Fork, MemoryTraits
from engine.scheduler.step import SampleResult, Shift, StepPlan

_NO_ROOM: Final = 1
_MAX_DRAFTS: Final = 15


class LlamaDecoder:
    """Computes and samples steps, and counts the seconds of both."""

    def __init__(self, model: Any, tokenizer: LlamaTokenizer, config: EngineConfig) -> None:  # Any: a pointer
        self.build = f"llama-cpp-python-{llama.__version__}"
        self.num_vocab = tokenizer.num_vocab
        self.decode_seconds = self.sample_seconds = 0.0
        self._model = model
        self._context: Any = None
        self._batch = Batch(config.batch_tokens)
        self._bound_thread = BoundThread(config.cores)
        self.set_up(config)
        chooser = partial(ChainChooser, num_vocab=tokenizer.num_vocab, context_size=config.context_size)
        self._sampler = Sampler(chooser, tokenizer, config.threads)

    def set_up(self, config: EngineConfig) -> None:
        """Make a new and empty memory; raises ModelFailed. The samplers of open sequences stay."""
        self._can_change_layout = _can_change_layout(self._model, config)
        self._make_memory(config)

    def change_layout(self) -> None:
        before = self.config
        layout = KvLayout.UNIFIED if self.traits.is_split else KvLayout.SPLIT
        try:
            self._make_memory(msgspec.structs.replace(before, kv_layout=layout))
        except ModelFailed:
            self._can_change_layout = False
            try:
                self._make_memory(before)
            except ModelFailed as error:
                raise MemoryError from error  # ends the process: nothing can be computed without memory

    def _make_memory(self, config: EngineConfig) -> None:
        slots, spare = config.slots, spare_slots(config)
        if self._context is not None:
            llama.llama_free(self._context)
            self._context = None
        self._context = decoding_context(self._model, config, slots + spare)
        self.slots, self.spare_slots = slots, spare
        self.traits = _traits(self._model, config, can_change_layout=self._can_change_layout)
        self.max_drafts = 0 if config.speculation is Switch.OFF else _MAX_DRAFTS
        self.config = config
        self._memory = llama.llama_get_memory(self._context)
        self._is_used = False
        self._views: dict[tuple[int, int], Logits] = {}
        self._address = 0

    def first_position(self, slot: int) -> int:
        return int(llama.llama_memory_seq_pos_min(self._memory, slot))

    def open(self, sequence: Sequence) -> None:
        self._sampler.open(sequence)

    def close(self, sequence: Sequence) -> None:
        self._sampler.close(sequence)

    def update_memory(self, forks: list[Fork], shifts: list[Shift]) -> None:
        for fork in forks:
            self._fork(fork)
        for shift in shifts:
            end = shift.keep + shift.discard
            llama.llama_memory_seq_rm(self._memory, shift.slot, shift.keep, end)
            llama.llama_memory_seq_add(self._memory, shift.slot, end, -1, -shift.discard)

    def run(self, plan: StepPlan) -> list[SampleResult]:
        """Decode, sample, and remove rejected drafts from memory."""
        self._batch.fill(plan)
        began = time.perf_counter()
        self._is_used = True
        self._bound_thread.bind()
        code = llama.llama_decode(self._context, self._batch.raw)
        if code == _NO_ROOM:
            raise OutOfKvMemory
        if code != 0:
            raise DecodeFailed(f"llama_decode returned {code}")
        entries = plan.sampled
        if not entries:
            self.decode_seconds += time.perf_counter() - began
            return []
        logits = self._logits(sum(entry.num_rows for entry in entries))
        decoded = time.perf_counter()
        sampled = self._sampler.sample(entries, logits)
        self.decode_seconds += decoded - began
        self.sample_seconds += time.perf_counter() - decoded
        for entry, result in zip(entries, sampled, strict=True):
            if entry.num_drafts > result.num_accepted:
                kept = entry.start + len(entry.tokens) - entry.num_drafts + result.num_accepted
                llama.llama_memory_seq_rm(self._memory, entry.slot, kept, -1)
        return sampled

    def reset(self) -> None:
        llama.llama_memory_clear(
            self._memory, self._is_used
        )  # a write to memory that is not used would make it resident
        self._is_used = False

    def warm_up(self) -> None:
        token = (llama.llama_token * 1)(0)
        code = llama.llama_decode(self._context, llama.llama_batch_get_one(token, 1))
        if code != 0:
            raise DecodeFailed("llama.cpp could not decode one token")
        self.reset()

    def _logits(self, num_rows: int) -> Logits:
        """The rows of this step, (num_rows, num_vocab), in batch order; waits for the device.

        Views are cached, since making one takes longer than using it.
        """
        pointer = llama.llama_get_logits(self._context)
        key = ctypes.addressof(pointer.contents), num_rows
        view = self._views.get(key)
        if view is None:
            if key[0] != self._address:  # llama.cpp reallocates the buffer when it grows
                self._views.clear()
                self._address = key[0]
            view = self._views[key] = np.ctypeslib.as_array(pointer, shape=(num_rows, self.num_vocab))
        return view

    def _fork(self, fork: Fork) -> None:
        if fork.length == 0:
            llama.llama_memory_seq_rm(self._memory, fork.target, -1, -1)
            return
        if fork.source != fork.target:
            llama.llama_memory_seq_rm(self._memory, fork.target, -1, -1)
            llama.llama_memory_seq_cp(self._memory, fork.source, fork.target, -1, -1)
        if self.traits.can_trim:
            llama.llama_memory_seq_rm(self._memory, fork.target, fork.length, -1)


def _can_change_layout(model: Any, config: EngineConfig) -> bool:  # Any: a pointer
    """May the layout follow the work? Not on a GPU, where it was not measured, nor if a shift would move shared cells."""
    is_free = config.kv_layout is KvLayout.AUTO or "kv_layout" in config.tunable
    if (
        not is_free
        or config.kv_layout is KvLayout.UNIFIED
        or config.gpu_layers
        or config.context_shift
        or config.slots == 1
    ):
        return False
    return not (llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model))


def _traits(model: Any, config: EngineConfig, *, can_change_layout: bool) -> MemoryTraits:  # Any: a pointer
    is_recurrent = llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model)
    is_split = config.kv_layout is not KvLayout.UNIFIED
    window = int(llama.llama_model_n_swa(model))
    slack = window_cells(window, config) - window if window and is_split and not is_recurrent else 0
    return MemoryTraits(
        can_trim=not is_recurrent,
        window=window,
        slack=max(0, slack),
        is_split=is_split,
        can_change_layout=can_change_layout,
    )
