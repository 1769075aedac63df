"""llama.cpp behind the engine's seam: the only module that imports llama_cpp.

Knows llama.cpp's low-level API. One context, one sequence id per slot, memory split per slot (attention of unrelated prompts
then walks its own cells only). Batch arrays are filled through numpy views; only sampled rows ask for logits.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any, Final

import llama_cpp as llama
import numpy as np
from numpy.typing import NDArray

from engine.config import EngineConfig
from engine.errors import DecodeFailed, ModelFailed
from engine.messages import Sampling
from engine.scheduler import Plan
from engine.sequence import Sequence

_PENALTY_WINDOW: Final = 64
_ALL_LAYERS: Final = 999
_MAX_PIECE: Final = 512
_ERROR_LEVEL: Final = 4


@llama.llama_log_callback  # type: ignore[untyped-decorator,unused-ignore]
def _log(level: int, text: bytes, _: Any) -> None:  # Any: a pointer
    """llama.cpp is talkative; only errors are worth a line. It never prints prompts."""
    if level == _ERROR_LEVEL:
        sys.stderr.write(text.decode(errors="replace"))


class LlamaTokenizer:
    """The GGUF's vocabulary. llama.cpp only reads it, so any thread may use it."""

    def __init__(self, model: Any) -> None:  # Any: a pointer
        self._vocab = llama.llama_model_get_vocab(model)
        self.num_vocab: int = llama.llama_vocab_n_tokens(self._vocab)
        self._pieces: list[bytes | None] = [None] * self.num_vocab
        self._ends = {token for token in range(self.num_vocab) if llama.llama_vocab_is_eog(self._vocab, token)}
        self.bos_text = self._text(llama.llama_vocab_bos(self._vocab))
        self.eos_text = self._text(llama.llama_vocab_eos(self._vocab))
        self.special_texts = tuple(
            text for token in range(self.num_vocab) if self._is_control(token) and (text := self._text(token))
        )
        template = llama.llama_model_chat_template(model, None)
        self.chat_template = template.decode() if template else None

    @property
    def end_tokens(self) -> list[int]:
        """Every token that ends a generation."""
        return sorted(self._ends)

    def encode(self, text: str, *, special: bool, add_bos: bool) -> list[int]:
        """See `engine.backend.Tokenizer`."""
        data = text.encode()
        room = len(data) + 8
        tokens = (llama.llama_token * room)()
        count = llama.llama_tokenize(self._vocab, data, len(data), tokens, room, add_bos, special)
        assert count >= 0, "a token is at least a byte"
        return tokens[:count]

    def piece(self, token: int) -> bytes:
        """See `engine.backend.Tokenizer`."""
        known = self._pieces[token]
        if known is None:
            buffer = ctypes.create_string_buffer(_MAX_PIECE)
            size = llama.llama_token_to_piece(self._vocab, token, buffer, _MAX_PIECE, 0, False)
            known = self._pieces[token] = buffer.raw[: max(size, 0)]
        return known

    def is_end(self, token: int) -> bool:
        """See `engine.backend.Tokenizer`."""
        return token in self._ends

    def _is_control(self, token: int) -> bool:
        return bool(llama.llama_vocab_is_control(self._vocab, token)) or token in self._ends

    def _text(self, token: int) -> str:
        return llama.llama_vocab_get_text(self._vocab, token).decode(errors="replace") if token >= 0 else ""


class _Batch:
    """llama.cpp's batch arrays as numpy views of the same memory."""

    def __init__(self, room: int) -> None:
        self.raw = llama.llama_batch_init(room, 0, 1)
        self.tokens = _view(self.raw.token, room, np.int32)
        self.positions = _view(self.raw.pos, room, np.int32)
        self.wants_logits = _view(self.raw.logits, room, np.int8)
        self.slots = np.zeros(room, np.int32)
        for index in range(room):  # each token's list of sequence ids is one cell of `slots`
            cell = ctypes.cast(self.slots.ctypes.data + 4 * index, ctypes.POINTER(llama.llama_seq_id))
            self.raw.seq_id[index] = cell
        _view(self.raw.n_seq_id, room, np.int32)[:] = 1

    def fill(self, plan: Plan) -> list[int]:
        """Write a step; returns the batch index of each sampled row."""
        rows, at = [], 0
        for entry in plan.entries:
            end = at + len(entry.tokens)
            self.tokens[at:end] = entry.tokens
            self.positions[at:end] = range(entry.start, entry.start + len(entry.tokens))
            self.slots[at:end] = entry.slot
            self.wants_logits[at:end] = 0
            if entry.is_sampled:
                self.wants_logits[end - 1] = 1
                rows.append(end - 1)
            at = end
        self.raw.n_tokens = at
        return rows


