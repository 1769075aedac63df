"""Tokenizer of the fake: one token per byte and two control tokens; also as a vocabulary for grammars."""

from __future__ import annotations

from typing import Final

from llguidance import LLTokenizer, TokenizerWrapper

BOS: Final = 256
END: Final = 257
_CHATML: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class FakeTokenizer:
    """One token per byte, and two control tokens."""

    num_vocab = 258
    bos_text = "<s>"
    eos_text = "</s>"
    special_texts = ("<s>", "</s>")
    chat_template: str | None = _CHATML  # most models have one; without it, an answer is searched for ChatML's end
    tool_template = None
    adds_space = False

    def encode(
        self, text: str, *, special: bool, add_bos: bool, add_end: bool = False, continues: bool = False
    ) -> list[int]:
        del add_end, continues  # it adds neither an end nor a space
        start = [BOS] if add_bos else []
        if not special or not any(spelling in text for spelling in self.special_texts):
            return [*start, *text.encode()]
        tokens = start
        for part in text.replace("<s>", "\0\1").replace("</s>", "\0\2").split("\0"):
            if part[:1] in ("\1", "\2"):
                tokens.append(BOS if part[0] == "\1" else END)
                part = part[1:]
            tokens.extend(part.encode())
        return tokens

    def piece(self, token: int) -> bytes:
        return bytes((token,)) if token < 256 else b""

    def is_end(self, token: int) -> bool:
        return token == END


class _Vocabulary:
    """The interface that llguidance expects of a tokenizer."""

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
    """The vocabulary of the fake for grammars; every byte is a token."""
    vocabulary = _Vocabulary(tokenizer)
    return LLTokenizer(TokenizerWrapper(vocabulary), eos_token=[vocabulary.eos_token_id])
