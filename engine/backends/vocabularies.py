"""Vocabularies of models without their weights, for checks of requests and of model files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from llguidance import LLTokenizer

from core.models.hf_folder import INSTALL
from engine.backends.fake.tokenizer import FakeTokenizer, fake_grammar_tokenizer
from engine.config import BackendKind
from engine.errors import ModelFailed
from engine.tokenizer import Tokenizer


class ModelVocabulary(NamedTuple):
    """`for_grammars` makes llguidance's tokenizer of it; `most_tokens` is the longest text that its model reads, 0 for any."""

    tokenizer: Tokenizer
    for_grammars: Callable[[], LLTokenizer]
    most_tokens: int


def load_vocabulary(backend: BackendKind, path: str, *, trust_remote_code: bool = False) -> ModelVocabulary:
    """Load the vocabulary of a model file with its chat template; raises ModelFailed."""
    if backend is BackendKind.FAKE:
        fake = FakeTokenizer()
        return ModelVocabulary(fake, partial(fake_grammar_tokenizer, fake), 0)
    if backend is BackendKind.TRANSFORMERS:
        return _load_folder(path, trust_remote_code)
    # Not before: an engine sets the variables of OpenMP first, which llama.cpp reads as it is loaded.
    from engine.backends.llama.grammar import grammar_tokenizer
    from engine.backends.llama.tokenizer import load_vocabulary as load_gguf

    tokenizer = load_gguf(path)
    return ModelVocabulary(tokenizer, partial(grammar_tokenizer, tokenizer), tokenizer.trained_context)


def not_installed(error: ImportError) -> ModelFailed:
    """The error of an engine whose extra is missing."""
    return ModelFailed(f"The backend transformers is not installed ({error}). {INSTALL}")


@contextmanager
def _without_torch() -> Iterator[None]:
    """Hide torch from an import, unless it is loaded: a tokenizer needs none, and it takes 250 MB and seconds."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # of which one is that torch is not there
    is_loaded = "torch" in sys.modules
    if not is_loaded:
        sys.modules["torch"] = None  # type: ignore[assignment]  # Python's own way to refuse an import
    try:
        yield
    finally:
        if not is_loaded:
            del sys.modules["torch"]


def _load_folder(path: str, trust_remote_code: bool) -> ModelVocabulary:
    try:
        with _without_torch():
            import transformers  # noqa: F401 - the next import would load torch with it
        from engine.backends.transformers.tokenizer import load_tokenizer  # of an extra that may be missing
    except ImportError as error:
        raise not_installed(error) from None
    tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
    return ModelVocabulary(tokenizer, tokenizer.grammar_tokenizer, tokenizer.longest_input)
