"""Prompt encoder: convert a request's prompt to token ids, so that the text of a request never becomes a control token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from engine.errors import InvalidPrompt, PromptTooLong, TemplateFailed, TemplateTooSlow
from engine.inputs.call_forms import call_forms
from engine.inputs.chat_template import ChatTemplate
from engine.inputs.content_forms import Message
from engine.inputs.model_templates import ModelTemplates, TemplateInUse
from engine.inputs.special_text import END_MARK, Fragment, SpecialText
from engine.outputs.output_stream import OutputSpec
from engine.tokenizer import Tokenizer, check_token_ids
from engine.types import ChatPrompt, Request, TextPrompt, TokenPrompt, ToolMode

_MIN_CHARACTERS: Final = 1 << 16


class PromptEncoder:
    """Encodes the prompts of one model, whose templates are in `templates`. Safe to use beside the decoding thread.

    Raises ModelFailed for a `template` that is not valid.
    """

    def __init__(self, tokenizer: Tokenizer, *, template: str | None, context_size: int) -> None:
        self._tokenizer = tokenizer
        self._context_size = context_size
        self.templates = ModelTemplates(tokenizer, template, max_characters=max(_MIN_CHARACTERS, 64 * context_size))
        self._special = SpecialText(tokenizer.special_texts)

    def encode(self, request: Request) -> list[int]:
        """Return the token ids of a prompt: at least one, with room for an answer if there is one. Raises an EngineError."""
        check_token_ids(request.sampling.logit_bias, self._tokenizer.num_vocab, param="logit_bias")
        match request.prompt:
            case ChatPrompt() as chat:
                tokens = self._chat(request, chat)
            case TextPrompt(text=text):
                tokens = self._tokenizer.encode(text, special=False, add_bos=True)
            case TokenPrompt(tokens=tokens):
                check_token_ids(tokens, self._tokenizer.num_vocab, param="prompt")
        if not tokens:
            raise InvalidPrompt("The prompt is empty.", param="messages")
        if len(tokens) >= self._context_size and not request.only_counts:
            raise PromptTooLong(
                f"The prompt has {len(tokens)} tokens, and this model's context holds {self._context_size} "
                "with the answer. Shorten the messages.",
                param="messages",
            )
        return list(tokens)

    def output_spec(self, request: Request, prompt: Sequence[int], stopwords: Iterable[str] = ()) -> OutputSpec:
        """Make the output spec of a request with these prompt tokens; raises InvalidPrompt for tools that cannot be called."""
        return self._in_use(request).output_format.spec(request, prompt, stopwords)

    def _in_use(self, request: Request) -> TemplateInUse:
        return self.templates.select(has_tools=bool(_shown_tools(request)))

    def _chat(self, request: Request, chat: ChatPrompt) -> list[int]:
        template = self._in_use(request).template
        if isinstance(template, TemplateFailed):
            raise TemplateFailed(str(template), param=template.param)
        join = self._special.is_made_by_joining
        messages = [template.content_forms.convert(message, joins=join) for message in chat.messages]
        first_error: TemplateFailed | None = None
        for called, tools in call_forms(messages, _shown_tools(request)):
            try:
                return self._encode_fragments(self._render(template, chat, called, tools))
            except TemplateTooSlow:
                raise
            except TemplateFailed as error:
                first_error = first_error or error
        assert first_error is not None, "there is at least one form"
        raise first_error

    def _render(
        self, template: ChatTemplate, chat: ChatPrompt, messages: list[Message], tools: list[dict[str, Any]]
    ) -> list[Fragment]:
        values: list[Any] = [messages, chat.template_kwargs, tools]  # Any: JSON
        if not self._special.is_in(values):
            return [Fragment(_render(template, chat, *values))]
        values = self._special.without_marks(values)
        enclosed = self._special.enclose(values)
        return self._special.fragments(_render(template, chat, *values), _render(template, chat, *enclosed))

    def _encode_fragments(self, fragments: list[Fragment]) -> list[int]:
        bos = self._tokenizer.bos_text
        add_bos = not (bos and fragments[0].text.startswith(bos))
        tokens: list[int] = []
        for index, (text, is_plain) in enumerate(fragments):
            if text or index == 0:
                # behind a control token, which has no bytes, text begins as at the start of a prompt
                continues = bool(tokens) and bool(self._tokenizer.piece(tokens[-1]))
                tokens += self._tokenizer.encode(
                    text, special=not is_plain, add_bos=add_bos and index == 0, continues=continues
                )
        return tokens


def _shown_tools(request: Request) -> list[dict[str, Any]]:  # Any: OpenAI's tool objects
    if not isinstance(request.prompt, ChatPrompt) or request.tool_choice.mode is ToolMode.NONE:
        return []
    return request.prompt.tools


def _render(
    template: ChatTemplate,
    chat: ChatPrompt,
    messages: list[Message],
    template_kwargs: dict[str, Any],  # Any: booleans and short strings
    tools: list[dict[str, Any]],  # Any: OpenAI's tool objects
) -> str:
    """Render a chat: up to the beginning of the next turn, or to the end of the last message, which the answer continues."""
    if not chat.continue_final_message:
        return template.render(messages, template_kwargs, tools, add_generation_prompt=chat.add_generation_prompt)
    # a template that trims the message takes the space behind the mark, so the prompt has to be trimmed too
    marked = [*messages[:-1], _with_end(messages[-1], f"{END_MARK} ")]
    rendered = template.render(marked, template_kwargs, tools, add_generation_prompt=False)
    text, mark, rest = rendered.rpartition(END_MARK)
    if not mark:
        raise TemplateFailed(
            "The model's chat template does not show the last message, so it cannot be continued.",
            param="continue_final_message",
        )
    return text if rest.startswith(" ") else text.rstrip()


def _with_end(message: Message, end: str) -> Message:
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": content + end}
    *parts, last = content
    return {**message, "content": [*parts, {**last, "text": last["text"] + end}]}
