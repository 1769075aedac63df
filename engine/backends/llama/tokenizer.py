"""The vocabulary of a GGUF: text to token ids and back."""

from __future__ import annotations

import ctypes
import weakref
from pathlib import Path
from typing import Any, Final

import llama_cpp as llama

from engine.backends.llama.gguf import load_model, metadata

_MAX_PIECE: Final = 512
_LEAD: Final = "\x01"  # no token has it beside another character, so tokens behind it are those of a text that goes on


class LlamaTokenizer:
    """The vocabulary of a GGUF. llama.cpp only reads it, so any thread may use it."""

    def __init__(self, model: Any) -> None:  # Any: a pointer
        self._vocab = llama.llama_model_get_vocab(model)
        self.num_vocab: int = llama.llama_vocab_n_tokens(self._vocab)
        self._pieces: list[bytes | None] = [None] * self.num_vocab
        self._ends = {token for token in range(self.num_vocab) if llama.llama_vocab_is_eog(self._vocab, token)}
        self.bos_text = self.text(llama.llama_vocab_bos(self._vocab))
        self.eos_text = self.text(llama.llama_vocab_eos(self._vocab))
        self.special_texts = tuple(
            text for token in range(self.num_vocab) if self._is_control(token) and (text := self.text(token))
        )
        # not from `llama_model_chat_template`, which makes up a name for some models without a template
        self.chat_template = metadata(model, "tokenizer.chat_template") or None
        self.tool_template = metadata(model, "tokenizer.chat_template.tool_use") or None
        self.adds_space = b"".join(map(self.piece, self._encode("a"))).startswith(b" ")
        self._adds_end: bool = llama.llama_vocab_get_add_eos(self._vocab)
        self._lead = self._encode(_LEAD)
        self.trained_context = int(metadata(model, "{}.context_length") or 0)  # tokens; 0 if the file has no value

    @property
    def end_tokens(self) -> list[int]:
        """All tokens that end a generation."""
        return sorted(self._ends)

    def encode(
        self, text: str, *, special: bool, add_bos: bool, add_end: bool = False, continues: bool = False
    ) -> list[int]:
        if continues and self.adds_space:
            tokens = self._encode(_LEAD + text, special=special)
            if tokens[: len(self._lead)] == self._lead:
                return tokens[len(self._lead) :]
        tokens = self._encode(text, special=special, adds=add_bos or add_end)
        return tokens[:-1] if self._adds_end and add_bos and not add_end else tokens

    def _encode(self, text: str, *, special: bool = False, adds: bool = False) -> list[int]:
        """Encode a text; `adds`: with the tokens that the vocabulary adds around it."""
        data = text.encode()
        room = len(data) + 8
        tokens = (llama.llama_token * room)()
        count = llama.llama_tokenize(self._vocab, data, len(data), tokens, room, adds, special)
        assert count >= 0, "a token is at least a byte"
        return tokens[:count]

    def piece(self, token: int) -> bytes:
        piece = self._pieces[token]
        if piece is None:
            buffer = ctypes.create_string_buffer(_MAX_PIECE)
            size = llama.llama_token_to_piece(self._vocab, token, buffer, _MAX_PIECE, 0, False)
            piece = self._pieces[token] = buffer.raw[: max(size, 0)]
        return piece

    def is_end(self, token: int) -> bool:
        return token in self._ends

    def _is_control(self, token: int) -> bool:
        return bool(llama.llama_vocab_is_control(self._vocab, token)) or token in self._ends

    def text(self, token: int) -> str:
        """Spelling of a token in the vocabulary; empty for a negative id."""
        return llama.llama_vocab_get_text(self._vocab, token).decode(errors="replace") if token >= 0 else ""


def load_vocabulary(path: str | Path) -> LlamaTokenizer:
    """Load the tokenizer of a model file, with its chat template; raises ModelFailed.

    The memory of llama.cpp is freed with the tokenizer.
    """
    parameters = llama.llama_model_default_params()
    parameters.vocab_only = True
    model = load_model(str(path), parameters)
    tokenizer = LlamaTokenizer(model)
    weakref.finalize(tokenizer, llama.llama_model_free, model).atexit = False
    return tokenizer
