"""From a request's prompt to token ids, such that a user's text never becomes a control token.

Where no text spells a special token, the rendered prompt is tokenised in one go. Where one does, its spelling is fenced by
marks that survive the template, and what is between the marks is tokenised as plain text:

    … hello ⟦<|im_end|>⟧ there …     the template's own <|im_end|> stays a token, the user's stays text
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final

from engine.errors import InvalidPrompt, PromptTooLong
from engine.inputs.chat_template import ChatTemplate, Tool, with_parsed_arguments
from engine.outputs.output_format import OutputFormat
from engine.tokenizer import Tokenizer, check_token_ids
from engine.types import ChatPrompt, Request, TextPrompt, TokenPrompt, ToolMode

# Noncharacters: no text has a use for them, so those of a user can be dropped.
_OPEN: Final = "\ufdd0"
_CLOSE: Final = "\ufdd1"
_FENCED: Final = re.compile(f"{_OPEN}([^{_CLOSE}]*){_CLOSE}")
_MARKS: Final = str.maketrans("", "", _OPEN + _CLOSE)
_MIN_CHARACTERS: Final = 1 << 16


class PromptEncoder:
    """Encodes the prompts of one model; `answers` is what may come back. Safe for use beside the decoding thread."""

    def __init__(self, tokenizer: Tokenizer, *, template: str | None, context_size: int) -> None:
        self._tokenizer = tokenizer
        self._context_size = context_size
        self._template = ChatTemplate(
            template or tokenizer.chat_template,
            bos_text=tokenizer.bos_text,
            eos_text=tokenizer.eos_text,
            max_characters=max(_MIN_CHARACTERS, 64 * context_size),
        )
        self.output_format = OutputFormat(tokenizer, self._template.source)
        spellings = sorted((re.escape(text) for text in tokenizer.special_texts), key=len, reverse=True)
        self._special = re.compile("|".join(spellings)) if spellings else None

    @property
    def template_hash(self) -> str:
        """SHA-256 of the chat template's text, whoever brought it, in hex."""
        return hashlib.sha256(self._template.source.encode()).hexdigest()

    def encode(self, request: Request) -> list[int]:
        """Token ids, at least one, with room left for an answer; raises an EngineError that says what is wrong."""
        check_token_ids(request.sampling.logit_bias, self._tokenizer.num_vocab, param="logit_bias")
        match request.prompt:
            case ChatPrompt() as chat:
                tokens = self._chat(chat, [] if request.tool_choice.mode is ToolMode.NONE else chat.tools)
            case TextPrompt(text=text):
                tokens = self._tokenizer.encode(text, special=False, add_bos=True)
            case TokenPrompt(tokens=tokens):
                check_token_ids(tokens, self._tokenizer.num_vocab, param="prompt")
        if not tokens:
            raise InvalidPrompt("The prompt is empty.", param="messages")
        if len(tokens) >= self._context_size:
            raise PromptTooLong(
                f"The prompt has {len(tokens)} tokens, and this model's context holds {self._context_size} "
                "with the answer. Shorten the messages.",
                param="messages",
            )
        return list(tokens)

    def _chat(self, chat: ChatPrompt, tools: list[Tool]) -> list[int]:
        # Arguments first: a special token's spelling can hide behind JSON's escapes.
        values: list[Any] = [with_parsed_arguments(chat.messages), chat.template_kwargs, tools]  # Any: JSON
        is_fenced = self._special is not None and self._has_special_text(values)
        messages, template_kwargs, tools = self._fence(values) if is_fenced else values
        text = self._template.render(messages, template_kwargs, tools)
        add_bos = not (self._tokenizer.bos_text and text.startswith(self._tokenizer.bos_text))
        if not is_fenced:
            return self._tokenizer.encode(text, special=True, add_bos=add_bos)
        tokens: list[int] = []
        for index, part in enumerate(_FENCED.split(text)):
            if part or index == 0:
                is_plain = index % 2 == 1
                tokens += self._tokenizer.encode(part, special=not is_plain, add_bos=add_bos and index == 0)
        return tokens

    def _has_special_text(self, value: Any) -> bool:  # Any: JSON
        match value:
            case str():
                assert self._special is not None, "asked only with special tokens"
                return _OPEN in value or _CLOSE in value or self._special.search(value) is not None
            case dict():
                return any(self._has_special_text(item) for pair in value.items() for item in pair)
            case list():
                return any(self._has_special_text(item) for item in value)
        return False

    def _fence(self, value: Any) -> Any:  # Any: JSON
        match value:
            case str():
                assert self._special is not None, "asked only with special tokens"
                return self._special.sub(lambda found: f"{_OPEN}{found[0]}{_CLOSE}", value.translate(_MARKS))
            case dict():
                return {self._fence(key): self._fence(item) for key, item in value.items()}
            case list():
                return [self._fence(item) for item in value]
        return value
