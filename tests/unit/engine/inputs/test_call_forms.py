from __future__ import annotations

from typing import Any

import pytest

from engine.inputs.call_forms import call_forms

USER = {"role": "user", "content": "hi"}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f"}}


def turn(arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


def forms_of(arguments: Any) -> list[Any]:
    """The arguments of a call in each form."""
    given = turn(arguments)
    forms = [messages[1]["tool_calls"][0]["function"]["arguments"] for messages, _ in call_forms([USER, given], [])]
    assert given == turn(arguments), "the request is not changed"
    return forms


@pytest.mark.parametrize(
    ("arguments", "forms"),
    [
        ('{"city": "Bern"}', [{"city": "Bern"}, '{"city": "Bern"}']),
        ({"city": "Zürich"}, [{"city": "Zürich"}, '{"city": "Zürich"}']),
        ("", [{}, ""]),
        (None, [{}, "{}"]),
        ('{"city": "Be', ['{"city": "Be', {"city": "Be"}]),
        ('{"n": 1, "city', ['{"n": 1, "city', {"n": 1}]),
        ("Bern", ["Bern", {}]),
        ('["Bern"]', [["Bern"], '["Bern"]', {}]),
        ('{"a": "\\ud83d"}', ['{"a": "\\ud83d"}', {}]),
        ("[" * 100_000, ["[" * 100_000, {}]),
    ],
    ids=[
        "object",
        "already one",
        "empty",
        "null",
        "cut",
        "cut in a key",
        "a word",
        "a list",
        "a lone surrogate",
        "deep",
    ],
)
def test_arguments_have_the_usual_form_first(arguments: Any, forms: list[Any]) -> None:
    assert forms_of(arguments) == forms


def test_tools_are_completed_only_for_templates_that_need_it() -> None:
    (_, first), (_, second) = call_forms([USER], [TOOL])
    assert first == [TOOL]
    function = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}
    assert second == [{"type": "function", "function": function}]


def test_a_conversation_without_calls_and_tools_has_one_form() -> None:
    assert list(call_forms([USER], [])) == [([USER], [])]
