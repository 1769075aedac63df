"""Content forms: the forms of a message's content that a chat template shows to the model, for each role.

OpenAI's content is a text or a list of text parts. Most templates expect a text, some accept both, a few only lists. A template
given another form than it expects may fail, show the list as Python prints it, or leave the content out.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Flag, auto
from typing import Any, Final

Message = dict[str, Any]  # Any: the fields a template may use

_ROLES: Final = ("system", "user", "assistant", "tool")
_FIRST: Final = "FirstPart"
_SECOND: Final = "SecondPart"
_KEY: Final = "key_of_a_part"  # shown only where a list is printed as it is
_PARTS: Final = [{"type": "text", "text": text, _KEY: ""} for text in (_FIRST, _SECOND)]


class Form(Flag):
    """Forms of content."""

    TEXT = auto()
    PARTS = auto()


class ContentForms:
    """The forms that a template accepts, found out by rendering short conversations with `render`."""

    def __init__(self, render: Callable[[list[Message]], str]) -> None:
        self._by_role = {role: _forms_of(role, render) for role in _ROLES}

    def convert(self, message: Message, *, joins: Callable[[list[str]], bool]) -> Message:
        """Return the message with its content in a form that the template shows.

        Parts are joined with a line break, unless the template joins them itself. Those for which `joins` holds are joined too.
        """
        content, forms = message["content"], self._by_role.get(message["role"], Form.TEXT)
        if isinstance(content, list):
            texts = [part["text"] for part in content]
            if Form.PARTS in forms and not joins(texts):
                return message
            content = "\n".join(texts)
        return {**message, "content": content if Form.TEXT in forms else [{"type": "text", "text": content}]}


def _forms_of(role: str, render: Callable[[list[Message]], str]) -> Form:
    """A form is accepted if all of its text is shown and nothing else of it; without any, it is TEXT."""
    parts = render(_conversation(role, _PARTS))
    shows_parts = -1 < parts.find(_FIRST) < parts.find(_SECOND) and _KEY not in parts
    shows_text = _FIRST in render(_conversation(role, _FIRST))
    if not shows_parts:
        return Form.TEXT
    return Form.TEXT | Form.PARTS if shows_text else Form.PARTS


def _conversation(role: str, content: object) -> list[Message]:
    message: Message = {"role": role, "content": content}
    question: Message = {"role": "user", "content": "Hello"}
    match role:
        case "user":
            return [message]
        case "system":
            return [message, question]
        case "assistant":
            return [question, message, question]
    function = {"name": "search", "arguments": {"for": "it"}}
    calls = [{"id": "a1b2c3d4e", "type": "function", "function": function}]  # some templates want ids of this length
    call: Message = {"role": "assistant", "content": "", "tool_calls": calls}
    return [question, call, {**message, "tool_call_id": "a1b2c3d4e", "name": "search"}]
