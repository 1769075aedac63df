"""Chat templates: from messages to the text a model was trained on.

Knows Jinja and strings. Templates come from the GGUF or from the operator, never from a request; they run in a sandbox, and
a render is cut off when it is too long or takes too long (checked between pieces: one endless expression is not caught).
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

from engine.errors import TemplateFailed

# Of models that bring no template: the one most others follow.
CHATML: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_RENDER_SECONDS: Final = 2.0

Message = dict[str, Any]  # Any: the fields a template may use


class ChatTemplate:
    """One compiled template."""

    def __init__(self, source: str | None, *, bos_text: str, eos_text: str, max_characters: int) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_raise, strftime_now=_strftime_now)
        try:
            self._template = environment.from_string(source or CHATML)
        except jinja2.TemplateError as error:
            raise TemplateFailed(f"The model's chat template is not valid: {error}") from None
        self._tokens = {"bos_token": bos_text, "eos_token": eos_text}
        self._max_characters = max_characters

    def render(self, messages: list[Message], template_kwargs: dict[str, Any]) -> str:
        """The prompt, ready for the assistant to speak."""
        values = {**template_kwargs, "messages": _with_parsed_arguments(messages), "add_generation_prompt": True}
        parts, length, deadline = [], 0, time.monotonic() + _RENDER_SECONDS
        try:
            for part in self._template.generate({**values, **self._tokens}):
                parts.append(part)
                length += len(part)
                if length > self._max_characters or time.monotonic() > deadline:
                    raise TemplateFailed("The rendered prompt is too long.", param="messages")
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            reason = str(error) or type(error).__name__
            message = f"The model's chat template does not accept these messages: {reason}"
            raise TemplateFailed(message, param="messages") from None
        return "".join(parts)


def _with_parsed_arguments(messages: list[Message]) -> list[Message]:
    """Templates expect the arguments of tool calls as objects; OpenAI sends them as strings."""
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


def _to_json(value: Any, indent: int | None = None) -> str:  # Any: whatever the template holds
    """Without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
