"""Chat templates: render messages into the text format that a model was trained on.

Templates come from the GGUF or from the operator, never from a request. They run in Jinja's sandbox, and a render stops when
it is longer than any context or takes too long. Both are checked between pieces, so one endless expression is not caught.
"""

from __future__ import annotations

import time
from typing import Any, Final

from engine.errors import EngineError, PromptTooLong, TemplateFailed, TemplateTooSlow
from engine.inputs.content_forms import ContentForms, Message
from engine.inputs.jinja_environment import TEMPLATE_ERRORS, AbsentTools, compile_template
from engine.outputs.tool_formats import shows_tools

# For models without a template: the most common one.
CHATML: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML_END: Final = "<|im_end|>"
_RENDER_SECONDS: Final = 2.0
_PROBE_CHARACTERS: Final = 1 << 16

_NO_TOOLS: Final = (
    "This model's chat template does not show tools to the model, so it cannot call any. "
    "Leave out 'tools', set 'tool_choice' to 'none', or use another model."
)

ToolObject = dict[str, Any]  # Any: OpenAI's tool object


class ChatTemplate:
    """A compiled template; `source` is its text, and `content_forms` the forms of content that it accepts.

    Raises TemplateFailed if it cannot be compiled.
    """

    def __init__(self, source: str | None, *, bos_text: str, eos_text: str, max_characters: int) -> None:
        self.source = source or CHATML
        self._template = compile_template(self.source)
        self._tokens = {"bos_token": bos_text, "eos_token": eos_text}
        self._max_characters = min(max_characters, _PROBE_CHARACTERS)
        self.content_forms = ContentForms(self._probe)
        self._max_characters = max_characters

    def render(
        self,
        messages: list[Message],
        template_kwargs: dict[str, Any],  # Any: values of a template
        tools: list[ToolObject] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """Render the prompt, by default up to the beginning of the assistant's turn.

        Raises PromptTooLong, and TemplateFailed, also for tools that the template ignores.
        """
        if tools and not shows_tools(self.source):
            raise TemplateFailed(_NO_TOOLS, param="tools")
        values = {
            **template_kwargs,
            **self._tokens,
            "messages": messages,
            "tools": tools or AbsentTools(name="tools"),
            "add_generation_prompt": add_generation_prompt,
        }
        parts, length, deadline = [], 0, time.monotonic() + _RENDER_SECONDS
        try:
            for part in self._template.generate(values):
                parts.append(part)
                length += len(part)
                if length > self._max_characters:
                    most = self._max_characters
                    message = f"The prompt has more than {most} characters, more than this model's context holds."
                    raise PromptTooLong(f"{message} Shorten the messages.", param="messages")
                if time.monotonic() > deadline:
                    raise TemplateTooSlow(param="messages")
        except TEMPLATE_ERRORS as error:
            reason = str(error) or type(error).__name__
            message = f"The model's chat template does not accept these messages: {reason}"
            raise TemplateFailed(message, param="messages") from None
        return "".join(parts)

    def _probe(self, messages: list[Message]) -> str:
        """Render messages that are made up; an empty text if the template does not accept them."""
        try:
            return self.render(messages, {})
        except EngineError:
            return ""
