"""Model templates: the chat templates of one model, and the output format that belongs to each.

A GGUF may have a second template, `tokenizer.chat_template.tool_use`, for requests with tools. A template in the model's YAML
file replaces both.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from engine.errors import ModelFailed, TemplateFailed
from engine.inputs.chat_template import CHATML, CHATML_END, ChatTemplate
from engine.outputs.output_format import OutputFormat
from engine.tokenizer import Tokenizer

_NO_TEMPLATE = (
    "Its GGUF has no chat template, so chats are rendered as ChatML, which it may not have learned. "
    "Set `chat_template` in the model's YAML file, or use /v1/completions."
)
_ADVICE = "Set `chat_template` in the model's YAML file."


@dataclass(frozen=True, slots=True)
class TemplateInUse:
    """A chat template, or the reason why it cannot be used, and the output format of answers to its prompts."""

    template: ChatTemplate | TemplateFailed
    output_format: OutputFormat


class ModelTemplates:
    """The templates of one model. `given` is that of the YAML file, and raises ModelFailed if it is not valid.

    A model without any chats in ChatML, and its answers also end at ChatML's mark, which may be no control token of it. Any
    other template that is not valid fails the chats that need it: the model still completes texts and embeds.
    `warning` is for the operator.
    """

    def __init__(self, tokenizer: Tokenizer, given: str | None, *, max_characters: int) -> None:
        self._tokenizer = tokenizer
        self._max_characters = max_characters
        self.warning: str | None = None
        tool_source = None if given else tokenizer.tool_template
        own = given or tokenizer.chat_template or tool_source
        source = own or CHATML
        if not own:
            self.warning = _NO_TEMPLATE
        try:
            if given and "{" not in given:
                raise TemplateFailed("it is no Jinja. Give the text of a template, not its name or path")
            template: ChatTemplate | TemplateFailed = self._compile(source)
        except TemplateFailed as error:
            if given:
                raise ModelFailed(f"The chat_template of the model's YAML file is not valid: {error}") from None
            self.warning = f"The chat template of the model's GGUF is not valid: {error}. {_ADVICE}"
            template = TemplateFailed(self.warning, param="messages")
        self._default = self._with_tools = TemplateInUse(
            template, OutputFormat(tokenizer, source, turn_ends=() if own else (CHATML_END,))
        )
        if tool_source and tool_source != source:
            self._add_tool_template(tool_source)
        sources = source if self._with_tools is self._default else f"{source}\0{tool_source}"
        self.hash = hashlib.sha256(sources.encode()).hexdigest()

    def select(self, *, has_tools: bool) -> TemplateInUse:
        """Return the template for a request with or without tools."""
        return self._with_tools if has_tools else self._default

    def _add_tool_template(self, source: str) -> None:
        try:
            self._with_tools = TemplateInUse(self._compile(source), OutputFormat(self._tokenizer, source))
        except TemplateFailed as error:
            reason = f"The template `tool_use` of the model's GGUF is not valid, and is not used: {error}. {_ADVICE}"
            self.warning = f"{self.warning} {reason}" if self.warning else reason

    def _compile(self, source: str) -> ChatTemplate:
        return ChatTemplate(
            source,
            bos_text=self._tokenizer.bos_text,
            eos_text=self._tokenizer.eos_text,
            max_characters=self._max_characters,
        )
