"""Prompt encoder: convert a request's prompt to token ids, so that user text never becomes a control token.

If no text spells a special token, the rendered prompt is tokenised at once. Otherwise each such spelling is enclosed in
markers that survive the template, and the text between two markers is tokenised as plain text:

    … hello ⟦<|im_end|>⟧ there …     the template's own <|im_end|> stays a token, the user's stays text
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final

from engine.errors import InvalidPrompt, PromptTooLong
from engine.inputs.chat_template import ChatTemplate, ToolObject, with_parsed_arguments
from engine.outputs.output_format import OutputFormat
from engine.tokenizer import Tokenizer, check_token_ids
from engine.types import ChatPrompt, Request, TextPrompt, TokenPrompt, ToolMode

# Unicode noncharacters: no text needs them, so they are removed from user text.
_OPEN: Final = "\ufdd0"
_CLOSE: Final = "\ufdd1"
_ENCLOSED: Final = re.compile(f"{_OPEN}([^{_CLOSE}]*){_CLOSE}")
_NO_MARKERS: Final = str.maketrans("", "", _OPEN + _CLOSE)
_MIN_CHARACTERS: Final = 1 << 16


class PromptEncoder:
    """Encodes the prompts of one model; `output_format` describes its answers. Safe to use beside the decoding thread."""

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
        """SHA-256 of the text of the chat template in use, in hex."""
        return hashlib.sha256(self._template.source.encode()).hexdigest()

    def encode(self, request: Request) -> list[int]:
        """Return the token ids of a prompt: at least one, with room left for an answer. Raises an EngineError."""
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

    def _chat(self, chat: ChatPrompt, tools: list[ToolObject]) -> list[int]:
        # Parse arguments first: JSON escapes can hide the spelling of a special token.
        values: list[Any] = [with_parsed_arguments(chat.messages), chat.template_kwargs, tools]  # Any: JSON
        has_special = self._special is not None and self._has_special_text(values)
        messages, template_kwargs, tools = self._enclose(values) if has_special else values
        text = self._template.render(messages, template_kwargs, tools)
        add_bos = not (self._tokenizer.bos_text and text.startswith(self._tokenizer.bos_text))
        if not has_special:
            return self._tokenizer.encode(text, special=True, add_bos=add_bos)
        tokens: list[int] = []
        for index, part in enumerate(_ENCLOSED.split(text)):
            if part or index == 0:
                is_plain = index % 2 == 1
                tokens += self._tokenizer.encode(part, special=not is_plain, add_bos=add_bos and index == 0)
        return tokens

    def _has_special_text(self, value: Any) -> bool:  # Any: JSON
        match value:
            case str():
                assert self._special is not None, "called only if the model has special tokens"
                return _OPEN in value or _CLOSE in value or self._special.search(value) is not None
            case dict():
                return any(self._has_special_text(item) for pair in value.items() for item in pair)
            case list():
                return any(self._has_special_text(item) for item in value)
        return False

    def _enclose(self, value: Any) -> Any:  # Any: JSON
        match value:
            case str():
                assert self._special is not None, "called only if the model has special tokens"
                return self._special.sub(lambda found: f"{_OPEN}{found[0]}{_CLOSE}", value.translate(_NO_MARKERS))
            case dict():
                return {self._enclose(key): self._enclose(item) for key, item in value.items()}
            case list():
                return [self._enclose(item) for item in value]
        return value
