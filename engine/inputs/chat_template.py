"""Chat templates: render messages into the text format that a model was trained on.

Templates come from the GGUF or from the operator, never from a request. They run in Jinja's sandbox, and a render stops when
it is longer than any context or takes too long. Both are checked between pieces, so one endless expression is not caught.
"""

from __future__ import annotations

import copy
import json
import time
from datetime import datetime
from typing import Any, Final, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.errors import PromptTooLong, TemplateFailed
from engine.outputs.tool_formats import shows_tools

# For models without a template: the most common one.
CHATML: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_RENDER_SECONDS: Final = 2.0

_NO_TOOLS: Final = (
    "This model's chat template does not show tools to the model, so it cannot call any. "
    "Leave out 'tools', set 'tool_choice' to 'none', or use another model."
)

Message = dict[str, Any]  # Any: the fields a template may use
ToolObject = dict[str, Any]  # Any: OpenAI's tool object


class ChatTemplate:
    """A compiled template; `source` is its text."""

    def __init__(self, source: str | None, *, bos_text: str, eos_text: str, max_characters: int) -> None:
        self.source = source or CHATML
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_raise, strftime_now=_strftime_now)
        try:
            self._template = environment.from_string(self.source)
        except jinja2.TemplateError as error:
            raise TemplateFailed(f"The model's chat template is not valid: {error}") from None
        self._tokens = {"bos_token": bos_text, "eos_token": eos_text}
        self._max_characters = max_characters

    def render(
        self, messages: list[Message], template_kwargs: dict[str, Any], tools: list[ToolObject] | None = None
    ) -> str:
        """Render the prompt up to the beginning of the assistant's turn.

        Raises PromptTooLong, and TemplateFailed, also for tools that the template ignores.
        """
        if tools and not shows_tools(self.source):
            raise TemplateFailed(_NO_TOOLS, param="tools")
        values = {**template_kwargs, **self._tokens, "messages": messages, "tools": tools or None}
        parts, length, deadline = [], 0, time.monotonic() + _RENDER_SECONDS
        try:
            for part in self._template.generate(values, add_generation_prompt=True):
                parts.append(part)
                length += len(part)
                if length > self._max_characters:
                    most = self._max_characters
                    message = f"The prompt has more than {most} characters, more than this model's context holds."
                    raise PromptTooLong(f"{message} Shorten the messages.", param="messages")
                if time.monotonic() > deadline:
                    raise TemplateFailed(
                        "The model's chat template takes too long for these messages.", param="messages"
                    )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            reason = str(error) or type(error).__name__
            message = f"The model's chat template does not accept these messages: {reason}"
            raise TemplateFailed(message, param="messages") from None
        return "".join(parts)


def with_parsed_arguments(messages: list[Message]) -> list[Message]:
    """Parse the arguments of tool calls, which OpenAI sends as strings and templates expect as objects."""
    if not any(message.get("tool_calls") for message in messages):
        return messages
    messages = copy.deepcopy(messages)
    for message in messages:
        for call in message.get("tool_calls") or ():
            function = call.get("function")
            if isinstance(function, dict) and isinstance(function.get("arguments"), str):
                try:
                    function["arguments"] = json.loads(function["arguments"] or "{}")
                except ValueError:
                    raise TemplateFailed("The arguments of a tool call are not JSON.", param="messages") from None
    return messages


def _to_json(
    value: Any,  # Any: any value of a template
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Replace Jinja's filter: no HTML escapes, and the parameters that templates of model files use."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
