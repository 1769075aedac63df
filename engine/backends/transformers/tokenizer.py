"""The tokenizer of a folder: text to token ids and back. Loads no weights, and works without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import tokenizers
import transformers
from llguidance import LLTokenizer
from transformers import AutoConfig, AutoTokenizer

from engine.backends.transformers.folder import read_json, resolve_folder
from engine.backends.transformers.pieces import piece_decoder
from engine.errors import ModelFailed

_LEAD: Final = "\x01"  # no token has it beside another character, so tokens behind it are those of a text that goes on
_TOOL_TEMPLATE: Final = "tool_use"
_NO_LIMIT: Final = 1 << 30  # a limit of the tokenizer above this one is none


class FolderTokenizer:
    """A fast tokenizer. The library only reads it, so any thread may use it."""

    def __init__(self, folder: Path, *, trust_remote_code: bool) -> None:
        tokenizer, config = _load(folder, trust_remote_code)
        self.num_vocab: int = config.vocab_size
        self._tokenizer: tokenizers.Tokenizer = tokenizer.backend_tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if self._tokenizer.get_vocab_size() > self.num_vocab:
            raise ModelFailed(
                f"The tokenizer of {folder} has {self._tokenizer.get_vocab_size()} tokens, and the model {self.num_vocab}."
            )
        self._plain = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        self._plain.encode_special_tokens = True  # that is: as the text they are
        self._ends = _end_tokens(folder, config, tokenizer)
        self._pieces = self._all_pieces(tokenizer)
        self.bos_text: str = tokenizer.bos_token or ""
        self.eos_text: str = tokenizer.eos_token or ""
        self.special_texts = tuple(text for token in self._controls if (text := self.text(token)))
        self.chat_template, self.tool_template = _templates(tokenizer.chat_template)
        self.adds_space = b"".join(map(self.piece, self._encode("a"))).startswith(b" ")
        self._lead = self._encode(_LEAD)
        self._start, self._end = self._frame()
        self.trained_context: int = getattr(config, "max_position_embeddings", None) or 0
        self.first_position = _first_position(config)
        self.longest_input = min(_longest_input(folder, config), _limit(tokenizer))

    @property
    def end_tokens(self) -> list[int]:
        """All tokens that end a generation."""
        return sorted(self._ends)

    def encode(
        self, text: str, *, special: bool, add_bos: bool, add_end: bool = False, continues: bool = False
    ) -> list[int]:
        start = self._start if add_bos or add_end else []
        end = self._end if add_end else []
        if continues and self.adds_space and not start:
            tokens = self._encode(_LEAD + text, special=special)
            if tokens[: len(self._lead)] == self._lead:
                return tokens[len(self._lead) :]
        return [*start, *self._encode(text, special=special), *end]

    def _encode(self, text: str, *, special: bool = False, adds: bool = False) -> list[int]:
        tokenizer = self._tokenizer if special else self._plain
        ids: list[int] = tokenizer.encode(text, add_special_tokens=adds).ids
        return ids

    def _frame(self) -> tuple[list[int], list[int]]:
        """The tokens that the tokenizer adds before a text and after it."""
        bare, framed = self._encode("a"), self._encode("a", adds=True)
        for at in range(len(framed) - len(bare) + 1):
            if framed[at : at + len(bare)] == bare:
                return framed[:at], framed[at + len(bare) :]
        return [], []

    def piece(self, token: int) -> bytes:
        return self._pieces[token]

    def is_end(self, token: int) -> bool:
        return token in self._ends

    def text(self, token: int) -> str:
        """Spelling of a token in the vocabulary; empty for one that it lacks."""
        return self._tokenizer.id_to_token(token) or ""

    def grammar_tokenizer(self) -> LLTokenizer:
        """Build the vocabulary for grammars, in about a second for 150,000 tokens."""
        return LLTokenizer(self._tokenizer.to_str(), n_vocab=self.num_vocab, eos_token=self.end_tokens or None)

    def _all_pieces(self, tokenizer: Any) -> list[bytes]:  # Any: a tokenizer of transformers
        added = tokenizer.added_tokens_decoder
        self._controls = sorted({token for token, each in added.items() if each.special} | self._ends)
        controls = set(self._controls)
        decode = piece_decoder(self._tokenizer.decoder)
        return [
            b"" if token in controls else added[token].content.encode() if token in added else decode(self.text(token))
            for token in range(self.num_vocab)
        ]


def load_tokenizer(name: str, *, trust_remote_code: bool) -> FolderTokenizer:
    """Load the tokenizer of a folder or of `hf:ORG/REPO`; raises ModelFailed."""
    return FolderTokenizer(resolve_folder(name), trust_remote_code=trust_remote_code)


def _load(folder: Path, trust_remote_code: bool) -> tuple[Any, Any]:  # Any: classes of transformers
    """Load the tokenizer, and the configuration of the model's texts."""
    transformers.logging.set_verbosity_error()
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).get_text_config(decoder=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ModelFailed(f"transformers cannot load the tokenizer of {folder}: {message}") from None
    if not tokenizer.is_fast:
        raise ModelFailed(f"The tokenizer of {folder} has no fast form (tokenizer.json), which the engine needs.")
    return tokenizer, config


def _end_tokens(folder: Path, config: Any, tokenizer: Any) -> set[int]:  # Any: classes of transformers
    """The ends that the generation's defaults, the model and the tokenizer name."""
    ends: set[int] = set()
    given = read_json(folder / "generation_config.json").get("eos_token_id")
    for named in (given, getattr(config, "eos_token_id", None), tokenizer.eos_token_id):
        ends.update(token for token in (named if isinstance(named, list) else [named]) if isinstance(token, int))
    return {token for token in ends if 0 <= token < config.vocab_size}


def _templates(given: str | dict[str, str] | None) -> tuple[str | None, str | None]:
    """The chat template, and the one for requests with tools."""
    if isinstance(given, dict):
        return given.get("default"), given.get(_TOOL_TEMPLATE)
    return given or None, None


def _limit(tokenizer: Any) -> int:  # Any: a tokenizer of transformers
    limit: int = tokenizer.model_max_length
    return limit if limit < _NO_LIMIT else _NO_LIMIT


def _first_position(config: Any) -> int:  # Any: a configuration of transformers
    """The number of the first token's position, which some encoders count behind that of the padding token."""
    return (config.pad_token_id or 0) + 1 if getattr(config, "model_type", "") in _OFFSET_POSITIONS else 0


def _longest_input(folder: Path, config: Any) -> int:  # Any: a configuration of transformers
    """Tokens of the longest text to embed, as far as the folder limits it."""
    stated = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    positions = getattr(config, "max_position_embeddings", None) or _NO_LIMIT
    positions -= _first_position(config)
    return min(stated, positions) if isinstance(stated, int) and stated > 0 else positions


_OFFSET_POSITIONS: Final = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet", "roberta-prelayernorm")
