"""A GGUF file, loaded: its tokenizer and its decoder."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any, Final

import llama_cpp as llama

from engine.config import EngineConfig
from engine.errors import ModelFailed
from engine.llama.decoder import LlamaDecoder
from engine.llama.tokenizer import LlamaTokenizer

_ALL_LAYERS: Final = 999
_ERROR_LEVEL: Final = 4


@llama.llama_log_callback  # type: ignore[untyped-decorator,unused-ignore]
def _log(level: int, text: bytes, _: Any) -> None:  # Any: a pointer
    """llama.cpp is talkative; only errors are worth a line. It never prints prompts."""
    if level == _ERROR_LEVEL:
        sys.stderr.write(text.decode(errors="replace"))


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
