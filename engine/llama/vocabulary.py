"""A GGUF's vocabulary without its weights: enough to count and to encode, loaded in well under a second."""

from __future__ import annotations

import weakref
from pathlib import Path

import llama_cpp as llama

from engine.errors import ModelFailed
from engine.llama.runtime import start_llama
from engine.llama.tokenizer import LlamaTokenizer


def load_vocabulary(path: str | Path) -> LlamaTokenizer:
    """The tokenizer of a model file, chat template included; raises ModelFailed.

    llama.cpp's memory is given back when the tokenizer is garbage.
    """
    if not Path(path).is_file():
        raise ModelFailed(f"There is no model file {path}.")
    start_llama()
    parameters = llama.llama_model_default_params()
    parameters.vocab_only = True
    model = llama.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        raise ModelFailed(f"{path} is not a model that llama.cpp can load.")
    tokenizer = LlamaTokenizer(model)
    weakref.finalize(tokenizer, llama.llama_model_free, model).atexit = False
    return tokenizer
