"""The llama.cpp backend: loads a GGUF file with its tokenizer, decoder and embedder."""

from __future__ import annotations

import os
from typing import Any, Final

import llama_cpp as llama
import msgspec
from llguidance import LLTokenizer

from engine.backends.base import Decoder
from engine.backends.embeddings_only import EmbeddingsOnly
from engine.backends.llama.context import forget_adapters
from engine.backends.llama.decoder import LlamaDecoder
from engine.backends.llama.embedder import LlamaEmbedder
from engine.backends.llama.gguf import load_model, start_llama
from engine.backends.llama.gpus import divide
from engine.backends.llama.grammar import grammar_tokenizer
from engine.backends.llama.lab import LlamaLab
from engine.backends.llama.memory import resolve_slots
from engine.backends.llama.openmp import openmp_warning
from engine.backends.llama.tokenizer import LlamaTokenizer
from engine.config import EngineConfig
from engine.errors import ModelFailed
from engine.log import log_stderr
from engine.tuning.lab import Lab

_ALL_LAYERS: Final = 999


class LlamaBackend:
    """A loaded GGUF file; raises ModelFailed when it cannot be used."""

    def __init__(self, config: EngineConfig) -> None:
        start_llama()
        self._model = _load(config)
        forget_adapters(self._model)
        if warning := openmp_warning(config, llama.llama_print_system_info()):
            log_stderr(warning)
        threads = config.threads or len(os.sched_getaffinity(0))
        config = msgspec.structs.replace(config, slots=resolve_slots(self._model, config), threads=threads)
        self.tokenizer = LlamaTokenizer(self._model)
        self.embedder = LlamaEmbedder(self._model, config) if config.embeddings else None
        self.decoder: Decoder
        self.lab: Lab | None = None
        if self.embedder is not None and not self.embedder.has_memory:
            self.decoder = EmbeddingsOnly()
        else:
            self.decoder = decoder = LlamaDecoder(self._model, self.tokenizer, config)
            self.lab = LlamaLab(self._model, decoder, config)

    def grammar_tokenizer(self) -> LLTokenizer:
        return grammar_tokenizer(self.tokenizer)


def _load(config: EngineConfig) -> Any:  # Any: a pointer
    if config.gpu_layers and not llama.llama_supports_gpu_offload():
        raise ModelFailed(
            "llama.cpp sees no GPU: its driver is not there, or the number of --device is that of no card. "
            "Use another --device, or `gpu_layers: 0` in the model file."
        )
    parameters = llama.llama_model_default_params()
    parameters.n_gpu_layers = _ALL_LAYERS if config.gpu_layers < 0 else config.gpu_layers
    arrays = divide(parameters, config)
    model = load_model(config.model_path, parameters)
    del arrays  # llama.cpp has read them
    return model