class LlamaDecoder:
    """See `engine.backend.Decoder`."""

    def __init__(self, model: Any, tokenizer: LlamaTokenizer, config: EngineConfig) -> None:  # Any: a pointer
        self.build = f"llama-cpp-python-{llama.__version__}"
        threads = config.threads or len(os.sched_getaffinity(0))
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = config.context_size * config.slots
        parameters.n_seq_max = config.slots
        parameters.kv_unified = False
        parameters.n_batch = config.batch_tokens
        parameters.n_ubatch = config.ubatch_tokens
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = llama.llama_init_from_model(model, parameters)
        if not self._context:
            raise ModelFailed(
                f"There is not enough memory for {config.slots} slots of {config.context_size} tokens. "
                "Lower `slots` or `context_size` in the model file."
            )
        self._memory = llama.llama_get_memory(self._context)
        self._batch = _Batch(config.batch_tokens)
        self._num_vocab = tokenizer.num_vocab
        self._context_size = config.context_size
        self._end_tokens = np.array(tokenizer.end_tokens, np.int64)
        self._chains: dict[int, Any] = {}  # Any: pointers, by slot

    def open(self, sequence: Sequence) -> None:
        """Sequences that are not plainly greedy get a sampler chain of their own."""
        assert sequence.slot is not None, "opened with a slot"
        if not _is_plainly_greedy(sequence.sampling):
            self._chains[sequence.slot] = _sampler_chain(sequence, self._num_vocab, self._context_size)

    def run(self, plan: Plan) -> list[int]:
        """Decode, then sample: greedy rows together, the others by their chains."""
        rows = self._batch.fill(plan)
        code = llama.llama_decode(self._context, self._batch.raw)
        if code != 0:
            raise DecodeFailed(f"llama_decode returned {code}")
        if not rows:
            return []
        return self._sample(plan, rows)

    def release(self, sequence: Sequence) -> None:
        """Clear the slot, recurrent state included, and free its chain."""
        assert sequence.slot is not None, "released with its slot"
        llama.llama_memory_seq_rm(self._memory, sequence.slot, -1, -1)
        if (chain := self._chains.pop(sequence.slot, None)) is not None:
            llama.llama_sampler_free(chain)

    def reset(self) -> None:
        """Clear all slots."""
        llama.llama_memory_clear(self._memory, True)
        for chain in self._chains.values():
            llama.llama_sampler_free(chain)
        self._chains.clear()

    def _sample(self, plan: Plan, rows: list[int]) -> list[int]:
        pointer = llama.llama_get_logits(self._context)  # waits for the device; rows are in batch order
        logits = np.ctypeslib.as_array(pointer, shape=(len(rows), self._num_vocab))
        for index, entry in enumerate(plan.sampled):
            if entry.sequence.ignore_eos:
                logits[index, self._end_tokens] = -np.inf
        best = logits.argmax(axis=1)
        if not np.isfinite(logits[np.arange(len(rows)), best]).all():
            raise DecodeFailed("the model computed a logit that is not a number")
        tokens: list[int] = best.tolist()
        for index, entry in enumerate(plan.sampled):
            if (chain := self._chains.get(entry.slot)) is not None:
                tokens[index] = llama.llama_sampler_sample(chain, self._context, rows[index])
        return tokens


class LlamaBackend:
    """A GGUF file, loaded."""

    def __init__(self, config: EngineConfig) -> None:
        llama.llama_log_set(_log, ctypes.c_void_p(0))
        llama.llama_backend_init()
        if not Path(config.model_path).is_file():
            raise ModelFailed(f"There is no model file {config.model_path}.")
        parameters = llama.llama_model_default_params()
        parameters.n_gpu_layers = _ALL_LAYERS if config.gpu_layers < 0 else config.gpu_layers
        self._model = llama.llama_model_load_from_file(config.model_path.encode(), parameters)
        if not self._model:
            raise ModelFailed(f"{config.model_path} is not a model that llama.cpp can load.")
        self.tokenizer = LlamaTokenizer(self._model)
        self.decoder = LlamaDecoder(self._model, self.tokenizer, config)


def _is_plainly_greedy(sampling: Sampling) -> bool:
    """Temperature 0 without penalties: the largest logit, nothing to remember."""
    return sampling.temperature == 0 and not _has_penalty(sampling) and sampling.repeat_penalty == 1


def _has_penalty(sampling: Sampling) -> bool:
    return sampling.frequency_penalty != 0 or sampling.presence_penalty != 0


def _sampler_chain(sequence: Sequence, num_vocab: int, context_size: int) -> Any:  # Any: a pointer
    """llama.cpp's samplers in its own usual order.

    `repeat_penalty` looks at the prompt's last tokens too, as llama.cpp's users know it; OpenAI's two penalties count
    the answer only, so they get a sampler of their own that has not seen the prompt.
    """
    sampling = sequence.sampling
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())

    def add(sampler: Any) -> None:  # Any: a pointer
        llama.llama_sampler_chain_add(chain, sampler)

    if sampling.repeat_penalty != 1:
        repeat = llama.llama_sampler_init_penalties(num_vocab, _PENALTY_WINDOW, sampling.repeat_penalty, 0.0, 0.0)
        for token in sequence.tokens[-_PENALTY_WINDOW:]:
            llama.llama_sampler_accept(repeat, token)
        add(repeat)
    if _has_penalty(sampling):
        penalties = (sampling.frequency_penalty, sampling.presence_penalty)
        add(llama.llama_sampler_init_penalties(num_vocab, context_size, 1.0, *penalties))
    if sampling.temperature == 0:
        add(llama.llama_sampler_init_greedy())
        return chain
    if sampling.top_k > 0:
        add(llama.llama_sampler_init_top_k(sampling.top_k))
    if sampling.top_p < 1:
        add(llama.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        add(llama.llama_sampler_init_min_p(sampling.min_p, 1))
    add(llama.llama_sampler_init_temp(sampling.temperature))
    seed = sampling.seed if sampling.seed is not None else int.from_bytes(os.urandom(4), "little")
    add(llama.llama_sampler_init_dist(seed))
    return chain


def _view(pointer: Any, length: int, kind: Any) -> NDArray[Any]:  # Any: a pointer, and any scalar type
    size = length * np.dtype(kind).itemsize
    memory = (ctypes.c_char * size).from_address(ctypes.addressof(pointer.contents))
    return np.frombuffer(memoryview(memory), dtype=kind)
