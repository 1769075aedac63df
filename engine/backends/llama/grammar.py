"""The vocabulary of a GGUF for grammars: the data that llguidance needs to mask and to force tokens."""

from __future__ import annotations

import ctypes
from typing import Any, Final

import llama_cpp as llama
from llguidance import LLTokenizer

from engine.backends.llama.tokenizer import LlamaTokenizer

_CONTROL: Final = b"\xff"  # never begins UTF-8; llguidance marks with it a token that stands for no text


def grammar_tokenizer(tokenizer: LlamaTokenizer) -> LLTokenizer:
    """Build the vocabulary, in about a second for 150,000 tokens; valid as long as the model is loaded.

    A token is text exactly where `piece` shows it as text, and every end token may end an output.
    """
    vocabulary = tokenizer._vocab  # private to this folder
    tokenize = ctypes.cast(llama.llama_cpp._lib.llama_tokenize, ctypes.c_void_p).value
    return LLTokenizer.from_llamacpp(  # type: ignore[attr-defined,no-any-return] # missing in its stubs
        tokens=[_bytes(tokenizer, vocabulary, token) for token in range(tokenizer.num_vocab)],
        vocab_ptr=vocabulary,
        tokenize_fptr=tokenize,
        eos_token=tokenizer.end_tokens,
        slices=None,
    )


def _bytes(tokenizer: LlamaTokenizer, vocabulary: Any, token: int) -> bytes:  # Any: a pointer
    piece = tokenizer.piece(token)
    if piece and not tokenizer.is_end(token):
        return piece
    spelling: bytes = llama.llama_vocab_get_text(vocabulary, token)
    return _CONTROL + spelling
