"""A GGUF's vocabulary for constraints: what llguidance needs to know to mask and to force its tokens."""

from __future__ import annotations

from llguidance import LLTokenizer
from llguidance.llamacpp import lltokenizer_from_vocab

from engine.llama.tokenizer import LlamaTokenizer


def grammar_tokenizer(tokenizer: LlamaTokenizer) -> LLTokenizer:
    """Built in about a second for 150,000 tokens, and valid as long as the model is loaded. Every end token may end an answer."""
    vocabulary = tokenizer._vocab  # of this room
    return lltokenizer_from_vocab(vocabulary, n_vocab=tokenizer.num_vocab, eos_token=tokenizer.end_tokens)
