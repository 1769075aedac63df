"""Content reaches the model in whatever form its template takes it."""

from __future__ import annotations

from typing import Any

import pytest

from engine.inputs.chat_template import CHATML, ChatTemplate

PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
TEXT = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
BOTH = """\
{%- for m in messages -%}
[{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{{ part.text }};{% endfor %}{% endif %}]
{%- endfor %}"""
ONLY_PARTS = "{% for m in messages %}[{% for part in m.content %}{{ part.text }};{% endfor %}]{% endfor %}"
FIRST_PART = "{% for m in messages %}[{{ m.content if m.content is string else m.content[0].text }}]{% endfor %}"
IN_JSON = "{% for m in messages %}[{{ m.content if m.content is string else m.content | tojson }}]{% endfor %}"
BOTH_OF_USERS = BOTH.replace("m.content is string", "m.content is string or m.role != 'user'")


def render(source: str, content: Any, role: str = "user") -> str:
    template = ChatTemplate(source, bos_text="", eos_text="", max_characters=10_000)
    message = {"role": role, "content": content}
    return template.render([template.content_forms.convert(message, joins=lambda _: False)], {})


@pytest.mark.parametrize(
    ("source", "text", "parts"),
    [
        (TEXT, "[one]", "[one\ntwo]"),
        (BOTH, "[one]", "[one;two;]"),
        (ONLY_PARTS, "[one;]", "[one;two;]"),
        (FIRST_PART, "[one]", "[one\ntwo]"),
        (IN_JSON, "[one]", "[one\ntwo]"),
    ],
    ids=["text", "both", "only parts", "first part", "JSON of parts"],
)
def test_content_has_a_form_that_the_template_shows(source: str, text: str, parts: str) -> None:
    assert render(source, "one") == text
    assert render(source, PARTS) == parts
    assert render(source, PARTS, "assistant") == parts
    assert render(source, PARTS, "tool") == parts


def test_each_role_has_its_own_forms() -> None:
    assert render(BOTH_OF_USERS, PARTS) == "[one;two;]"
    assert render(BOTH_OF_USERS, PARTS, "system") == "[one\ntwo]"


def test_parts_for_chatml_are_lines() -> None:
    assert render(CHATML, PARTS).startswith("<|im_start|>user\none\ntwo<|im_end|>")


@pytest.mark.parametrize(("source", "joined"), [(BOTH, "[one\ntwo]"), (ONLY_PARTS, "[one\ntwo;]")])
def test_parts_that_must_not_touch_are_joined_with_a_line_break(source: str, joined: str) -> None:
    template = ChatTemplate(source, bos_text="", eos_text="", max_characters=10_000)
    message = {"role": "user", "content": PARTS}
    assert template.render([template.content_forms.convert(message, joins=lambda texts: len(texts) == 2)], {}) == joined
