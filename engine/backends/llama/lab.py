"""Lab of llama.cpp: times steps in a second context of the loaded model, and sets up the decoder anew with what was found."""

from __future__ import annotations

import ctypes
from typing import Any, Final

import llama_cpp as llama
import msgspec
import numpy as np

from engine.backends.llama.batch import Batch
from engine.backends.llama.context import decoding_context
from engine.backends.llama.decoder import LlamaDecoder
from engine.backends.llama.memory import free_memory, measure_slot
from engine.backends.memory import MOST_ON_CPU, MOST_ON_GPU, auto_slots
from engine.config import AUTO_SLOTS, EngineConfig, Switch
from engine.errors import ModelFailed
from engine.tuning.lab import Prompt, Rows, SetUp, Spread, Task

_libc: Final = ctypes.CDLL(None)
_OF_MEMORY: Final = ("slots", "kv_layout", "flash_attention", "ubatch_tokens")
_PART: Final = 0.5  # of the memory that is free for slots: the rest is for steps, and for other engines


class LlamaLab:
    """The lab of one model; its tokens are any ones, since no time depends on them."""

    def __init__(self, model: Any, decoder: LlamaDecoder, config: EngineConfig) -> None:  # Any: a pointer
        self._model = model
        self._decoder = decoder
        self._config = config
        self._batch = Batch(config.batch_tokens)
        self._context: Any = None
        self._positions, self._cells = [0], 0
        self.threads = 0 if config.gpu_layers else config.threads

    @property
    def config(self) -> EngineConfig:
        return self._decoder.config

    @property
    def most_slots(self) -> int:
        _, on_gpu = free_memory(self._config)
        return MOST_ON_GPU if on_gpu else MOST_ON_CPU

    def most_sequences(self, cells: int) -> int:
        cost = measure_slot(self._model, self._config)
        if cost is None:
            return 0
        memory_bytes, _ = free_memory(self._config)
        return auto_slots(cost, context_size=cells, memory_bytes=int(_PART * memory_bytes), most=self.most_slots)

    def compute(self, task: Task) -> bool:
        match task:
            case SetUp():
                return self._set_up(task)
            case Prompt(num_tokens=num_tokens):
                if self._positions[0] + num_tokens > self._cells:
                    self._forget_all()
                return self._decode([(0, num_tokens)])
            case Spread():
                return self._spread()
            case Rows(sequences=sequences):
                is_done = self._decode([(sequence, 1) for sequence in range(sequences)])
                for sequence in range(sequences):
                    self._forget_last(sequence)
                return is_done

    def close(self) -> None:
        """Free the memory of the lab, and give what the allocator keeps of it back to the system."""
        if self._context is not None:
            llama.llama_free(self._context)
            self._context = None
            if hasattr(_libc, "malloc_trim"):  # of glibc
                _libc.malloc_trim(0)

    def apply(self, config: EngineConfig) -> bool:
        before = self._decoder.config
        slots = before.slots
        if config.slots == AUTO_SLOTS and config.tuning is not None:
            slots = min(slots, config.tuning.slots)  # it has as many as memory holds
        is_flash_off = config.flash_attention is Switch.OFF
        config = msgspec.structs.replace(
            config,
            slots=slots,
            threads=before.threads,
            cores=before.cores,
            # what needs larger buffers comes with the next load, for which its memory is planned
            ubatch_tokens=min(config.ubatch_tokens, before.ubatch_tokens),
            flash_attention=before.flash_attention if is_flash_off else config.flash_attention,
        )
        if all(getattr(config, name) == getattr(before, name) for name in _OF_MEMORY):
            return False
        try:
            self._decoder.set_up(config)
        except ModelFailed:
            try:
                self._decoder.set_up(before)
            except ModelFailed as error:
                raise MemoryError from error  # ends the process: nothing can be computed without memory
            raise
        return True

    def _set_up(self, task: SetUp) -> bool:
        self.close()
        choice = task.choice
        config = msgspec.structs.replace(
            self._config,
            slots=task.sequences,
            spare_slots=0,
            context_size=task.cells,
            kv_layout=choice.kv_layout,
            flash_attention=choice.flash_attention,
            ubatch_tokens=choice.ubatch_tokens,
        )
        try:
            self._context = decoding_context(self._model, config, task.sequences)
        except ModelFailed:
            return False
        self._positions, self._cells = [0] * task.sequences, task.cells
        return True

    def _spread(self) -> bool:
        size = llama.llama_state_seq_get_size(self._context, 0)
        state = (ctypes.c_uint8 * size)()
        llama.llama_state_seq_get_data(self._context, state, size, 0)
        for sequence in range(1, len(self._positions)):
            if not llama.llama_state_seq_set_data(self._context, state, size, sequence):
                return False
            self._positions[sequence] = self._positions[0]
        return True

    def _decode(self, parts: list[tuple[int, int]]) -> bool:
        """Compute the next tokens of some sequences, with the logits of the last one of each."""
        if any(self._positions[sequence] + num_tokens > self._cells for sequence, num_tokens in parts):
            return False  # llama.cpp would end the process
        batch, at = self._batch, 0
        for sequence, num_tokens in parts:
            end, start = at + num_tokens, self._positions[sequence]
            batch.tokens[at:end] = np.arange(start, start + num_tokens) % self._decoder.num_vocab
            batch.positions[at:end] = np.arange(start, start + num_tokens)
            batch.slots[at:end] = sequence
            batch.wants_logits[at:end] = 0
            batch.wants_logits[end - 1] = 1
            self._positions[sequence] += num_tokens
            at = end
        batch.raw.n_tokens = at
        if llama.llama_decode(self._context, batch.raw) != 0:
            return False
        llama.llama_get_logits(self._context)  # waits for the device
        return True

    def _forget_all(self) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(self._context), False)
        self._positions = [0] * len(self._positions)

    def _forget_last(self, sequence: int) -> None:
        """Remove the last token of a sequence, unless its memory is a state that has taken the token in."""
        memory = llama.llama_get_memory(self._context)
        last = self._positions[sequence] - 1
        if llama.llama_memory_seq_rm(memory, sequence, last, -1):
            self._positions[sequence] = last
