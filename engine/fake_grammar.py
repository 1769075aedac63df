"""The fake model's vocabulary for constraints: bytes, and two control tokens."""

from __future__ import annotations

from llguidance import LLTokenizer, TokenizerWrapper

from engine.fake import FakeTokenizer


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: FakeTokenizer) -> None:
        self._tokenizer = tokenizer
        (self.bos_token_id,) = tokenizer.encode(tokenizer.bos_text, special=True, add_bos=False)
        (self.eos_token_id,) = tokenizer.encode(tokenizer.eos_text, special=True, add_bos=False)
        self.special_token_ids = [self.bos_token_id, self.eos_token_id]
        spellings = {self.bos_token_id: tokenizer.bos_text.encode(), self.eos_token_id: tokenizer.eos_text.encode()}
        self.tokens = [spellings.get(token) or tokenizer.piece(token) for token in range(tokenizer.num_vocab)]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def fake_grammar_tokenizer(tokenizer: FakeTokenizer) -> LLTokenizer:
    """The fake's vocabulary; every byte is a token."""
    vocabulary = _Vocabulary(tokenizer)
    return LLTokenizer(TokenizerWrapper(vocabulary), eos_token=[vocabulary.eos_token_id])
